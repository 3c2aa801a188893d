"""Still pictures in and out: PNG, JPEG and WebP, upright, with their transparency and colour profile.

OpenCV codes the pixels. What it does not carry is the metadata, so orientation and colour profile are read from the
file's blocks here, and the profile is put into the output beside one EXIF field (ImageDescription) with a comment.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.errors import UserError
from unmask.stream.frame import U8

JPEG_QUALITY: Final = 95
WEBP_QUALITY: Final = 95
WEBP_LOSSLESS: Final = 101
"""OpenCV takes any quality above 100 for lossless."""

_TURNS: Final = {
    1: (0, False),
    2: (0, True),
    3: (2, False),
    4: (2, True),
    5: (3, True),
    6: (3, False),
    7: (1, True),
    8: (1, False),
}
"""EXIF orientation: quarter turns against the clock, then whether left and right are swapped."""

_PNG_START: Final = b"\x89PNG\r\n\x1a\n"
_JPEG_START: Final = b"\xff\xd8"
_EXIF_START: Final = b"Exif\0\0"
_ICC_START: Final = b"ICC_PROFILE\0"
_XMP_START: Final = b"http://ns.adobe.com/xap/1.0/\0"
_IPTC_START: Final = b"Photoshop 3.0\0"
_ICC_PIECE: Final = 65_000
"""Bytes of a colour profile per JPEG segment, whose length field has 16 bits."""

_PNG_COLOUR: Final = ("cICP", "sRGB", "gAMA", "cHRM")
"""The chunks that say what RGB values mean beside an ICC profile, PNG 3rd edition, section 11.3.2."""

_LIKE_SRGB: Final = {
    "cICP": bytes([1, 13, 0, 1]),
    "gAMA": struct.pack(">I", 45_455),
    "cHRM": struct.pack(">8I", 31_270, 32_900, 64_000, 33_000, 30_000, 60_000, 15_000, 6_000),
}
"""What they hold where nothing is lost without them."""

_PLAIN_DPI: Final = 72
"""What JPEG files say that nobody gave a resolution."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture.

    Args:
        rgb: (H, W, 3) uint8, upright.
        alpha: (H, W) uint8, 0 transparent to 255 opaque; None where the file has none.
        profile: the ICC profile of the RGB values; None for sRGB or where the file has none.
        colour: the chunks of a PNG that say what its RGB values mean, names and bodies.
        lossless: True where the file was coded without loss.
        upright: True where the file needed no turning to be upright.
        left_out: what the file holds and the output will not, in words.
    """

    rgb: U8
    alpha: U8 | None
    profile: bytes | None
    colour: tuple[tuple[str, bytes], ...]
    lossless: bool
    upright: bool
    left_out: tuple[str, ...]


def read_picture(path: Path) -> Picture:
    """Decode a PNG, JPEG or WebP file, whatever its suffix.

    Raises:
        UserError: it cannot be read, is none of the three, is animated or is damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    if not data:
        raise UserError(f"{path}: is empty")
    blocks = dict(_blocks(data, path))
    if blocks.keys() & {"acTL", "ANIM"}:
        raise UserError(f"{path}: is animated; only still pictures can be processed")
    exif = blocks.get("eXIf") or blocks.get("EXIF") or b""
    orientation = _orientation(exif.removeprefix(_EXIF_START))
    bgr = _decode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION, path)
    plain = _decode(data, cv2.IMREAD_UNCHANGED, path)
    has_alpha = plain.ndim == 3 and plain.shape[2] == 4
    lost = {
        "camera data (EXIF)": bool(exif),
        "bits beyond 8": plain.dtype != np.uint8,
        "transparency": "tRNS" in blocks and not has_alpha,  # one grey level that is transparent
        "resolution (dpi)": bool(blocks.keys() & {"pHYs", "dpi"}),
        "texts": bool(blocks.keys() & {"tEXt", "zTXt", "iTXt", "XMP ", "text"}),
    }
    return Picture(
        rgb=_upright(bgr[..., ::-1], orientation),
        alpha=_upright(_alpha(plain), orientation) if has_alpha else None,
        profile=_rgb_profile(blocks),
        colour=tuple((name, blocks[name]) for name in _PNG_COLOUR if name in blocks),
        lossless=data.startswith(_PNG_START) or "VP8L" in blocks,
        upright=orientation == 1,
        left_out=tuple(what for what, is_lost in lost.items() if is_lost),
    )


