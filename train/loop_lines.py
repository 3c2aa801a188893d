"""Ear loops of real masks that were traced by eye as lines: what a network that was taught drawn ones does not see."""

import csv
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.errors import UserError
from unmask.models.engine import Engine
from unmask.models.geometry import CROP_SIZE, transform_points
from unmask.train.data import read_rgb, warp_crop
from unmask.train.pseudo import LOOP_LABEL, LOOP_WIDTH, Lined, Progress, mean_over_views

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_FAR_PX: Final = 40
"""A face whose crop has the listed point further from its middle is another one."""
_NO_LABEL: Final = np.uint8(115)
_RIM_PX: Final = 2
"""Beside a line, where its width was misjudged, there is no label."""
_MASK_RIM_PX: Final = 5


@dataclass(frozen=True, slots=True)
class LinedFace:
    """A face whose ear loops were drawn.

    Attributes:
        file: folder and file of its picture.
        at: (2,) float32 px of the picture, the middle of its crop.
        lines: width in px of the picture and (N, 2) float32 points in it, of each line; none where no loop can be seen.
    """

    file: str
    at: F32
    lines: tuple[tuple[float, F32], ...]


def read_lines(path: Path) -> list[LinedFace]:
    """Read a list of lines: file,x,y,width,points. A face without any has a line of width 0.

    Raises:
        UserError: it cannot be read, or a line is not understood.
    """
    faces: dict[tuple[str, str, str], list[tuple[float, F32]]] = defaultdict(list)
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                lines = faces[row["file"], row["x"], row["y"]]
                points = np.array(row["points"].split(), np.float32).reshape(-1, 2)
                if len(points):
                    lines.append((float(row["width"]), points))
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"cannot read '{path}' as a list of file,x,y,width,points: {error}") from error
    return [LinedFace(f, np.array([x, y], np.float32), tuple(lines)) for (f, x, y), lines in faces.items()]


def label_lined(
    engine: Engine,
    listed: Sequence[LinedFace],
    folders: Sequence[Path],
    locate: Callable[[U8], Sequence[F64]],
    progress: Progress,
) -> Lined:
    """Label listed faces: the mask as a segmenter sees it, its ear loops as they were drawn, nothing else.

    Args:
        engine: the segmenter.
        listed: the faces.
        folders: of pictures; a listed file lies in one of them, under its folder and name.
        locate: gives the (2, 3) maps to the canonical crops of a picture's faces.
        progress: is told how many of how many faces are done.

    Returns:
        Those that were found.

    Raises:
        UserError: a picture is in none of the folders.
    """
    lined = Lined([], [], [])
    for done, face in enumerate(listed):
        progress(done, len(listed))
        rgb = read_rgb(_found(face.file, folders))
        away = [(float(np.linalg.norm(transform_points(m, face.at[None])[0] - CROP_SIZE / 2)), m) for m in locate(rgb)]
        distance, matrix = min(away, key=lambda x: x[0], default=(np.inf, np.zeros((2, 3))))
        if distance > _FAR_PX:
            continue
        crop, _ = warp_crop(rgb, matrix)
        lined.crops.append(crop)
        lined.labels.append(_label(mean_over_views(engine, crop), face, matrix))
        lined.names.append(face.file)
    return lined


def _found(file: str, folders: Sequence[Path]) -> Path:
    for folder in folders:
        if (path := folder / file).is_file():
            return path
    raise UserError(
        f"'{file}' lies in none of {', '.join(map(str, folders)) or 'no folders'}; name them with --pictures"
    )


def _label(likely: F32, face: LinedFace, matrix: F64) -> U8:
    # What is narrow is not for the segmenter to say here.
    mask = cv2.morphologyEx((likely > 0.5).astype(np.uint8), cv2.MORPH_OPEN, LOOP_WIDTH) > 0
    near = cv2.dilate(mask.astype(np.uint8), np.ones((2 * _MASK_RIM_PX + 1,) * 2, np.uint8)) > 0
    label = np.where(near, np.round(likely * 255), 0).astype(np.uint8)
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    for rim, value in ((_RIM_PX, _NO_LABEL), (0, LOOP_LABEL)):
        drawn = np.zeros_like(label)
        for width, points in face.lines:
            at = np.round(transform_points(matrix, points) * 16).astype(np.int32)
            cv2.polylines(drawn, [at], False, 255, max(1, round(width * scale)) + 2 * rim, cv2.LINE_AA, shift=4)
        label = np.where((drawn > 127) & ~mask, value, label)
    return np.asarray(label, np.uint8)
