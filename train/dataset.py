"""Data sets on disk: pairs with and without a mask, a person's own from video, and what is wrong with one."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from threading import local
from typing import Final

import av
import cv2
import numpy as np
import numpy.typing as npt

from unmask.errors import UserError
from unmask.models.geometry import CROP_SIZE, canonical_crop, transform_landmarks
from unmask.models.mediapipe import FaceDetector, FaceMesh
from unmask.train.data import PICTURE_SUFFIXES, Notice, largest_face, read_or_say, read_rgb, warp_crop
from unmask.train.files import json_of, whole_files
from unmask.train.materials import MATERIALS, draw_mask
from unmask.train.pseudo import fingerprint
from unmask.train.regions import REGIONS
from unmask.train.video import spread_frames

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]

_PARTS: Final = ("masked", "mask", "truth")
SAME_FRAME: Final = 0.985
"""Cosine of fingerprints above which two frames of a person show the same; blur alone takes it to 0.99."""
_SAME_PICTURE: Final = 0.995
_SHEET_COLUMNS, _SHEET_ROWS, _CELL = 12, 6, 96


@dataclass(frozen=True, slots=True)
class MaskOptions:
    """How pairs are made.

    Attributes:
        kinds: share of each kind of mask, by a key of `MATERIALS`.
        region: hide a part of the face instead, a key of `REGIONS`; empty for masks.
        seed: another one gives other masks; the same one the same, in whatever order pictures are done.
        size: of the canonical crops that are written, in px; 0 keeps the pictures as they are.
        workers: pictures done at a time.
    """

    kinds: Mapping[str, float] = field(default_factory=lambda: {name: kind.share for name, kind in MATERIALS.items()})
    region: str = ""
    seed: int = 0
    size: int = 0
    workers: int = 2


def find_pictures(folder: Path) -> list[Path]:
    """All pictures below a folder, sorted: a plain folder, FFHQ's folders of thousands, LFW's and CelebA's are all of
    this kind. Raises UserError where there are none."""
    found = [p for p in sorted(folder.rglob("*")) if p.suffix.lower() in PICTURE_SUFFIXES]
    if not found:
        raise UserError(f"no pictures in '{folder}'")
    return found


_OPTIONS: Final = "options.json"


def make_pairs(
    faces: Path, out: Path, options: MaskOptions, progress: Progress, notice: Notice = print
) -> dict[str, int]:
    """Write pairs with and without a mask for every picture of a folder that shows a face.

    Writes `masked/`, `mask/` (0 and 255) and `truth/` with the same names, PNG, and `landmarks/NAME.json` (468 points
    [x, y, z] in px, and the kind). Pictures that are done already are passed over, so that an interrupted call goes on.
    `options.json` says how they were made.

    Args:
        notice: takes a line for each picture that cannot be read, which is left out, and one about pairs of which
            nobody knows how they were made.

    Returns:
        How many pairs there are now, how many of them were there before, and how many pictures have no face.

    Raises:
        UserError: no pictures, two that would be written under one name, an unknown kind or region, or pairs there that
            were made with other options.
    """
    _check(options)
    pictures = find_pictures(faces)
    names = _pair_names(pictures, faces)
    known = _made_like(out, options)
    for part in (*_PARTS, "landmarks"):
        (out / part).mkdir(parents=True, exist_ok=True)
    if known or not any((out / "landmarks").iterdir()):
        (out / _OPTIONS).write_text(json.dumps(_told(options)) + "\n")
    else:
        notice(f"nobody knows with which options the pairs in '{out}' were made; those there are kept as they are")
    tools = local()

    def work(path: Path, name: str) -> str:
        if (out / "landmarks" / f"{name}.json").exists():
            return "before"
        if not hasattr(tools, "detector"):
            tools.detector, tools.mesh = FaceDetector(), FaceMesh()
        return _make_pair(path, name, out, options, (tools.detector, tools.mesh), notice)

    counts = {"pairs": 0, "before": 0, "without a face": 0, "unreadable": 0}
    with ThreadPoolExecutor(options.workers) as pool:
        for done, result in enumerate(pool.map(work, pictures, names)):
            progress(done, len(pictures))
            counts[result] += 1
    counts["pairs"] += counts["before"]
    return counts


def _told(options: MaskOptions) -> dict[str, object]:
    """What decides how a pair looks."""
    return {name: value for name, value in asdict(options).items() if name != "workers"}


def _made_like(out: Path, options: MaskOptions) -> bool:
    """Whether it is known how the pairs in a folder were made. Raises UserError where that is another way than now."""
    if not (out / _OPTIONS).exists():
        return False
    known, wanted = json_of(out / _OPTIONS), _told(options)
    other = [name for name in wanted if not isinstance(known, dict) or known.get(name) != wanted[name]]
    if other:
        raise UserError(f"the pairs in '{out}' were made with another --{' and --'.join(other)}; choose another folder")
    return True


def _pair_names(pictures: Sequence[Path], faces: Path) -> list[str]:
    """The name of each picture's pair, which also seeds its mask. Raises UserError where two would have the same."""
    names = ["_".join(path.relative_to(faces).with_suffix("").parts) for path in pictures]
    first: dict[str, Path] = {}
    for name, path in zip(names, pictures, strict=True):
        if (other := first.setdefault(name, path)) is not path:
            raise UserError(f"'{other}' and '{path}' would both be written as {name}.png; rename one of them")
    return names


