"""A live run from its source to its outputs, and the report of it."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cv2

from unmask import __version__
from unmask.errors import UnmaskError, UserError
from unmask.stream.jobs import counted, milliseconds, told_left, told_memory, told_unlike
from unmask.stream.live import time_code
from unmask.stream.live.feed import CameraFeed, Feed, FeedInfo, FileFeed, UrlFeed, connect_first
from unmask.stream.live.output import Output
from unmask.stream.live.page_camera import PageFeed
from unmask.stream.live.record import Record, check_record_name
from unmask.stream.live.state import STALL_SECONDS, Figures, LiveState
from unmask.stream.naming import Draft, whole_file
from unmask.stream.pipeline import Settings, face_stages, live_frames
from unmask.stream.stages.live_source import LiveSource
from unmask.stream.stages.outputs import Outputs
from unmask.stream.supervisor import Cancel, RunReport, run


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """What to show where.

    Args:
        source: a file or a URL; None for another kind of source.
        camera: a camera's number or device; None for another kind of source.
        page_camera: the camera of whoever opens the page.
        camera_size: width and height in px to ask the camera for.
        camera_fps: frames per second to ask the camera for.
        loop: begin a file again at its end.
        once: end with the first loss of the source.
        seconds: end after so long; None for never.
        record: file to record to; None for none.
        overwrite: replace a recording of that name.
        latency: burn time codes in and read them back.
        gpu: try NVENC first for the recording.
        pipeline: about the faces.
    """

    source: str | None = None
    camera: str | None = None
    page_camera: bool = False
    camera_size: tuple[int, int] = (1280, 720)
    camera_fps: float = 30.0
    loop: bool = False
    once: bool = False
    seconds: float | None = None
    record: Path | None = None
    overwrite: bool = False
    latency: bool = False
    gpu: bool = False
    pipeline: Settings = field(default_factory=Settings)


@dataclass(frozen=True, slots=True)
class LiveDone:
    """A live run that has come to its end.

    Args:
        source: what was read.
        unmask: version of unmask.
        width, height: size of the picture in px.
        seconds: from the first frame at the outputs to the end.
        received: pictures that the source gave.
        frames: those that reached the outputs.
        dropped: those that were passed over because a newer one had come.
        dropped_share: of those received, 0..1.
        lost: how often the source went away.
        behind_seconds: how much longer a file took than its own pace, because the machine was too busy to read it; what
            a camera would have given meanwhile is not among those dropped.
        faces: how many people were tracked; one who left and came back counts twice.
        masks_removed: how many faces were painted, counted in every frame.
        as_seen: of these, how many are for the most part what was seen of the face before its mask came.
        masks_left: how many faces the tracker is sure wear a mask and are as they were filmed, counted in every frame.
        fps: frames per second at the outputs.
        latency_from: "time code" where it was read from the pictures, "clock" where a table kept the times.
        latency_ms: mean, p50, p95 and p99 from the source's picture to the outputs, each frame counted.
        latency_percentiles_ms: its 0th to 100th percentile.
        latency_by_minute_ms: mean, p50, p95 and p99 of each minute.
        unreadable: frames whose time code could not be read.
        engine: what ran the networks.
        notices: the lines that the user saw, without the page's token.
        outputs: what each output has to say.
        stages: per stage, milliseconds per frame; for `live_source` that includes waiting for the next picture.
        details: what each stage has to say about itself.
    """

    source: str
    unmask: str
    width: int
    height: int
    seconds: float
    received: int
    frames: int
    dropped: int
    dropped_share: float
    lost: int
    behind_seconds: float
    faces: int
    masks_removed: int
    as_seen: int
    masks_left: int
    fps: float
    latency_from: str
    latency_ms: dict[str, float]
    latency_percentiles_ms: list[float]
    latency_by_minute_ms: list[dict[str, float]]
    unreadable: int
    engine: str
    notices: tuple[str, ...]
    outputs: dict[str, Any]
    stages: dict[str, dict[str, float]]
    details: dict[str, dict[str, Any]]

    def summary(self) -> str:
        """One line for the user."""
        ms, unlike = self.latency_ms, told_unlike(self.details["inpaint"], self.masks_removed)
        return (
            f"{self.source}: {counted(self.frames, 'frame')} at {self.fps:.1f} fps, "
            f"{self.dropped} of {self.received} dropped ({100 * self.dropped_share:.1f} %), "
            f"latency p50 {ms['p50']:.0f} ms, p95 {ms['p95']:.0f} ms, p99 {ms['p99']:.0f} ms ({self.latency_from}), "
            f"{counted(self.masks_removed, 'mask')} removed"
            f"{told_memory(self.as_seen)}{told_left(self.masks_left)}, {self.engine}"
            + (f"; {unlike}" if unlike else "")
        )


OutputMaker = Callable[[LiveState, FeedInfo], Output]
"""Makes an output, once it is known what the source gives."""


def make_feed(settings: LiveSettings) -> Feed:
    """The source that the settings name. Raises UserError where they name none."""
    if settings.camera is not None:
        return CameraFeed(settings.camera, settings.camera_size, settings.camera_fps)
    if settings.page_camera:
        return PageFeed(settings.camera_size)
    if settings.source is None:
        raise UserError("name a source: a file, a URL, or --camera 0")
    if "://" in settings.source:
        return UrlFeed(settings.source)
    return FileFeed(Path(settings.source), loop=settings.loop)


def run_live(
    feed: Feed,
    settings: LiveSettings,
    makers: Sequence[OutputMaker],
    cancel: Cancel,
    on_notice: Callable[[str], None],
    on_figures: Callable[[Figures], None],
) -> LiveDone:
    """Carry a source to its outputs until it ends, or until `cancel`.

    Args:
        feed: the source.
        settings: what to do with it.
        makers: of the outputs besides the recording.
        cancel: ends the run; `drain` ends it in good order.
        on_notice, on_figures: called in this thread with lines and figures for the user.

    Raises:
        UserError: source, output or options cannot be used.
        UnmaskError: a fault while running, or the run was stopped before it could end in order.
    """
    notices: list[str] = []

    def notice(line: str) -> None:
        notices.append(line)
        on_notice(line)

    def look() -> None:
        watch()
        on_figures(state.figures())

    check_recording(settings)
    with ExitStack() as stack:
        stack.enter_context(_one_thread_in_opencv())
        draft = _draft(settings, stack)
        first = connect_first(feed, lambda: cancel.draining or cancel.stopping)
        unclaimed = stack.enter_context(ExitStack())
        unclaimed.callback(first.close)
        info = first.info
        state = LiveState(feed.name, cancel, coded=settings.latency)
        watch = _Watch(state, notice)
        outputs = [maker(state, info) for maker in makers]
        if draft is not None and settings.record is not None:
            outputs.append(Record(draft.path, settings.record, info, gpu=settings.gpu))
        layout = replace(info.layout, keep_source=any(output.wants_source for output in outputs))
        if settings.latency:
            time_code.check_size(layout)
        notice(f"source {feed.name}: {layout.width}x{layout.height}, {float(info.fps):.4g} fps, {info.coded_as}")
        source = LiveSource(
            feed,
            first,
            state,
            sound=any(output.wants_sound for output in outputs),
            once=settings.once,
            seconds=settings.seconds,
        )
        unclaimed.pop_all()  # from here on the connection is the source's: its thread may be reading
        result = run(
            (source, *face_stages(settings.pipeline, live=True), Outputs(outputs, state)),
            layout,
            max_faces=settings.pipeline.max_faces,
            slots=live_frames(),
            on_progress=lambda *_: look(),
            on_idle=look,
            on_notice=notice,
            cancel=cancel,
        )
        if not result.flushed or result.frames == 0:
            reason = "no picture came" if result.flushed else "stopped"
            raise UnmaskError(f"{feed.name}: {reason}; nothing was written")
        if draft is not None and settings.record is not None:
            draft.keep_or_rename(settings.record, overwrite=settings.overwrite, what="the recording")
    return _done(feed, state, result, (layout.width, layout.height), notices)


@contextmanager
def _one_thread_in_opencv() -> Iterator[None]:
    """The stages share the processors as they are; OpenCV's own threads would make them wait for each other."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


