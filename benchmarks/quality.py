"""Quality on whole pictures, by the protocol of the literature, with judges that trained nothing.

    python benchmarks/quality.py celeba FOLDER --textures DIR [--instruments DIR] [--sheet FILE.png]

Protocol "celeba": CelebA pictures as published (178x218), rows 20 to 198, enlarged to 256x256 (bicubic); a surgical
template of MaskTheFace is put on each (seed: the picture's position); figures are means over the pictures, of the whole
picture unless "in the mask" is said. Two cases: the true mask is given and only it is painted; and the masked picture
goes through the whole program, which finds the face and the mask itself.

LPIPS and identity (cosine of face embeddings) are measured by networks that are not part of this project: see
unmask.train.instruments.
"""

import argparse
import json
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.models.engine import Engine, choose, load
from unmask.models.geometry import canonical_crop
from unmask.models.mediapipe import FaceDetector, FaceMesh
from unmask.stream.jobs import PictureDesk
from unmask.stream.pipeline import Settings
from unmask.train.data import PICTURE_SUFFIXES, largest_face, read_rgb, warp_crop
from unmask.train.evaluate import psnr, sharpness, structural_similarity
from unmask.train.instruments import Instruments
from unmask.train.materials import Template, load_templates, wear_template

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

SIDE: Final = 256
ROWS: Final = slice(20, 198)


def celeba_picture(path: Path) -> U8:
    """(256, 256, 3) uint8: rows 20 to 198 of a CelebA picture, enlarged."""
    cut = read_rgb(path)[ROWS]
    return np.asarray(cv2.resize(cut, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC), np.uint8)


def put_on(truth: U8, landmarks: F32, templates: list[Template], seed: int) -> tuple[U8, Bools]:
    """The picture with a surgical mask, and where the mask is."""
    rng = np.random.default_rng(seed)
    template = templates[int(rng.integers(len(templates)))]
    worn = wear_template(truth.astype(np.float32) / np.float32(255), landmarks, template, rng, jitter=0.0)
    return np.rint(worn.rgb * 255).astype(np.uint8), worn.coverage > 0.02


def paint_given(engine: Engine, masked: U8, hidden: Bools, landmarks: F32) -> U8:
    """Paint exactly the pixels that are given."""
    matrix = canonical_crop(landmarks)
    crop, _ = warp_crop(masked, matrix)
    region = cv2.warpAffine(hidden.astype(np.uint8) * np.uint8(255), matrix, crop.shape[:2], flags=cv2.INTER_LINEAR)
    painted = engine(crop[None], np.asarray(region > 0, np.uint8)[None] * np.uint8(255))[0]
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    back = cv2.warpAffine(painted, matrix, (SIDE, SIDE), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.where(hidden[..., None], back, masked).astype(np.uint8)


def edge_step(rgb: U8, hidden: Bools) -> float:
    """Mean difference between neighbouring pixels on either side of the mask's edge, 0..255."""
    inner = hidden & ~(cv2.erode(hidden.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0)
    steps = [
        np.abs(rgb.astype(int) - np.roll(rgb, shift, axis)).mean(axis=2)[inner & ~np.roll(hidden, shift, axis)]
        for axis in (0, 1)
        for shift in (-1, 1)
    ]
    return float(np.concatenate(steps).mean())


def judge(instruments: Instruments | None, truth: U8, result: U8) -> dict[str, float]:
    """LPIPS and identity, as far as they can be measured."""
    if instruments is None:
        return {}
    identity = instruments.identity(truth, result)
    return {"lpips": instruments.lpips(truth, result)} | ({} if identity is None else {"identity": identity})


def measure(truth: U8, result: U8, hidden: Bools, instruments: Instruments | None) -> dict[str, float]:
    """All figures of one picture."""
    error = result.astype(np.float64) - truth
    return {
        "psnr": psnr(error),
        "ssim": structural_similarity(result, truth),
        "psnr_in_mask": psnr(error[hidden]),
        "sharpness": sharpness(result, hidden) / max(sharpness(truth, hidden), 1e-6),
        "edge_step": edge_step(result, hidden) / max(edge_step(truth, hidden), 1e-6),
        **judge(instruments, truth, result),
    }


def run(arguments: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Measure every picture of the folder in every case."""
    templates = [t for t in load_templates(arguments.textures) if t.name.startswith("surgical")]
    front = [t for t in templates if not t.name.endswith(("_left", "_right"))]
    engine = load("inpainter", choose(arguments.device))
    instruments = Instruments(arguments.instruments) if arguments.instruments else None
    detector, mesh = FaceDetector(), FaceMesh()
    rows: dict[str, list[dict[str, float]]] = {"masked": [], "telea": [], "true mask": [], "whole program": []}
    shares, cells = [], []
    pictures = sorted(p for p in arguments.folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES)
    with PictureDesk(Settings(arguments.device)) as desk:
        for seed, path in enumerate(pictures[: arguments.limit]):
            truth = celeba_picture(path)
            landmarks = largest_face(truth, detector, mesh)
            if landmarks is None:
                print(f"{path.name}: no face found, left out")
                continue
            masked, hidden = put_on(truth, landmarks, front, seed)
            results = {
                "masked": masked,
                "telea": cv2.inpaint(masked, hidden.astype(np.uint8), 5, cv2.INPAINT_TELEA),
                "true mask": paint_given(engine, masked, hidden, landmarks),
                "whole program": desk.process(masked),
            }
            shares.append(float(hidden.mean()))
            for case, result in results.items():
                rows[case].append(measure(truth, np.asarray(result, np.uint8), hidden, instruments))
            cells.append(np.hstack([truth, *results.values()]))
    if arguments.sheet:
        chosen = cells[:: max(1, len(cells) // 12)][:12]
        cv2.imwrite(str(arguments.sheet), np.vstack(chosen)[..., ::-1])
    return {"mask share": {"mean": float(np.mean(shares)), "pictures": len(shares)}} | {
        case: _summary(figures) for case, figures in rows.items()
    }


def _summary(rows: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for row in rows for name in row)
    median = {"sharpness", "edge_step"}
    return {
        name: float((np.median if name in median else np.mean)([r[name] for r in rows if name in r])) for name in names
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("protocol", choices=["celeba"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--textures", type=Path, required=True, help="folder with masks.cfg")
    parser.add_argument("--instruments", type=Path, help="folder with loaders.py, for LPIPS and identity")
    parser.add_argument("--sheet", type=Path, help="write twelve pictures: truth, masked, Telea, true mask, program")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--limit", type=int)
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    figures = run(arguments)
    for case, row in figures.items():
        print(f"{case:14}", "  ".join(f"{name} {value:.3f}" for name, value in row.items()))
    if arguments.report:
        arguments.report.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
