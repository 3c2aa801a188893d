"""The command line. Each command imports what it needs when it runs, so that `unmask --help` answers at once.

Exit codes: 0 done; 1 a fault while running; 2 the input, the output or an option cannot be used; 130 stopped by Ctrl-C.
The summary goes to stdout, everything else to stderr, one line for each error. UNMASK_DEBUG=1 shows tracebacks.
"""

import errno
import io
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from unmask import __version__, bench_cli, compile_cli, live_cli, serve_cli, training_cli
from unmask.errors import UnmaskError, UserError
from unmask.interrupts import FINISHING, FINISHING_PICTURE, STOPPED, interruptible
from unmask.options import (
    DeviceOption,
    EngineOption,
    MaxFacesOption,
    MemoryOption,
    OverwriteOption,
    PersonOption,
    QuietOption,
    TrackerOption,
    personal,
)
from unmask.progress import choose_display, say
from unmask.stream.naming import (
    NO_SPACE,
    PICTURES,
    VIDEOS,
    Job,
    Kind,
    assign_targets,
    check_report,
    find_inputs,
    mask_targets,
    shown,
)
from unmask.stream.trackers import DEFAULT_TRACKER

if TYPE_CHECKING:
    from unmask.stream.jobs import Failed, PictureDone, VideoDone

T = TypeVar("T", bound="VideoDone | PictureDone")

_REFUSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG})
"""Errors of the system that are about what the user named, wherever they come from."""

# Typer brings its own copy of click or uses the installed one, depending on its version; this is the class either way.
_UsageError: Final[Any] = typer.BadParameter.__mro__[1]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Drawn(StrEnum):
    """What `--draw` can draw."""

    TRACKS = "tracks"


class CodecName(StrEnum):
    """The codecs of `unmask.stream.encoders`, which is slow to import."""

    H264 = "h264"
    HEVC = "hevc"
    AV1 = "av1"


def _show_version(asked: bool) -> None:
    if asked:
        print(f"unmask {__version__}")
        raise typer.Exit


_Inputs = Annotated[list[str], typer.Argument(metavar="INPUT", help="Files, folders or patterns such as '*.mp4'.")]
_Output = Annotated[
    str | None,
    typer.Option("-o", "--output", metavar="FILE|DIR", help="Default: NAME.unmasked.EXT beside the input."),
]
_Report = Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write what was done, as JSON.")]


@app.callback(invoke_without_command=True)
def _unmask(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    weights: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Networks of your own, as `unmask export` writes them.")
    ] = None,
) -> None:
    """Take face masks off the faces in video.

    What is painted is a plausible face, never evidence of who someone is.
    """
    if weights is not None:
        if not any(weights.glob("*.onnx")):
            raise UserError(f"--weights: '{weights}' holds no networks; write them with: unmask export")
        os.environ["UNMASK_WEIGHTS"] = str(weights.resolve())  # worker processes are to see it too
    cache = os.environ.get("UNMASK_CACHE")
    if cache is not None and os.path.exists(cache) and not os.path.isdir(cache):
        raise UserError(f"UNMASK_CACHE: '{cache}' is no folder; name one, or take the variable out")
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(UserError.exit_code)


@app.command()
def video(
    inputs: _Inputs,
    output: _Output = None,
    device: DeviceOption = "auto",
    engine: EngineOption = "auto",
    codec: Annotated[
        CodecName | None, typer.Option(metavar="h264|hevc|av1", help="Default: by depth, size and container.")
    ] = None,
    crf: Annotated[
        float | None, typer.Option(metavar="N", min=0, max=63, help="Quality: lower is better and larger.")
    ] = None,
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="Speed of the encoder, by its own names.")] = None,
    max_faces: MaxFacesOption = 8,
    person: PersonOption = None,
    memory: MemoryOption = True,
    look_ahead: Annotated[
        bool,
        typer.Option("--look-ahead", help="Go through it twice: who is bare only later is shown as they were then."),
    ] = False,
    processes: Annotated[bool, typer.Option("--processes", help="A process per stage instead of a thread.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Show before and after side by side.")] = False,
    tracker: TrackerOption = DEFAULT_TRACKER,
    draw: Annotated[
        Drawn | None, typer.Option(metavar="tracks", help="Draw what the tracker finds, and leave the masks on.")
    ] = None,
    report: _Report = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """Take the masks off the faces in recorded videos.

    Ctrl-C finishes what is under way and leaves NAME.unmasked.partial.EXT, which replaces nothing; a second one stops
    at once.
    """
    from unmask.models.engine import choose
    from unmask.stream.encoders import Codec, EncodeOptions
    from unmask.stream.jobs import VideoSettings, unmask_video
    from unmask.stream.pipeline import Settings
    from unmask.stream.supervisor import Cancel

    choice = choose(device, engine)  # a device that is not there is said once, before anything starts
    if look_ahead and (not memory or draw is not None):
        raise UserError(f"--look-ahead has nothing to do with {'--draw' if memory else '--no-memory'}; leave one out")
    plan = _plan(VIDEOS, inputs, output, report, overwrite=overwrite, quiet=quiet)
    cancel, display = Cancel(), choose_display(quiet=quiet)
    known = personal(person, display.notice)
    settings = VideoSettings(
        Settings(device, max_faces=max_faces, engine=engine, person=known, tracker=tracker, memory=memory),
        EncodeOptions(Codec(codec) if codec else None, crf, preset, compare, gpu=choice.device != "cpu"),
        processes=processes,
        overwrite=overwrite,
        draw_tracks=draw is Drawn.TRACKS,
        look_ahead=look_ahead,
    )

    def work(job: Job) -> "VideoDone":
        try:
            return unmask_video(job, settings, display, cancel)
        finally:
            display.finished()

    with interruptible(cancel, FINISHING) as interrupted:
        results = _do_all(plan, work, interrupted)
    raise typer.Exit(_exit_code(plan, results, interrupted))