def _check(options: MaskOptions) -> None:
    if unknown := [kind for kind in options.kinds if kind not in MATERIALS]:
        raise UserError(f"unknown kind of mask '{unknown[0]}'; use {', '.join(MATERIALS)}")
    if sum(options.kinds.values()) <= 0 or min(options.kinds.values()) < 0:
        raise UserError("the shares of the kinds of masks must not be negative, and one of them must be above 0")
    if options.region and options.region not in REGIONS:
        raise UserError(f"unknown region '{options.region}'; use {', '.join(REGIONS)}")


def _make_pair(
    path: Path, name: str, out: Path, options: MaskOptions, tools: tuple[FaceDetector, FaceMesh], notice: Notice
) -> str:
    rgb = read_or_say(path, notice)
    if rgb is None:
        return "unreadable"
    landmarks = largest_face(rgb, *tools)
    if landmarks is None:
        return "without a face"
    if options.size:
        matrix = np.diag([options.size / CROP_SIZE] * 2) @ canonical_crop(landmarks)
        rgb, _ = warp_crop(rgb, matrix, options.size)
        landmarks = transform_landmarks(matrix, landmarks)
    seed = int.from_bytes(hashlib.sha256(f"{options.seed}/{name}".encode()).digest()[:8])
    masked, mask, kind = _hide(rgb, landmarks, options, np.random.default_rng(seed))
    for part, picture in zip(_PARTS, (masked[..., ::-1], mask, rgb[..., ::-1]), strict=True):
        cv2.imwrite(str(out / part / f"{name}.png"), picture)
    record = {"kind": kind, "points": np.round(landmarks.astype(np.float64), 2).tolist()}
    (out / "landmarks" / f"{name}.json").write_text(json.dumps(record))  # last: says that the pair is whole
    return "pairs"


def _hide(rgb: U8, landmarks: F32, options: MaskOptions, rng: np.random.Generator) -> tuple[U8, U8, str]:
    """The picture with its mask or with a grey region, where that is (0 and 255), and of what kind it is."""
    if options.region:
        region = REGIONS[options.region](landmarks, rng, (rgb.shape[0], rgb.shape[1])) > 127
        masked = np.where(region[..., None], 128, rgb).astype(np.uint8)
        return masked, region.astype(np.uint8) * np.uint8(255), options.region
    kinds, shares = list(options.kinds), np.array(list(options.kinds.values()))
    kind = str(rng.choice(kinds, p=shares / shares.sum()))
    drawn = draw_mask(rgb.astype(np.float32) / np.float32(255), landmarks, rng, kind)
    mask = (drawn.coverage > 0.5).astype(np.uint8) * np.uint8(255)
    return np.rint(drawn.rgb * 255).astype(np.uint8), mask, kind


