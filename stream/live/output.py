"""What an output of a live run is, and the frame as outputs see it."""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace

from unmask.stream.frame import U8, Frame, Layout, Matrix
from unmask.stream.live.state import Sound
from unmask.stream.stage import Context
from unmask.stream.stages.decode import plane_views


class Showing:
    """One frame on its way to all outputs.

    Args:
        frame: in yuv420p; its buffer may be used until `Output.show` returns.
        sounds: that came since the frame before.
    """

    def __init__(self, frame: Frame, sounds: list[Sound]) -> None:
        self.frame = frame
        self.sounds = sounds

    def picture(self) -> VideoFrame:
        """A copy of the result, with its time, for the caller to keep."""
        layout = self.frame.layout
        picture = VideoFrame(layout.width, layout.height, layout.format)
        for view, plane in zip(plane_views(picture, layout), self.frame.planes, strict=True):
            np.copyto(view, plane)
        picture.pts, picture.time_base = self.frame.pts, self.frame.time_base
        return picture

    def i420(self, *, source: bool = False) -> U8:
        """A copy as one array: (H * 3 / 2, W) uint8, Y, then U and V in rows of half the width.

        Args:
            source: the untouched picture instead of the result; the layout must keep it.
        """
        layout = self.frame.layout
        planes = self.frame.source_planes if source else self.frame.planes
        flat = np.concatenate([np.asarray(plane, np.uint8).ravel() for plane in planes])
        return flat.reshape(layout.height * 3 // 2, layout.width)


def rgb_of(i420: U8, layout: Layout, widest: int | None = None) -> U8:
    """A picture from `Showing.i420` for a screen.

    Args:
        i420: (H * 3 / 2, W) uint8.
        layout: says what its samples mean.
        widest: width in px beyond which it is made smaller; None for never.

    Returns:
        (h, w, 3) uint8 RGB.
    """
    width, height = layout.width, layout.height
    if widest is not None and width > widest:
        width, height = widest, max(1, round(height * widest / width))
    picture = VideoFrame.from_ndarray(i420, "yuv420p").reformat(
        width,
        height,
        "rgb24",
        src_colorspace=Colorspace.ITU601 if layout.matrix is Matrix.BT601 else Colorspace.ITU709,
        src_color_range=ColorRange.JPEG if layout.full_range else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
    )
    return np.asarray(picture.to_ndarray(), np.uint8)


class Output(ABC):
    """Somewhere that frames go. One thread calls all methods; `show` must not wait for anybody outside.

    Attributes:
        wants_source: True where the untouched picture is needed too.
        wants_sound: True where sound is needed.
    """

    name: str
    wants_source: bool = False
    wants_sound: bool = False

    @abstractmethod
    def open(self, context: Context) -> None:
        """Begin. Raises UserError where the user can mend what is wrong."""

    @abstractmethod
    def show(self, showing: Showing) -> None:
        """Take one frame."""

    def finish(self) -> None:  # noqa: B027 - most outputs have nothing to complete
        """Complete the output: no more frames follow."""

    def close(self) -> None:  # noqa: B027
        """Release everything, after `finish` or without it."""

    def summary(self) -> dict[str, Any]:
        """Plain figures for the report."""
        return {}
