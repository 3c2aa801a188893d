"""Jobs: one video or one picture from its input file to its output file, and the report of what was done."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Protocol

import cv2
import msgspec
import numpy as np

from unmask import __version__
from unmask.errors import StageError, UnmaskError, UserError
from unmask.stream.canvas import Canvas
from unmask.stream.encoders import EncodeOptions
from unmask.stream.frame import U8, Frame, Layout
from unmask.stream.media import MediaInfo, probe, with_source
from unmask.stream.naming import PICTURE_SUFFIXES, VIDEO_SUFFIXES, Draft, Job, shown, whole_file, writing
from unmask.stream.pictures import Picture, read_picture, write_picture
from unmask.stream.pipeline import Settings, build, build_first_pass, face_stages
from unmask.stream.stage import Context, Stage
from unmask.stream.supervisor import Cancel, RunReport, run
from unmask.stream.timing import StageTiming

SYNTHETIC: Final = f"Face regions in this picture are synthetic (unmask {__version__}); not evidence of identity."
"""What every picture that was changed says about itself."""

_NO_PICTURE: Final = "not one picture arrived"
"""What the stage `encode` says where it has nothing to write."""

_HEAD_BYTES: Final = 1 << 16
"""Of a picture, to see what it is: what says that it is animated stands at its beginning."""


class Listener(Protocol):
    """Who is told how a job gets on."""

    def started(self, job: Job, expected_frames: int | None, doing: str = "") -> None: ...
    def progress(self, frames: int, pts_seconds: float) -> None: ...
    def notice(self, line: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Failed:
    """A job that came to nothing.

    Args:
        input: the file.
        error: the line that the user saw.
        exit_code: 2 where the user can mend the cause, 1 for a fault while running.
    """

    input: str
    error: str
    exit_code: int


@dataclass(frozen=True, slots=True)
class VideoDone:
    """A video that was written.

    Args:
        input, output: the files.
        unmask: version of unmask.
        width, height: size of the upright picture in px.
        frames: how many were written.
        dropped: how many were decoded and not written; files never lose a frame, so 0.
        faces: how many people were tracked; one who left and came back counts twice.
        masks_removed: how many faces were painted, counted in every frame.
        as_seen: of these, how many are for the most part what was seen of the face without its mask.
        masks_left: how many faces the tracker is sure wear a mask and are as they were filmed, counted in every frame.
        seconds: how long it took, the first of two passes included.
        open_seconds: of these until every stage was open: loading networks, starting processes.
        fps: frames per second of that time, opening included.
        engine, decoder, encoder: what ran the networks, what read the video and what wrote it.
        frames_on: where frames lay between the two: "cpu" or "cuda:N".
        cancelled: True where the user cut the run short.
        notices: the lines that the user saw.
        stages: per stage, milliseconds per frame.
        details: what each stage has to say about itself.
    """

    input: str
    output: str
    unmask: str
    width: int
    height: int
    frames: int
    dropped: int
    faces: int
    masks_removed: int
    as_seen: int
    masks_left: int
    seconds: float
    open_seconds: float
    fps: float
    engine: str
    decoder: str
    encoder: str
    frames_on: str
    cancelled: bool
    notices: tuple[str, ...]
    stages: dict[str, dict[str, float]]
    details: dict[str, dict[str, Any]]

    def summary(self) -> str:
        """One line for the user."""
        inpaint = self.details.get("inpaint", {})
        late, unlike = inpaint.get("too_late", 0), told_unlike(inpaint, self.masks_removed)
        return (
            f"{self.input} -> {self.output}: {counted(self.frames, 'frame')} at {self.fps:.1f} fps, "
            f"{counted(self.faces, 'face')}, {counted(self.masks_removed, 'mask')} removed{told_memory(self.as_seen)}"
            f"{told_left(self.masks_left)}, "
            f"{self.encoder}, {self.engine}"
            + (f"; {late} on faces that are bare later: --look-ahead shows those as they are then" if late else "")
            + (f"; {unlike}" if unlike else "")
        )


@dataclass(frozen=True, slots=True)
class FaceFound:
    """One face of a picture.

    Args:
        box_px: (x0, y0, x1, y1) in px of the upright picture.
        mask_score: how sure the segmenter is that it wears a mask, 0..1.
        unmasked: True where it was painted.
        looks_masked: True where the tracker is sure that it wears one.
    """

    box_px: tuple[float, float, float, float]
    mask_score: float
    unmasked: bool
    looks_masked: bool


@dataclass(frozen=True, slots=True)
class PictureDone:
    """A picture that was written.

    Args:
        input, output: the files.
        mask: the file with the predicted mask; None where none was asked for.
        unmask: version of unmask.
        width, height: size of the upright picture in px.
        faces: those found, the largest first.
        masks_removed: how many of them were painted.
        as_seen: of these, how many are for the most part the face that the personal model shows.
        masks_left: how many the tracker is sure wear a mask and are as they were.
        seconds: how long it took.
        notices: what the input holds and the output does not, why it is of another format, and that no face was like
            that of the personal model.
    """

    input: str
    output: str
    mask: str | None
    unmask: str
    width: int
    height: int
    faces: tuple[FaceFound, ...]
    masks_removed: int
    as_seen: int
    masks_left: int
    seconds: float
    notices: tuple[str, ...]

    def summary(self) -> str:
        """One line for the user."""
        line = f"{self.input} -> {self.output}: {counted(len(self.faces), 'face')}, "
        line += f"{counted(self.masks_removed, 'mask')} removed{told_memory(self.as_seen)}{told_left(self.masks_left)}"
        return line + "".join(f"; {notice}" for notice in self.notices)


def told_memory(as_seen: int) -> str:
    """What is said of masks that were replaced by the face as it was seen."""
    return f" ({as_seen} as the face was seen)" if as_seen else ""


def told_unlike(inpaint: Mapping[str, Any], masks_removed: int) -> str:
    """What is said where masks were removed and the views of a personal model were of no use; else nothing.

    Args:
        inpaint: what that stage has to say about itself.
        masks_removed: how many faces were painted.
    """
    shown_at_all = inpaint.get("person_shown", 1) or inpaint["as_seen"]  # who was seen bare needs no personal model
    return "" if shown_at_all or not masks_removed else f"no face was like that of {inpaint['person']}"


def told_left(masks_left: int) -> str:
    """What is said of masks that stay."""
    return f", {masks_left} left (seem to be worn, and were not found well enough)" if masks_left else ""


def counted(number: int, noun: str) -> str:
    """A number of things, in words: "1 frame", "2 frames"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True, slots=True)
