"""The first stage for files: compressed video in, upright frames with their times out."""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import replace
from fractions import Fraction
from typing import Any, ClassVar, Final

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream

from unmask.stream.frame import Frame, Layout, Plane
from unmask.stream.media import MediaInfo, Orientation, Timeline, is_full_range, is_grey, open_input
from unmask.stream.nvcodec import nvdec_problem, open_on_gpu
from unmask.stream.stage import Context, Source

_FLIP_CODES: Final = {(True, False): 1, (False, True): 0, (True, True): -1}
"""OpenCV's codes for `flip`, by (mirror_x, mirror_y)."""


class Decode(Source):
    """Reads the video that `unmask.stream.media.probe` described.

    A picture that already has the layout's format is copied plane by plane, to the bit; any other is converted by
    libswscale to the nearest format. Pictures of another size or range (some streams change them midway) are brought to
    that of the first. Packets that cannot be decoded are counted and passed over. Times are repaired as `Timeline`,
    `Slots` and `Clock` say. What an edit list hides is decoded, where later pictures need it, but not given.

    Args:
        info: what `probe` found; `info.layout`, with or without `keep_source`, is the layout of the run.
        gpu: number of the GPU whose decoder (NVDEC) is tried first; None for the processor alone.
    """

    name: ClassVar[str] = "decode"

    def __init__(self, info: MediaInfo, gpu: int | None = None) -> None:
        self._info = info
        self._gpu = gpu

    def open(self, context: Context) -> None:
        self._notice = context.notice
        self._notes: list[str] = []
        self._frames = self._packets = self._hidden = self._errors = self._lost = 0
        self._timeline, self._clock, self._slots = Timeline(self._info), Clock(self._info), Slots(self._info)
        self._size: tuple[int, int] | None = None
        self._into_tensors = _IntoTensors(self._info, context.layout) if context.layout.tensors else None
        self._container = self._open_container()
        self._stream = _video_stream(self._container, self._info.stream_index)
        self._stream.thread_type = "AUTO"
        self._pictures = self._decode()
        components = VideoFormat(self._info.pixel_format).components
        self._may_be_transparent = any(component.is_alpha for component in components)

    def process(self, frame: Frame) -> Iterable[Frame]:
        picture = next(self._pictures, None)
        if picture is None:
            self._report()
            return ()
        if self._may_be_transparent and not is_opaque_gif(picture):
            self._may_be_transparent = False  # it is said once
            self._note(f"{self._info.path.name}: its transparency is left out; the output is opaque")
        frame.pts, frame.time_base = self._clock.stamp(picture.pts), self._info.time_base
        frame.discontinuity = self._changed_size(picture)
        if self._into_tensors is None:
            fill(frame, picture, self._info.orientation)
        else:
            self._into_tensors.fill(frame, picture)
        self._frames += 1
        return (frame,)

    def close(self) -> None:
        self._pictures.close()
        self._container.close()

    def summary(self) -> dict[str, Any]:
        return {
            "frames": self._frames,
            "lost": self._lost,
            "codec": self._info.codec,
            "decoder": self._decoder,
            "pix_fmt": self._info.pixel_format,
            "notes": list(self._notes),
        }

    def _open_container(self) -> InputContainer:
        self._decoder = "CPU"
        if self._gpu is None:
            return open_input(self._info.path)
        take = self._into_tensors.try_one if self._into_tensors else None
        if problem := nvdec_problem(self._info.path, self._info.stream_index, self._gpu, take):
            self._notice(f"decoder on the CPU; NVDEC cannot decode this {self._info.codec} ({problem})")
            return open_input(self._info.path)
        self._decoder = f"NVDEC on cuda:{self._gpu}"
        self._notice(f"decoder {self._decoder}")
        return open_on_gpu(self._info.path, self._gpu, owned=take is not None)

    def _decode(self) -> Generator[VideoFrame]:
        """All pictures that can be decoded, in the order of their times."""
        last: int | None = None
        given = 0
        for packet in self._read():
            for picture in self._pictures_of(self._stream, packet):
                self._slots.place(picture)
                last, given = picture.pts, given + 1
                yield picture
        if given < self._packets and last is not None and len(self._timeline.parts) < 2:  # else times are ambiguous
            yield from self._decode_after(last)
        self._lost = self._count_lost()

    def _decode_after(self, last: int) -> Iterator[VideoFrame]:
        """Decode the end again, one picture at a time, and give the pictures later than `last`.

        With frame threads, one damaged packet among the last few takes the sound ones beside it along.
        """
        with open_input(self._info.path) as container:
            stream = _video_stream(container, self._info.stream_index)
            stream.thread_type = "SLICE"
            try:
                container.seek(last, stream=stream)
            except av.FFmpegError:
                return
            slots = Slots(self._info)
            for packet in container.demux(stream):
                slots.prepare(packet)
                for picture in self._pictures_of(stream, packet):
                    slots.place(picture)
                    if picture.pts is not None and picture.pts > last:
                        yield picture

    def _pictures_of(self, stream: VideoStream, packet: "av.Packet[VideoStream] | None") -> list[VideoFrame]:
        try:
            return stream.decode(packet)
        except av.FFmpegError:
            self._errors += 1
            return []

    def _read(self) -> Iterator["av.Packet[VideoStream] | None"]:
        """All packets of the stream, then None, which drains the decoder, even where reading ends in an error."""
        try:
            for packet in self._container.demux(self._stream):
                if packet.size:
                    self._packets += not packet.is_discard
                    self._hidden += packet.is_discard
                    self._put_on_timeline(packet)
                    yield packet
        except av.FFmpegError:
            self._errors += 1
        yield None

    def _put_on_timeline(self, packet: "av.Packet[VideoStream]") -> None:
        """Move a packet's times; its picture takes them over, however late the decoder gives it."""
        self._timeline.see(packet)
        if len(self._timeline.parts) > 1:
            ticks = round(self._timeline.parts[-1].shift / Fraction(packet.time_base))
            packet.pts = None if packet.pts is None else packet.pts + ticks
            packet.dts = None if packet.dts is None else packet.dts + ticks
        self._slots.prepare(packet)

    def _count_lost(self) -> int:
        """Packets that gave no picture because of damage, and those that the index names but the file does not hold.

        Without an error nothing is lost: some codecs put two packets into one picture. The index also names the packets
        that an edit list hides.
        """
        damaged = max(0, self._packets - self._frames) if self._errors else 0
        return damaged + max(0, len(self._stream.index_entries) - self._packets - self._hidden)

    def _changed_size(self, picture: VideoFrame) -> bool:
        size = picture.width, picture.height
        changed = self._size is not None and size != self._size
        if changed:
            first = _coded_size(self._info.layout, self._info.orientation)
            self._note(f"the video changes to {size[0]}x{size[1]} px; kept at its first size, {first[0]}x{first[1]} px")
        self._size = size
        return changed

    def _report(self) -> None:
        if self._lost:
            total = self._frames + self._lost
            self._note(f"{self._info.path.name}: damaged, {self._lost} of {total} pictures could not be decoded")
        elif self._errors:
            self._note(f"{self._info.path.name}: damaged, {self._frames} pictures could be decoded")
        if again := len(self._timeline.parts[1:]):
            times = "once" if again == 1 else f"{again} times"
            self._note(f"{self._info.path.name}: its clock begins anew {times}; all goes on where it was")
        if self._clock.repaired:
            self._note(f"{self._info.path.name}: {self._clock.repaired} pictures had no usable time and were given one")

    def _note(self, line: str) -> None:
        self._notes.append(line)
        self._notice(line)


