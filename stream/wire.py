"""Pictures as clients send them, to and from the planes of a frame.

nv12 is BT.601 with limited range, as OpenCV and most cameras have it. Coded pictures are sRGB.
"""

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.stream.frame import U8, Frame, Layout, Matrix
from unmask.stream.jobs import SYNTHETIC
from unmask.stream.pictures import JPEG_QUALITY, WEBP_QUALITY, with_comment
from unmask.stream.protocol import CODED_FORMATS, Format, Limits, ProtocolError, check_size, shape_of

_SUFFIX: Final[dict[Format, str]] = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}
_QUALITY: Final[dict[Format, list[int]]] = {
    "jpeg": [
        *(cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY),
        *(cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444),
    ],
    "png": [],
    "webp": [cv2.IMWRITE_WEBP_QUALITY, WEBP_QUALITY],
}
_PNG_START: Final = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_PNG_END: Final = b"IEND\xaeB`\x82"
_SIZES_OF_JPEG: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Markers of the segments that hold the size of a JPEG picture (ITU-T T.81, table B.1)."""


def layout_of(format: Format, width: int, height: int) -> Layout:
    """How the pipeline works on a picture: nv12 stays YUV, so that what no face covers stays the same to the bit."""
    if format == "nv12":
        return Layout(width, height, "yuv420p", Matrix.BT601)
    return Layout(width, height, "rgb24", full_range=True)


# --- in ---------------------------------------------------------------------------------------------------------------


def decode_picture(format: Format, data: memoryview | bytes, limits: Limits) -> U8:
    """A coded picture, upright, as (H, W, 3) uint8 RGB. Transparency is dropped.

    Raises:
        ProtocolError: it is damaged, cut short, of another format, or larger than allowed; the size is read from its
            header before anything is decoded.
    """
    raw = bytes(data)
    width, height = coded_size(format, raw)
    check_size(width, height, format, limits)
    try:
        decoded: npt.NDArray[np.uint8] | None = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise _damaged(format) from error
    if decoded is None or sorted(decoded.shape[:2]) != sorted((height, width)):
        raise _damaged(format)
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)


def coded_size(format: Format, data: bytes) -> tuple[int, int]:
    """Width and height that the header of a coded picture names.

    Raises:
        ProtocolError: there is none, or the picture has no end.
    """
    size = {"jpeg": _jpeg_size, "png": _png_size, "webp": _webp_size}[format](data)
    if size is None or min(size) < 1:
        raise _damaged(format)
    return size


def _damaged(format: Format) -> ProtocolError:
    return ProtocolError("picture", f"the picture is no whole {format} file: damaged, cut short or of another format")


def _png_size(data: bytes) -> tuple[int, int] | None:
    at = 8 if data.startswith(_PNG_START) else len(data)
    while at + 12 <= len(data):
        if data[at + 4 : at + 12] == _PNG_END:  # whatever lies behind it is no part of the picture
            return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2 if data.startswith(b"\xff\xd8") else len(data)
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _SIZES_OF_JPEG:
            height, width = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            return (width, height) if data.find(b"\xff\xd9", at) > 0 else None
        # A marker may be preceded by any number of fill bytes (B.1.1.2).
        at += 1 if marker == 0xFF else 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    whole = int.from_bytes(data[4:8], "little") + 8 <= len(data)
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or not whole or len(data) < 30:
        return None
    match data[12:16]:
        case b"VP8X":
            return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
        case b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return None


def fill(frame: Frame, format: Format, picture: U8) -> None:
    """Write a picture into the planes of a frame whose layout is `layout_of` its format and size.

    Args:
        frame: written.
        format: of the picture.
        picture: (N,) uint8 of a raw picture, or (H, W, 3) RGB of a decoded one.
    """
    width, height = frame.layout.width, frame.layout.height
    if format in CODED_FORMATS:
        frame.planes[0][...] = picture
        return
    pixels = picture.reshape(shape_of(format, width, height))
    match format:
        case "rgb24":
            frame.planes[0][...] = pixels
        case "bgr24":
            cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=frame.planes[0])
        case "gray8":
            cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB, dst=frame.planes[0])
        case "nv12":
            luma, u, v = frame.planes
            luma[...] = pixels[:height]
            chroma = pixels[height:].reshape(height // 2, width // 2, 2)
            u[...], v[...] = chroma[..., 0], chroma[..., 1]


# --- out --------------------------------------------------------------------------------------------------------------


def pack(frame: Frame, format: Format) -> U8:
    """The picture of a frame as (N,) uint8 in a format, in memory of its own.

    Coded pictures with a painted face say in their EXIF description that it is synthetic.

    Raises:
        ProtocolError: the format cannot hold a picture of this size.
    """
    layout = frame.layout
    if format == "nv12":
        check_size(layout.width, layout.height, format, Limits(max_pixels=layout.width * layout.height))
        return _nv12(frame)
    rgb = _rgb(frame)
    match format:
        case "rgb24":
            return rgb.reshape(-1).copy()
        case "bgr24":
            return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), np.uint8).reshape(-1)
        case "gray8":
            return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8).reshape(-1)
    coded = cv2.imencode(_SUFFIX[format], cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), _QUALITY[format])[1].tobytes()
    if any(face.masked for face in frame.faces):
        coded = with_comment(coded, rgb.shape, SYNTHETIC)
    return np.frombuffer(coded, np.uint8)


def _rgb(frame: Frame) -> U8:
    """(H, W, 3) uint8 RGB; a view where the frame is RGB."""
    if not frame.layout.pixel_format.planar:
        return np.asarray(frame.planes[0], np.uint8)
    pixels = _nv12(frame).reshape(shape_of("nv12", frame.layout.width, frame.layout.height))
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_YUV2RGB_NV12), np.uint8)


def _nv12(frame: Frame) -> U8:
    width, height = frame.layout.width, frame.layout.height
    if frame.layout.pixel_format.planar:
        luma, u, v = (np.asarray(plane, np.uint8) for plane in frame.planes)
    else:
        i420 = np.asarray(cv2.cvtColor(np.asarray(frame.planes[0]), cv2.COLOR_RGB2YUV_I420), np.uint8)
        luma, chroma = i420[:height], i420[height:].reshape(2, height // 2, width // 2)
        u, v = chroma
    return np.concatenate([luma.reshape(-1), np.stack([u, v], axis=-1).reshape(-1)])
