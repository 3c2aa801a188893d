"""Sheets of pictures, to see what a network does."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
from torch import Tensor

from unmask.errors import UserError
from unmask.train.augmentation import Augmenter

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

ROWS: Final = 8
_TINT: Final = np.array([255, 40, 40], np.float32)


def picture_sheet(columns: Sequence[Tensor], titles: Sequence[str]) -> U8:
    """Pictures side by side, a row for each of the first eight of a batch, under a line of titles.

    Args:
        columns: (N, 3, S, S) 0..1 each.
        titles: one for each column.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    rows = [np.hstack([as_picture(column[i]) for column in columns]) for i in range(min(ROWS, len(columns[0])))]
    return np.vstack([_header(titles, rows[0].shape[1]), *rows])


def write_sheet(path: Path, sheet: U8) -> None:
    """Write a (H, W, 3) uint8 RGB sheet as JPEG or PNG. Raises UserError where that cannot be done."""
    try:
        written = cv2.imwrite(str(path), np.ascontiguousarray(sheet[..., ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 92])
    except cv2.error:
        written = False
    if not written:
        raise UserError(f"cannot write '{path}'; give a .jpg or .png in a folder that exists")


def as_picture(rgb: Tensor) -> U8:
    """(3, S, S) 0..1 to (S, S, 3) uint8."""
    return np.asarray((rgb.detach().float().clamp(0, 1) * 255 + 0.5).byte().permute(1, 2, 0).cpu().numpy(), np.uint8)


def tinted(rgb: Tensor, mask: Tensor) -> Tensor:
    """(N, 3, S, S) pictures with (N, 1, S, S) masks 0..1 laid over them in red."""
    red = rgb.new_tensor(_TINT / 255).view(1, 3, 1, 1)
    return rgb + 0.5 * mask * (red - rgb)


def _header(titles: Sequence[str], width: int) -> U8:
    cell = width // len(titles)
    header = np.full((22, width, 3), 255, np.uint8)
    scale = min(0.45, cell / 180)
    for i, title in enumerate(titles):
        cv2.putText(header, title, (i * cell + 4, 15), cv2.FONT_HERSHEY_SIMPLEX, scale, (30, 30, 30), 1, cv2.LINE_AA)
    return header


def batch_sheet(batch: Any, augmenter: Augmenter) -> U8:
    """A training batch as the network gets it: a column for each of its pictures and masks, by their names.

    Args:
        batch: a dataclass of (N, 3, S, S) pictures and (N, 1, S, S) masks, 0..1; what has another shape is left out.
        augmenter: of the recipe.
    """
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch) if len(getattr(batch, f.name))}
    tensors = {name: x for name, x in tensors.items() if x.ndim == 4 and x.shape[1] in {1, 3}}
    pictures = [name for name, x in tensors.items() if x.shape[1] == 3 and name != "unpaired"]
    masks = [name for name, x in tensors.items() if x.shape[1] == 1]
    changed = augmenter([tensors[n] for n in pictures], [tensors[n] for n in masks])
    tensors |= dict(zip([*pictures, *masks], [*changed[0], *changed[1]], strict=True))
    return picture_sheet([x.expand(-1, 3, -1, -1) for x in tensors.values()], list(tensors))