def _video_stream(container: InputContainer, index: int) -> VideoStream:
    stream = container.streams[index]
    assert isinstance(stream, VideoStream)
    for other in container.streams:
        if other is not stream:
            other.discard = av.stream.Discard.all
    return stream


class Slots:
    """Makes the times of pictures in AVI, which holds packets in equal slots and no times of showing.

    FFmpeg takes for such a time that of decoding plus the delay of B-frames, in the order of decoding: the first
    picture comes late against the sound, and with H.264 the others are out of order. Yet pictures are shown one a slot,
    in the order in which the decoder gives them, the first in the slot of its packet. Other files are left alone.

    Args:
        info: gives the kind of file and the usual step.
    """

    def __init__(self, info: MediaInfo) -> None:
        self._wanted = info.container == "avi"
        self._step = info.frame_step
        self._delay: int | None = None
        self._last = 0

    def prepare(self, packet: "av.Packet[VideoStream]") -> None:
        """Let the picture tell in which slot its packet lies."""
        if self._wanted:
            packet.pts = packet.dts

    def place(self, picture: VideoFrame) -> None:
        """Set the time of the next picture."""
        if not self._wanted or (self._delay is None and picture.pts is None):
            return
        # What the decoder was given when it gave this picture; nothing any more at the end.
        given = picture.dts
        if self._delay is None:
            assert picture.pts is not None
            self._last = picture.pts
            self._delay = 0 if given is None else given - picture.pts
        else:
            self._last = self._last + self._step if given is None else given - self._delay
        picture.pts = self._last


