"""Which files a job reads and writes, settled before anything starts; and outputs that appear only when whole."""

import errno
import glob
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

from unmask.errors import UserError

VIDEO_SUFFIXES: Final = frozenset(
    {".264", ".265", ".3gp", ".asf", ".avi", ".flv", ".h264", ".h265", ".hevc", ".ivf", ".m2ts", ".m4v", ".mkv", ".mov"}
    | {".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"}
)
"""What counts as a video inside a folder; a file that is named is tried whatever its name."""

WRITTEN_SUFFIXES: Final = frozenset(
    {".264", ".265", ".3gp", ".avi", ".flv", ".h264", ".h265", ".hevc", ".m2t", ".m2ts", ".m4a", ".m4b", ".m4v"}
    | {".mkv", ".mov", ".mp4", ".mts", ".ts", ".webm"}
)
"""The videos that can be written, as `unmask.stream.stages.encode` has them, which is slow to import."""

PICTURE_SUFFIXES: Final = frozenset({".jpeg", ".jpg", ".png", ".webp"})
"""The pictures that can be read and written."""

OUTPUT_MARK: Final = ".unmasked"
"""What the name of an output gets before its suffix where it lies in the folder of its input."""

NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Errors of the system that say that a file cannot grow."""

_OUTPUT: Final = re.compile(rf"{re.escape(OUTPUT_MARK)}(\.partial(-\d+)?)?\Z")
_NOT_UTF8: Final = re.compile("[\ud800-\udfff]")
_LONGEST_NAME: Final = 255
"""Bytes that a name has on nearly all file systems."""


def shown(text: str) -> str:
    """The text as it can be printed and stand in JSON: a byte of a name that is not UTF-8 is spelt out, as \\xe9."""

    def spelt(found: re.Match[str]) -> str:
        code = ord(found[0])
        return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"

    return _NOT_UTF8.sub(spelt, text)


@dataclass(frozen=True, slots=True)
class Kind:
    """The files that a command takes.

    Args:
        found: suffixes of what counts inside a folder.
        written: suffixes that outputs can have.
        instead: the suffix of the output where that of the input cannot be written.
    """

    found: frozenset[str]
    written: frozenset[str]
    instead: str


VIDEOS: Final = Kind(VIDEO_SUFFIXES, WRITTEN_SUFFIXES, ".mp4")
PICTURES: Final = Kind(PICTURE_SUFFIXES, PICTURE_SUFFIXES, ".png")


@dataclass(frozen=True, slots=True)
class Job:
    """One input and the name under which its result is to appear.

    Args:
        source, target: the files.
        converted: True where the target has another suffix because that of the source cannot be written.
    """

    source: Path
    target: Path
    converted: bool = False


@dataclass(frozen=True, slots=True)
class Unusable:
    """An argument that leads to no file, and the line that says so."""

    argument: str
    problem: str


@dataclass(frozen=True, slots=True)
class Inputs:
    """The files that the user's arguments stand for.

    Args:
        kind: what they are taken for.
        files: in the order of the arguments, those of a folder or a pattern sorted by name; none twice.
        passed_over: outputs of an earlier run among them, which are not taken for inputs.
        unusable: arguments that lead to no file.
        several: True where more than one file was asked for, by number or by a folder or pattern.
    """

    kind: Kind
    files: tuple[Path, ...]
    passed_over: tuple[Path, ...]
    unusable: tuple[Unusable, ...]
    several: bool


def find_inputs(arguments: Sequence[str], kind: Kind) -> Inputs:
    """Expand files, folders (not the folders inside) and patterns; outputs of unmask count only where named alone.

    Raises:
        UserError: not one of the arguments leads to a file.
    """
    found: dict[Path, Path] = {}
    unusable: list[Unusable] = []
    several = len(arguments) > 1
    for argument in arguments:
        several = several or not os.path.isfile(argument)
        try:
            for path in _expand(argument, kind.found):
                found.setdefault(_place(path), path)
        except UserError as error:
            unusable.append(Unusable(argument, str(error)))
    passed_over = tuple(path for path in found.values() if several and _is_output(path))
    files = tuple(path for path in found.values() if not (several and _is_output(path)))
    problems = [one.problem for one in unusable]
    if passed_over and not files:
        names = ", ".join(map(str, passed_over))
        problems.append(f"{names}: only outputs of unmask here; name one alone to process it again")
    if not files:
        raise UserError("; ".join(problems))
    return Inputs(kind, files, passed_over, tuple(unusable), several)


def _expand(argument: str, suffixes: frozenset[str]) -> list[Path]:
    if not argument:  # `Path("")` is the current folder, which nobody meant who has an empty variable
        raise UserError("'': an empty name; name a file or a folder, the current one as .")
    path = Path(argument)
    try:
        if path.is_dir():
            return _of_kind(path.iterdir(), suffixes, argument)
        if path.is_file():
            return [path]
        if path.exists():
            raise UserError(f"{argument}: is a pipe or a device; save what it gives to a file and name that")
        if glob.has_magic(argument):
            return _of_kind(map(Path, glob.glob(argument, recursive=True)), suffixes, argument)
    except OSError as error:
        raise UserError(f"{argument}: cannot be read ({error.strerror}); check its name and rights") from error
    raise UserError(f"{argument}: no such file or folder")


def _of_kind(paths: Iterable[Path], suffixes: frozenset[str], argument: str) -> list[Path]:
    kept = [path for path in paths if path.suffix.lower() in suffixes and not path.name.startswith(".")]
    files = sorted(path for path in kept if path.is_file())
    if not files:
        raise UserError(f"{argument}: no file ending in {', '.join(sorted(suffixes))} here")
    return files


def _place(path: Path) -> Path:
    """The same for one file by whatever way; a link is not the file that it leads to, as it has a name of its own."""
    return Path(os.path.realpath(path.parent), path.name)


def _is_output(path: Path) -> bool:
    return _OUTPUT.search(path.stem) is not None


def assign_targets(inputs: Inputs, output: str | None) -> tuple[Job, ...]:
    """Give each input its output: beside it, under the folder `output`, or the file `output`.

    Raises:
        UserError: the folder is missing, a file is named for several inputs, or two inputs would share an output.
    """
    folder = _output_folder(inputs, output)
    if output is not None and folder is None:
        jobs = [Job(inputs.files[0], _named_file(output))]
    else:
        jobs = list(_jobs(inputs, folder))
    _refuse_shared((job.target, job.source) for job in jobs)
    _refuse_overwritten_inputs([job.target for job in jobs], inputs.files)
    return tuple(jobs)


def _output_folder(inputs: Inputs, output: str | None) -> Path | None:
    """The folder that `output` names; None where it names a file or nothing is named."""
    if output is None:
        return None
    if not output:
        raise UserError("-o '': an empty name; name a file or a folder, the current one as .")
    path = Path(output)
    if _is_folder(path):
        return path
    if output.endswith(("/", os.sep)) or not path.suffix:
        raise UserError(f"{output}: no such folder; make it first, or name a file with its suffix")
    if inputs.several:
        raise UserError(f"{output}: for several inputs, -o must name a folder that exists")
    return None


def _named_file(output: str) -> Path:
    path = Path(output)
    if not _is_folder(path.parent):
        raise UserError(f"{path.parent}: no such folder; make it first")
    return path


def _is_folder(path: Path) -> bool:
    with _asking(path):
        return path.is_dir()


@contextmanager
def _asking(path: Path) -> Iterator[None]:
    """Name the file about which the system gives no answer, as where a folder is closed to us or a name too long."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be used ({error.strerror}); check its name and rights") from error