class VideoSettings:
    """How videos are processed.

    Args:
        pipeline: about the faces.
        encoding: about the output.
        processes: True for a process per stage instead of a thread.
        overwrite: True where outputs replace files of the same name.
        draw_tracks: True where faces are followed and drawn, and masks stay.
        look_ahead: True to go through the video twice, so that who is bare only later is shown as they were then.
    """

    pipeline: Settings = field(default_factory=Settings)
    encoding: EncodeOptions = field(default_factory=EncodeOptions)
    processes: bool = False
    overwrite: bool = False
    draw_tracks: bool = False
    look_ahead: bool = False


def unmask_video(job: Job, settings: VideoSettings, listener: Listener, cancel: Cancel) -> VideoDone:
    """Process one video. The output appears under its name when it is whole; cut short, under `naming.partial_name`.

    Raises:
        UserError: input, output or options cannot be used.
        UnmaskError: a fault while running, or the user stopped the run before anything was written.
    """
    notices: list[str] = []

    def notice(line: str) -> None:
        notices.append(line)
        listener.notice(line)

    info = _probe(job.source)
    if settings.encoding.compare:
        info = with_source(info)
    info = _on_gpu(info, settings, notice)

    def go(stages: Sequence[Stage]) -> RunReport:
        return run(
            stages,
            info.layout,
            max_faces=settings.pipeline.max_faces,
            processes=settings.processes,
            on_progress=listener.progress,
            on_notice=notice,
            cancel=cancel,
        )

    with ExitStack() as stack:
        draft = stack.enter_context(whole_file(job.target, overwrite=settings.overwrite))
        pipeline, first = settings.pipeline, None
        if settings.look_ahead:
            listener.started(job, info.frames_expected, "looking ahead")
            later = Path(stack.enter_context(TemporaryDirectory(prefix="unmask-")), "later.zip")
            first = go(build_first_pass(info, later, pipeline, settings.encoding))
            if first.cancelled or not first.flushed:
                raise UnmaskError(f"{job.source}: stopped while looking ahead; nothing was written")
            pipeline = replace(pipeline, later=str(later))
        listener.started(job, info.frames_expected)
        for line in _told_conversion(job):
            notice(f"{line}, so it becomes {job.target.name}")
        with _stopped_before_the_first_picture(job, cancel):
            result = go(build(info, draft.path, pipeline, settings.encoding, draw_tracks=settings.draw_tracks))
        output = _name_draft(draft, job, result, overwrite=settings.overwrite)
    return _video_done(job, output, info.layout, result, first, notices)