def write_picture(path: Path, rgb: U8, like: Picture, comment: str = "") -> tuple[str, ...]:
    """Encode a picture in the format that the suffix of `path` names.

    Args:
        path: ends in .png, .jpg, .jpeg or .webp; replaced.
        rgb: (H, W, 3) uint8.
        like: where the alpha channel and the colour profile come from.
        comment: for the EXIF field ImageDescription; empty for none.

    Returns:
        What the output lacks of the file that `like` was read from, in words.

    Raises:
        UserError: the format cannot hold a picture of this size.
    """
    channels = [rgb[..., ::-1]]
    left_out = like.left_out
    if like.alpha is not None and _holds_alpha(path):
        channels.append(like.alpha[..., None])
    elif like.alpha is not None:
        left_out = (*left_out, "transparency")
    if path.suffix.lower() != ".png" and _is_not_srgb(like):
        left_out = (*left_out, "its colour space, so colours may look different")
    pixels = np.concatenate(channels, axis=2)
    try:
        ok, coded = cv2.imencode(path.suffix.lower(), pixels, _parameters(path, like.lossless))
    except cv2.error:
        ok = False
    if not ok:
        raise UserError(
            f"{path}: a picture of {rgb.shape[1]}x{rgb.shape[0]} px does not fit into this format; use .png"
        )
    exif = _exif(comment) if comment else None
    path.write_bytes(_with_metadata(coded.tobytes(), pixels.shape, like.profile, exif, like.colour))
    return left_out


def _is_not_srgb(picture: Picture) -> bool:
    """Whether chunks that only PNG has say that RGB values are not those of sRGB."""
    colour = dict(picture.colour)
    if "cICP" in colour:  # goes before all others
        return colour["cICP"] != _LIKE_SRGB["cICP"]
    return picture.profile is None and "sRGB" not in colour and any(colour[one] != _LIKE_SRGB[one] for one in colour)


def with_comment(coded: bytes, shape: tuple[int, ...], comment: str) -> bytes:
    """A coded picture with a comment in the EXIF field ImageDescription.

    Args:
        coded: a PNG, JPEG or WebP file without metadata.
        shape: (H, W, C) of the picture in it.
        comment: ASCII.
    """
    return _with_metadata(coded, shape, None, _exif(comment), ())


def _holds_alpha(path: Path) -> bool:
    return path.suffix.lower() in {".png", ".webp"}


def _decode(data: bytes, flags: int, path: Path) -> npt.NDArray[Any]:
    try:
        pixels: npt.NDArray[Any] | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise UserError(f"{path}: cannot be decoded ({error.err})") from error
    if pixels is None:
        raise UserError(f"{path}: is damaged and cannot be decoded")
    return pixels


def _alpha(bgra: npt.NDArray[Any]) -> U8:
    return np.asarray(bgra[..., 3] >> (8 * (bgra.itemsize - 1)), np.uint8)


