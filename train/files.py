"""Files of data sets and of runs: written so that they appear whole, read so that damage is one line to the user."""

import importlib.util
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any, Final

from unmask.errors import UserError
from unmask.hangup import HANGUP, ending_signals, leave, terminals

DRAFT: Final = ".unmask-draft-"
"""How the name of the folder begins that holds files until all of them are whole."""


@contextmanager
def whole_files(folder: Path, seal: str = "") -> Iterator[Path]:
    """A folder to write files to, which take their places in `folder` at the end, when all of them are whole.

    Until then those that were there before stay, and they stay where anything goes wrong. Who has one of them open or
    mapped keeps what it was.

    Args:
        folder: made if need be.
        seal: the one without which nobody reads the others. It goes first and comes last, so that files of two calls
            are never taken for one data set, whenever the program ends.

    Raises:
        UserError: the folder cannot be written to.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=DRAFT, dir=folder))
    except OSError as error:
        raise UserError(f"'{folder}' cannot be written to ({error.strerror}); choose another folder") from error
    with ended_like_ctrl_c():
        try:
            yield draft
            if seal:
                (folder / seal).unlink(missing_ok=True)
            for file in sorted(draft.iterdir(), key=lambda file: file.name == seal):
                os.replace(file, folder / file.name)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
            if made:
                with suppress(OSError):  # it is not empty, as it should be
                    folder.rmdir()


@contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """SIGTERM and a closed terminal end what runs meanwhile as Ctrl-C does, so that no temporary file stays."""
    if current_thread() is not main_thread():  # only that one may, and only that one hears of signals
        yield
        return
    shown_on = terminals()

    def on_signal(number: int, _: object) -> None:
        if number == HANGUP:
            leave(shown_on)
            signal.signal(number, signal.SIG_IGN)  # shells pass it on, so that it may come twice
        raise KeyboardInterrupt

    numbers = [number for number in ending_signals() if number != signal.SIGINT]
    before = {number: signal.signal(number, on_signal) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def reading(folder: Path, what: str, remedy: str) -> Iterator[None]:
    """Raise UserError where the files of a data set that are read meanwhile are missing, damaged, or do not fit.

    Args:
        folder: where they lie.
        what: they are, in the plural.
        remedy: what to do about it.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"'{folder}' holds no {what}; {remedy}") from error
    except (ValueError, TypeError, LookupError, EOFError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"'{folder}' holds {what} that are damaged ({reason}); {remedy}") from error


def check_whole(*parts: Any, drawn: Any = ()) -> None:
    """Check arrays of a data set, to be called within `reading`.

    Args:
        parts: must have one length.
        drawn: an array written picture by picture, none of which is all 0; the last one tells whether all were. Earlier
            versions left such arrays behind when they were interrupted.

    Raises:
        ValueError: they are not whole.
    """
    if len(lengths := {len(part) for part in parts}) > 1:
        raise ValueError(f"of {min(lengths)} to {max(lengths)} pictures")
    if len(drawn) and not drawn[-1].any():
        raise ValueError("they were not written to their end")


def json_of(path: Path) -> Any:
    """What a file of a run holds. Raises UserError where that is no JSON."""
    with _damage_said(path):
        return json.loads(path.read_text())


def json_lines_of(path: Path) -> list[Any]:
    """What the lines of a file of a run hold. Raises UserError where one of them is no JSON."""
    with _damage_said(path):
        return [json.loads(line) for line in path.read_text().splitlines()]


@contextmanager
def _damage_said(path: Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"'{path}' is damaged ({reason}); put it back as the run wrote it") from error


def missing_packages() -> list[str]:
    """What is not installed of what training needs."""
    needed = ("torch", "safetensors", "onnx", "onnxscript", "mlflow", "kornia", "optuna")
    return [name for name in needed if importlib.util.find_spec(name) is None]
