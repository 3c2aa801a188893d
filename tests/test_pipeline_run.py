"""Whole runs, in threads and in processes."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from pipeline_stages import (
    AddFaces,
    BadSummary,
    Digest,
    Endless,
    Failing,
    FailingClose,
    FailingFlush,
    FailingOpen,
    FailingSink,
    FailingSource,
    Hang,
    HoldBack,
    HoldBackToo,
    Invert,
    Keep,
    Kill,
    Numbers,
    Pass,
    Slow,
    SlowDigest,
    Swap,
    shared_memory_descriptors,
)

from unmask.errors import EngineError, StageError, UnmaskError, UserError
from unmask.stream.frame import Layout
from unmask.stream.stage import Stage
from unmask.stream.supervisor import Cancel, RunReport, run

LAYOUT = Layout(64, 35)
SHUTDOWN_SECONDS = 5.0

both_ways = pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])


def left_behind() -> tuple[set[str], ...]:
    """Everything that a run could leave: folders, shared memory with a name and without, threads, children."""
    folders = {path.name for path in Path(tempfile.gettempdir()).glob("unmask-*")}
    named = {name for name in os.listdir("/dev/shm") if name.startswith(("psm_", "unmask"))}
    threads = {thread.name for thread in threading.enumerate()}
    children = {str(child.pid) for child in multiprocessing.active_children()}
    return folders, named, set(shared_memory_descriptors()), threads, children


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = left_behind()
    yield
    assert left_behind() == before


def lines(report: RunReport) -> list[str]:
    return list(report.summaries["digest"]["lines"])


@both_ways
def test_every_frame_arrives_once_and_in_order(processes: bool) -> None:
    stages: list[Stage] = [Numbers(60), Pass(), Digest()]
    report = run(stages, LAYOUT, slots=4, processes=processes)
    assert (report.frames, report.cancelled, report.flushed) == (60, False, True)
    assert [line.split()[:3] for line in lines(report)] == [[f"{n}", f"{7 * n - 3}", "1001/30000"] for n in range(60)]
    assert {name: timing.count for name, timing in report.stages.items()} == {"numbers": 60, "pass": 60, "digest": 60}
    assert 0 < report.open_seconds < report.wall_seconds


def test_threads_and_processes_give_the_same_bits() -> None:
    stages = [Numbers(40, cuts=[11]), AddFaces(), Invert(), HoldBack(3), Digest()]
    layout = Layout(63, 35, keep_source=True)
    in_processes = run(stages, layout, processes=True)  # first, because threads use the objects themselves
    in_threads = run(stages, layout)
    assert len(set(lines(in_threads))) == 40
    assert lines(in_threads) == lines(in_processes)
    assert in_processes.summaries["numbers"]["process"] != os.getpid() == in_threads.summaries["numbers"]["process"]


@both_ways
def test_summaries_arrive_as_plain_values(processes: bool) -> None:
    report = run([Numbers(1), Pass(), Digest()], LAYOUT, processes=processes)
    assert report.summaries["numbers"]["figures"] == {"numpy": 0.5}
    assert report.summaries["pass"] == {}


@both_ways
def test_frames_held_back_come_out_at_the_end_and_before_a_cut(processes: bool) -> None:
    report = run([Numbers(20, cuts=[0, 9]), HoldBack(3), Digest()], LAYOUT, slots=4, processes=processes)
    assert [line.split()[0] for line in lines(report)] == [str(n) for n in range(20)]
    assert report.summaries["hold_back"]["flushed"] == [3, 3]


def test_an_empty_source_gives_an_empty_but_flushed_run(tmp_path: Path) -> None:
    report = run([Numbers(0), Pass(), Digest(tmp_path / "out")], LAYOUT)
    assert (report.frames, report.cancelled, report.flushed) == (0, False, True)
    assert (tmp_path / "out").read_text() == ""


def test_two_stages_and_one_slot_are_enough() -> None:
    assert run([Numbers(5), Digest()], LAYOUT, slots=1).frames == 5


def test_a_run_can_be_repeated_and_leaves_no_descriptor_open() -> None:
    run([Numbers(2), Digest()], LAYOUT, processes=True)  # starts multiprocessing's own helper
    before = len(os.listdir("/proc/self/fd"))
    for processes in (False, True):
        run([Numbers(2), Digest()], LAYOUT, processes=processes)
    assert len(os.listdir("/proc/self/fd")) == before


def test_sockets_find_a_place_where_the_path_of_the_temporary_folder_is_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 100)))
    assert run([Numbers(2), Digest()], LAYOUT, processes=True).frames == 2


def test_notices_and_progress_reach_the_callers_thread() -> None:
    notices: list[tuple[str, int]] = []
    progress: list[tuple[float, float, float]] = []
    me = threading.get_ident()
    run(
        [Numbers(50), Digest()],
        LAYOUT,
        max_faces=2,
        on_notice=lambda line: notices.append((line, threading.get_ident())),
        on_progress=lambda frames, seconds: progress.append((frames, seconds, threading.get_ident())),
    )
    assert notices == [("64 px, 2 faces", me)]
    assert progress[-1] == pytest.approx((50, (7 * 49 - 3) * 1001 / 30000, me))
    assert progress == sorted(progress)


def test_a_slow_sink_holds_the_source_back() -> None:
    source = Endless()
    seen: list[int] = []
    cancel = Cancel()

    def watch(frames: int, seconds: float) -> None:
        seen.append(source.given - frames)
        if frames >= 30:
            cancel.drain()

    run([source, Pass(), SlowDigest()], LAYOUT, slots=5, on_progress=watch, cancel=cancel)
    assert seen
    assert max(seen) <= 5 + 3  # the sink goes on while its progress is on its way


@both_ways
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_stage_that_raises_ends_the_run(tmp_path: Path, position: int, processes: bool) -> None:
    stages: list[Stage] = [Numbers(10**6), Pass(), Digest(tmp_path / "out")]
    stages[position] = [FailingSource(10**6), Failing(), FailingSink(tmp_path / "out")][position]
    start = time.monotonic()
    with pytest.raises(StageError) as raised:
        run(stages, LAYOUT, processes=processes)
    assert time.monotonic() - start < 2 * SHUTDOWN_SECONDS  # the start of processes included
    assert str(raised.value) == "stage 'failing' failed: ZeroDivisionError: one line and another"
    assert "_fail_at" in raised.value.detail
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.closed").exists()


@both_ways
@pytest.mark.parametrize("error", [UserError("in.mp4: no such file"), EngineError("the weights are damaged")])
def test_errors_for_the_user_keep_their_class_and_words(error: UnmaskError, processes: bool) -> None:
    with pytest.raises(type(error), match=f"^{error}$"):
        run([Numbers(10), FailingOpen(error), Digest()], LAYOUT, processes=processes)


def test_stages_between_are_not_opened_where_an_end_fails() -> None:
    opened = threading.Event()

    class Marked(Pass):
        def open(self, context: object) -> None:
            opened.set()

    class NoOutput(Digest):
        def open(self, context: object) -> None:
            raise UserError("the folder does not exist")

    with pytest.raises(UserError, match="folder"):
        run([Numbers(10), Marked(), NoOutput()], LAYOUT)
    assert not opened.is_set()


@pytest.mark.parametrize(
    ("stage", "reason"),
    [
        (FailingFlush(), "No space left"),
        (FailingClose(), "No space left"),
        (BadSummary(), "cannot travel"),
        (Keep(), "it kept 7 frames at the end"),
        (Swap(), "it gave frame 1 where frame 0 was due"),
    ],
)
def test_a_stage_that_breaks_the_rules_is_named(stage: Stage, reason: str) -> None:
    with pytest.raises(StageError, match=reason) as raised:
        run([Numbers(10), stage, Digest()], LAYOUT)
    assert raised.value.stage == stage.name


def test_stages_that_hold_back_every_slot_are_told_so() -> None:
    with pytest.raises(StageError, match="with other stages 6; with 6 slots it can be 5 at most"):
        run([Numbers(50), HoldBack(3), HoldBackToo(3), Digest()], LAYOUT, slots=6)
    report = run([Numbers(50), HoldBack(3), HoldBackToo(3), Digest()], LAYOUT, slots=7)
    assert report.frames == 50


@pytest.mark.parametrize("position", [1, 3])
def test_a_killed_process_ends_the_run(tmp_path: Path, position: int) -> None:
    stages: list[Stage] = [Numbers(10**6), Pass(), HoldBack(2), Digest(tmp_path / "out")]
    stages.insert(position, Kill(at=20))
    times: list[float] = []
    with pytest.raises(StageError) as raised:
        run(stages, LAYOUT, processes=True, on_progress=lambda *_: times.append(time.monotonic()))
    assert time.monotonic() - times[-1] < SHUTDOWN_SECONDS
    assert str(raised.value) == "stage 'kill' failed: its process was ended by SIGKILL"
    assert not (tmp_path / "out").exists()


def test_a_process_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.stream.supervisor._STOP_SECONDS", 1.0)
    cancel = Cancel()
    start: list[float] = []

    def stop(line: str) -> None:
        if line == "hanging":
            start.append(time.monotonic())
            cancel.stop_now()

    stages: list[Stage] = [Numbers(10), Pass(), Hang(), Digest()]
    report = run(stages, LAYOUT, processes=True, on_notice=stop, cancel=cancel)
    assert time.monotonic() - start[0] < SHUTDOWN_SECONDS
    assert report.cancelled
    assert not report.flushed
    assert set(report.stages) == {"numbers", "pass", "digest"}


@both_ways
def test_draining_finishes_what_was_begun(tmp_path: Path, processes: bool) -> None:
    cancel = Cancel()
    stages: list[Stage] = [Endless(), HoldBack(3), Digest(tmp_path / "out")]
    report = run(stages, LAYOUT, processes=processes, cancel=cancel, on_progress=lambda *_: cancel.drain())
    assert report.cancelled
    assert report.flushed
    written = (tmp_path / "out").read_text().splitlines()
    assert [line.split()[0] for line in written] == [str(n) for n in range(report.frames)]
    assert report.frames == report.stages["endless"].count > 3


@both_ways
def test_stopping_drops_everything_at_once(tmp_path: Path, processes: bool) -> None:
    cancel = Cancel()

    def stop_soon(frames: int, seconds: float) -> None:
        cancel.drain()
        cancel.stop_now()

    stages: list[Stage] = [Endless(), HoldBack(3), Slow(0.01), Digest(tmp_path / "out")]
    report = run(stages, LAYOUT, processes=processes, cancel=cancel, on_progress=stop_soon)
    assert report.cancelled
    assert not report.flushed
    assert report.frames > 0
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.closed").exists()


def test_cancelled_before_it_begins() -> None:
    drained, stopped = Cancel(), Cancel()
    drained.drain()
    stopped.stop_now()
    report = run([Endless(), Digest()], LAYOUT, cancel=drained)
    assert (report.cancelled, report.flushed) == (True, True)
    report = run([Endless(), Digest()], LAYOUT, cancel=stopped)
    assert (report.frames, report.cancelled, report.flushed) == (0, True, False)


@both_ways
def test_an_exception_in_a_callback_ends_the_run(processes: bool) -> None:
    def interrupt(frames: int, seconds: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run([Endless(), Pass(), Digest()], LAYOUT, processes=processes, on_progress=interrupt)


@pytest.mark.parametrize(
    ("stages", "slots", "reason"),
    [
        ([Numbers(1)], 2, "a source"),
        ([Digest(), Numbers(1)], 2, "a source"),
        ([Numbers(1), Digest(), Digest()], 2, "a source"),
        ([Numbers(1), Pass(), Pass(), Digest()], 2, "different names"),
        ([Numbers(1), Digest()], 0, "slot"),
    ],
)
def test_what_is_no_pipeline_is_refused(stages: list[Stage], slots: int, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        run(stages, LAYOUT, slots=slots)


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from pipeline_stages import Digest, Endless, Pass
from unmask.stream.frame import Layout
from unmask.stream.supervisor import Cancel, run
import signal

if __name__ == "__main__":
    cancel = Cancel()
    signal.signal(signal.SIGINT, lambda *_: cancel.drain())
    said = []

    def tell(frames, seconds):
        if not said:
            said.append(print("running", flush=True))

    report = run([Endless(), Pass(), Digest()], Layout(64, 35), processes=True, on_progress=tell, cancel=cancel)
    print(report.cancelled, report.flushed, report.frames == report.stages["endless"].count)
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A program with a run in processes, in a process group of its own, as a terminal has it."""
    script = tmp_path / "program.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    with subprocess.Popen(
        [sys.executable, str(script)],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        yield process
        process.kill()


def members_of_group(group: int) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, member_of = entry.read_text().rpartition(")")[2].split()[:3]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(member_of) == group and state != "Z":
            found.append(int(entry.parent.name))
    return found


def test_ctrl_c_in_the_terminal_is_left_to_the_parent(program: "subprocess.Popen[str]") -> None:
    os.killpg(program.pid, signal.SIGINT)
    output, errors = program.communicate(timeout=2 * SHUTDOWN_SECONDS)
    assert (output, errors, program.returncode) == ("True True True\n", "", 0)


def test_children_end_when_their_parent_is_killed(program: "subprocess.Popen[str]") -> None:
    assert len(members_of_group(program.pid)) >= 4
    program.kill()
    program.wait()
    deadline = time.monotonic() + SHUTDOWN_SECONDS
    while members_of_group(program.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert members_of_group(program.pid) == []
