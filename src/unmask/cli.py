"""The command line. Each command imports what it needs when it runs, so that `unmask --help` answers at once.

Exit codes: 0 done; 1 a fault while running; 2 the input, the output or an option cannot be used; 130 stopped by Ctrl-C.
The summary goes to stdout, everything else to stderr, one line for each error. UNMASK_DEBUG=1 shows tracebacks.
"""

import os
import sys
import traceback
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from unmask import __version__, bench_cli, compile_cli, live_cli, serve_cli, training_cli
from unmask.errors import UnmaskError, UserError
from unmask.interrupts import FINISHING, STOPPED, interruptible
from unmask.options import MemoryOption, PersonOption, personal
from unmask.progress import choose_display, say
from unmask.stream.naming import (
    PICTURE_SUFFIXES,
    VIDEO_SUFFIXES,
    Job,
    assign_targets,
    check_report,
    find_inputs,
    mask_targets,
)
from unmask.stream.trackers import DEFAULT_TRACKER, Tracker

if TYPE_CHECKING:
    from unmask.stream.jobs import Failed, PictureDone, VideoDone

T = TypeVar("T", bound="VideoDone | PictureDone")

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


def _device(value: str) -> str:
    name, _, number = value.partition(":")
    if value in {"auto", "cpu", "cuda"} or (name == "cuda" and number.isdecimal()):
        return value
    raise typer.BadParameter(f"'{value}' is none of auto, cpu, cuda, cuda:N")


_Inputs = Annotated[list[str], typer.Argument(metavar="INPUT", help="Files, folders or patterns such as '*.mp4'.")]
_Output = Annotated[
    str | None,
    typer.Option("-o", "--output", metavar="FILE|DIR", help="Default: NAME.unmasked.EXT beside the input."),
]
_Device = Annotated[
    str,
    typer.Option(
        callback=_device,
        metavar="auto|cpu|cuda[:N]",
        help="Where segmenter and inpainter run; the tracker's networks run on the processor.",
    ),
]
_Engine = Annotated[
    str, typer.Option(metavar="auto|tensorrt|torch-tensorrt|torch|openvino", help="What runs the networks.")
]
_MaxFaces = Annotated[
    int, typer.Option(metavar="N", min=1, max=64, help="Faces processed per frame, the largest first.")
]
_Tracker = Annotated[
    Tracker,
    typer.Option("--tracker", metavar="unmask|mediapipe", help="Whose networks find the faces and their points."),
]
_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
_Report = Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write what was done, as JSON.")]
_Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Write nothing but errors.")]


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
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit(UserError.exit_code)


@app.command()
def video(
    inputs: _Inputs,
    output: _Output = None,
    device: _Device = "auto",
    engine: _Engine = "auto",
    codec: Annotated[
        CodecName | None, typer.Option(metavar="h264|hevc|av1", help="Default: by depth, size and container.")
    ] = None,
    crf: Annotated[
        float | None, typer.Option(metavar="N", min=0, max=63, help="Quality: lower is better and larger.")
    ] = None,
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="Speed of the encoder, by its own names.")] = None,
    max_faces: _MaxFaces = 8,
    person: PersonOption = None,
    memory: MemoryOption = True,
    look_ahead: Annotated[
        bool,
        typer.Option("--look-ahead", help="Go through it twice: who is bare only later is shown as they were then."),
    ] = False,
    processes: Annotated[bool, typer.Option("--processes", help="A process per stage instead of a thread.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Show before and after side by side.")] = False,
    tracker: _Tracker = DEFAULT_TRACKER,
    draw: Annotated[
        Drawn | None, typer.Option(metavar="tracks", help="Draw what the tracker finds, and leave the masks on.")
    ] = None,
    report: _Report = None,
    overwrite: _Overwrite = False,
    quiet: _Quiet = False,
) -> None:
    """Take the masks off the faces in recorded videos.

    Ctrl-C finishes what is under way and leaves NAME.unmasked.partial.EXT; a second one stops at once.
    """
    from unmask.models.engine import choose
    from unmask.stream.encoders import Codec, EncodeOptions
    from unmask.stream.jobs import Failed, VideoSettings, unmask_video
    from unmask.stream.pipeline import Settings
    from unmask.stream.supervisor import Cancel

    choice = choose(device, engine)  # a device that is not there is said once, before anything starts
    if look_ahead and (not memory or draw is not None):
        raise UserError(f"--look-ahead has nothing to do with {'--draw' if memory else '--no-memory'}; leave one out")
    jobs = _plan(inputs, output, VIDEO_SUFFIXES, report, quiet=quiet)
    settings = VideoSettings(
        Settings(device, max_faces, engine, personal(person), tracker, memory),
        EncodeOptions(Codec(codec) if codec else None, crf, preset, compare, gpu=choice.device != "cpu"),
        processes=processes,
        overwrite=overwrite,
        draw_tracks=draw is Drawn.TRACKS,
        look_ahead=look_ahead,
    )
    cancel, display = Cancel(), choose_display(quiet=quiet)

    def work(job: Job) -> "VideoDone":
        try:
            return unmask_video(job, settings, display, cancel)
        finally:
            display.finished()

    with interruptible(cancel, FINISHING) as interrupted:
        results = _do_all(jobs, work, report, quiet=quiet, stop=lambda: bool(interrupted))
    cut_short = len(results) < len(jobs) or any(isinstance(r, Failed) or r.cancelled for r in results)
    raise typer.Exit(STOPPED if interrupted and cut_short else _exit_code(results))


