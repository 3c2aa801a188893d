"""Still pictures in and out."""

import struct
import zlib
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from unmask.errors import UserError
from unmask.stream.pictures import read_picture, write_picture

U8 = npt.NDArray[np.uint8]

PROFILE = b"\0" * 16 + b"RGB " + bytes(range(256)) * 300
"""Long enough to need two JPEG segments."""


@pytest.fixture
def rgb() -> U8:
    """A smooth (40, 61, 3) picture without any symmetry."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 61, 3), np.uint8)
    return np.asarray(cv2.GaussianBlur(noise, (0, 0), 4), np.uint8)


def save(path: Path, rgb: U8, alpha: U8 | None = None) -> Path:
    """Write a picture by OpenCV alone, WebP without loss."""
    channels = [rgb[..., ::-1]] if alpha is None else [rgb[..., ::-1], alpha[..., None]]
    assert cv2.imwrite(str(path), np.concatenate(channels, axis=2), [cv2.IMWRITE_WEBP_QUALITY, 101])
    return path


def tiff(orientation: int, order: str = "<") -> bytes:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(f"{order}IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def turned_jpeg(path: Path, rgb: U8, orientation: int, order: str) -> Path:
    data = save(path, rgb).read_bytes()
    body = b"Exif\0\0" + tiff(orientation, order)
    path.write_bytes(data[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[2:])
    return path


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_jpeg_comes_out_upright_like_opencv_shows_it(tmp_path: Path, rgb: U8, orientation: int, order: str) -> None:
    path = turned_jpeg(tmp_path / "a.jpg", rgb, orientation, order)
    picture = read_picture(path)
    shown = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert shown is not None
    np.testing.assert_array_equal(picture.rgb, shown[..., ::-1])
    assert picture.upright == (orientation == 1)


def test_alpha_turns_along(tmp_path: Path, rgb: U8) -> None:
    alpha = rgb[..., 0].copy()
    path = save(tmp_path / "a.png", rgb, alpha)
    data, exif = path.read_bytes(), tiff(6)
    chunk = struct.pack(">I", len(exif)) + b"eXIf" + exif + struct.pack(">I", zlib.crc32(b"eXIf" + exif))
    path.write_bytes(data[:33] + chunk + data[33:])
    picture = read_picture(path)
    assert picture.alpha is not None
    np.testing.assert_array_equal(picture.alpha, picture.rgb[..., 0])
    np.testing.assert_array_equal(picture.rgb, np.rot90(rgb, 3))


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_lossless_pictures_keep_every_pixel_and_their_alpha(tmp_path: Path, rgb: U8, suffix: str) -> None:
    alpha = np.maximum(rgb[..., 0], 1)  # WebP drops the colour of what cannot be seen
    picture = read_picture(save(tmp_path / f"a{suffix}", rgb, alpha))
    out = tmp_path / f"b{suffix}"
    assert write_picture(out, picture.rgb, picture, comment="painted") == ()
    again = read_picture(out)
    np.testing.assert_array_equal(again.rgb, rgb)
    assert again.alpha is not None
    np.testing.assert_array_equal(again.alpha, alpha)


@pytest.mark.parametrize("target", [".png", ".jpg", ".webp"])
@pytest.mark.parametrize("source", [".png", ".jpg", ".webp"])
def test_profile_travels_from_any_format_to_any(tmp_path: Path, rgb: U8, source: str, target: str) -> None:
    plain = read_picture(save(tmp_path / f"plain{source}", rgb))
    first, second = tmp_path / f"a{source}", tmp_path / f"b{target}"
    write_picture(first, plain.rgb, replace(plain, profile=PROFILE))
    tagged = read_picture(first)
    assert tagged.profile == PROFILE
    write_picture(second, tagged.rgb, tagged, comment="painted")
    again = read_picture(second)
    assert again.profile == PROFILE
    assert b"painted" in second.read_bytes()
    assert cv2.PSNR(again.rgb, rgb) > 38


def test_what_is_lost_is_said(tmp_path: Path, rgb: U8) -> None:
    exif = read_picture(turned_jpeg(tmp_path / "a.jpg", rgb, 1, "<"))
    deep = tmp_path / "deep.png"
    cv2.imwrite(str(deep), rgb.astype(np.uint16) * 257)
    clear = read_picture(save(tmp_path / "a.png", rgb, rgb[..., 0]))
    assert exif.left_out == ("camera data (EXIF)",)
    assert read_picture(deep).left_out == ("bits beyond 8",)
    assert write_picture(tmp_path / "b.jpg", clear.rgb, clear) == ("transparency",)


def png_with(path: Path, pixels: U8, *chunks: tuple[bytes, bytes]) -> Path:
    """A PNG with more chunks before its pixels."""
    coded = cv2.imencode(".png", pixels)[1].tobytes()
    more = [struct.pack(">I", len(b)) + n + b + struct.pack(">I", zlib.crc32(n + b)) for n, b in chunks]
    at = coded.index(b"IDAT") - 4
    path.write_bytes(coded[:at] + b"".join(more) + coded[at:])
    return path


def test_what_only_a_png_holds_is_not_lost_in_silence(tmp_path: Path, rgb: U8) -> None:
    printed = png_with(
        tmp_path / "a.png", rgb, (b"pHYs", struct.pack(">IIB", 11811, 11811, 1)), (b"tEXt", b"Title\0me")
    )
    assert read_picture(printed).left_out == ("resolution (dpi)", "texts")
    grey = png_with(tmp_path / "b.png", rgb[..., 1], (b"tRNS", b"\0\x80"))
    assert read_picture(grey).left_out == ("transparency",)


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("none.png", None, "cannot be read"),
        ("empty.png", b"", "is empty"),
        ("text.png", b"no picture at all", "neither PNG nor JPEG nor WebP"),
        ("gif.png", b"GIF89a\x01\0\x01\0", "neither PNG nor JPEG nor WebP"),
        ("cut.png", b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0", "damaged"),
        ("cut.jpg", b"\xff\xd8\xff\xe1", "damaged"),
        ("cut.webp", b"RIFF\x10\0\0\0WEBPVP8 ", "damaged"),
        ("moving.webp", b"RIFF\x20\0\0\0WEBPANIM\x06\0\0\0\0\0\0\0\0\0", "animated"),
    ],
)
def test_unusable_pictures_are_refused_in_one_line(tmp_path: Path, name: str, data: bytes | None, says: str) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        read_picture(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_picture_too_large_for_the_format_is_refused(tmp_path: Path) -> None:
    wide = np.zeros((1, 17_000, 3), np.uint8)
    picture = read_picture(save(tmp_path / "a.png", wide))
    with pytest.raises(UserError, match=r"use \.png"):
        write_picture(tmp_path / "b.webp", wide, picture)


def segments(path: Path, rgb: U8, *parts: tuple[int, bytes], fill: bytes = b"") -> Path:
    """A JPEG with segments of these markers and bodies in front."""
    data = save(path, rgb).read_bytes()
    extra = b"".join(
        fill + b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body for marker, body in parts
    )
    path.write_bytes(data[:2] + extra + data[20:])  # without OpenCV's own JFIF block
    return path


def test_orientation_of_the_thumbnail_is_not_that_of_the_picture(tmp_path: Path, rgb: U8) -> None:
    first = struct.pack("<HHHI4s", 1, 0x010F, 2, 3, b"ab\0\0")
    block = b"II*\0" + struct.pack("<I", 8) + first + struct.pack("<I", 32) + b"\0" * 6 + tiff(6)[8:]
    assert read_picture(segments(tmp_path / "a.jpg", rgb, (0xE1, b"Exif\0\0" + block))).upright


@pytest.mark.parametrize("order", ["<", ">"])
def test_orientation_may_be_a_long_number_behind_bytes_that_fill(tmp_path: Path, rgb: U8, order: str) -> None:
    mark = b"II*\0" if order == "<" else b"MM\0*"
    block = mark + struct.pack(f"{order}IHHHII", 8, 1, 0x0112, 4, 1, 6)
    path = segments(tmp_path / "a.jpg", rgb, (0xE1, b"Exif\0\0" + block), fill=b"\xff\xff")
    assert read_picture(path).rgb.shape == (61, 40, 3)


def test_what_only_a_jpeg_holds_is_not_lost_in_silence(tmp_path: Path, rgb: U8) -> None:
    def jfif(unit: int, dots: int) -> tuple[int, bytes]:
        return 0xE0, b"JFIF\0" + struct.pack(">HBHHBB", 0x0102, unit, dots, dots, 0, 0)

    for parts, said in (
        ([jfif(0, 1)], ()),
        ([jfif(1, 72)], ()),
        ([jfif(1, 300)], ("resolution (dpi)",)),
        ([jfif(2, 118), (0xFE, b"(c) me")], ("resolution (dpi)", "texts")),
        ([(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>")], ("texts",)),
        ([(0xED, b"Photoshop 3.0\0" + b"8BIM")], ("texts",)),
    ):
        assert read_picture(segments(tmp_path / "a.jpg", rgb, *parts)).left_out == said


P3 = (b"cICP", bytes([12, 13, 0, 1]))
LINEAR = (b"gAMA", struct.pack(">I", 100_000))


@pytest.mark.parametrize("chunks", [[P3], [LINEAR], [(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 45_455))]])
def test_png_keeps_what_says_what_its_colours_mean(tmp_path: Path, rgb: U8, chunks: list[tuple[bytes, bytes]]) -> None:
    picture = read_picture(png_with(tmp_path / "a.png", rgb, *chunks))
    np.testing.assert_array_equal(picture.rgb, rgb[..., ::-1])
    assert write_picture(tmp_path / "b.png", picture.rgb, picture, comment="painted") == ()
    written = (tmp_path / "b.png").read_bytes()
    for name, body in chunks:
        assert struct.pack(">I", len(body)) + name + body in written
    assert read_picture(tmp_path / "b.png").colour == picture.colour


@pytest.mark.parametrize(
    ("chunks", "lost"), [([P3], True), ([LINEAR], True), ([(b"gAMA", struct.pack(">I", 45_455))], False), ([], False)]
)
def test_colours_that_a_jpeg_cannot_tell_are_said(
    tmp_path: Path, rgb: U8, chunks: list[tuple[bytes, bytes]], lost: bool
) -> None:
    picture = read_picture(png_with(tmp_path / "a.png", rgb, *chunks))
    assert bool(write_picture(tmp_path / "b.jpg", picture.rgb, picture)) == lost