class _Watch:
    """Says so where a picture goes in and does not come out, and once it does.

    Args:
        state: of the run.
        notice: takes a line for the user.
    """

    def __init__(self, state: LiveState, notice: Callable[[str], None]) -> None:
        self._state, self._notice = state, notice
        self._stuck: str | None = None

    def __call__(self) -> None:
        stuck = self._state.stuck()
        if stuck is not None and self._stuck is None:
            end = "Ctrl-C twice ends the run"
            self._notice(f"stuck: {stuck} has kept a picture for {STALL_SECONDS:g} s, and all others wait; {end}")
            self._stuck = stuck
        if stuck is None and self._stuck is not None:  # pictures that waited behind it may have looked stuck since
            self._notice(f"{self._stuck} goes on")
            self._stuck = None


def check_recording(settings: LiveSettings) -> None:
    """Raise UserError where the recording cannot have its name, or would replace the source."""
    if settings.record is None:
        return
    check_record_name(settings.record)
    source = Path(settings.source) if settings.source and "://" not in settings.source else None
    if source is not None and source.exists() and settings.record.exists() and source.samefile(settings.record):
        raise UserError(f"{settings.record}: the recording would overwrite the source; choose another name")


def _draft(settings: LiveSettings, stack: ExitStack) -> Draft | None:
    if settings.record is None:
        return None
    return stack.enter_context(whole_file(settings.record, overwrite=settings.overwrite))


def _done(feed: Feed, state: LiveState, result: RunReport, size: tuple[int, int], notices: Sequence[str]) -> LiveDone:
    summaries = result.summaries
    figures = state.figures()
    return LiveDone(
        source=feed.name,
        unmask=__version__,
        width=size[0],
        height=size[1],
        seconds=round(figures.seconds, 3),
        received=state.received,
        frames=result.frames,
        dropped=state.dropped,
        dropped_share=round(state.dropped / max(1, state.received), 5),
        lost=state.lost,
        behind_seconds=round(state.behind_seconds, 3),
        faces=summaries["track"]["tracks"],
        masks_removed=summaries["segment"]["masks_removed"],
        as_seen=summaries["inpaint"]["as_seen"],
        masks_left=summaries["segment"]["masks_left"],
        fps=round(result.frames / max(figures.seconds, 1e-3), 2),
        latency_from="time code" if state.coded else "clock",
        latency_ms=milliseconds(state.latency()),
        latency_percentiles_ms=state.latency_percentiles_ms(),
        latency_by_minute_ms=[milliseconds(timing) for timing in state.latency_by_minute()],
        unreadable=state.unreadable,
        engine=summaries["inpaint"]["engine"],
        notices=tuple(re.sub(r"token=\S+", "token=...", line) for line in notices),
        outputs=summaries["outputs"],
        stages={name: milliseconds(timing) for name, timing in result.stages.items()},
        details={name: values for name, values in summaries.items() if name != "outputs"},
    )