class Clock:
    """Gives each frame a time later than that of the frame before it.

    A time that is later is kept as it is, however uneven the steps. A missing one is set one frame after the frame
    before. One that repeats, or goes back by less than a second, is set one tick after the frame before. One that goes
    back further is set one frame after the frame before, and all later times are shifted with it; where packets tell
    their times of decoding, `Timeline` has seen to that before.

    Args:
        info: gives the time base and the usual step.

    Attributes:
        repaired: how many times were missing or not later, where the file has times at all.
    """

    def __init__(self, info: MediaInfo) -> None:
        self._step = info.frame_step
        self._second = 1 / info.time_base
        self._offset = 0
        self._last: int | None = None
        self._timed = False
        self.repaired = 0

    def stamp(self, pts: int | None) -> int:
        """The time of the next frame, in the time base of `pts`."""
        self._timed = self._timed or pts is not None
        if self._last is None:
            self._last = pts or 0
        elif pts is not None and pts + self._offset > self._last:
            self._last = pts + self._offset
        else:
            self.repaired += self._timed
            self._last = self._repair(pts, self._last)
        return self._last

    def _repair(self, pts: int | None, last: int) -> int:
        if pts is None:
            return last + self._step
        if last - (pts + self._offset) < self._second:
            return last + 1
        self._offset = last + self._step - pts
        return last + self._step


# --- pixels -----------------------------------------------------------------------------------------------------------


class _IntoTensors:
    """Fills frames that lie in tensors: on the GPU where NVDEC decodes, else with one copy to it."""

    def __init__(self, info: MediaInfo, layout: Layout) -> None:
        from unmask.stream.nv12 import Mover  # runs without tensors are spared PyTorch

        self._orientation = info.orientation
        self._layout = layout
        self._mover = Mover(layout)
        on_host = replace(layout, tensors="")
        self._upright = Frame(0, 0, Fraction(1), on_host, np.empty(on_host.slot_bytes(0), np.uint8), 0)

    def fill(self, frame: Frame, picture: VideoFrame) -> None:
        """Write a picture into a frame, made upright."""
        if picture.format.name == "cuda":
            self._mover.adopt(frame, picture, self._orientation)
        else:
            fill(self._upright, picture, self._orientation)
            self._mover.upload(frame, self._upright.planes)

    def try_one(self, picture: VideoFrame) -> None:
        """Raise what `fill` would raise for pictures like this one."""
        from unmask.stream.nv12 import new_picture

        empty = np.empty(0, np.uint8)
        self.fill(Frame(0, 0, Fraction(1), self._layout, empty, 0, nv12=new_picture(self._layout)), picture)