def extract_frames(
    videos: Sequence[Path],
    out: Path,
    fps: float,
    size: int,
    progress: Progress,
    alike: float = SAME_FRAME,
    *,
    overwrite: bool = False,
) -> dict[str, int]:
    """A person's own data set: of each span of 1/fps seconds the sharpest face, as an aligned crop.

    Writes OUT/VIDEO-SECONDS.png (size x size px) and the sound of each video as OUT/VIDEO.wav, once that video is done.
    Of frames that look the same, the sharpest is kept. A video that is called like one before it is VIDEO-2.

    Args:
        progress: is told how many of how many videos are done.
        alike: cosine of fingerprints above which two frames count as the same; 1 keeps all.
        overwrite: whether pictures and sound of these names that are there before are replaced.

    Returns:
        How many pictures were written, and how many dropped and why.

    Raises:
        UserError: there are such files and they are not to be replaced, a video cannot be read, or no face was found
            in any.
    """
    names = _video_names(videos)
    before = {name: _files_of(name, out) for name in names}
    if not overwrite and (kept := [file for files in before.values() for file in files]):
        raise UserError(f"{kept[0]}: exists and is kept; use --overwrite to replace it, or choose another folder")
    tools = (FaceDetector(), FaceMesh())
    counts = {"pictures": 0, "near-duplicates": 0, "frames without a face": 0}
    for done, (video, name) in enumerate(zip(videos, names, strict=True)):
        progress(done, len(videos))
        with whole_files(out) as draft:
            _write_frames(draft / name, _sharpest(video, fps, size, *tools, counts), alike, counts)
            write_sound(video, draft / f"{name}.wav")
            for file in before[name]:
                file.unlink()
    if not counts["pictures"]:
        raise UserError("no face found in any of the videos")
    return counts


def _video_names(videos: Sequence[Path]) -> list[str]:
    """How the files of each video begin: with its own name, and a number where that is another's."""
    stems, names = {video.stem for video in videos}, list[str]()
    for video in videos:
        numbered = (f"{video.stem}-{number}" for number in count(2))
        free = (name for name in numbered if name not in names and name not in stems)
        names.append(video.stem if video.stem not in names else next(free))
    return names


def _files_of(name: str, out: Path) -> list[Path]:
    """The pictures and the sound in a folder that a call for a video of this name would write, or has written."""
    ours = re.compile(rf"{re.escape(name)}(-[-\d]\d+\.\d{{3}}\.png|\.wav)")
    return sorted(file for file in out.iterdir() if ours.fullmatch(file.name)) if out.is_dir() else []


def _write_frames(start: Path, frames: Sequence[tuple[float, float, U8]], alike: float, counts: dict[str, int]) -> None:
    """Write START-SECONDS.png for (seconds, sharpness, crop) of a video; of those that look the same, the sharpest."""
    kept: list[_Kept] = []
    for moment, sharp, crop in frames:
        new = _Kept(_mark(crop), sharp, start.with_name(f"{start.name}-{moment:08.3f}.png"))
        like = next((k for k in kept if float(k.mark @ new.mark) > alike), None)
        if like is not None:
            counts["near-duplicates"] += 1
            if like.sharp >= new.sharp:
                continue
            like.file.unlink()
            kept.remove(like)
        kept.append(new)
        cv2.imwrite(str(new.file), crop[..., ::-1])
    counts["pictures"] += len(kept)


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    """A frame that was kept: its fingerprint, how sharp it is, its file."""

    mark: F32
    sharp: float
    file: Path


