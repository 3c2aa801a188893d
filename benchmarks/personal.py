"""What a personal model is worth, on the rest of a clip whose first part it was made from.

    python benchmarks/personal.py CLIP... [--instruments DIR] [--steps N] [--share 0.6] [--sheet FILE.png]

The first part of each clip is written anew (H.264, CRF 12) and given to `unmask personalize`. From half a second after
it on, faces are hidden by synthetic masks (seed: the frame's position; training saw other ones), and painted by the
general and by the personal network. Figures are means over at most 40 frames: PSNR in the mask, and identity where
there is an instrument for it (see unmask.train.instruments).

Then the same part wears a drawn surgical mask that follows its landmarks (as in `steadiness.py`), never seen without
it, and goes through the pipeline's stages: with the general network ("program_general"), with the personal one alone
("program_personal", as with `--no-memory`), and with its views too ("program_views", as with `--person`). Every sixth
of at most 120 frames counts: PSNR where the mask is, and LPIPS and identity of the face (as in `memory.py`).
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
from memory import face_of
from steadiness import Moment, moments, through

from unmask.models.engine import Engine, choose, load
from unmask.models.geometry import CROP_SIZE, canonical_crop, transform_points
from unmask.models.mediapipe import FaceDetector, FaceMesh
from unmask.stream.stages.inpaint import Inpaint
from unmask.stream.stages.segment import Segment
from unmask.stream.stages.smooth import Smooth
from unmask.stream.stages.track import Track
from unmask.train.data import largest_face, warp_crop
from unmask.train.evaluate import psnr
from unmask.train.instruments import Instruments
from unmask.train.masks import hidden_region
from unmask.train.personal import personalize
from unmask.train.video import spread_frames

U8 = npt.NDArray[np.uint8]
FRAMES = 40
APART_SECONDS = 0.5
PROGRAM_FRAMES = 120
EVERY = 6


def write_first_part(clip: Path, share: float, target: Path) -> float:
    """Write the first part of a clip. Returns its length in seconds."""
    frames = list(spread_frames(clip, 100_000))
    end = share * frames[-1][0]
    rate = Fraction(len(frames) / max(frames[-1][0], 1e-3)).limit_denominator(1000)
    with av.open(str(target), "w") as container:
        stream = container.add_stream("libx264", rate, options={"crf": "12"})
        height, width = frames[0][1].shape[:2]
        stream.width, stream.height, stream.pix_fmt = width // 2 * 2, height // 2 * 2, "yuv420p"
        for moment, rgb in frames:
            if moment <= end:
                even = np.ascontiguousarray(rgb[: stream.height, : stream.width])
                container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode())
    return end


def hidden_faces(clip: Path, after: float) -> Iterator[tuple[U8, npt.NDArray[np.bool_], npt.NDArray[np.bool_]]]:
    """Canonical crops after a moment, what is hidden of each, and what of that is in the picture."""
    detector, mesh = FaceDetector(), FaceMesh()
    later = [rgb for moment, rgb in spread_frames(clip, 100_000) if moment > after]
    for seed, rgb in enumerate(later[:: max(1, len(later) // FRAMES)][:FRAMES]):
        landmarks = largest_face(rgb, detector, mesh)
        if landmarks is None:
            continue
        matrix = canonical_crop(landmarks)
        crop, inside = warp_crop(rgb, matrix)
        points = transform_points(matrix, landmarks).astype(np.float32)
        hidden = hidden_region(points, np.random.default_rng(90_000 + seed), (CROP_SIZE, CROP_SIZE)) > 0
        yield crop, hidden, hidden & (inside > 0)


def paint(engine: Engine, crop: U8, hidden: npt.NDArray[np.bool_]) -> U8:
    """The crop with its hidden part painted."""
    painted = engine(crop[None], hidden[None].astype(np.uint8) * np.uint8(255))[0]
    return np.where(hidden[..., None], painted, crop).astype(np.uint8)


def program(seen: list[Moment], person: Path, judge: Instruments | None) -> dict[str, float]:
    """Figures of the whole program on masked frames."""
    figures: dict[str, float] = {}
    cases = {"general": Inpaint(), "personal": Inpaint(person=str(person), memory=False)}
    for name, inpaint in (cases | {"views": Inpaint(person=str(person))}).items():
        stages = (Track(max_faces=1), Segment(), inpaint, Smooth())
        results = through([moment.masked for moment in seen], stages)
        rows: dict[str, list[float]] = {}
        for moment, result in list(zip(seen, results, strict=True))[::EVERY]:
            rows.setdefault("psnr", []).append(psnr((result.astype(np.float64) - moment.truth)[moment.mask]))
            if judge is not None:
                one, other = face_of(moment.truth, moment.mask), face_of(result, moment.mask)
                rows.setdefault("lpips", []).append(judge.lpips(one, other))
                if (identity := judge.identity(one, other)) is not None:
                    rows.setdefault("identity", []).append(identity)
        figures |= {f"program_{name}_{key}": float(np.mean(values)) for key, values in rows.items()}
    return figures


def rest(clip: Path, share: float) -> list[Moment]:
    """The moments of a clip after its first part."""
    seen = list(moments(clip, 100_000))
    first = round(share * len(seen)) + round(APART_SECONDS * 25)
    return seen[first : first + PROGRAM_FRAMES]


def measure(clip: Path, arguments: argparse.Namespace, judge: Instruments | None) -> tuple[dict[str, float], U8]:
    """Figures of a clip, and a sheet: truth, hidden, general, personal."""
    with tempfile.TemporaryDirectory() as folder:
        part, file = Path(folder) / f"{clip.stem}.mp4", Path(folder) / "person.safetensors"
        end = write_first_part(clip, arguments.share, part)
        began = time.monotonic()
        done = personalize([part], file, arguments.steps, lambda step, total: None)
        seconds = time.monotonic() - began
        personal = load("inpainter", choose("cpu", person=str(file)))
        engines = {"general": load("inpainter", choose("cpu")), "personal": personal}
        rows: dict[str, list[float]] = {}
        cells = []
        for crop, hidden, judged in hidden_faces(clip, end + APART_SECONDS):
            results = {name: paint(engine, crop, hidden) for name, engine in engines.items()}
            for name, result in results.items():
                rows.setdefault(f"psnr_{name}", []).append(psnr(result[judged].astype(np.float64) - crop[judged]))
                identity = judge.identity(crop, result) if judge else None
                if identity is not None:
                    rows.setdefault(f"identity_{name}", []).append(identity)
            cells.append(np.hstack([crop, np.where(hidden[..., None], 128, crop).astype(np.uint8), *results.values()]))
        figures = {name: float(np.mean(values)) for name, values in rows.items()}
        figures |= program(rest(clip, arguments.share), file, judge)
    sheet = np.vstack(cells[:: max(1, len(cells) // 4)][:4])
    return figures | {"frames": len(cells), "faces": done.faces, "bytes": done.size, "seconds": seconds}, sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--instruments", type=Path, help="folder with loaders.py, for identity")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--share", type=float, default=0.6, help="of each clip that is learnt from")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--report", type=Path)
    arguments = parser.parse_args()
    judge = Instruments(arguments.instruments) if arguments.instruments else None
    figures, sheets = {}, []
    for clip in arguments.clips:
        figures[clip.name], sheet = measure(clip, arguments, judge)
        sheets.append(sheet)
        print(clip.name, "  ".join(f"{name} {value:.3f}" for name, value in figures[clip.name].items()), flush=True)
    if arguments.sheet:
        cv2.imwrite(str(arguments.sheet), np.vstack(sheets)[..., ::-1])
    if arguments.report:
        arguments.report.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
