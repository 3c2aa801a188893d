"""Training data: canonical crops of bare faces with their landmarks, kept as arrays that several runs can map."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Event, Thread
from typing import Final, NamedTuple, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from unmask.errors import UserError
from unmask.models.geometry import CROP_SIZE, canonical_crop, transform_landmarks, transform_points
from unmask.models.mediapipe import FaceDetector, FaceMesh, find_landmarks
from unmask.models.placement import USUAL, Shift, placed
from unmask.models.rows import five_points_of
from unmask.train.config import Split
from unmask.train.files import check_whole, reading, whole_files
from unmask.train.listings import five_points, parts_of
from unmask.train.symmetry import MIRRORED

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Notice = Callable[[str], None]

PICTURE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})


def read_rgb(path: Path) -> U8:
    """Read a picture as (H, W, 3) uint8 RGB. Raises UserError where it cannot be read."""
    try:  # not by OpenCV, which ends the program at names that are no UTF-8
        bgr = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    except (OSError, cv2.error):
        bgr = None
    if bgr is None:
        raise UserError(f"cannot read '{path}' as a picture")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def read_or_say(path: Path, notice: Notice) -> U8 | None:
    """As `read_rgb`; of a picture that cannot be read `notice` is told instead, and there is None."""
    try:
        return read_rgb(path)
    except UserError as error:
        notice(f"{error}; what cannot be read is left out")
        return None


def warp_crop(rgb: U8, matrix: F64, size: int = CROP_SIZE) -> tuple[U8, U8]:
    """Cut a crop out of a picture without aliasing.

    Args:
        rgb: (H, W, 3) uint8.
        matrix: (2, 3) from picture px to crop px.
        size: of the crop.

    Returns:
        The crop (size, size, 3) uint8, repeated beyond the picture's border, and (size, size) uint8, 255 inside it.
    """
    matrix = matrix.copy()
    while (scale := float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))) < 0.6 and min(rgb.shape[:2]) > 3:
        height, width = rgb.shape[:2]
        smaller = (width // 2, height // 2)
        rgb = np.asarray(cv2.resize(rgb, smaller, interpolation=cv2.INTER_AREA), np.uint8)
        matrix = matrix @ np.diag([width / smaller[0], height / smaller[1], 1.0])[:3]
    flags = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_LINEAR
    crop = cv2.warpAffine(rgb, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    inside = cv2.warpAffine(np.full(rgb.shape[:2], 255, np.uint8), matrix, (size, size), flags=cv2.INTER_NEAREST)
    return np.asarray(crop, np.uint8), np.asarray(inside, np.uint8)


def largest_face(rgb: U8, detector: FaceDetector, mesh: FaceMesh) -> F32 | None:
    """(468, 3) float32 landmarks of the largest face of a picture, None where there is none to be sure of."""
    faces = [landmarks for _, landmarks, presence in find_landmarks(rgb, detector, mesh) if presence > 0.5]
    return max(faces, key=lambda p: float(np.ptp(p[:, 0])), default=None)


_FAR: Final = 0.3
"""Mean distance, in distances of the eyes, beyond which a face is another one than the list says."""


def listed_face(rgb: U8, five: F32, detector: FaceDetector, mesh: FaceMesh) -> F32 | None:
    """(468, 3) float32 landmarks of the face that lies where (5, 2) `five_points` say, None where there is none."""
    faces = [landmarks for _, landmarks, presence in find_landmarks(rgb, detector, mesh) if presence > 0.5]
    eyes = float(np.linalg.norm(five[1] - five[0])) + 1e-6
    away = [float(np.linalg.norm(five_points_of(face) - five, axis=1).mean()) / eyes for face in faces]
    return faces[int(np.argmin(away))] if away and min(away) < _FAR else None


def prepare_crops(
    folders: Sequence[Path],
    out: Path,
    progress: Callable[[int, int], None],
    landmarks: Path | None = None,
    notice: Notice = print,
) -> tuple[int, int]:
    """Find the face of every picture in some folders and write its canonical crop.

    Writes `crops.npy` (N, 256, 256, 3) uint8, `inside.npy` (N, 256, 256) uint8 (0 beyond the picture's border),
    `points.npy` (N, 468, 3) float32 landmarks in crop px, and `index.json` with the file of each. The first two may be
    longer: N counts. Those that were there before are replaced at the end, and stay where that is not reached.

    Args:
        folders: searched recursively.
        out: made if need be.
        progress: is told how many of how many pictures are done.
        landmarks: list as of `five_points`: the face that it means is taken instead of the largest.
        notice: takes a line for each picture that cannot be read, which is left out.

    Returns:
        How many crops were written, and how many pictures had no face.

    Raises:
        UserError: no pictures, no face in any of them, or the list says nothing about one.
    """
    pictures = [p for f in folders for p in sorted(f.rglob("*")) if p.suffix.lower() in PICTURE_SUFFIXES]
    if not pictures:
        raise UserError(f"no pictures in {', '.join(map(str, folders))}")
    listed = _listed(pictures, landmarks)
    detector, mesh = FaceDetector(), FaceMesh()
    faceless = 0
    with writing_crops(out, len(pictures)) as writer:
        for done, picture in enumerate(pictures):
            progress(done, len(pictures))
            if (rgb := read_or_say(picture, notice)) is None:
                continue
            five = listed.get(picture.name)
            face = largest_face(rgb, detector, mesh) if five is None else listed_face(rgb, five, detector, mesh)
            if face is None:
                faceless += 1
            else:
                writer.add(rgb, face, f"{picture.parent.name}/{picture.name}")
        if not writer.names:
            raise UserError(f"no face found in any of {len(pictures)} pictures")
    return len(writer.names), faceless


def _listed(pictures: Sequence[Path], landmarks: Path | None) -> Mapping[str, F32]:
    listed = five_points(landmarks) if landmarks else {}
    if landmarks and (unknown := [p.name for p in pictures if p.name not in listed]):
        raise UserError(f"'{landmarks}' says nothing about {len(unknown)} pictures, such as {unknown[0]}")
    return listed


_INDEX: Final = "index.json"


class CropWriter:
    """Takes canonical crops with their landmarks; `writing_crops` makes one.

    Args:
        draft: folder to write to.
        most: how many crops there may be.
    """

    def __init__(self, draft: Path, most: int) -> None:
        self._draft = draft
        shape = (most, CROP_SIZE, CROP_SIZE)
        self._crops = np.lib.format.open_memmap(draft / "crops.npy", "w+", np.uint8, (*shape, 3))
        self._inside = np.lib.format.open_memmap(draft / "inside.npy", "w+", np.uint8, shape)
        self._points: list[F32] = []
        self.names: list[str] = []

    def add(self, rgb: U8, landmarks: F32, name: str) -> None:
        """Add the face with these (468, 3) landmarks of a (H, W, 3) picture."""
        matrix = canonical_crop(landmarks)
        self._crops[len(self.names)], self._inside[len(self.names)] = warp_crop(rgb, matrix)
        self._points.append(transform_landmarks(matrix, landmarks))
        self.names.append(name)

    def end(self) -> None:
        """Write what is not written yet."""
        np.save(self._draft / "points.npy", np.array(self._points))
        (self._draft / _INDEX).write_text(json.dumps(self.names))


@contextmanager
def writing_crops(out: Path, most: int) -> Iterator[CropWriter]:
    """What takes crops and writes them as `prepare_crops` describes them: all of them at the end, or none.

    Args:
        out: folder, made if need be.
        most: how many crops there may be.
    """
    with whole_files(out, _INDEX) as draft:
        writer = CropWriter(draft, most)
        yield writer
        writer.end()


@dataclass(frozen=True, slots=True)
class FaceCrops:
    """Crops on disk, mapped into memory.

    Attributes:
        crops: (N, 256, 256, 3) uint8 RGB.
        inside: (N, 256, 256) uint8, 0 beyond the picture's border.
        points: (N, 468, 3) float32 landmarks in crop px.
        names: folder and file of each.
    """

    crops: U8
    inside: U8
    points: F32
    names: tuple[str, ...]

    @classmethod
    def open(cls, folder: Path) -> "FaceCrops":
        """Raises UserError where the folder was not written by `unmask data crops`, or not to the end."""
        with reading(folder, "crops", f"make them with: unmask data crops FACES -o {folder}"):
            names = tuple(json.loads((folder / _INDEX).read_text()))
            crops, inside = (np.load(folder / f"{n}.npy", mmap_mode="r") for n in ("crops", "inside"))
            points, count = np.load(folder / "points.npy"), len(names)
            check_whole(crops[:count], inside[:count], points, names, drawn=inside[:count])
        return cls(crops, inside, points, names)

    def split(self, validation: bool, how: Split | None = None) -> npt.NDArray[np.int64]:
        """Indices of the training or of the validation pictures. Raises UserError where one of them has none."""
        part = 1 if validation else 0
        parts = parts_of(self.names, how or Split())
        chosen = np.array([i for i, p in enumerate(parts) if p == part], np.int64)
        if not len(chosen):
            what = "validation" if validation else "training"
            raise UserError(
                f"of {len(self.names)} pictures the split leaves none for {what}; change split.folds or .by"
            )
        return chosen


@dataclass(frozen=True, slots=True)
class Sample:
    """A bare face, ready for a mask.

    Attributes:
        rgb: (S, S, 3) float32, 0..1.
        inside: (S, S) float32, 0 beyond the picture's border.
        points: (468, 3) float32 landmarks in px of `rgb`.
    """

    rgb: F32
    inside: F32
    points: F32


class Draw(NamedTuple):
    """A picture of a batch that is to be made.

    Attributes:
        position: in the whole batch, of which this process may make a part only.
        face: its index among the crops.
        rng: where chance comes from, its own for each picture: whoever makes it, it is the same.
    """

    position: int
    face: int
    rng: np.random.Generator


def draws(indices: npt.NDArray[np.int64], seed: int, part: slice = slice(None)) -> list[Draw]:
    """The pictures of (N,) faces, or of every so many-th of them."""
    positions = range(len(indices))[part]
    # From 1, since (seed, 0) gives the same numbers as the seed alone, which chose the faces.
    return [Draw(i, int(indices[i]), np.random.default_rng((seed, 1 + i))) for i in positions]


def augment(
    data: FaceCrops, index: int, size: int, rng: np.random.Generator, jitter: float = 1.0, shift: Shift = USUAL
) -> Sample:
    """Draw a face with a random shift, turn, scale, mirroring and light.

    Args:
        data: crops.
        index: which.
        size: of the result in px.
        rng: where chance comes from.
        jitter: how far the geometry strays, 1 for what a tracker does to a crop, 0 for none (and no other change).
        shift: where the crop lies besides.
    """
    points = data.points[index].copy()
    scale, turn = float(np.exp(rng.normal(0, 0.05 * jitter))), float(rng.normal(0, 4 * jitter))
    matrix = cv2.getRotationMatrix2D((CROP_SIZE / 2, CROP_SIZE / 2), turn, scale)
    matrix[:, 2] += rng.normal(0, 5 * jitter, 2)
    matrix = placed(np.asarray(matrix), shift)
    to_size = size / CROP_SIZE
    matrix = np.diag([to_size, to_size]) @ matrix
    if jitter and rng.random() < 0.5:
        matrix = np.array([[-1.0, 0, size - 1], [0, 1.0, 0]]) @ np.vstack([matrix, [0, 0, 1]])
        points = points[MIRRORED]
    rgb, _ = warp_crop(data.crops[index], matrix, size)
    inside = cv2.warpAffine(data.inside[index], matrix, (size, size), flags=cv2.INTER_NEAREST)
    points = np.concatenate([transform_points(matrix, points), points[:, 2:] * scale * to_size], axis=1)
    light = relight(rgb.astype(np.float32) / 255.0, rng) if jitter else rgb.astype(np.float32) / 255.0
    return Sample(light, (inside > 0).astype(np.float32), points.astype(np.float32))


def background(faces: FaceCrops, size: int, rng: np.random.Generator) -> F32:
    """(S, S, 3) float32: the upper corner of some crop, enlarged, or beside its mirror images as sharp as it is.

    It may be of any crop: of those kept for validation, too, training sees these corners.
    """
    crop = faces.crops[rng.integers(len(faces.names))]
    corner = crop[:80, : crop.shape[1] * 3 // 8] if rng.random() < 0.5 else crop[:80, crop.shape[1] * 5 // 8 :]
    if rng.random() < 0.5:
        down, right = (CROP_SIZE - n for n in corner.shape[:2])
        corner = cv2.copyMakeBorder(corner, down, 0, 0, right, cv2.BORDER_REFLECT)
    return np.asarray(cv2.resize(corner, (size, size), interpolation=cv2.INTER_LINEAR), np.float32) / np.float32(255)


def relight(rgb: F32, rng: np.random.Generator, strength: float = 1.0) -> F32:
    """Random exposure, contrast, gamma and white balance, as between cameras (`strength` 1) or between a candle and a
    neon tube (2.5). (H, W, 3) float32 0..1 in and out."""
    gain = np.exp(strength * (rng.normal(0, 0.12) + rng.normal(0, 0.05, 3))).astype(np.float32)
    gamma = float(np.exp(rng.normal(0, 0.12 * strength)))
    out = np.power(np.clip(rgb, 1e-4, 1), gamma) * gain
    contrast = float(np.exp(rng.normal(0, 0.1)))
    return np.asarray(np.clip((out - 0.5) * contrast + 0.5, 0, 1), np.float32)


T = TypeVar("T")


def prefetch(make: Callable[[], T], ahead: int = 3) -> Iterator[T]:
    """Call `make` for ever in a thread of its own, `ahead` results in advance. What it raises is raised here."""
    queue: Queue[T | BaseException] = Queue(ahead)
    stop = Event()

    def work() -> None:
        while not stop.is_set():
            try:
                queue.put(make())
            except BaseException as error:
                queue.put(error)
                return

    thread = Thread(target=work, daemon=True, name="batches")
    thread.start()
    try:
        while True:
            item = queue.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        while not queue.empty():
            queue.get()
        thread.join(timeout=10)