@app.command()
def image(
    inputs: _Inputs,
    output: _Output = None,
    mask_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write each predicted mask there, as NAME.png.")
    ] = None,
    device: DeviceOption = "auto",
    engine: EngineOption = "auto",
    max_faces: MaxFacesOption = 8,
    person: PersonOption = None,
    tracker: TrackerOption = DEFAULT_TRACKER,
    report: _Report = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
) -> None:
    """Take the masks off the faces in pictures: PNG, JPEG, WebP.

    Ctrl-C finishes the picture under way; a second one stops at once.
    """
    from unmask.models.engine import choose
    from unmask.stream.jobs import PictureDesk
    from unmask.stream.pipeline import Settings

    choose(device, engine)
    plan = _plan(PICTURES, inputs, output, report, overwrite=overwrite, quiet=quiet)
    masks = dict(zip(plan.jobs, mask_targets(plan.jobs, mask_dir), strict=True)) if mask_dir is not None else {}
    display = choose_display(quiet=quiet)
    known = personal(person, display.notice)
    settings = Settings(device, max_faces=max_faces, engine=engine, person=known, tracker=tracker)
    with PictureDesk(settings, overwrite=overwrite, notice=display.notice) as desk:

        def work(job: Job) -> "PictureDone":
            try:
                return desk.unmask(job, masks.get(job))
            except KeyboardInterrupt as error:
                raise UnmaskError(f"{job.source}: stopped; nothing was written") from error

        with interruptible(_OnePicture(), FINISHING_PICTURE) as interrupted:
            results = _do_all(plan, work, interrupted)
    raise typer.Exit(_exit_code(plan, results, interrupted))


@app.command()
def doctor() -> None:
    """Show what this machine can do, and why not more."""
    from unmask.stream.doctor import examine

    for section in examine():
        print(section.title)
        for line in section.lines:
            print(f"  {line}")


app.command(help=live_cli.LIVE_HELP)(live_cli.live)
app.command(help=serve_cli.SERVE_HELP)(serve_cli.serve)
app.add_typer(serve_cli.keys, name="keys")
app.command()(bench_cli.bench)
app.command("compile")(compile_cli.compile_networks)
app.add_typer(training_cli.data, name="data")
app.command()(training_cli.train)
app.command()(training_cli.overfit)
app.command()(training_cli.crossval)
app.command()(training_cli.tune)
app.command()(training_cli.compare)
app.command()(training_cli.personalize)
app.add_typer(training_cli.evaluate, name="evaluate")
app.command()(training_cli.export)


class _OnePicture:
    """The picture under way: it is finished after one Ctrl-C, and given up after two."""

    def drain(self) -> None:
        pass  # whoever takes one picture after the other looks before the next

    def stop_now(self) -> None:
        raise KeyboardInterrupt


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a command is to do.

    Args:
        jobs: what is worked on, in order.
        unusable: arguments that lead to no file, which the user has been told.
        report: the file for it; None for none.
        overwrite: True where the report may replace a file.
        quiet: True where nothing but errors is written.
    """

    jobs: tuple[Job, ...]
    unusable: "tuple[Failed, ...]"
    report: Path | None
    overwrite: bool
    quiet: bool


def _plan(
    kind: Kind, inputs: list[str], output: str | None, report: Path | None, *, overwrite: bool, quiet: bool
) -> _Plan:
    from unmask.stream.jobs import Failed

    found = find_inputs(inputs, kind)
    jobs = assign_targets(found, output)
    if report is not None:
        check_report(report, jobs, overwrite=overwrite)
    for one in found.unusable:
        say(f"unmask: {one.problem}")
    for path in () if quiet else found.passed_over:
        say(f"{path}: passed over, an output of unmask")
    unusable = tuple(Failed(one.argument, one.problem, UserError.exit_code) for one in found.unusable)
    return _Plan(jobs, unusable, report, overwrite, quiet)


def _do_all(plan: _Plan, work: Callable[[Job], T], interrupted: Sequence[int]) -> "list[T | Failed]":
    """Work on each job, then write the report; a failure is one line and does not keep the next job from its turn.

    Returns:
        What became of the unusable arguments and of each job that was begun.

    Raises:
        UserError: report or summary cannot be written; the work is done.
    """
    from unmask.stream.jobs import Failed, write_report

    results: list[T | Failed] = list(plan.unusable)
    summary = _Summary(quiet=plan.quiet)
    for job in plan.jobs:
        try:
            done = work(job)
        except (UnmaskError, OSError) as error:
            results.append(_failed(job, error))
        else:
            results.append(done)
            summary.write(done.summary())
        if interrupted:
            break
    asked_for = len(plan.unusable) + len(plan.jobs)
    if asked_for > 1:
        summary.write(f"{sum(not isinstance(result, Failed) for result in results)} of {asked_for} done")
    if plan.report is not None:
        write_report(plan.report, results, as_list=asked_for > 1, overwrite=plan.overwrite)
    summary.close()
    return results


class _Summary:
    """Writes lines to stdout as long as somebody reads them: what they are about is done all the same.

    Args:
        quiet: write none.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._heard = not quiet
        self._problem: OSError | None = None

    def write(self, line: str) -> None:
        if not self._heard:
            return
        try:
            print(shown(line), flush=True)
        except OSError as error:
            self._heard = False
            self._problem = error
            _leave_stdout()

    def close(self) -> None:
        """Raises UserError where lines were lost, and not because their reader had enough, as with `| head`."""
        if self._problem is not None and not isinstance(self._problem, BrokenPipeError):
            raise UserError(_lost(self._problem)) from self._problem