def _probe(path: Path) -> MediaInfo:
    try:
        return probe(path)
    except UserError as error:
        if problem := _animated_webp(path, _head(path)):
            raise UserError(problem) from error
        raise


def _told_conversion(job: Job) -> tuple[str, ...]:
    """What is said of an input that cannot be written as what it is."""
    what = f"as {job.source.suffix}" if job.source.suffix else "without a suffix"
    return (f"cannot be written {what}",) if job.converted else ()


@contextmanager
def _stopped_before_the_first_picture(job: Job, cancel: Cancel) -> Iterator[None]:
    """Where the user stops a run before a picture has come, that there is none is no fault of the encoder."""
    try:
        yield
    except StageError as error:
        if cancel.draining and error.reason.startswith(_NO_PICTURE):
            raise _stopped(job) from error
        raise


def _stopped(job: Job) -> UnmaskError:
    return UnmaskError(f"{job.source}: stopped; nothing was written")


def _on_gpu(info: MediaInfo, settings: VideoSettings, notice: Callable[[str], None]) -> MediaInfo:
    """With frames that stay on the GPU, where one is used and can hold them; else the user is told why not."""
    if not settings.encoding.gpu:
        return info
    problem = _gpu_problem(info.layout, settings)
    if problem is None:
        from unmask.stream.nv12 import with_tensors

        return with_tensors(info, f"cuda:{int(settings.pipeline.device.partition(':')[2] or 0)}")
    notice(f"frames pass through the processor's memory: {problem}")
    return info


def _gpu_problem(layout: Layout, settings: VideoSettings) -> str | None:
    if settings.processes:
        return "processes share no memory of the GPU; leave --processes out"
    if settings.draw_tracks:
        return "tracks are drawn on the processor"
    from unmask.models.engine import cuda_problem

    if problem := cuda_problem():
        return problem
    from unmask.stream.nv12 import layout_problem

    return layout_problem(layout)


def _name_draft(draft: Draft, job: Job, result: RunReport, *, overwrite: bool) -> Path:
    """Give the written file its name: the target's, or one for a part, which replaces nothing."""
    if not result.flushed or result.frames == 0:
        raise _stopped(job)
    if result.cancelled:
        return draft.keep_as_part()
    draft.keep_or_rename(job.target, overwrite=overwrite, what="the video")
    return job.target


def _video_done(
    job: Job, output: Path, layout: Layout, result: RunReport, first: RunReport | None, notices: Sequence[str]
) -> VideoDone:
    summaries = result.summaries | ({"remember": first.summaries["remember"]} if first else {})
    seconds = result.wall_seconds + (first.wall_seconds if first else 0.0)
    return VideoDone(
        input=str(job.source),
        output=str(output),
        unmask=__version__,
        width=layout.width,
        height=layout.height,
        frames=result.frames,
        dropped=summaries["decode"]["frames"] - result.frames,
        faces=summaries["track"]["tracks"],
        masks_removed=summaries.get("segment", {}).get("masks_removed", 0),
        as_seen=summaries.get("inpaint", {}).get("as_seen", 0),
        masks_left=summaries.get("segment", {}).get("masks_left", 0),
        seconds=round(seconds, 3),
        open_seconds=round(result.open_seconds, 3),
        fps=round(result.frames / seconds, 2),
        engine=summaries.get("inpaint", {}).get("engine", "tracks only"),
        decoder=summaries["decode"]["decoder"],
        encoder=summaries["encode"]["encoder"],
        frames_on=layout.tensors or "cpu",
        cancelled=result.cancelled,
        notices=tuple(notices),
        stages={name: milliseconds(timing) for name, timing in result.stages.items()},
        details=summaries,
    )


def milliseconds(timing: StageTiming) -> dict[str, float]:
    """A timing as reports have it."""
    figures = {"mean": timing.mean_ms, "p50": timing.p50_ms, "p95": timing.p95_ms, "p99": timing.p99_ms}
    return {name: round(value, 3) for name, value in figures.items()}


