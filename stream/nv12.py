"""Frames that stay on a GPU from decoder to encoder: pictures as NV12 in PyTorch tensors, and how they get in and out.

A picture is one tensor, (3 * H / 2, W) uint8: the luma, and under it the chroma, U and V in turn. NVDEC gives pictures
so, and NVENC takes them so, with the chroma right behind the luma. Everything here also works on tensors of the
processor, where the tests run it; on a GPU it has never run.

PyAV is given PyTorch's context of a GPU (`use_gpu`), and both use its default stream, in which copies and kernels
follow each other; what leaves that order (decoder, encoder) is waited for.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from av.video.frame import VideoFrame
from torch import Tensor
from torch.nn import functional as F
from torch.utils.dlpack import from_dlpack

from unmask.stream.frame import Frame, Layout, Plane
from unmask.stream.media import MediaInfo, Orientation

if TYPE_CHECKING:
    from av.video.frame import CudaContext


def use_gpu(device: str) -> None:
    """Make a GPU the current one of the calling thread, and PyTorch's context on it the current context.

    FFmpeg is told to take the current context: by itself it wants the same one, the primary one, but with flags of its
    own, and refuses it where PyTorch has opened it before. And PyTorch gives tensors of the current GPU only to others.

    Args:
        device: PyTorch's name of it. For the processor, or where PyTorch finds no GPU, nothing is done.
    """
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        torch.cuda.set_device(device)
        torch.cuda.current_stream(device).synchronize()  # only work is sure to make it the current context


def layout_problem(layout: Layout) -> str | None:
    """Why pictures of a layout cannot lie in tensors; None where they can."""
    if layout.format != "yuv420p":
        return f"only 8-bit 4:2:0 stays on the GPU, and this video becomes {layout.format}"
    if layout.width % 2 or layout.height % 2:
        return f"only even sizes stay on the GPU, and this video has {layout.width}x{layout.height} px"
    return "before and after side by side are put together on the processor" if layout.keep_source else None


def with_tensors(info: MediaInfo, device: str) -> MediaInfo:
    """The same, with a layout whose pictures lie in tensors on a device. Raises ValueError as `Layout` does."""
    return replace(info, layout=replace(info.layout, tensors=device))


def new_picture(layout: Layout) -> Tensor:
    """An empty picture of a layout, (3 * H / 2, W) uint8, on its device."""
    return torch.zeros((layout.height * 3 // 2, layout.width), dtype=torch.uint8, device=layout.tensors)


def planes_of(frame: Frame) -> tuple[Tensor, Tensor, Tensor]:
    """Y, U and V of a frame, (H, W) and twice (H / 2, W / 2) uint8: views, so that what is painted on them lies in the
    picture. Raises ValueError where the frame lies in no tensor."""
    if frame.nv12 is None:
        raise ValueError("this frame does not lie in a tensor")
    return _planes(frame.nv12)


def _planes(nv12: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    height = nv12.shape[0] * 2 // 3
    chroma = nv12[height:].view(height // 2, nv12.shape[1] // 2, 2)
    return nv12[:height], chroma[..., 0], chroma[..., 1]


class Mover:
    """Takes pictures into tensors and out of them; for one end of the pipeline, which calls it in one thread.

    Args:
        layout: of the frames.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._on_gpu = torch.device(layout.tensors).type == "cuda"
        use_gpu(layout.tensors)
        # Pinned memory is what a GPU reads and writes by itself, at the full speed of the bus.
        self._host = torch.empty(layout.frame_bytes, dtype=torch.uint8, pin_memory=self._on_gpu)

    def upload(self, frame: Frame, planes: Sequence[Plane]) -> None:
        """Fill a frame with planes, shaped as `Layout.plane_shapes`, in one copy."""
        for mine, plane in zip(_cut(self._host.numpy(), self._layout), planes, strict=True):
            mine[...] = plane
        there = _cut(self._host.to(self._layout.tensors, non_blocking=True), self._layout)
        for target, source in zip(planes_of(frame), there, strict=True):
            target.copy_(source)
        self.wait()  # the pinned memory is written again for the next frame

    def adopt(self, frame: Frame, picture: VideoFrame, orientation: Orientation) -> None:
        """Fill a frame with a picture that NVDEC decoded, made upright, without leaving the GPU.

        Raises:
            NotImplementedError: the decoder gives another format than NV12.
        """
        if picture.sw_format is None or picture.sw_format.name != "nv12":
            given = picture.sw_format.name if picture.sw_format else picture.format.name
            raise NotImplementedError(f"pictures come as {given}, not as nv12")
        self._follow_decoder()
        # Of a plane itself PyTorch asks that its stream be waited for, which PyAV refuses; a capsule asks nothing.
        luma, chroma = (from_dlpack(plane.__dlpack__()) for plane in picture.planes)
        fill_upright(frame, luma, chroma, orientation)
        self.wait()  # the decoder may use the picture's memory again

    def download(self, frame: Frame) -> Sequence[Plane]:
        """The planes of a frame, shaped as `Layout.plane_shapes`, in one copy; valid until the next call."""
        together = torch.cat([plane.reshape(-1) for plane in planes_of(frame)])
        self._host.copy_(together, non_blocking=True)
        self.wait()
        return list(_cut(self._host.numpy(), self._layout))

    def for_encoder(self, frame: Frame) -> VideoFrame:
        """The frame as NVENC takes it. It is a copy on the device: the encoder reads it when the slot is long in use
        again."""
        assert frame.nv12 is not None
        picture = frame.nv12.clone()
        self.wait()
        return video_frame(picture)

    def _follow_decoder(self) -> None:
        """See that what is queued from here on comes after what FFmpeg has queued: that goes to the default stream, as
        PyTorch's work does, unless this thread was given another stream."""
        if self._on_gpu:
            default = torch.cuda.default_stream(self._layout.tensors)
            if torch.cuda.current_stream(self._layout.tensors) != default:
                default.synchronize()

    def wait(self) -> None:
        """Wait until everything queued for the frames of this layout is done."""
        if self._on_gpu:
            torch.cuda.current_stream(self._layout.tensors).synchronize()


