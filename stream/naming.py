"""Which files a job reads and writes, settled before anything starts; and outputs that appear only when whole."""

import errno
import glob
import os
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from unmask.errors import UserError

VIDEO_SUFFIXES: Final = frozenset(
    {".264", ".265", ".3gp", ".asf", ".avi", ".flv", ".h264", ".h265", ".hevc", ".ivf", ".m2ts", ".m4v", ".mkv", ".mov"}
    | {".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"}
)
"""What counts as a video inside a folder; a file that is named is tried whatever its name."""

PICTURE_SUFFIXES: Final = frozenset({".jpeg", ".jpg", ".png", ".webp"})
"""The pictures that can be read and written."""

OUTPUT_MARK: Final = ".unmasked"
"""What the name of an output gets before its suffix where it lies in the folder of its input."""


@dataclass(frozen=True, slots=True)
class Job:
    """One input and the name under which its result is to appear."""

    source: Path
    target: Path

    @property
    def partial(self) -> Path:
        """The name for what was done when the user cut the run short: NAME.unmasked.partial.EXT."""
        return self.target.with_name(f"{self.target.stem}.partial{self.target.suffix}")


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files that the user's arguments stand for.

    Args:
        files: in the order of the arguments, those of a folder or a pattern sorted by name; none twice.
        passed_over: outputs of an earlier run among them, which are not taken for inputs.
        several: True where more than one file was asked for, by number or by a folder or pattern.
    """

    files: tuple[Path, ...]
    passed_over: tuple[Path, ...]
    several: bool


def find_inputs(arguments: Sequence[str], suffixes: frozenset[str]) -> Inputs:
    """Expand files, folders (not the folders inside) and patterns; outputs of unmask count only where named alone.

    Raises:
        UserError: an argument that leads to no file.
    """
    found: list[Path] = []
    several = len(arguments) > 1
    for argument in arguments:
        several = several or not os.path.isfile(argument)
        found += _expand(argument, suffixes)
    unique = tuple(dict.fromkeys(found))
    if not several:
        return Inputs(unique, (), several=False)
    passed_over = tuple(path for path in unique if _is_output(path))
    files = tuple(path for path in unique if not _is_output(path))
    if not files:
        raise UserError(f"{', '.join(arguments)}: only outputs of unmask here; name one alone to process it again")
    return Inputs(files, passed_over, several=True)


def _expand(argument: str, suffixes: frozenset[str]) -> list[Path]:
    path = Path(argument)
    try:
        if path.is_dir():
            return _of_kind(path.iterdir(), suffixes, argument)
        if path.exists():
            return [path]
    except OSError as error:
        raise UserError(f"{argument}: cannot be read ({error.strerror}); check its name and rights") from error
    if glob.has_magic(argument):
        return _of_kind(map(Path, glob.glob(argument, recursive=True)), suffixes, argument)
    raise UserError(f"{argument}: no such file or folder")


def _of_kind(paths: Iterable[Path], suffixes: frozenset[str], argument: str) -> list[Path]:
    kept = [path for path in paths if path.suffix.lower() in suffixes and not path.name.startswith(".")]
    files = sorted(path for path in kept if path.is_file())
    if not files:
        raise UserError(f"{argument}: no file ending in {', '.join(sorted(suffixes))} here")
    return files


def _is_output(path: Path) -> bool:
    return path.stem.endswith((OUTPUT_MARK, f"{OUTPUT_MARK}.partial"))


def assign_targets(inputs: Inputs, output: str | None) -> tuple[Job, ...]:
    """Give each input its output: beside it, under the folder `output`, or the file `output`.

    Raises:
        UserError: the folder is missing, a file is named for several inputs, or two inputs would share an output.
    """
    folder = _output_folder(inputs, output)
    if output is not None and folder is None:
        jobs = [Job(inputs.files[0], _named_file(output))]
    else:
        jobs = [Job(path, _target(path, folder or path.parent)) for path in inputs.files]
    _refuse_shared((job.target, job.source) for job in jobs)
    _refuse_overwritten_inputs([job.target for job in jobs], inputs.files)
    return tuple(jobs)


def _output_folder(inputs: Inputs, output: str | None) -> Path | None:
    """The folder that `output` names; None where it names a file or nothing is named."""
    if output is None:
        return None
    path = Path(output)
    if path.is_dir():
        return path
    if output.endswith(("/", os.sep)) or not path.suffix:
        raise UserError(f"{output}: no such folder; make it first, or name a file with its suffix")
    if inputs.several:
        raise UserError(f"{output}: for several inputs, -o must name a folder that exists")
    return None


def _named_file(output: str) -> Path:
    path = Path(output)
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder; make it first")
    return path


def _target(source: Path, folder: Path) -> Path:
    beside = folder.resolve() == source.parent.resolve()
    return folder / (f"{source.stem}{OUTPUT_MARK}{source.suffix}" if beside else source.name)


def _refuse_shared(pairs: Iterable[tuple[Path, Path]]) -> None:
    """Raise UserError where two inputs (second of each pair) lead to one output (first)."""
    taken: dict[Path, Path] = {}
    for target, source in pairs:
        rival = taken.setdefault(target.resolve(), source)
        if rival is not source:
            raise UserError(f"{rival} and {source} would both be written to {target}; process them one by one")


def _refuse_overwritten_inputs(targets: Sequence[Path], sources: Sequence[Path]) -> None:
    """Raise UserError where an output is one of the inputs, by name, symbolic link or hard link."""
    identities = {_identity(source): source for source in sources}
    for target in targets:
        if os.path.exists(target) and (source := identities.get(_identity(target))):
            raise UserError(f"{target}: the output would overwrite the input {source}; choose another name")


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def mask_targets(jobs: Sequence[Job], folder: str) -> tuple[Path, ...]:
    """The file for the predicted mask of each picture: STEM.png under `folder`.

    Raises:
        UserError: the folder is missing, two pictures share a stem, or a mask would replace an input or an output.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; make it first")
    masks = tuple(Path(folder) / f"{job.source.stem}.png" for job in jobs)
    _refuse_shared(zip(masks, (job.source for job in jobs), strict=True))
    _refuse_overwritten_inputs(masks, [job.source for job in jobs])
    outputs = {job.target.resolve() for job in jobs}
    for mask in masks:
        if mask.resolve() in outputs:
            raise UserError(f"{mask}: mask and output would share this name; choose another --mask-dir")
    return masks


