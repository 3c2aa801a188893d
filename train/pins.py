"""What a run was trained on, pinned by hashes: `data.json` in its folder, and in MLflow. A run that goes on, or is
measured, with other data than it began with is refused.

Hashes are over names and contents, so that a folder may be moved. DVC may keep the data; it is not needed for this.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

from unmask.errors import UserError
from unmask.train.config import Recipe
from unmask.train.files import DRAFT, json_of

_FILE: Final = "data.json"
_AT_THE_BEGINNING: Final = frozenset({"start", "encoder"})
"""Read once; a run that goes on has them in its checkpoint."""


def data_hashes(recipe: Recipe) -> dict[str, str]:
    """SHA-256 of each file and folder that a recipe reads, by the recipe's key; what is not there is left out."""
    named = {
        "crops": recipe.crops,
        "textures": recipe.textures,
        "real": recipe.real,
        "tracker": recipe.tracker,
        "split.file": recipe.split.file,
        "perceptual_weights": recipe.perceptual_weights,
        "efficientnet_weights": recipe.efficientnet_weights,
        "identity_weights": recipe.identity_weights,
        "ages": recipe.ages,
        "age_weights": recipe.age_weights,
        "start": recipe.start,
        "teacher": recipe.teacher,
        "encoder": recipe.encoder,
    }
    return {key: hash_of(Path(place)) for key, place in named.items() if place and Path(place).exists()}


def hash_of(place: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files below a folder but drafts of what it will hold."""
    if place.is_file():
        return _file_hash(str(place.resolve()), place.stat().st_size, place.stat().st_mtime_ns)
    digest = hashlib.sha256()
    for file in sorted(p for p in place.rglob("*") if p.is_file() and not p.parent.name.startswith(DRAFT)):
        digest.update(f"{file.relative_to(place).as_posix()}\0{hash_of(file)}\n".encode())
    return digest.hexdigest()


@lru_cache(maxsize=4096)  # the trials of a search read the same files; size and time of change tell when to read again
def _file_hash(path: str, size: int, changed_ns: int) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pin(folder: Path, found: Mapping[str, str]) -> None:
    """Keep the hashes in the folder of a run that begins, or compare them with those that it began with.

    Raises:
        UserError: the data is not what it was.
    """
    check(folder, {key: value for key, value in found.items() if key not in _AT_THE_BEGINNING})
    (folder / _FILE).write_text(json.dumps(pinned(folder) | dict(found), indent=2) + "\n")


def check(folder: Path, found: Mapping[str, str]) -> None:
    """Compare hashes with those of a run, as far as it has them. Raises UserError where one differs."""
    known = pinned(folder)
    if changed := [key for key, value in found.items() if known.get(key, value) != value]:
        raise UserError(
            f"the data changed since the run '{folder}' began: {', '.join(changed)}; put it back, or begin a new run "
            "with another out="
        )


def pinned(folder: Path) -> dict[str, str]:
    """The hashes that a run began with; none where it has not begun. Raises UserError where they are damaged."""
    file = folder / _FILE
    known: dict[str, str] = json_of(file) if file.is_file() else {}
    return known