def _failed(job: Job, error: UnmaskError | OSError) -> "Failed":
    from unmask.stream.jobs import Failed

    if isinstance(error, OSError):
        error = _as_users(error, str(job.source)) or UnmaskError(f"{job.source}: {error}")
    say(f"unmask: {error}")
    _show_traceback()
    return Failed(str(job.source), str(error), error.exit_code)


def _as_users(error: OSError, about: str) -> UserError | None:
    """What the user can do about a file that the system refused; None where that is not for the user to mend.

    Args:
        error: what the system said.
        about: stands for the file where the system names none.
    """
    if error.errno not in _REFUSED | NO_SPACE:
        return None
    advice = "free some space" if error.errno in NO_SPACE else "check its name and rights"
    return UserError(f"{error.filename or about}: refused by the system ({error.strerror}); {advice}")


def _exit_code(plan: _Plan, results: "Sequence[VideoDone | PictureDone | Failed]", interrupted: Sequence[int]) -> int:
    """130 where the user cut the work short, else 2 where the user can mend a cause, 1 where a job failed, or 0."""
    from unmask.stream.jobs import Failed

    begun = results[len(plan.unusable) :]
    cut_short = any(isinstance(result, Failed) or getattr(result, "cancelled", False) for result in begun)
    if interrupted and (cut_short or len(begun) < len(plan.jobs)):
        return STOPPED
    return max((result.exit_code for result in results if isinstance(result, Failed)), default=0)


def _show_traceback() -> None:
    if os.environ.get("UNMASK_DEBUG") == "1":
        traceback.print_exc()


def _lost(error: OSError) -> str:
    return f"stdout cannot be written to ({error.strerror}), so lines are lost; free some space, or send it elsewhere"


def _leave_stdout() -> None:
    """Drop what stdout still holds and what follows: the end of the program would try to write it again."""
    with suppress(OSError):  # a stdout that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _stdout_problem() -> OSError | None:
    """Why stdout does not take what was printed; None where it does, or was closed from the start."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        _leave_stdout()
        return error
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `arguments` default to those of the process."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names are printed that it cannot code
    code = _run(arguments)
    problem = _stdout_problem()
    return code if problem is None else code or _lost_lines(problem)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        return int(app(args=arguments, prog_name="unmask", standalone_mode=False) or 0)
    except _UsageError as error:
        if line := " ".join(error.format_message().split()):  # none where help was shown instead
            say(f"unmask: {line}")
        return UserError.exit_code
    except UnmaskError as error:
        say(f"unmask: {error}")
        _show_traceback()
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        say("unmask: stopped")
        return STOPPED
    except BrokenPipeError as error:
        _leave_stdout()
        return _lost_lines(error)
    except Exception as error:
        problem = _stdout_problem()
        return _fault(error) if problem is None else _lost_lines(problem)


def _lost_lines(problem: OSError) -> int:
    if isinstance(problem, BrokenPipeError):  # the reader of stdout has gone, as with `| head`
        return UnmaskError.exit_code
    say(f"unmask: {_lost(problem)}")
    return UserError.exit_code


def _fault(error: Exception) -> int:
    """Say what nobody foresaw, and return the exit code."""
    problem = _as_users(error, "stdout or a file") if isinstance(error, OSError) else None
    what = f"{type(error).__name__}: {error}"
    say(f"unmask: {problem or f'a fault in unmask itself: {what} (UNMASK_DEBUG=1 shows where)'}")
    _show_traceback()
    return (problem or UnmaskError()).exit_code


if __name__ == "__main__":
    sys.exit(main())