def check_picture_job(job: Job) -> None:
    """Raise UserError where the name of the output is none of a picture that can be written."""
    if job.target.suffix.lower() not in PICTURE_SUFFIXES:
        raise UserError(f"{job.target}: the name must end in {', '.join(sorted(PICTURE_SUFFIXES))}")


def _head(path: Path) -> bytes:
    """The first bytes of a file; none where it cannot be read, which whoever reads it in earnest will say."""
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""


def _check_kind(path: Path) -> None:
    """Raise UserError where a file is no still picture of a kind that is read, with what to do instead."""
    head = _head(path)
    if not head:
        return
    known = head.startswith((b"\x89PNG", b"\xff\xd8")) or (head[:4], head[8:12]) == (b"RIFF", b"WEBP")
    if not known:
        other = "convert it to PNG first"
        if path.suffix.lower() in VIDEO_SUFFIXES | {".gif"}:
            other = "for videos and animations use `unmask video`"
        raise UserError(f"{path}: is neither PNG nor JPEG nor WebP; {other}")
    if head.startswith(b"\x89PNG") and b"acTL" in head.partition(b"IDAT")[0]:
        raise UserError(f"{path}: is animated; only still pictures can be processed here, so use `unmask video`")
    if problem := _animated_webp(path, head):
        raise UserError(problem)


def _animated_webp(path: Path, head: bytes) -> str | None:
    """What is said of an animated WebP, which FFmpeg does not decode; None where a file is none."""
    if (head[:4], head[8:16]) != (b"RIFF", b"WEBPVP8X") or not head[20:21] or not head[20] & 2:
        return None
    gif = f"magick {path.name} {path.stem}.gif"
    return f"{path}: is an animated WebP, which is not read; make a GIF of it ({gif}) and use `unmask video` on that"


class PictureDesk:
    """Takes masks off pictures, one after the other; the networks are loaded once per picture size.

    Args:
        settings: about the faces.
        overwrite: True where outputs replace files of the same name.
        notice: takes each line that the stages have for the user, once.
    """

    def __init__(
        self, settings: Settings, *, overwrite: bool = False, notice: Callable[[str], None] | None = None
    ) -> None:
        self._settings = settings
        self._overwrite = overwrite
        self._notice = notice
        self._noticed: set[str] = set()
        self._opened = ExitStack()
        self._context: Context | None = None
        self._stages: Sequence[Stage] = ()
        self._count = 0
        self._inpaint: dict[str, Any] = {}

    def __enter__(self) -> "PictureDesk":
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def unmask(self, job: Job, mask: Path | None = None) -> PictureDone:
        """Process one picture. A picture without a masked face is copied as it is where its format allows.

        Args:
            job: what to read and what to write.
            mask: where to write the predicted mask, an 8-bit PNG of the picture's size; None for nowhere.

        Raises:
            UserError: input or output cannot be used.
            StageError: a fault while running.
        """
        started = time.monotonic()
        _check_kind(job.source)
        check_picture_job(job)
        with ExitStack() as drafts:
            draft = drafts.enter_context(whole_file(job.target, overwrite=self._overwrite))
            mask_draft = None if mask is None else drafts.enter_context(whole_file(mask, overwrite=self._overwrite))
            picture = read_picture(job.source)
            frame = self.process_frame(picture.rgb)
            notices = (*_told_conversion(job), *_write(draft, job, picture, frame))
            if mask_draft is not None and mask is not None:
                mask_draft.write(_png(Canvas(frame.layout).frame_mask(frame)))
                mask_draft.keep_as(mask, overwrite=self._overwrite)
            draft.keep_as(job.target, overwrite=self._overwrite)
        return _picture_done(job, mask, frame, self._inpaint, time.monotonic() - started, notices)

    def process(self, rgb: U8) -> U8:
        """Take the masks off a picture in memory, (H, W, 3) uint8 RGB. Raises StageError: a fault while running."""
        return np.asarray(self.process_frame(np.ascontiguousarray(rgb)).planes[0], np.uint8)

    def process_frame(self, rgb: U8) -> Frame:
        """The same, with the faces that were found. Each picture is a stream of its own."""
        layout = Layout(width=rgb.shape[1], height=rgb.shape[0], format="rgb24", full_range=True)
        if self._context is None or self._context.layout != layout:
            self._reopen(Context(layout, self._settings.max_faces, self._pass_on))
        buffer = np.zeros(layout.slot_bytes(self._settings.max_faces), np.uint8)
        frame = Frame(self._count, self._count, Fraction(1), layout, buffer, slot=0, discontinuity=True)
        self._count += 1
        frame.planes[0][...] = rgb
        before = self._inpaint_summary()
        for stage in self._stages:
            with _named(stage):
                given = [*stage.process(frame), *stage.flush()]
            if len(given) != 1 or given[0] is not frame:
                raise StageError(stage.name, f"gave back {len(given)} frames for one")
        after = self._inpaint_summary()
        self._inpaint = {key: x - before[key] if isinstance(x, int) else x for key, x in after.items()}
        return frame

    def _inpaint_summary(self) -> dict[str, Any]:
        """What the stage that paints has to say of all pictures since it was opened."""
        return next((stage.summary() for stage in self._stages if stage.name == "inpaint"), {})

    def _pass_on(self, line: str) -> None:
        if self._notice is not None and line not in self._noticed:
            self._notice(line)
        self._noticed.add(line)

    def _reopen(self, context: Context) -> None:
        self._opened.close()
        self._context = None
        stages = face_stages(self._settings)
        for stage in stages:
            with _named(stage):
                self._opened.callback(stage.close)
                stage.open(context)
        self._stages, self._context = stages, context


