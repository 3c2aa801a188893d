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
    if not name.name:
        raise UserError(f"'{name}' is no name for a file; give one, such as: unmask keys new server")
    public, secret = (key.decode() for key in zmq.curve_keypair())
    private_file, public_file = name.with_name(name.name + ".key"), name.with_name(name.name + ".pub")
    _write_new(private_file, f"{public}\n{secret}\n", 0o600)
    try:
        _write_new(public_file, f"{public}\n", 0o666)
    except UserError:
        private_file.unlink()  # half a pair would only be in the way
        raise
    return private_file, public_file


def _write_new(file: Path, text: str, mode: int) -> None:
    """Write a file that does not exist yet. Raises UserError where it does, or cannot be written; then none is left."""
    try:
        number = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise UserError(f"{file} exists; choose another name") from error
    except OSError as error:
        raise UserError(f"{file}: cannot be written ({error.strerror}); choose another folder or name") from error
    try:
        with open(number, "w") as written:
            written.write(text)
    except OSError as error:
        file.unlink()
        raise UserError(f"{file}: cannot be written ({error.strerror}); free some space, or choose another") from error


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
