"""NVIDIA's video decoder and encoder through PyAV.

Whether they take a stream (driver, GPU, codec, PyAV's version) is found out by decoding, or encoding, one picture.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import av
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from unmask.stream.encoders import Choice, VideoSettings, configure

_REFUSALS: Final = (
    *(av.FFmpegError, NotImplementedError, RuntimeError, ValueError, TypeError),
    *(AttributeError, ImportError, BufferError),
)
"""What PyAV, FFmpeg and PyTorch raise where something is missing, an older PyAV without an argument included."""


def open_on_gpu(path: Path, number: int, *, owned: bool = False) -> InputContainer:
    """Open a video file so that GPU `number` decodes it.

    Args:
        path: the file.
        number: which GPU.
        owned: True where pictures stay in its memory, False where they are copied to the processor's.

    Raises:
        av.FFmpegError: there is no GPU or no driver.
    """
    options = _shared_context(number) if owned else None
    hardware = HWAccel("cuda", str(number), allow_software_fallback=False, options=options, is_hw_owned=owned)
    return av.open(f"file:{path}", metadata_errors="surrogateescape", hwaccel=hardware)


def nvdec_problem(
    path: Path, stream_index: int, number: int, take: Callable[[VideoFrame], None] | None = None
) -> str | None:
    """Why GPU `number` cannot decode a stream of a file, found out with its first picture; None where it can.

    Without a driver PyAV raises PermissionError ("Operation not permitted") whatever the rights of the file are.

    Args:
        path: the file.
        stream_index: of the video.
        number: which GPU.
        take: takes the first picture, in the GPU's memory, and raises where it cannot be used; None where pictures are
            to be copied to the processor's memory.
    """
    try:
        with open_on_gpu(path, number, owned=take is not None) as container:
            stream = container.streams[stream_index]
            for picture in container.decode(stream):
                assert isinstance(picture, VideoFrame)
                if not stream.codec_context.is_hwaccel:
                    return "FFmpeg decodes it on the CPU all the same"
                if take is not None:
                    take(picture)
                return None
    except _REFUSALS as error:
        return _reason(error)
    return "it gives no picture"


def encoder_hardware(number: int) -> HWAccel:
    """For encoders: pictures come in the memory of GPU `number`, in the context that PyTorch uses too.

    The encoder is to be opened in the calling thread.
    """
    return HWAccel("cuda", str(number), options=_shared_context(number), is_hw_owned=True)


def _shared_context(number: int) -> dict[str, object]:
    """What tells FFmpeg to use PyTorch's context of GPU `number`, which is made the current one of the calling thread.

    PyAV would ask for the primary context, which is the same one; but FFmpeg takes that only with flags of its own, and
    refuses it where PyTorch was there first, as it is in every run: the frames' tensors come before the stages open.
    """
    from unmask.stream.nv12 import use_gpu  # who wants pictures in the GPU's memory has PyTorch

    use_gpu(f"cuda:{number}")
    return {"primary_ctx": "0", "current_ctx": "1"}


def nvenc_problem(
    choice: Choice, settings: VideoSettings, number: int, picture: Callable[[], VideoFrame]
) -> str | None:
    """Why an encoder takes no pictures in the memory of GPU `number`, found out with one; None where it does.

    Args:
        choice: the encoder.
        settings: of the run.
        number: which GPU.
        picture: gives an NV12 picture in its memory.
    """
    try:
        context = av.CodecContext.create(choice.encoder.name, "w", encoder_hardware(number))
        assert isinstance(context, VideoCodecContext)
        configure_for_gpu(context, choice, settings)
        context.options = choice.options
        first = picture()
        first.pts = 0
        context.encode(first)
        context.encode(None)
    except _REFUSALS as error:
        return _reason(error)
    return None


def configure_for_gpu(context: VideoCodecContext, choice: Choice, settings: VideoSettings) -> None:
    """Set up an encoder's context for NV12 pictures in a GPU's memory, except for its options."""
    configure(context, replace(choice, pixel_format="nv12"), settings)


def _reason(error: Exception) -> str:
    """An error of PyAV or PyTorch in a few words."""
    return str(getattr(error, "strerror", None) or error).strip().split("\n")[0] or type(error).__name__
