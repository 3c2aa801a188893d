"""What it is worth that a face is seen bare before its mask comes, or after it, on real videos of bare faces.

    python benchmarks/memory.py VIDEO... --instruments DIR [--later | --away] [--bare 25] [--frames 200] [--sheet FILE]

Protocol: each video goes through the pipeline's stages as 25 frames per second; the largest face is bare in its first
frames and then wears a drawn surgical mask that follows its landmarks (as in `steadiness.py`). It is unmasked twice:
painted anew in every frame ("painted", `--no-memory`), and shown as it was seen ("as seen"). Every sixth frame from
three seconds after the mask on is set against the truth: PSNR where the mask is, and LPIPS and identity (cosine of face
embeddings; see unmask.train.instruments) of the face, enlarged or shrunk to 256 px.

With `--later` it wears the mask first and is bare in the last frames, and "as seen" goes through it twice
(`--look-ahead`); every sixth frame but those of the last three seconds with the mask counts.

With `--away` there is an empty picture for a second and a half after the bare face: it has to be recognised.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
from steadiness import Bools, around, moments, through, unmask

from unmask.stream.stages.remember import Remember
from unmask.stream.stages.segment import Segment
from unmask.stream.stages.smooth import Smooth
from unmask.stream.stages.track import Track
from unmask.train.evaluate import psnr
from unmask.train.instruments import Instruments

U8 = npt.NDArray[np.uint8]

AFTER: Final = 75
EVERY: Final = 6
AWAY: Final = 38
SIDE: Final = 256


def face_of(rgb: U8, mask: Bools) -> U8:
    """(256, 256, 3) uint8: what is around a mask and above it."""
    rows, columns = around(mask)
    height, width = rows.stop - rows.start, columns.stop - columns.start
    top, left = max(0, rows.start - height), max(0, columns.start - width // 3)
    part = rgb[top : rows.stop + height // 3, left : columns.stop + width // 3]
    return np.asarray(cv2.resize(part, (SIDE, SIDE), interpolation=cv2.INTER_AREA), np.uint8)


def measure(
    video: Path, bare: int, count: int, instruments: Instruments, *, later: bool, away: bool
) -> tuple[dict[str, dict[str, float]], list[list[U8]]]:
    """All figures of one video, and a row of pictures for the truth and each case."""
    seen = list(moments(video, count))
    without = range(len(seen) - bare, len(seen)) if later else range(bare)
    pictures = [m.truth if number in without else m.masked for number, m in enumerate(seen)]
    pictures[bare:bare] = [np.full_like(pictures[0], 128)] * (AWAY * away)
    chosen = range(0, without.start - AFTER, EVERY) if later else range(bare + AFTER, len(seen), EVERY)
    rows = [[face_of(seen[number].truth, seen[number].mask) for number in chosen[::3]]]
    figures = {}
    for name, memory in (("painted", False), ("as seen", True)):
        with TemporaryDirectory() as folder:
            views = Path(folder, "later.npz") if later and memory else None
            if views is not None:
                through(pictures, (Track(max_faces=1), Segment(), Remember(views)))
            results = unmask(pictures, Track(max_faces=1), Smooth(), memory=memory, later=str(views or ""))
        del results[bare : bare + AWAY * away]
        values: dict[str, list[float]] = {"PSNR in the mask": [], "LPIPS": [], "identity": []}
        for number in chosen:
            truth, mask = seen[number].truth, seen[number].mask
            values["PSNR in the mask"].append(psnr((results[number].astype(np.float64) - truth)[mask]))
            one, other = face_of(truth, mask), face_of(results[number], mask)
            values["LPIPS"].append(instruments.lpips(one, other))
            if (identity := instruments.identity(one, other)) is not None:
                values["identity"].append(identity)
        figures[name] = {key: float(np.mean(x)) for key, x in values.items()}
        rows.append([face_of(results[number], seen[number].mask) for number in chosen[::3]])
    return figures, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--instruments", type=Path, required=True, help="folder with loaders.py")
    order = parser.add_mutually_exclusive_group()
    order.add_argument("--later", action="store_true", help="the mask first")
    order.add_argument("--away", action="store_true", help="nobody in between")
    parser.add_argument("--bare", type=int, default=25, help="frames without the mask")
    parser.add_argument("--frames", type=int, default=200)
    parser.add_argument("--sheet", type=Path, help="write the truth, what is painted and what was seen")
    arguments = parser.parse_args()
    instruments, sheet = Instruments(arguments.instruments), []
    for video in arguments.videos:
        figures, rows = measure(
            video, arguments.bare, arguments.frames, instruments, later=arguments.later, away=arguments.away
        )
        sheet += rows
        for name, values in figures.items():
            print(f"{video.name:32} {name:8} ", "  ".join(f"{key} {value:.3f}" for key, value in values.items()))
    if arguments.sheet:
        width = max(map(len, sheet))
        blank = np.zeros((SIDE, SIDE, 3), np.uint8)
        rows = [np.hstack([*row, *[blank] * (width - len(row))]) for row in sheet]
        cv2.imwrite(str(arguments.sheet), np.vstack(rows)[..., ::-1])


if __name__ == "__main__":
    main()