def video_frame(nv12: Tensor) -> VideoFrame:
    """A picture, (3 * H / 2, W) uint8, as PyAV's frame, on the same device and without a copy; it keeps the memory.

    On a GPU, that must be the current one of the calling thread (`use_gpu`).
    """
    height = nv12.shape[0] * 2 // 3
    context = _context(nv12.device.index) if nv12.is_cuda else None
    return VideoFrame.from_dlpack((nv12[:height], nv12[height:]), format="nv12", cuda_context=context)


@cache
def _context(number: int) -> "CudaContext":
    """PyTorch's context on a GPU as PyAV knows it. One for all frames: for each frame that comes without, PyAV would
    open CUDA once more."""
    from av.video.frame import CudaContext  # an older PyAV has none

    return CudaContext(number, primary_ctx=False, current_ctx=True)


def fill_upright(frame: Frame, luma: Tensor, chroma: Tensor, orientation: Orientation) -> None:
    """Fill a frame with a coded picture: made upright, and scaled where the video changed its size.

    Args:
        frame: written.
        luma: (h, w) uint8.
        chroma: (h / 2, w / 2, 2) uint8, U and V in turn.
        orientation: how to make it upright.
    """
    for target, source in zip(planes_of(frame), (luma, chroma[..., 0], chroma[..., 1]), strict=True):
        upright = source.transpose(0, 1) if orientation.transpose else source
        flips = [axis for axis, flip in ((1, orientation.mirror_x), (0, orientation.mirror_y)) if flip]
        upright = upright.flip(flips) if flips else upright
        if upright.shape != target.shape:
            values = upright.to(torch.float32)[None, None]
            scaled = F.interpolate(values, target.shape, mode="bicubic", align_corners=False, antialias=True)
            upright = scaled[0, 0].round().clamp(0, 255)
        target.copy_(upright)


def _cut(flat: Any, layout: Layout) -> list[Any]:
    """(frame_bytes,) as planes, shaped as `Layout.plane_shapes`: views."""
    sizes = np.cumsum([0, *(int(np.prod(shape)) for shape in layout.plane_shapes)])
    bounds = zip(sizes[:-1], sizes[1:], layout.plane_shapes, strict=True)
    return [flat[start:end].reshape(shape) for start, end, shape in bounds]