def check_report(report: Path, jobs: Sequence[Job]) -> None:
    """Make sure that the report can be written. A report of an earlier run is replaced.

    Raises:
        UserError: it is not named .json, its folder is missing or closed to us, or it is an input.
    """
    if report.suffix.lower() != ".json":
        raise UserError(f"{report}: a report must be named FILE.json")
    if not report.parent.is_dir():
        raise UserError(f"{report.parent}: no such folder; make it first")
    _refuse_overwritten_inputs([report], [job.source for job in jobs])
    if report.resolve() in {job.target.resolve() for job in jobs}:
        raise UserError(f"{report}: the report and the output would share this name")
    with whole_file(report, overwrite=True):
        pass


class Draft:
    """The file that is being written, under a hidden name of its own in the folder of its target."""

    def __init__(self, target: Path) -> None:
        # Errors of whoever writes it name this file, so it resembles the target, as far as its length allows.
        self.path = target.with_name(f".{target.stem[:50]}.{secrets.token_hex(4)}{target.suffix}")

    def keep_as(self, target: Path, *, overwrite: bool) -> None:
        """Give the draft its name, in one step. Raises UserError where that name has been taken in the meantime."""
        if overwrite:
            os.replace(self.path, target)
            return
        try:
            os.link(self.path, target)
        except FileExistsError as error:
            raise _exists(target) from error
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}:
                raise
            # A file system without hard links (exFAT, some network shares) leaves a gap between the look and the move.
            if target.exists():
                raise _exists(target) from error
            os.rename(self.path, target)

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)


@contextmanager
def whole_file(target: Path, *, overwrite: bool) -> Iterator[Draft]:
    """A draft beside `target`, which is gone at the end unless it was kept.

    Raises:
        UserError: `target` exists and is not to be replaced, is no regular file, or its folder cannot be written to.
    """
    _check_name(target, overwrite=overwrite)
    draft = Draft(target)
    try:
        draft.path.touch(exist_ok=False)
    except OSError as error:
        raise UserError(f"{target.parent}: cannot be written to ({error.strerror}); choose another folder") from error
    try:
        yield draft
    finally:
        draft.discard()


def _check_name(target: Path, *, overwrite: bool) -> None:
    try:
        target.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); choose another name") from error
    if target.exists() and not target.is_file():
        raise UserError(f"{target}: is not a regular file; choose another name")
    if not overwrite:
        raise _exists(target)


def _exists(target: Path) -> UserError:
    return UserError(f"{target}: exists and is kept; use --overwrite to replace it, or another name with -o")