def _sharpest(
    video: Path, fps: float, size: int, detector: FaceDetector, mesh: FaceMesh, counts: dict[str, int]
) -> list[tuple[float, float, U8]]:
    """(seconds, sharpness, crop) of the sharpest face of each span of 1/fps seconds."""
    best: dict[int, tuple[float, float, U8]] = {}
    for moment, rgb in spread_frames(video, 1_000_000):
        landmarks = largest_face(rgb, detector, mesh)
        if landmarks is None:
            counts["frames without a face"] += 1
            continue
        matrix = np.diag([size / CROP_SIZE] * 2) @ canonical_crop(landmarks)
        crop, _ = warp_crop(rgb, matrix, size)
        sharp = float(cv2.Laplacian(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())
        span = int(moment * fps)
        if span not in best or sharp > best[span][0]:
            best[span] = (sharp, moment, crop)
    return [(moment, sharp, crop) for _, (sharp, moment, crop) in sorted(best.items())]


def write_sound(video: Path, target: Path) -> bool:
    """Write the first sound track as 16-bit WAV. Returns False where there is none."""
    with av.open(str(video)) as source:
        if not source.streams.audio:
            return False
        with av.open(str(target), "w", format="wav") as sink:
            rate = source.streams.audio[0].rate
            stream = sink.add_stream("pcm_s16le", rate)
            resampler = av.AudioResampler("s16", source.streams.audio[0].layout, rate)
            for frame in source.decode(audio=0):
                for part in resampler.resample(frame):
                    sink.mux(stream.encode(part))
            sink.mux(stream.encode())
    return True


@dataclass(frozen=True, slots=True)
class Findings:
    """What `check_pictures` found.

    Attributes:
        pictures: how many there are.
        sizes: how many of each "WxH".
        broken: files that cannot be read.
        duplicates: groups of files that show the same.
        leaks: files of the second folder that show the same as one of the first.
        sheet: (H, W, 3) uint8, some of the pictures.
    """

    pictures: int
    sizes: dict[str, int]
    broken: list[str]
    duplicates: list[list[str]]
    leaks: list[str]
    sheet: U8


def check_pictures(folder: Path, against: Path | None, progress: Progress) -> Findings:
    """Look for what is wrong with a folder of pictures: broken files, the same picture twice, pictures that another
    folder (the other split) has too. Sameness is judged by a small grey version of the picture, or of its mirror image.
    """
    paths = find_pictures(folder)
    sizes: dict[str, int] = {}
    broken: list[str] = []
    good: list[Path] = []
    marks: list[F32] = []
    cells: list[U8] = []
    for done, path in enumerate(paths):
        progress(done, len(paths))
        try:
            rgb = read_rgb(path)
        except UserError:
            broken.append(str(path))
            continue
        size = f"{rgb.shape[1]}x{rgb.shape[0]}"
        sizes[size] = sizes.get(size, 0) + 1
        good.append(path)
        marks.append(_mark(rgb))
        if done % max(1, len(paths) // (_SHEET_COLUMNS * _SHEET_ROWS)) == 0:
            cells.append(np.asarray(cv2.resize(rgb, (_CELL, _CELL), interpolation=cv2.INTER_AREA), np.uint8))
    others = [_mark(read_rgb(p)) for p in find_pictures(against)] if against else []
    leaks = [str(p) for p, mark in zip(good, marks, strict=True) if _has_like(mark, others)]
    return Findings(len(paths), sizes, broken, _groups(good, marks), leaks, _contact_sheet(cells))


def _mark(rgb: U8) -> F32:
    """`fingerprint` of a whole picture."""
    return fingerprint(np.asarray(cv2.resize(rgb, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_AREA), np.uint8))


def _has_like(mark: F32, others: Sequence[F32]) -> bool:
    if not others:
        return False
    table, mirrored = np.stack(others), mark.reshape(16, 16)[:, ::-1].reshape(-1)
    return bool(max((table @ mark).max(), (table @ mirrored).max()) > _SAME_PICTURE)


def _groups(paths: Sequence[Path], marks: Sequence[F32]) -> list[list[str]]:
    """Files that show the same, by the first of each group."""
    if not marks:
        return []
    table = np.stack(marks)
    groups: dict[int, list[str]] = {}
    first_of = np.full(len(paths), -1)
    for i in range(len(paths)):
        if first_of[i] >= 0:
            continue
        like = np.flatnonzero((table[i + 1 :] @ table[i] > _SAME_PICTURE) & (first_of[i + 1 :] < 0)) + i + 1
        first_of[like] = i
        if len(like):
            groups[i] = [str(paths[i]), *(str(paths[int(j)]) for j in like)]
    return list(groups.values())


def _contact_sheet(cells: list[U8]) -> U8:
    cells = cells[: _SHEET_COLUMNS * _SHEET_ROWS]
    empty = np.full((_CELL, _CELL, 3), 255, np.uint8)
    filled = cells + [empty] * (-len(cells) % _SHEET_COLUMNS) or [empty] * _SHEET_COLUMNS
    rows = [np.hstack(filled[i : i + _SHEET_COLUMNS]) for i in range(0, len(filled), _SHEET_COLUMNS)]
    return np.vstack(rows)
