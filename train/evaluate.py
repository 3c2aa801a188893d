"""Measures the networks as they ship, through the engine that users run. Every figure names its protocol.

What trained a network must not judge it: pictures are those of the validation split, or sets that trained nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import av
import cv2
import numpy as np
import numpy.typing as npt

from unmask.errors import UserError
from unmask.models.engine import Engine
from unmask.models.geometry import CROP_SIZE, canonical_crop
from unmask.models.mask_region import mask_region
from unmask.models.mediapipe import FaceDetector, FaceMesh
from unmask.models.placement import USUAL, better_shift, placed
from unmask.train.data import PICTURE_SUFFIXES, FaceCrops, largest_face, read_rgb, warp_crop
from unmask.train.masks import hidden_region

U8 = npt.NDArray[np.uint8]
F64 = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]
Locate = Callable[[U8], F64 | None]

_VIDEO_SUFFIXES: Final = frozenset({".mp4", ".mov", ".mkv", ".webm"})
_EVERY_NTH_FRAME: Final = 10
_BOUNDARY_PX: Final = 2


def psnr(error: npt.NDArray[np.float64]) -> float:
    """Peak signal-to-noise ratio in dB of differences between 8-bit values."""
    return float(10 * np.log10(255**2 / max(float(np.mean(error**2)), 1e-9)))


def structural_similarity(a: U8, b: U8) -> float:
    """SSIM (Wang et al. 2004, doi:10.1109/TIP.2003.819861): 11 px Gaussian window, deviation 1.5, mean over channels.

    Args:
        a, b: (H, W, 3) uint8.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)

    def mean(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(cv2.GaussianBlur(z, (11, 11), 1.5))

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float((((2 * mx * my + c1) * (2 * cov + c2)) / ((mx * mx + my * my + c1) * (vx + vy + c2))).mean())


def sharpness(rgb: U8, mask: npt.NDArray[np.bool_]) -> float:
    """Variance of the Laplacian of the luma inside a mask; higher is sharper."""
    luma = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    return float(cv2.Laplacian(luma, cv2.CV_64F)[mask].var())


@dataclass(frozen=True, slots=True)
class PaintedCrop:
    """A validation face, painted.

    Attributes:
        index: of the crop.
        truth, result: (256, 256, 3) uint8, the bare face, and with what was hidden painted.
        hidden: (256, 256) uint8, 255 where it was.
        inside: (256, 256) bool, the same as far as there is a truth.
    """

    index: int
    truth: U8
    result: U8
    hidden: U8
    inside: npt.NDArray[np.bool_]


def painted_crops(engine: Engine, crops: FaceCrops, progress: Progress) -> Iterator[PaintedCrop]:
    """Paint every crop of the validation split, one synthetic mask each (seed: its position), at 256x256; the true mask
    is given."""
    indices = crops.split(validation=True)
    for done, index in enumerate(indices):
        progress(done, len(indices))
        truth = crops.crops[index].copy()
        hidden = hidden_region(crops.points[index], np.random.default_rng(done), (CROP_SIZE, CROP_SIZE)) > 0
        inside = hidden & (crops.inside[index] > 0)
        if inside.any():
            mask = hidden.astype(np.uint8) * np.uint8(255)
            result = np.where(hidden[..., None], engine(truth[None], mask[None])[0], truth).astype(np.uint8)
            yield PaintedCrop(int(index), truth, result, mask, inside)


def evaluate_inpainter(engine: Engine, crops: FaceCrops, progress: Progress) -> dict[str, float]:
    """Measure `painted_crops`: means over the pictures (sharpness: the median). OpenCV's Telea inpainting (radius 5) is
    measured on the same masks."""
    rows = []
    for face in painted_crops(engine, crops, progress):
        telea = cv2.inpaint(face.truth, face.hidden, 5, cv2.INPAINT_TELEA)
        error, baseline = (p.astype(np.float64) - face.truth for p in (face.result, telea))
        inside = face.inside
        ratio = sharpness(face.result, inside) / max(sharpness(face.truth, inside), 1e-6)
        similarity = structural_similarity(face.result, face.truth)
        rows.append((psnr(error[inside]), psnr(baseline[inside]), psnr(error), similarity, ratio, inside.mean()))
    table = np.array(rows)
    return {
        "pictures": len(rows),
        "psnr_in_mask": float(table[:, 0].mean()),
        "psnr_in_mask_telea": float(table[:, 1].mean()),
        "psnr_crop": float(table[:, 2].mean()),
        "ssim_crop": float(table[:, 3].mean()),
        "sharpness_median": float(np.median(table[:, 4])),
        "mask_share": float(table[:, 5].mean()),
    }


def find_pairs(folder: Path) -> list[tuple[Path, Path]]:
    """Pictures and their masks, image/NAME and mask/NAME, extensions aside. Raises UserError where there are none."""
    masks = {p.stem: p for p in (folder / "mask").glob("*") if p.suffix.lower() in PICTURE_SUFFIXES}
    images = sorted(p for p in (folder / "image").glob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    pairs = [(p, masks[p.stem]) for p in images if p.stem in masks]
    if not pairs:
        raise UserError(f"'{folder}' holds no pairs image/NAME and mask/NAME")
    return pairs


def whole_picture(rgb: U8) -> F64:
    """(2, 3) map of a whole picture to the crop, for a face that is not found."""
    height, width = rgb.shape[:2]
    return np.diag([CROP_SIZE / width, CROP_SIZE / height, 1.0])[:2]


def _boundary(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    m = mask.astype(np.uint8)
    return np.asarray(m - cv2.erode(m, np.ones((3, 3), np.uint8), borderValue=1) > 0)


def boundary_f(found: npt.NDArray[np.bool_], label: npt.NDArray[np.bool_], tolerance: int = _BOUNDARY_PX) -> float:
    """Harmonic mean of the shares of each boundary that lie within `tolerance` px of the other (Perazzi et al. 2016,
    doi:10.1109/CVPR.2016.85)."""
    a, b = _boundary(found), _boundary(label)
    if not a.any() or not b.any():
        return float(a.any() == b.any())
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * tolerance + 1, 2 * tolerance + 1))
    near_a, near_b = (cv2.dilate(x.astype(np.uint8), disc) > 0 for x in (a, b))
    precision, recall = float(near_b[a].mean()), float(near_a[b].mean())
    return 2 * precision * recall / max(precision + recall, 1e-9)


def iou_of(both: int, either: int) -> float:
    """Intersection over union, in pixels; 1 where nothing is to be found and nothing was."""
    return both / either if either else 1.0


def evaluate_labelled(engine: Engine, folder: Path, locate: Locate, progress: Progress) -> dict[str, float]:
    """Compare predicted masks with labels.

    Protocol: each picture's face is found by `locate`; where it finds none the whole picture is taken for the crop. The
    mask is cut out of the probabilities as in the pipeline (`mask_region`; where the crop cuts it off, once more in one
    further to that side) and warped back to the picture. IoU over the pixels of all pictures, and the mean over
    pictures; 1 for one without a mask in which none is found.

    Args:
        folder: with pairs image/NAME and mask/NAME (0 and 255).
        locate: gives the (2, 3) map to the canonical crop of the face of a picture, or None.
    """
    both = either = missed = 0
    ious, boundaries = [], []
    pairs = find_pairs(folder)
    for done, (image, mask) in enumerate(pairs):
        progress(done, len(pairs))
        rgb = read_rgb(image)
        label = read_rgb(mask)[..., 0] > 127
        matrix = locate(rgb)
        missed += matrix is None
        matrix = whole_picture(rgb) if matrix is None else matrix
        probability = engine(warp_crop(rgb, matrix)[0][None])[0]
        region = mask_region(probability)
        shift = better_shift(region & (probability > 127), matrix, (rgb.shape[1], rgb.shape[0]))
        if shift != USUAL:
            matrix = placed(matrix, shift)
            region = mask_region(engine(warp_crop(rgb, matrix)[0][None])[0])
        back = cv2.invertAffineTransform(matrix)
        found = cv2.warpAffine(region, back, label.shape[::-1], flags=cv2.INTER_LINEAR) > 127
        intersection, union = int((found & label).sum()), int((found | label).sum())
        both, either = both + intersection, either + union
        ious.append(iou_of(intersection, union))
        boundaries.append(boundary_f(found, label))
    return {
        "pictures": len(pairs),
        "iou": iou_of(both, either),
        "iou_mean": float(np.mean(ious)),
        "boundary_f_2px": float(np.mean(boundaries)),
        "no_face_found": missed,
    }


def _bare_crops(folder: Path) -> Iterator[U8]:
    """Canonical crops of the faces of pictures, and of every tenth frame of videos, in a folder."""
    detector, mesh = FaceDetector(), FaceMesh()

    def crops(rgb: U8) -> Iterator[U8]:
        landmarks = largest_face(rgb, detector, mesh)
        if landmarks is not None:
            yield warp_crop(rgb, canonical_crop(landmarks))[0]

    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in PICTURE_SUFFIXES:
            yield from crops(read_rgb(path))
        elif path.suffix.lower() in _VIDEO_SUFFIXES:
            with av.open(str(path)) as container:
                for number, frame in enumerate(container.decode(video=0)):
                    if number % _EVERY_NTH_FRAME == 0:
                        yield from crops(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8))


def false_alarms(engine: Engine, crops: Iterator[U8]) -> dict[str, float]:
    """Share of the pixels of bare faces' crops that are called mask, and the share of faces with over 3 % of them
    (from where on the pipeline would paint)."""
    shares = np.array([float((mask_region(engine(crop[None])[0]) > 0).mean()) for crop in crops])
    if not len(shares):
        raise UserError("no bare faces found")
    return {"faces": len(shares), "pixels": float(shares.mean()), "painted": float((shares > 0.03).mean())}


def evaluate_bare(engine: Engine, folders: Sequence[Path], crops: FaceCrops | None) -> dict[str, dict[str, float]]:
    """False alarms on folders of bare faces (pictures or videos), and on the validation split of some crops."""
    results = {str(folder.name): false_alarms(engine, _bare_crops(folder)) for folder in folders}
    if crops is not None:
        validation = crops.split(validation=True)
        results["validation crops"] = false_alarms(engine, (np.ascontiguousarray(crops.crops[i]) for i in validation))
    return results