@contextmanager
def _named(stage: Stage) -> Iterator[None]:
    """Let the errors of a stage say which one it was."""
    try:
        yield
    except UnmaskError:
        raise
    except Exception as error:
        raise StageError(stage.name, f"{type(error).__name__}: {error}") from error


def _write(draft: Draft, job: Job, picture: Picture, frame: Frame) -> tuple[str, ...]:
    """Write the output. Returns what it lacks, one line each."""
    changed = any(face.masked for face in frame.faces)
    same_format = _format(job.source) == _format(job.target)
    if not changed and same_format and picture.upright:
        draft.write(job.source.read_bytes())
        return ()
    rgb = np.asarray(frame.planes[0], np.uint8)
    with writing(job.target):
        left_out = write_picture(draft.path, rgb, picture, comment=SYNTHETIC if changed else "")
    return tuple(f"without {what}" for what in left_out)


def _format(path: Path) -> str:
    return path.suffix.lower().replace(".jpeg", ".jpg")


def _png(mask: U8) -> bytes:
    return bytes(cv2.imencode(".png", mask)[1].tobytes())


def _rounded(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (round(float(side), 1) for side in box)
    return x0, y0, x1, y1


def _picture_done(
    job: Job, mask: Path | None, frame: Frame, inpaint: Mapping[str, Any], seconds: float, notices: tuple[str, ...]
) -> PictureDone:
    found = [
        FaceFound(
            box_px=_rounded(face.box_px),
            mask_score=round(float(face.mask_score), 4),
            unmasked=face.masked,
            looks_masked=face.looks_masked,
        )
        for face in frame.faces
    ]
    removed = sum(face.unmasked for face in found)
    unlike = told_unlike(inpaint, removed)
    return PictureDone(
        input=str(job.source),
        output=str(job.target),
        mask=None if mask is None else str(mask),
        unmask=__version__,
        width=frame.layout.width,
        height=frame.layout.height,
        faces=tuple(found),
        masks_removed=removed,
        as_seen=inpaint.get("as_seen", 0),
        masks_left=frame.masks_left,
        seconds=round(seconds, 3),
        notices=(*notices, *([unlike] if unlike else [])),
    )


def write_report(path: Path, results: Sequence[object], *, as_list: bool, overwrite: bool) -> None:
    """Write the report: one dataclass of what was done, or with `as_list` a list of them.

    Raises:
        UserError: it exists and is not to be replaced, or cannot be written.
    """
    body = msgspec.json.encode(_shown(msgspec.to_builtins(list(results) if as_list else results[0])))
    with whole_file(path, overwrite=overwrite) as draft:
        draft.write(msgspec.json.format(body, indent=2) + b"\n")
        draft.keep_as(path, overwrite=overwrite)


def _shown(value: Any) -> Any:
    """The same with all texts as JSON can hold them: names of files may be any bytes."""
    match value:
        case str():
            return shown(value)
        case dict():
            return {_shown(key): _shown(one) for key, one in value.items()}
        case list() | tuple():
            return [_shown(one) for one in value]
    return value
