"""Training data: canonical crops of bare faces with their landmarks, kept as arrays that several runs can map."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Queue
from threading import Event, Thread
from typing import Final, TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from unmask.errors import UserError
from unmask.models.geometry import CROP_SIZE, canonical_crop, transform_points
from unmask.models.mediapipe import FaceDetector, FaceMesh, find_landmarks

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

PICTURE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
VALIDATION_SHARE: Final = 20
"""One picture in so many is kept for validation."""


def is_validation(name: str) -> bool:
    """Whether a picture belongs to the validation split: fixed by the SHA-256 of its file name, so that it stays where
    it is when data is added."""
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % VALIDATION_SHARE == 0


def read_rgb(path: Path) -> U8:
    """Read a picture as (H, W, 3) uint8 RGB. Raises UserError where it cannot be read."""
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if bgr is None:
        raise UserError(f"cannot read '{path}' as a picture")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


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


def prepare_crops(folders: Sequence[Path], out: Path, progress: Callable[[int, int], None]) -> tuple[int, int]:
    """Find the face of every picture in some folders and write its canonical crop.

    Writes `crops.npy` (N, 256, 256, 3) uint8, `inside.npy` (N, 256, 256) uint8 (0 beyond the picture's border),
    `points.npy` (N, 468, 3) float32 landmarks in crop px, and `index.json` with the file of each.

    Args:
        folders: searched recursively.
        out: made if need be.
        progress: is told how many of how many pictures are done.

    Returns:
        How many crops were written, and how many pictures had no face.

    Raises:
        UserError: no pictures, or no face in any of them.
    """
    pictures = [p for f in folders for p in sorted(f.rglob("*")) if p.suffix.lower() in PICTURE_SUFFIXES]
    if not pictures:
        raise UserError(f"no pictures in {', '.join(map(str, folders))}")
    out.mkdir(parents=True, exist_ok=True)
    shape = (len(pictures), CROP_SIZE, CROP_SIZE)
    crops = np.lib.format.open_memmap(out / "crops.npy", "w+", np.uint8, (*shape, 3))
    inside = np.lib.format.open_memmap(out / "inside.npy", "w+", np.uint8, shape)
    detector, mesh = FaceDetector(), FaceMesh()
    points: list[F32] = []
    names: list[str] = []
    for done, picture in enumerate(pictures):
        progress(done, len(pictures))
        rgb = read_rgb(picture)
        landmarks = largest_face(rgb, detector, mesh)
        if landmarks is None:
            continue
        matrix = canonical_crop(landmarks)
        crops[len(names)], inside[len(names)] = warp_crop(rgb, matrix)
        depth = landmarks[:, 2:] * np.sqrt(np.linalg.det(matrix[:, :2]))
        points.append(np.concatenate([transform_points(matrix, landmarks), depth], axis=1).astype(np.float32))
        names.append(f"{picture.parent.name}/{picture.name}")
    if not names:
        raise UserError(f"no face found in any of {len(pictures)} pictures")
    np.save(out / "points.npy", np.array(points))
    (out / "index.json").write_text(json.dumps(names))
    return len(names), len(pictures) - len(names)


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
        """Raises UserError where the folder was not written by `unmask data crops`."""
        try:
            names = tuple(json.loads((folder / "index.json").read_text()))
            crops, inside = (np.load(folder / f"{n}.npy", mmap_mode="r") for n in ("crops", "inside"))
            return cls(crops, inside, np.load(folder / "points.npy"), names)
        except OSError as error:
            raise UserError(
                f"'{folder}' holds no crops; make them with: unmask data crops FACES -o {folder}"
            ) from error

    def split(self, validation: bool) -> npt.NDArray[np.int64]:
        """Indices of the training or of the validation pictures."""
        chosen = [i for i, name in enumerate(self.names) if is_validation(Path(name).name) == validation]
        return np.array(chosen, np.int64)


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


def augment(data: FaceCrops, index: int, size: int, rng: np.random.Generator, jitter: float = 1.0) -> Sample:
    """Draw a face with a random shift, turn, scale, mirroring and light.

    Args:
        data: crops.
        index: which.
        size: of the result in px.
        rng: where chance comes from.
        jitter: how far the geometry strays, 1 for what a tracker does to a crop, 0 for none (and no other change).
    """
    points = data.points[index].copy()
    scale, turn = float(np.exp(rng.normal(0, 0.05 * jitter))), float(rng.normal(0, 4 * jitter))
    matrix = cv2.getRotationMatrix2D((CROP_SIZE / 2, CROP_SIZE / 2), turn, scale)
    matrix[:, 2] += rng.normal(0, 5 * jitter, 2)
    to_size = size / CROP_SIZE
    matrix = np.diag([to_size, to_size]) @ matrix
    if jitter and rng.random() < 0.5:
        matrix = np.array([[-1.0, 0, size - 1], [0, 1.0, 0]]) @ np.vstack([matrix, [0, 0, 1]])
        points = points[mirror_order()]
    rgb, _ = warp_crop(data.crops[index], matrix, size)
    inside = cv2.warpAffine(data.inside[index], matrix, (size, size), flags=cv2.INTER_NEAREST)
    points = np.concatenate([transform_points(matrix, points), points[:, 2:] * scale * to_size], axis=1)
    light = relight(rgb.astype(np.float32) / 255.0, rng) if jitter else rgb.astype(np.float32) / 255.0
    return Sample(light, (inside > 0).astype(np.float32), points.astype(np.float32))


def relight(rgb: F32, rng: np.random.Generator, strength: float = 1.0) -> F32:
    """Random exposure, contrast, gamma and white balance, as between cameras (`strength` 1) or between a candle and a
    neon tube (2.5). (H, W, 3) float32 0..1 in and out."""
    gain = np.exp(strength * (rng.normal(0, 0.12) + rng.normal(0, 0.05, 3))).astype(np.float32)
    gamma = float(np.exp(rng.normal(0, 0.12 * strength)))
    out = np.power(np.clip(rgb, 1e-4, 1), gamma) * gain
    contrast = float(np.exp(rng.normal(0, 0.1)))
    return np.asarray(np.clip((out - 0.5) * contrast + 0.5, 0, 1), np.float32)


# Pairs of mesh points that change places when a face is mirrored, of those that the mask generator uses.
_MIRRORED: Final = (
    *((33, 263), (133, 362), (117, 346), (205, 425), (49, 279), (48, 278), (61, 291), (50, 280)),
    *((234, 454), (93, 323), (132, 361), (58, 288), (172, 397), (136, 365), (150, 379), (149, 378), (176, 400)),
    *((148, 377), (159, 386), (145, 374), (70, 300), (105, 334), (107, 336), (55, 285), (127, 356), (21, 251)),
    (162, 389),
)


def mirror_order() -> npt.NDArray[np.int64]:
    """(468,) the order in which the points of a mirrored face are to be read."""
    order = np.arange(468)
    for a, b in _MIRRORED:
        order[a], order[b] = b, a
    return order


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
