"""Keys for `unmask serve` on a network: ZeroMQ CURVE (Curve25519), as its 40 characters of Z85.

NAME.key holds both keys and is for its owner alone; NAME.pub holds the public one and is for the other side.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import zmq

from unmask.errors import UserError

_KEY: Final = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Both keys of one side, in Z85."""

    public: str
    secret: str


def write_keys(name: Path) -> tuple[Path, Path]:
    """Make a pair of keys and write it to NAME.key (for its owner alone) and NAME.pub.

    Raises:
        UserError: one of the files exists, or cannot be written.
    """
    public, secret = (key.decode() for key in zmq.curve_keypair())
    private_file, public_file = name.with_name(name.name + ".key"), name.with_name(name.name + ".pub")
    if public_file.exists():
        raise UserError(f"{public_file} exists; choose another name")
    try:
        with open(os.open(private_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(f"{public}\n{secret}\n")
        public_file.write_text(f"{public}\n")
    except FileExistsError as error:
        raise UserError(f"{private_file} exists; choose another name") from error
    except OSError as error:
        raise UserError(f"{error.filename}: cannot be written ({error.strerror})") from error
    return private_file, public_file


def read_pair(file: Path) -> KeyPair:
    """The keys in NAME.key. Raises UserError where it holds none, or others may read it."""
    keys = _keys_in(file)
    if len(keys) != 2:
        raise UserError(f"{file}: is not a NAME.key of `unmask keys new NAME`")
    if file.stat().st_mode & 0o077:
        raise UserError(f"{file}: others can read this key; run: chmod 600 {file}")
    return KeyPair(*keys)


def read_public(value: str) -> str:
    """A public key, given as such or as the file NAME.pub. Raises UserError where it is neither."""
    if _KEY.fullmatch(value):
        return value
    keys = _keys_in(Path(value))
    if len(keys) != 1:
        raise UserError(f"{value}: is not a NAME.pub of `unmask keys new NAME`")
    return keys[0]


def _keys_in(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="ascii").split()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a text file"
        raise UserError(
            f"{file}: no key, nor a file with one ({reason}); make keys with: unmask keys new NAME"
        ) from error
    return lines if all(_KEY.fullmatch(line) for line in lines) else []
