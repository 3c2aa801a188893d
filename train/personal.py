"""Makes a personal model: views of somebody's bare face, and, from enough of them, a small change of the inpainter."""

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from unmask.errors import UserError
from unmask.models.mediapipe import FaceDetector, FaceMesh
from unmask.models.person import BASE_KEY, base_hash, views_to_tensors
from unmask.models.seen import Seen, Views
from unmask.train.data import PICTURE_SUFFIXES, CropWriter, FaceCrops, largest_face, read_rgb, writing_crops
from unmask.train.files import ended_like_ctrl_c, missing_packages
from unmask.train.mask_judge import MaskJudge
from unmask.train.video import VIDEO_SUFFIXES, spread_frames

if TYPE_CHECKING:
    from unmask.train.adapters import Learnt

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]
Notice = Callable[[str], None]

MOST_BYTES: Final = 2_000_000
"""Of the file."""
MOST_FACES: Final = 240
"""From one video: more of the same minute teach nothing new."""
FEWEST_FACES: Final = 8
"""From fewer nothing is learnt; their views are kept."""
_EYES: Final = (33, 263)
"""Landmarks at the outer corners of the eyes."""
_SMALL_PX: Final = 32
"""From one to the other; a third of what they have in a view."""
_TILTED: Final = 30.0
"""Degrees from which on a picture may lie on its side."""
_AS_LARGE: Final = 0.6
"""Of the largest face, from which on another one may have been meant."""
_HELD_OUT: Final = 8
"""One face in so many at the end of each source is kept to measure on."""


@dataclass(frozen=True, slots=True)
class Personalized:
    """What came of it.

    Attributes:
        faces: learnt from, or, where they are too few for that, only looked at.
        views: of these that the file holds.
        held_out: measured on.
        masked: left out, as they wear a mask.
        psnr: in the mask, in dB, on the faces that were held out, before and after; None where nothing was learnt.
        size: of the file in bytes.
    """

    faces: int
    views: int
    held_out: int
    masked: int
    psnr: tuple[float, float] | None
    size: int


def personalize(
    sources: Sequence[Path], out: Path, steps: int, progress: Progress, notice: Notice = print
) -> Personalized:
    """Keep views of one person's face, and fine-tune the inpainter to it where there are enough.

    Args:
        sources: videos and pictures of their bare face, or folders of them; the largest face of each is taken.
        out: file to write.
        steps: optimizer steps of four faces.
        progress: is told how many of how many steps are done.
        notice: takes a line for each file that cannot be read or gives a doubtful view, and where nothing is learnt.

    Raises:
        UserError: no bare face is found.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; nothing is written.
    """
    with ended_like_ctrl_c(), tempfile.TemporaryDirectory(prefix="unmask-person-") as name:
        folder = Path(name)
        crops, masked = collect_faces(sources, folder, notice)
        views, learnt = views_of(crops), _learnt(crops, folder, steps, progress, notice)
        change = learnt.change if learnt else {}
        tensors = {**change, **views_to_tensors(views)}
        out.write_bytes(save(tensors, {BASE_KEY: base_hash()}))  # `save_file` makes files for their owner alone
    held_out = learnt.held_out if learnt else 0
    faces, psnr = len(crops.names) - held_out, learnt.psnr if learnt else None
    return Personalized(faces, len(views.views), held_out, masked, psnr, out.stat().st_size)


def _learnt(crops: FaceCrops, folder: Path, steps: int, progress: Progress, notice: Notice) -> "Learnt | None":
    """What the inpainter learnt from the crops of a folder; None, with a line that says why, where it did not."""
    faces, missing = len(crops.names), missing_packages()
    if faces < FEWEST_FACES:
        notice(f"views alone: to learn from, {FEWEST_FACES} bare faces are needed, and {faces} found")
        return None
    if missing:
        notice(f"views alone: learning needs {', '.join(missing)}: pip install 'unmask[train]'")
        return None
    from unmask.train.adapters import learn

    return learn(folder, steps, progress)


def views_of(crops: FaceCrops) -> Views:
    """One view of a face for each direction in which it looks."""
    views = Views()
    for crop, points in zip(crops.crops[: len(crops.names)], crops.points, strict=True):
        views.add(Seen(np.ascontiguousarray(crop), points.astype(np.float32), -math.inf))
    return views


