"""Lists that come with published data sets: who is for validation, who is who, where a face's five points lie.

Pictures themselves need no reader of their own: FFHQ's folders of thousands, CelebA's `img_align_celeba`, LFW's folder
for each person and any other folder are searched recursively.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from unmask.errors import UserError
from unmask.train.config import Split

F32 = npt.NDArray[np.float32]


def _fold(key: str, folds: int) -> int:
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % folds


def parts_of(names: Sequence[str], how: Split) -> list[int]:
    """The part of each picture: 0 training, 1 validation, 2 testing.

    Args:
        names: folder and file of each.
        how: see `Split`.

    Raises:
        UserError: the file of the split cannot be read, or says nothing about a picture.
    """
    files = [Path(name).name for name in names]
    if how.folds < 2 or not 0 <= how.fold < how.folds:
        raise UserError(
            f"split: fold {how.fold} of {how.folds} is none; folds must be 2 or more, fold is counted from 0"
        )
    if how.by == "hash":
        return [int(_fold(name, how.folds) == how.fold) for name in files]
    if how.by == "identity" and not how.file:
        return [int(_fold(Path(name).parent.name, how.folds) == how.fold) for name in names]
    lines = _split_file(how)
    if how.by == "file":
        return [int(name in lines) for name in files]
    if unknown := [name for name in files if name not in lines]:
        raise UserError(f"split: '{how.file}' says nothing about {len(unknown)} pictures, such as {unknown[0]}")
    if how.by == "identity":
        return [int(_fold(lines[name], how.folds) == how.fold) for name in files]
    return [int(lines[name]) if lines[name] in {"0", "1"} else 2 for name in files]


def _split_file(how: Split) -> dict[str, str]:
    try:
        lines = Path(how.file).read_text().splitlines()
    except OSError as error:
        raise UserError(f"split: cannot read '{how.file}': {error.strerror}; give it with split.file=FILE") from error
    if how.by == "file":
        return {line.strip(): "" for line in lines}  # a name may have blanks in it
    return {name: values[0] if values else "" for name, *values in map(_words, lines) if name}


def _words(line: str) -> list[str]:
    return line.replace(",", " ").split() or [""]


def five_points(file: Path) -> dict[str, F32]:
    """CelebA's `list_landmarks_align_celeba.txt`, or any other list with lines "NAME X Y X Y X Y X Y X Y".

    Returns:
        By file name: (5, 2) float32 px, the eyes, the tip of the nose and the corners of the mouth, the picture's left
        one first.

    Raises:
        UserError: the file cannot be read, or holds no such lines.
    """
    try:
        rows = [_words(line) for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the landmarks '{file}': {error}") from error
    found = {}
    for name, *values in rows:
        try:
            points = np.array(values, np.float32)
        except ValueError:
            continue  # a line of headings
        if points.size == 10:
            found[name] = points.reshape(5, 2)
    if not found:
        raise UserError(f"'{file}' holds no landmarks: lines with a name and ten numbers, as CelebA has them")
    return found