def _jobs(inputs: Inputs, folder: Path | None) -> Iterator[Job]:
    """A job for each input, with its result in `folder`, or beside it."""
    kind = inputs.kind
    taken = {_target(path, folder) for path in inputs.files if path.suffix.lower() in kind.written}
    for path in inputs.files:
        if path.suffix.lower() in kind.written:
            yield Job(path, _target(path, folder))
            continue
        target = _target(path.with_suffix(kind.instead), folder)
        if target in taken:  # a.mpg beside a.mp4
            target = _target(path.with_name(path.name + kind.instead), folder)
        taken.add(target)
        yield Job(path, target, converted=True)


def _target(source: Path, folder: Path | None) -> Path:
    folder = folder or source.parent
    beside = os.path.realpath(folder) == os.path.realpath(source.parent)
    return folder / (f"{source.stem}{OUTPUT_MARK}{source.suffix}" if beside else source.name)


def _refuse_shared(pairs: Iterable[tuple[Path, Path]]) -> None:
    """Raise UserError where two inputs (second of each pair) lead to one output (first)."""
    taken: dict[str, Path] = {}
    for target, source in pairs:
        rival = taken.setdefault(os.path.realpath(target), source)
        if rival is not source:
            raise UserError(f"{rival} and {source} would both be written to {target}; process them one by one")


def _refuse_overwritten_inputs(targets: Sequence[Path], sources: Sequence[Path]) -> None:
    """Raise UserError where an output is one of the inputs, by name, symbolic link or hard link."""
    identities = {_identity(source): source for source in sources}
    for target in targets:
        if os.path.exists(target) and (source := identities.get(_identity(target))):
            raise UserError(f"{target}: the output would overwrite the input {source}; choose another name")


def _identity(path: Path) -> tuple[int, int]:
    with _asking(path):
        status = path.stat()
    return status.st_dev, status.st_ino


