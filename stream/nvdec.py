"""NVIDIA's video decoder through PyAV. Whether it takes a stream (driver, GPU, codec) is found out by decoding.

Pictures are copied to the processor's memory, as NV12 or P010: the stages work there.
"""

from pathlib import Path

import av
from av.codec.hwaccel import HWAccel
from av.container import InputContainer


def open_on_gpu(path: Path, number: int) -> InputContainer:
    """Open a video file so that GPU `number` decodes it. Raises av.FFmpegError where there is no GPU or no driver."""
    hardware = HWAccel("cuda", device=str(number), allow_software_fallback=False)
    return av.open(f"file:{path}", metadata_errors="surrogateescape", hwaccel=hardware)


def nvdec_problem(path: Path, stream_index: int, number: int) -> str | None:
    """Why GPU `number` cannot decode a stream of a file, found out with its first picture; None where it can.

    Without a driver PyAV raises PermissionError ("Operation not permitted") whatever the rights of the file are.
    """
    try:
        with open_on_gpu(path, number) as container:
            stream = container.streams[stream_index]
            for picture in container.decode(stream):
                assert isinstance(picture, av.VideoFrame)
                return None if stream.codec_context.is_hwaccel else "FFmpeg decodes it on the CPU all the same"
    except (av.FFmpegError, NotImplementedError, RuntimeError, ValueError) as error:
        return str(getattr(error, "strerror", None) or error) or type(error).__name__
    return "it gives no picture"