@dataclass
class _Collector:
    """Writes the largest face of each picture that it is given, if it is bare.

    Attributes:
        writer: takes the crops.
        held_out: names of those to measure on.
        masked: how many wore a mask.
        notice: takes a line for each file that gives a doubtful view.
    """

    writer: CropWriter
    notice: Notice
    held_out: list[str] = field(default_factory=list)
    masked: int = 0

    def __post_init__(self) -> None:
        self._detector, self._mesh, self._judge = FaceDetector(), FaceMesh(), MaskJudge()
        self._said: set[Path] = set()

    def add(self, source: Iterable[tuple[Path, U8]]) -> None:
        """Add the pictures of a source, each with its file; the last are held out."""
        before = len(self.writer.names)
        for file, picture in source:
            rgb, landmarks = self._upright(picture)
            if landmarks is None:
                continue
            if self._judge.wears_mask(rgb, landmarks):
                self.masked += 1
                continue
            self.writer.add(rgb, landmarks, f"{len(self.writer.names):06}")
            if file not in self._said:
                self._warn(file, rgb, landmarks)
        found = self.writer.names[before:]
        self.held_out.extend(found[len(found) - len(found) // _HELD_OUT :])

    def _upright(self, rgb: U8) -> tuple[U8, F32 | None]:
        """A picture and the landmarks of its largest face, if there is one. Of a head that seems to be tilted far the
        picture may lie on its side, and landmarks be anywhere: it is turned to where its face looks most like one."""
        landmarks = largest_face(rgb, self._detector, self._mesh)
        if landmarks is None or abs(_tilt(landmarks)) < _TILTED:
            return rgb, landmarks
        found: tuple[U8, F32 | None] = (rgb, landmarks)
        best = math.inf
        for quarters in range(4):
            turned = np.ascontiguousarray(np.rot90(rgb, quarters))
            points = largest_face(turned, self._detector, self._mesh)
            likely = None if points is None else self._judge.likely(turned, points)
            if likely is not None and likely < best:
                found, best = (turned, points), likely
        return found

    def _warn(self, file: Path, rgb: U8, landmarks: F32) -> None:
        """Say once of a file what may be wrong with the view it gives."""
        self._said.add(file)
        eyes = float(np.linalg.norm(landmarks[_EYES[0], :2] - landmarks[_EYES[1], :2]))
        if eyes < _SMALL_PX:
            self.notice(f"{file}: the face is small ({eyes:.0f} px from eye to eye), so it will look blurred")
        widths = [face.box_px[2] - face.box_px[0] for face in self._detector(rgb, 0.5)]
        if sum(width > _AS_LARGE * max(widths) for width in widths) > 1:
            self.notice(f"{file}: there are several people; the largest face is taken")


def _tilt(landmarks: F32) -> float:
    """How far the line between the eyes is from level, degrees."""
    right, down = landmarks[_EYES[1], :2] - landmarks[_EYES[0], :2]
    return float(np.degrees(np.arctan2(down, right)))


def collect_faces(sources: Sequence[Path], folder: Path, notice: Notice) -> tuple[FaceCrops, int]:
    """Write the crops of one person, and in `held-out.txt` the names of those to measure on: the last of each source.

    Args:
        sources: as for `personalize`.
        folder: to write to.
        notice: takes a line for each file that cannot be read, or gives a doubtful view.

    Returns:
        The crops, and how many faces were left out because they wear a mask.

    Raises:
        UserError: there is none, or the only file cannot be read.
    """
    files = [f for source in sources for f in (sorted(source.iterdir()) if source.is_dir() else [source])]
    videos = [f for f in files if f.suffix.lower() in VIDEO_SUFFIXES]
    pictures = [f for f in files if f.suffix.lower() in PICTURE_SUFFIXES]
    if not videos and not pictures:
        raise UserError(f"no video and no picture in {', '.join(map(str, sources))}")
    alone = len(videos) + len(pictures) == 1
    with writing_crops(folder, MOST_FACES * len(videos) + len(pictures)) as writer:
        collector = _Collector(writer, notice)
        for source in (*([video] for video in videos), pictures):
            collector.add(_pictures(source, None if alone else notice))
    if not writer.names:
        masked = f" (left out because of a mask: {collector.masked})" if collector.masked else ""
        raise UserError(f"no bare face was found{masked}; give photos or a video of the person's bare face")
    held_out = collector.held_out or writer.names[-1:]  # each source may have too few to hold one out
    (folder / "held-out.txt").write_text("".join(f"{name}\n" for name in held_out))
    return FaceCrops.open(folder), collector.masked


def _pictures(files: Sequence[Path], notice: Notice | None) -> Iterator[tuple[Path, U8]]:
    """The pictures that some files hold, with these. Of one that cannot be read `notice` is told, if there is one; else
    it is raised."""
    for file in files:
        try:
            if file.suffix.lower() in VIDEO_SUFFIXES:
                yield from ((file, rgb) for _, rgb in spread_frames(file, MOST_FACES))
            else:
                yield file, read_rgb(file)
        except UserError as error:
            if notice is None:
                raise
            notice(f"{error}; what cannot be read is left out")