def mask_targets(jobs: Sequence[Job], folder: str) -> tuple[Path, ...]:
    """The file for the predicted mask of each picture: STEM.png under `folder`.

    Raises:
        UserError: the folder is missing, two pictures share a stem, or a mask would replace an input or an output.
    """
    if not folder:
        raise UserError("--mask-dir '': an empty name; name a folder, the current one as .")
    if not _is_folder(Path(folder)):
        raise UserError(f"{folder}: no such folder; make it first")
    masks = tuple(Path(folder) / f"{job.source.stem}.png" for job in jobs)
    _refuse_shared(zip(masks, (job.source for job in jobs), strict=True))
    _refuse_overwritten_inputs(masks, [job.source for job in jobs])
    outputs = {os.path.realpath(job.target) for job in jobs}
    for mask in masks:
        if os.path.realpath(mask) in outputs:
            raise UserError(f"{mask}: mask and output would share this name; choose another --mask-dir")
    return masks


def check_report(report: Path, jobs: Sequence[Job], *, overwrite: bool) -> None:
    """Make sure that the report can be written.

    Raises:
        UserError: it is not named .json, its folder is missing or closed to us, it is an input, or it exists and is not
            to be replaced.
    """
    if report.suffix.lower() != ".json":
        raise UserError(f"{report}: a report must be named FILE.json")
    if not _is_folder(report.parent):
        raise UserError(f"{report.parent}: no such folder; make it first")
    _refuse_overwritten_inputs([report], [job.source for job in jobs])
    if os.path.realpath(report) in {os.path.realpath(job.target) for job in jobs}:
        raise UserError(f"{report}: the report and the output would share this name")
    with whole_file(report, overwrite=overwrite):
        pass


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Name the file that was to be written, not the draft of it, where the system refuses. Raises UserError then."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise UserError(f"no space left for {target}; free some, or choose another folder") from error
        raise UserError(f"{target}: cannot be written ({error.strerror}); check its name and rights") from error


class Draft:
    """The file that is being written, under a hidden name of its own in the folder of its target."""

    def __init__(self, target: Path) -> None:
        # Errors of whoever writes it name this file, so it resembles the target, as far as its length allows. Between
        # processes they travel as UTF-8.
        stem = _NOT_UTF8.sub("_", target.stem[:50])
        self.path = target.with_name(f".{stem}.{secrets.token_hex(4)}{target.suffix}")
        self._target = target

    def write(self, data: bytes) -> None:
        """Write all of it. Raises UserError, about the target, where that cannot be done."""
        with writing(self._target):
            self.path.write_bytes(data)

    def keep_as(self, target: Path, *, overwrite: bool) -> None:
        """Give the draft its name, in one step. Raises UserError where that name has been taken in the meantime."""
        if not self._take(target, overwrite=overwrite):
            raise _exists(target)

    def keep_or_rename(self, target: Path, *, overwrite: bool, what: str) -> None:
        """Give the draft its name, or where that has been taken in the meantime one that is free.

        Args:
            target: the name.
            overwrite: True where a file of this name is replaced.
            what: what the file is, for the line that says where it went: "the recording".

        Raises:
            UserError: the file has another name now, which the error gives.
        """
        try:
            self.keep_as(target, overwrite=overwrite)
        except UserError as error:
            kept = self.keep_as_part()
            raise UserError(f"{target}: this name was taken in the meantime; {what} is {kept}") from error

    def keep_as_part(self) -> Path:
        """Name what was done of the target when the run was cut short, and return the name: NAME.partial.EXT.

        Whatever has that name may be the user's, an input even, so it is kept: then the name is NAME.partial-2.EXT, or
        the next that is free.
        """
        names = (partial_name(self._target, number) for number in count(1))
        return next(name for name in names if self._take(name, overwrite=False))

    def _take(self, target: Path, *, overwrite: bool) -> bool:
        """Give the draft this name, in one step. Returns False where it is taken and stays so."""
        with writing(target):
            if overwrite:
                os.replace(self.path, target)
                return True
            try:
                os.link(self.path, target)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno not in {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}:
                    raise
                # A file system without hard links (exFAT, some network shares) leaves a gap between look and move.
                if os.path.lexists(target):
                    return False
                os.rename(self.path, target)
        return True

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)


def partial_name(target: Path, number: int = 1) -> Path:
    """The name for a part of `target`: NAME.partial.EXT, or with a number NAME.partial-2.EXT and so on."""
    end = f".partial{'' if number == 1 else f'-{number}'}{target.suffix}"
    stem = target.stem
    while stem and len(os.fsencode(stem + end)) > _LONGEST_NAME:
        stem = stem[:-1]
    return target.with_name(stem + end)


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
        regular = target.is_file() or not target.exists()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror}); choose another name") from error
    if not regular:
        raise UserError(f"{target}: is not a regular file; choose another name")
    if not overwrite:
        raise _exists(target)


def _exists(target: Path) -> UserError:
    return UserError(f"{target}: exists and is kept; use --overwrite to replace it, or choose another name")