def fill(frame: Frame, picture: VideoFrame, orientation: Orientation) -> None:
    """Write a picture into a frame's planes, and into their untouched copy if the layout keeps one."""
    layout = frame.layout
    fitted = _fitted(picture, layout, _coded_size(layout, orientation))
    for source, target in zip(plane_views(fitted, layout), frame.planes, strict=True):
        _copy_upright(source, target, orientation)
    if layout.keep_source:
        size = layout.frame_bytes
        frame.buffer[size : 2 * size] = frame.buffer[:size]


def is_opaque_gif(picture: VideoFrame) -> bool:
    """Whether a picture is in the format of GIF, which always has transparency, and uses none of it."""
    if picture.format.name != "bgra":
        return False
    (plane,) = picture.planes
    shape, strides = (picture.height, picture.width), (abs(plane.line_size), 4)
    alpha: Plane = np.ndarray(shape, np.uint8, buffer=memoryview(plane), offset=3, strides=strides)
    return bool((alpha == 255).all())


def _coded_size(layout: Layout, orientation: Orientation) -> tuple[int, int]:
    """Width and height in px before the picture is made upright."""
    return (layout.height, layout.width) if orientation.transpose else (layout.width, layout.height)


def _fitted(picture: VideoFrame, layout: Layout, size: tuple[int, int]) -> VideoFrame:
    """The picture itself where it has the layout's format, size and range, else a converted one."""
    full = _is_full(picture, layout)
    if is_grey(picture.format):
        # libswscale takes grey for full range, whatever it is told; equal ranges leave the samples as they are.
        full_range = ColorRange.JPEG
        picture = picture.reformat(format=layout.format, src_color_range=full_range, dst_color_range=full_range)
    same_range = picture.format.is_rgb or full == layout.full_range
    same_format = picture.format.name.replace("yuvj", "yuv") == layout.format
    if same_range and same_format and (picture.width, picture.height) == size:
        return picture
    to_yuv = picture.format.is_rgb and layout.pixel_format.planar
    return picture.reformat(
        *size,
        layout.format,
        dst_colorspace="ITU709" if to_yuv else None,
        interpolation="BICUBIC",
        src_color_range=ColorRange.JPEG if to_yuv or full else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG if layout.full_range else ColorRange.MPEG,
    )


def _is_full(picture: VideoFrame, layout: Layout) -> bool:
    """Whether a picture has full range; one that does not tell has that of the layout, as joined recordings change."""
    untold = picture.color_range == ColorRange.UNSPECIFIED and not picture.format.name.startswith("yuvj")
    return layout.full_range if untold else is_full_range(picture)


def plane_views(picture: VideoFrame, layout: Layout) -> Iterator[Plane]:
    """Views of a picture's planes without the padding of their rows: (H, W), or (H, W, 3) for packed RGB."""
    channels = 1 if layout.pixel_format.planar else 3
    item = layout.dtype.itemsize
    for plane in picture.planes:
        stride = abs(plane.line_size)
        shape, strides = (plane.height, plane.width * channels), (stride, item)
        view: Plane = np.ndarray(shape, layout.dtype, buffer=memoryview(plane), strides=strides)
        # A negative line size means that the rows lie from bottom to top.
        view = view[::-1] if plane.line_size < 0 else view
        yield view if channels == 1 else view.reshape(plane.height, plane.width, channels)


def _copy_upright(source: Plane, target: Plane, orientation: Orientation) -> None:
    flip = _FLIP_CODES.get(orientation[1:])
    if flip is None and not orientation.transpose:
        np.copyto(target, source)
    elif flip is None:
        cv2.transpose(source, dst=target)
    else:
        cv2.flip(cv2.transpose(source) if orientation.transpose else source, flip, dst=target)
