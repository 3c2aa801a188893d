"""A time written into the picture itself, so that the way to an output is measured and not guessed.

The code is a block of black and white squares in the top left corner: 40 bits, 32 of a time in units of 0.1 ms and 8
of a checksum. It survives coding, so that a recording or a receiver of a push can be measured too.
"""

import zlib
from collections.abc import Sequence
from typing import Final

import numpy as np

from unmask.errors import UserError
from unmask.stream.frame import U8, Layout, Plane

_SQUARE_PX: Final = 8
_ROWS: Final = 4
_COLUMNS: Final = 10
WIDTH_PX: Final = _COLUMNS * _SQUARE_PX
HEIGHT_PX: Final = _ROWS * _SQUARE_PX
_TICKS_PER_SECOND: Final = 10_000
_BLACK, _WHITE, _GREY = 16, 235, 128


def check_size(layout: Layout) -> None:
    """Raise UserError where the picture has no room for a code."""
    size = f"{layout.width}x{layout.height}"
    if layout.width < WIDTH_PX or layout.height < HEIGHT_PX:
        raise UserError(f"--latency needs pictures of at least {WIDTH_PX}x{HEIGHT_PX} px, not {size}")


def burn(planes: Sequence[Plane], seconds: float) -> None:
    """Write a time into a picture.

    Args:
        planes: Y, U, V of yuv420p, uint8, at least 80x32 px; written.
        seconds: 0 to 429,496 s (five days), kept to 0.1 ms; later times begin at 0 again.
    """
    ticks = round(seconds * _TICKS_PER_SECOND) % (1 << 32)
    message = ticks.to_bytes(4, "big")
    bits = np.unpackbits(np.frombuffer(message + _checksum(message), np.uint8)).reshape(_ROWS, _COLUMNS)
    squares = np.where(bits == 1, _WHITE, _BLACK).astype(np.uint8)
    planes[0][:HEIGHT_PX, :WIDTH_PX] = np.kron(squares, np.ones((_SQUARE_PX, _SQUARE_PX), np.uint8))
    for chroma in planes[1:]:
        chroma[: HEIGHT_PX // 2, : WIDTH_PX // 2] = _GREY


def read(luma: Plane) -> float | None:
    """The time in a picture, in seconds; None where there is none that can be read.

    Args:
        luma: (H, W) uint8, the Y plane.
    """
    if luma.shape[0] < HEIGHT_PX or luma.shape[1] < WIDTH_PX:
        return None
    squares = luma[:HEIGHT_PX, :WIDTH_PX].reshape(_ROWS, _SQUARE_PX, _COLUMNS, _SQUARE_PX)
    bits: U8 = (squares[:, 2:6, :, 2:6].mean(axis=(1, 3)) > _GREY).astype(np.uint8)
    data = np.packbits(bits.ravel()).tobytes()
    if _checksum(data[:4]) != data[4:]:
        return None
    return int.from_bytes(data[:4], "big") / _TICKS_PER_SECOND


def _checksum(message: bytes) -> bytes:
    # The constant keeps a black and a white corner from being valid codes.
    return bytes([zlib.crc32(message) & 0xFF ^ 0x5A])
