"""Pseudo-labels: real masked faces, labelled by a trained segmenter, to train the next one on (Lee 2013; Xie et al.
2020, arXiv:1911.04252).

The label of a pixel is the mean over several views of the same crop. There is none where the views disagree nor, apart
from the mask, where they are in the least doubt.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from unmask.errors import UserError
from unmask.models.engine import Engine
from unmask.models.geometry import CROP_SIZE
from unmask.train.data import PICTURE_SUFFIXES, Notice, read_or_say, read_rgb, warp_crop
from unmask.train.evaluate import find_pairs, whole_picture
from unmask.train.files import check_whole, reading, whole_files
from unmask.train.materials import Masked

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]

_INDEX: Final = "index.json"
_VIEWS: Final = tuple((scale, turn, mirror) for scale in (0.9, 1.05, 1.2) for turn in (-8, 8) for mirror in (0, 1))
_UNSURE: Final = (0.25, 0.75)
_FAINT: Final = 0.012
"""Apart from the mask, what is likelier than this is not known either: it may be an ear loop that was missed."""
_APART_PX: Final = 4
_UNSURE_SHARE: Final = 0.25
"""Of the mask: above it, the whole picture is left out."""
_AREA: Final = (0.03, 0.5)
"""Share of the crop that a worn mask covers."""
_LOOP_LIKELY: Final = 0.28
_LOOP_FAINT: Final = 0.04
"""What may be a loop is labelled neither as one nor as none."""
_NO_LABEL: Final = np.uint8(26)
LOOP_LABEL: Final = np.uint8(230)
LOOP_WIDTH: Final = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (11, 11))
_LOOP_LONG_PX: Final = 24
_HEADROOM_PX: Final = 50
"""No ear loop reaches that far up in a canonical crop; hair does."""
_FINGERPRINT_SIDE: Final = 16
_SAME_PICTURE: Final = 0.85
"""Cosine of fingerprints; rather leave out too many: the same picture cut twice gives 0.86 to 1."""


def mean_over_views(engine: Engine, crop: U8) -> F32:
    """How likely each pixel of a crop is mask, 0..1, averaged over turned, scaled and mirrored views of it."""
    total = np.zeros((CROP_SIZE, CROP_SIZE), np.float32)
    weight = np.full_like(total, 1e-6)
    for scale, turn, mirror in _VIEWS:
        matrix = cv2.getRotationMatrix2D((CROP_SIZE / 2, CROP_SIZE / 2), turn, scale)
        if mirror:
            matrix = np.array([[-1.0, 0, CROP_SIZE - 1], [0, 1.0, 0]]) @ np.vstack([matrix, [0, 0, 1]])
        view, _ = warp_crop(crop, matrix)
        back = cv2.invertAffineTransform(matrix)
        found = cv2.warpAffine(engine(view[None])[0], back, total.shape, flags=cv2.INTER_LINEAR)
        seen = cv2.warpAffine(np.full(total.shape, 255, np.uint8), back, total.shape, flags=cv2.INTER_NEAREST) > 0
        total += found * seen / np.float32(255)
        weight += seen
    return total / weight


def is_usable(probability: F32) -> bool:
    """Whether the views agree well enough on a mask of a likely size."""
    area = float((probability > 0.5).mean())
    unsure = float(((probability > _UNSURE[0]) & (probability < _UNSURE[1])).mean())
    return _AREA[0] < area < _AREA[1] and unsure < _UNSURE_SHARE * area


def fingerprint(crop: U8) -> F32:
    """(256,) float32 of unit length of the middle of a canonical crop: the same picture at another size, quality or cut
    has nearly the same one."""
    grey = cv2.cvtColor(np.ascontiguousarray(crop[32:240, 32:224]), cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (_FINGERPRINT_SIDE, _FINGERPRINT_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    small = (small - small.mean()).reshape(-1)
    return np.asarray(small / (np.linalg.norm(small) + 1e-6), np.float32)


def _pictures(folders: Sequence[Path]) -> list[Path]:
    return [p for f in folders for p in sorted(f.rglob("*")) if p.suffix.lower() in PICTURE_SUFFIXES]


def _faces(rgb: U8, locate: Callable[[U8], Sequence[F64]]) -> list[U8]:
    return [warp_crop(rgb, matrix)[0] for matrix in locate(rgb)]


def label_pictures(
    engine: Engine,
    folders: Sequence[Path],
    apart_from: Sequence[Path],
    locate: Callable[[U8], Sequence[F64]],
    out: Path,
    progress: Progress,
    notice: Notice = print,
) -> dict[str, int]:
    """Label every masked face of some pictures, and write what is usable.

    Writes `crops.npy` (N, 256, 256, 3) uint8, `labels.npy` (N, 256, 256) uint8 probability 0..255, and `index.json`.

    Args:
        engine: the segmenter.
        folders: searched recursively.
        apart_from: folders of pictures that must not be trained on: faces that look like one of theirs, as they are or
            mirrored, are left out.
        locate: gives the (2, 3) maps to the canonical crops of a picture's faces.
        out: made if need be.
        progress: is told how many of how many pictures are done.
        notice: takes a line for each picture that cannot be read, which is left out.

    Returns:
        How many crops were written, and how many faces were left out and why.

    Raises:
        UserError: no pictures, nothing usable in them, or one of `apart_from` cannot be read.
    """
    pictures = _pictures(folders)
    apart = [fingerprint(crop) for path in _pictures(apart_from) for crop in _faces(read_rgb(path), locate)]
    kept_apart = np.array(apart).reshape(-1, _FINGERPRINT_SIDE**2)
    crops: list[U8] = []
    labels: list[U8] = []
    names: list[str] = []
    counts = {"crops": 0, "faces kept apart": 0, "faces without a sure label": 0}
    for done, picture in enumerate(pictures):
        progress(done, len(pictures))
        rgb = read_or_say(picture, notice)
        for crop in _faces(rgb, locate) if rgb is not None else ():
            if max(float((kept_apart @ fingerprint(x)).max(initial=0)) for x in (crop, crop[:, ::-1])) > _SAME_PICTURE:
                counts["faces kept apart"] += 1
                continue
            probability = mean_over_views(engine, crop)
            if not is_usable(probability):
                counts["faces without a sure label"] += 1
                continue
            crops.append(crop)
            labels.append(np.asarray(np.round(probability * 255), np.uint8))
            names.append(f"{picture.parent.name}/{picture.name}")
    if not crops:
        raise UserError(f"no masked face with a sure label in {len(pictures)} pictures")
    counts["crops"] = len(crops)
    _write(out, crops, labels, names)
    return counts


_BY_HAND_TIMES: Final = 3
"""How often faces that were labelled by hand are written: they are surer than others."""


class Lined(NamedTuple):
    """Faces whose ear loops were drawn by hand: crops (256, 256, 3) uint8, labels (256, 256) uint8 probability 0..255,
    folder and file of each."""

    crops: list[U8]
    labels: list[U8]
    names: list[str]


def add_loops(
    engine: Engine, labels: "PseudoLabels", names: Sequence[str], lined: Lined, out: Path, progress: Progress
) -> int:
    """Add to labels the ear loops that another segmenter sees: what is narrow, long, and begins at the mask.

    A segmenter that was taught ear loops finds them well and masks less well; of its labels this takes the loops only.

    Args:
        engine: that segmenter.
        labels: written by `label_pictures`.
        names: of the pictures.
        lined: come in place of the faces of those files.
        out: a folder of the same kind, made if need be.
        progress: is told how many of how many pictures are done.

    Returns:
        On how many pictures there are loops, the lined ones not counted.
    """
    crops, added, files = lined.crops * _BY_HAND_TIMES, lined.labels * _BY_HAND_TIMES, lined.names * _BY_HAND_TIMES
    by_hand, found = set(lined.names), 0
    for done, (crop, label, name) in enumerate(zip(labels.crops, labels.labels, names, strict=True)):
        progress(done, len(labels.crops))
        if name in by_hand:
            continue
        crops.append(np.ascontiguousarray(crop))
        seen = mean_over_views(engine, crops[-1])
        loops = loops_of(seen > _LOOP_LIKELY, label > 127)
        found += bool(loops.any())
        doubtful = np.where(seen > _LOOP_FAINT, np.maximum(label, _NO_LABEL), label)
        added.append(np.where(loops, np.maximum(label, LOOP_LABEL), doubtful))
        files.append(name)
    _write(out, crops, added, files)
    return found


def loops_of(seen: npt.NDArray[np.bool_], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """(S, S) bool: which of what is seen are ear loops of a mask."""
    body = cv2.morphologyEx(seen.astype(np.uint8), cv2.MORPH_OPEN, LOOP_WIDTH) > 0
    narrow = seen & ~body & ~mask
    narrow[:_HEADROOM_PX] = False
    beside = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    count, parts, figures, _ = cv2.connectedComponentsWithStats(narrow.astype(np.uint8))
    long = np.maximum(figures[:, cv2.CC_STAT_WIDTH], figures[:, cv2.CC_STAT_HEIGHT]) >= _LOOP_LONG_PX
    keeps = [part > 0 and long[part] and bool(beside[parts == part].any()) for part in range(count)]
    return np.asarray(np.array(keeps)[parts])


def write_labelled(folder: Path, locate: Callable[[U8], F64 | None], out: Path) -> int:
    """Write real masked faces with labels made by hand as `label_pictures` writes its own.

    Args:
        folder: with pairs image/NAME and mask/NAME (0 and 255).
        locate: gives the (2, 3) map to the canonical crop of a picture's face; where it finds none, the whole picture
            is taken.
        out: made if need be.

    Returns:
        How many there are.

    Raises:
        UserError: there are no pairs.
    """
    crops, labels, names = [], [], []
    for image, mask in find_pairs(folder):
        rgb = read_rgb(image)
        matrix = locate(rgb)
        matrix = whole_picture(rgb) if matrix is None else matrix
        crops.append(warp_crop(rgb, matrix)[0])
        labels.append(warp_crop(read_rgb(mask), matrix)[0][..., 0])
        names.append(f"{folder.name}/{image.name}")
    _write(out, crops, labels, names)
    return len(crops)


def _write(out: Path, crops: list[U8], labels: list[U8], names: list[str]) -> None:
    with whole_files(out, _INDEX) as draft:
        np.save(draft / "crops.npy", np.array(crops))
        np.save(draft / "labels.npy", np.array(labels))
        (draft / _INDEX).write_text(json.dumps(names))


def _reading(folder: Path) -> AbstractContextManager[None]:
    return reading(folder, "labels", f"make them with: unmask data label PICTURES -o {folder}")


@dataclass(frozen=True, slots=True)
class PseudoLabels:
    """What `label_pictures` wrote.

    Attributes:
        crops: (N, 256, 256, 3) uint8 RGB.
        labels: (N, 256, 256) uint8, probability 0..255.
    """

    crops: U8
    labels: U8

    @staticmethod
    def names(folder: Path) -> list[str]:
        """Of the pictures in a folder that `open` takes."""
        with _reading(folder):
            return list(json.loads((folder / _INDEX).read_text()))

    @classmethod
    def open(cls, folder: Path) -> "PseudoLabels":
        """Raises UserError where the folder was not written by `unmask data label`, or not to the end."""
        with _reading(folder):
            crops, labels = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("crops", "labels"))
            check_whole(crops, labels, cls.names(folder))
        return cls(crops, labels)

    def draw(
        self,
        index: int,
        size: int,
        rng: np.random.Generator,
        jitter: float,
        before: Callable[[Masked], Masked] | None = None,
    ) -> tuple[F32, F32, F32]:
        """A crop with a random shift, turn, scale and mirroring.

        Args:
            index: which.
            size: of the result in px.
            rng: where chance comes from.
            jitter: as for `unmask.train.data.augment`.
            before: what changes the crop first.

        Returns:
            rgb (S, S, 3) float32 0..1; label (S, S) float32 0/1; weight (S, S) float32, 0 where there is no label.
        """
        matrix = cv2.getRotationMatrix2D(
            (CROP_SIZE / 2, CROP_SIZE / 2),
            float(rng.normal(0, 4 * jitter)),
            float(np.exp(rng.normal(0, 0.05 * jitter))),
        )
        matrix[:, 2] += rng.normal(0, 5 * jitter, 2)
        matrix = np.diag([size / CROP_SIZE] * 2) @ matrix
        if rng.random() < 0.5:
            matrix = np.array([[-1.0, 0, size - 1], [0, 1.0, 0]]) @ np.vstack([matrix, [0, 0, 1]])
        crop = np.ascontiguousarray(self.crops[index])
        p = np.asarray(self.labels[index], np.float32) / np.float32(255)
        if before is not None:
            changed = before(Masked(crop.astype(np.float32) / np.float32(255), p))
            crop, p = np.asarray(np.rint(np.clip(changed.rgb, 0, 1) * 255), np.uint8), changed.coverage
        rgb, inside = warp_crop(crop, matrix, size)
        p = np.asarray(cv2.warpAffine(p, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE), np.float32)
        around = cv2.dilate((p > 0.5).astype(np.uint8), np.ones((2 * _APART_PX + 1, 2 * _APART_PX + 1), np.uint8)) > 0
        known = (p < np.where(around, _UNSURE[0], _FAINT)) | (p > _UNSURE[1])
        weight = known & (inside > 0)
        return rgb.astype(np.float32) / np.float32(255), (p > 0.5).astype(np.float32), weight.astype(np.float32)