def _orientation(exif: bytes) -> int:
    """The orientation field (0x0112) of a TIFF block, 1 (upright) to 8; 1 where there is none or it makes no sense."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 10:
        return 1
    start: int = struct.unpack_from(f"{order}I", exif, 4)[0]
    if start + 2 > len(exif):
        return 1
    fields = struct.unpack_from(f"{order}H", exif, start)[0]  # what lies behind them is about the thumbnail
    for at in range(start + 2, min(start + 2 + 12 * fields, len(exif) - 11), 12):
        tag, kind = struct.unpack_from(f"{order}HH", exif, at)
        if tag == 0x0112:
            value = struct.unpack_from(f"{order}{'I' if kind == 4 else 'H'}", exif, at + 8)[0]
            return value if 1 <= value <= 8 else 1
    return 1


def _upright(pixels: U8, orientation: int) -> U8:
    """Turn and mirror a stored picture as its EXIF orientation asks for."""
    quarter_turns, mirrored = _TURNS[orientation]
    turned = np.rot90(pixels, quarter_turns)
    return np.ascontiguousarray(turned[:, ::-1] if mirrored else turned)


def _parameters(path: Path, lossless: bool) -> list[int]:
    match path.suffix.lower():
        case ".png":
            return []
        case ".webp":
            return [cv2.IMWRITE_WEBP_QUALITY, WEBP_LOSSLESS if lossless else WEBP_QUALITY]
        case _:
            full_chroma = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
            return [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, *full_chroma]


def _blocks(data: bytes, path: Path) -> Iterator[tuple[str, bytes]]:
    """The named blocks of a file; those of a split ICC profile are joined as "ICC"."""
    if data.startswith(_PNG_START):
        yield from _png_chunks(data)
    elif data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        yield from _webp_chunks(data)
    elif data.startswith(_JPEG_START):
        segments = list(_jpeg_segments(data))
        pieces = [body for marker, body in segments if marker == 0xE2 and body.startswith(_ICC_START)]
        if pieces:
            yield "ICC", b"".join(piece[len(_ICC_START) + 2 :] for piece in sorted(pieces))
        yield from (("EXIF", body) for marker, body in segments if marker == 0xE1 and body.startswith(_EXIF_START))
        texts = {0xE1: _XMP_START, 0xED: _IPTC_START, 0xFE: b""}
        yield from (("text", body) for marker, body in segments if marker in texts and body.startswith(texts[marker]))
        yield from (("dpi", body) for marker, body in segments if marker == 0xE0 and _has_resolution(body))
    else:
        raise UserError(f"{path}: is neither PNG nor JPEG nor WebP")


def _png_chunks(data: bytes) -> Iterator[tuple[str, bytes]]:
    at = len(_PNG_START)
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        yield data[at + 4 : at + 8].decode("latin-1"), data[at + 8 : at + 8 + length]
        at += 12 + length


def _webp_chunks(data: bytes) -> Iterator[tuple[str, bytes]]:
    at = 12
    while at + 8 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 8], "little")
        yield data[at : at + 4].decode("latin-1"), data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _has_resolution(jfif: bytes) -> bool:
    """Whether a JFIF block gives dots per inch or centimetre that somebody chose. JFIF 1.02."""
    if not jfif.startswith(b"JFIF\0") or len(jfif) < 12:
        return False
    unit, across = struct.unpack_from(">BH", jfif, 7)
    return unit > 0 and (unit, across) != (1, _PLAIN_DPI)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and body of each segment before the picture itself (start of scan, 0xDA)."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        if data[at + 1] == 0xFF:  # any number of these may come before a marker
            at += 1
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        yield data[at + 1], data[at + 4 : at + 2 + length]
        at += 2 + length


def _rgb_profile(blocks: dict[str, bytes]) -> bytes | None:
    """The ICC profile, where it is one of RGB: OpenCV turns grey and CMYK pictures into RGB without it."""
    profile = blocks.get("ICC") or blocks.get("ICCP")
    if "iCCP" in blocks:
        packed = blocks["iCCP"].partition(b"\0")[2][1:]
        try:
            profile = zlib.decompress(packed)
        except zlib.error:  # viewers ignore a damaged profile too
            return None
    return profile if profile and profile[16:20] == b"RGB " else None


def _exif(description: str) -> bytes:
    """A TIFF block with one field: ImageDescription (0x010E), ASCII, little-endian. EXIF 2.3, section 4.6.2."""
    text = description.encode("ascii", "replace") + b"\0"
    return b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x010E, 2, len(text), 26, 0) + text


def _with_metadata(
    coded: bytes,
    shape: tuple[int, ...],
    profile: bytes | None,
    exif: bytes | None,
    colour: tuple[tuple[str, bytes], ...],
) -> bytes:
    if coded.startswith(_PNG_START):
        return _png_with(coded, profile, exif, colour)
    if coded.startswith(_JPEG_START):
        return _jpeg_with(coded, profile, exif)
    return _webp_with(coded, shape, profile, exif)


def _png_with(coded: bytes, profile: bytes | None, exif: bytes | None, colour: tuple[tuple[str, bytes], ...]) -> bytes:
    extra = b"".join(_png_chunk(name.encode(), body) for name, body in colour)
    extra += b"" if profile is None else _png_chunk(b"iCCP", b"ICC\0\0" + zlib.compress(profile))
    extra += b"" if exif is None else _png_chunk(b"eXIf", exif)
    after_header = len(_PNG_START) + 25
    return coded[:after_header] + extra + coded[after_header:]


def _png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _jpeg_with(coded: bytes, profile: bytes | None, exif: bytes | None) -> bytes:
    segments = [] if exif is None else [(0xE1, _EXIF_START + exif)]
    pieces = [profile[at : at + _ICC_PIECE] for at in range(0, len(profile), _ICC_PIECE)] if profile else []
    segments += [
        (0xE2, _ICC_START + bytes([number, len(pieces)]) + piece) for number, piece in enumerate(pieces, start=1)
    ]
    extra = b"".join(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body for marker, body in segments)
    return coded[:2] + extra + coded[2:]


def _webp_with(coded: bytes, shape: tuple[int, ...], profile: bytes | None, exif: bytes | None) -> bytes:
    """Rebuild the file in the extended format (VP8X), the only one that can hold metadata."""
    chunks = dict(_webp_chunks(coded))
    flags = (0x20 if profile else 0) | (0x10 if shape[2] == 4 else 0) | (0x08 if exif else 0)
    size = b"".join((length - 1).to_bytes(3, "little") for length in (shape[1], shape[0]))
    parts = [_webp_chunk("VP8X", bytes([flags, 0, 0, 0]) + size)]
    parts += [_webp_chunk("ICCP", profile)] if profile else []
    parts += [_webp_chunk(name, chunks[name]) for name in ("ALPH", "VP8 ", "VP8L") if name in chunks]
    parts += [_webp_chunk("EXIF", exif)] if exif else []
    body = b"WEBP" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _webp_chunk(name: str, body: bytes) -> bytes:
    return name.encode() + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)