@app.command()
def image(
    inputs: _Inputs,
    output: _Output = None,
    mask_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write each predicted mask there, as NAME.png.")
    ] = None,
    device: _Device = "auto",
    engine: _Engine = "auto",
    max_faces: _MaxFaces = 8,
    person: PersonOption = None,
    tracker: _Tracker = DEFAULT_TRACKER,
    report: _Report = None,
    overwrite: _Overwrite = False,
    quiet: _Quiet = False,
) -> None:
    """Take the masks off the faces in pictures: PNG, JPEG, WebP."""
    from unmask.models.engine import choose
    from unmask.stream.jobs import PictureDesk
    from unmask.stream.pipeline import Settings

    choose(device, engine)
    jobs = _plan(inputs, output, PICTURE_SUFFIXES, report, quiet=quiet)
    masks = dict(zip(jobs, mask_targets(jobs, mask_dir), strict=True)) if mask_dir is not None else {}
    display = choose_display(quiet=quiet)
    settings = Settings(device, max_faces, engine, personal(person), tracker)
    with PictureDesk(settings, overwrite=overwrite, notice=display.notice) as desk:

        def work(job: Job) -> "PictureDone":
            return desk.unmask(job, masks.get(job))

        results = _do_all(jobs, work, report, quiet=quiet)
    raise typer.Exit(_exit_code(results))


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


def _plan(
    inputs: list[str], output: str | None, suffixes: frozenset[str], report: Path | None, *, quiet: bool
) -> tuple[Job, ...]:
    found = find_inputs(inputs, suffixes)
    for path in () if quiet else found.passed_over:
        say(f"{path}: passed over, an output of unmask")
    jobs = assign_targets(found, output)
    if report is not None:
        check_report(report, jobs)
    return jobs


def _do_all(
    jobs: Sequence[Job],
    work: Callable[[Job], T],
    report: Path | None,
    *,
    quiet: bool,
    stop: Callable[[], bool] = lambda: False,
) -> "list[T | Failed]":
    """Work on each job, then write the report; a failure is one line and does not keep the next job from its turn."""
    from unmask.stream.jobs import Failed, write_report

    results: list[T | Failed] = []
    for job in jobs:
        try:
            done = work(job)
        except (UnmaskError, OSError) as error:
            results.append(_failed(job, error))
        else:
            results.append(done)
            if not quiet:
                print(done.summary(), flush=True)
        if stop():
            break
    if len(jobs) > 1 and not quiet:
        print(f"{sum(not isinstance(result, Failed) for result in results)} of {len(jobs)} done")
    if report is not None:
        write_report(report, results, as_list=len(jobs) > 1)
    return results


def _failed(job: Job, error: UnmaskError | OSError) -> "Failed":
    from unmask.stream.jobs import Failed

    line = str(error) if isinstance(error, UnmaskError) else f"{job.source}: {error}"
    say(f"unmask: {line}")
    _show_traceback()
    return Failed(str(job.source), line, error.exit_code if isinstance(error, UnmaskError) else UnmaskError.exit_code)


def _exit_code(results: "Sequence[VideoDone | PictureDone | Failed]") -> int:
    """2 where the user can mend a cause, else 1 where a job failed, else 0."""
    from unmask.stream.jobs import Failed

    return max((result.exit_code for result in results if isinstance(result, Failed)), default=0)


def _show_traceback() -> None:
    if os.environ.get("UNMASK_DEBUG") == "1":
        traceback.print_exc()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `arguments` default to those of the process."""
    try:
        return int(app(args=arguments, prog_name="unmask", standalone_mode=False) or 0)
    except _UsageError as error:
        say(f"unmask: {' '.join(error.format_message().split())}")
        return UserError.exit_code
    except UnmaskError as error:
        say(f"unmask: {error}")
        _show_traceback()
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        say("unmask: stopped")
        return STOPPED
    except BrokenPipeError:  # the reader of stdout has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UnmaskError.exit_code
    except Exception as error:
        say(f"unmask: a fault in unmask itself: {type(error).__name__}: {error} (UNMASK_DEBUG=1 shows where)")
        _show_traceback()
        return UnmaskError.exit_code


if __name__ == "__main__":
    sys.exit(main())
