"""From whom of the people in real scenes the mask comes off, in pictures, as `unmask image --max-faces 64` does it.

    python benchmarks/scenes.py SCENES [--all] [--sheet FILE.png]

SCENES holds pictures and `boxes.csv` (columns file,label,x0,y0,x1,y1; labels with_mask, with_incorrect_mask,
without_mask). Those pictures count that are kept for validation by the hash of their names, which the tracker was not
trained on; the segmenter was, with labels that an earlier one made. `--all` takes the others, too.

A face counts where one that the pipeline gives overlaps its box by more than 0.4 (IoU) and is of 32 px and more; who is
not found at all is counted by tracking.py. "painted" says that a mask was found and something painted, not how well.
Labels are taken as they are (printed as masked, worn wrongly, bare; "no label" is what lies in no box); some faces that
they call bare wear a mask. "told" are faces that stay as they are and of which the program says that they seem to wear
one. The sheet shows labelled faces that should wear their mask no more, and do, and bare ones that were painted.
"""

import argparse
from collections import Counter
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.models.rows import KINDS, overlap
from unmask.stream.frame import Face
from unmask.stream.jobs import PictureDesk
from unmask.stream.pipeline import Settings
from unmask.train.data import read_rgb
from unmask.train.tracker_data import is_validation_scene, read_boxes

U8 = npt.NDArray[np.uint8]

SMALLEST: Final = 32.0
FOUND: Final = 0.4
MAX_FACES: Final = 64
_TILE_PX: Final = 128
_NO_LABEL: Final = "no label"


def kind_of(face: Face, labels: list[tuple[int, tuple[float, ...]]]) -> str:
    """What the labels of a picture call a face."""
    boxes = np.array([box for _, box in labels], np.float32).reshape(-1, 4)
    fits = overlap(boxes, np.array([face.box_px], np.float32))[:, 0]
    best = int(np.argmax(fits)) if len(fits) else -1
    return KINDS[labels[best][0]] if best >= 0 and fits[best] > FOUND else _NO_LABEL


def tile(rgb: U8, face: Face) -> U8:
    """(S, S, 3) uint8: a face and a little around it."""
    x0, y0, x1, y1 = face.box_px
    zoom = _TILE_PX / (1.6 * max(x1 - x0, y1 - y0))
    shift = _TILE_PX / 2 - zoom * np.array([x0 + x1, y0 + y1]) / 2
    view = np.array([[zoom, 0, shift[0]], [0, zoom, shift[1]]])
    return np.asarray(cv2.warpAffine(rgb, view, (_TILE_PX, _TILE_PX), flags=cv2.INTER_AREA), np.uint8)


def write_sheet(path: Path, tiles: list[U8]) -> None:
    """Pairs of a face before and after, twelve in a row."""
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % 12)
    rows = [np.hstack(tiles[i : i + 12]) for i in range(0, len(tiles), 12)]
    cv2.imwrite(str(path), np.vstack(rows)[..., ::-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("--all", action="store_true", help="the scenes that trained the tracker, too")
    parser.add_argument("--sheet", type=Path, help="masked faces that stay, and others that are painted")
    options = parser.parse_args()
    counts: Counter[tuple[str, str]] = Counter()
    wrong: list[U8] = []
    with PictureDesk(Settings(max_faces=MAX_FACES)) as desk:
        for name, labels in sorted(read_boxes(options.scenes).items()):
            if not (options.all or is_validation_scene(name)):
                continue
            rgb = read_rgb(options.scenes / name)
            frame = desk.process_frame(rgb)
            after = np.asarray(frame.planes[0], np.uint8)
            for face in frame.faces:
                if max(face.box_px[2] - face.box_px[0], face.box_px[3] - face.box_px[1]) < SMALLEST:
                    continue
                kind = kind_of(face, labels)
                counts[kind, "painted" if face.masked else "told" if face.looks_masked else "as it was"] += 1
                if face.masked != (kind in KINDS[:2]) and kind != _NO_LABEL:
                    wrong.append(np.vstack([tile(rgb, face), tile(after, face)]))
    for kind in (*KINDS, _NO_LABEL):
        told = {what: counts[kind, what] for what in ("painted", "told", "as it was")}
        print(f"{kind:14}", "  ".join(f"{what} {number:4}" for what, number in told.items()))
    if options.sheet and wrong:
        write_sheet(options.sheet, wrong)


if __name__ == "__main__":
    main()
