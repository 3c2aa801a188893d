"""Cutting faces out of frames and putting them back."""

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from faces import Portrait
from tolerances import CANVAS_MEAN, CANVAS_SHARE

from unmask.models.geometry import CROP_SIZE
from unmask.stream.canvas import Canvas, canvas_for
from unmask.stream.canvas_torch import TensorCanvas, TorchCanvas
from unmask.stream.frame import PIXEL_FORMATS, Face, Frame, Layout, Matrix
from unmask.stream.nv12 import Mover, new_picture, planes_of

U8 = npt.NDArray[np.uint8]
F64 = npt.NDArray[np.float64]
MakeCanvas = Callable[[Layout], "Canvas | OnTensors"]


class OnTensors:
    """`TorchCanvas` with the interface of `Canvas`: one face of a frame in the processor's memory."""

    def __init__(self, layout: Layout) -> None:
        self._canvas = TorchCanvas(layout)

    def crop(self, frame: Frame, crop_from_frame: F64, out: U8) -> None:
        self._canvas.crop(self._planes(frame), crop_from_frame[None], torch.from_numpy(out)[None])

    def paste(self, frame: Frame, crop_from_frame: F64, rgb: U8, alpha: U8) -> None:
        pictures = torch.from_numpy(rgb)[None], torch.from_numpy(alpha)[None]
        self._canvas.paste(self._planes(frame), crop_from_frame[None], *pictures)

    def downscaled_rgb(self, frame: Frame, max_side: int) -> tuple[U8, float]:
        small, scale = self._canvas.downscaled_rgb(self._planes(frame), max_side)
        return small.numpy(), scale

    @staticmethod
    def _planes(frame: Frame) -> list[torch.Tensor]:
        return [torch.from_numpy(plane) for plane in frame.planes]


@pytest.fixture(params=[Canvas, OnTensors], ids=["opencv", "torch"])
def make_canvas(request: pytest.FixtureRequest) -> MakeCanvas:
    """Both implementations of the canvas: every test of what a canvas does is for both."""
    made: MakeCanvas = request.param
    return made


FFMPEG_COLORSPACE = {Matrix.BT601: 5, Matrix.BT709: 1, Matrix.BT2020: 9}
FFMPEG_RANGE = {False: 1, True: 2}


def smooth_picture(width: int, height: int) -> U8:
    """(H, W, 3) uint8 RGB with slow gradients in every channel, so that chroma subsampling loses little."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    red = 128 + 90 * np.sin(x / 37 + 1)
    green = 128 + 90 * np.cos(y / 41)
    blue = 128 + 90 * np.sin((x + y) / 53)
    return np.rint(np.stack([red, green, blue], axis=-1)).astype(np.uint8)


def empty_frame(layout: Layout, max_faces: int = 1) -> Frame:
    return Frame(0, 0, Fraction(1, 25), layout, np.zeros(layout.slot_bytes(max_faces), np.uint8), 0)


def smooth_frame(layout: Layout) -> Frame:
    """Slow gradients in every plane, pale enough for RGB. FFmpeg's conversion of odd sizes differs from run to run."""
    frame = empty_frame(layout)
    rgb = smooth_picture(layout.width, layout.height) // 4 + 96
    step = 1 << (layout.pixel_format.bits - 8)
    for index, plane in enumerate(frame.planes):
        block_y, block_x = -(-layout.height // plane.shape[0]), -(-layout.width // plane.shape[1])
        plane[...] = rgb if plane.ndim == 3 else rgb[::block_y, ::block_x, index].astype(plane.dtype) * step
    return frame


def frame_of(rgb: U8, layout: Layout) -> Frame:
    """A frame converted by FFmpeg."""
    frame = empty_frame(layout)
    converted = av.VideoFrame.from_ndarray(rgb, format="rgb24")
    if layout.pixel_format.planar:
        converted = converted.reformat(
            format=layout.format,
            dst_colorspace=FFMPEG_COLORSPACE[layout.matrix],
            src_color_range=FFMPEG_RANGE[True],
            dst_color_range=FFMPEG_RANGE[layout.full_range],
        )
    for plane, source in zip(frame.planes, converted.planes, strict=True):
        rows = np.frombuffer(source, np.uint8).reshape(source.height, source.line_size)
        row_bytes = plane[0].size * plane.itemsize
        plane[...] = np.ascontiguousarray(rows[:, :row_bytes]).view(plane.dtype).reshape(plane.shape)
    return frame


def face_crop(centre: tuple[float, float], side: float, degrees: float = 0.0) -> F64:
    """The map into a crop that shows `side` px around `centre`."""
    matrix = cv2.getRotationMatrix2D(centre, degrees, CROP_SIZE / side)
    matrix[:, 2] += CROP_SIZE / 2 - np.array(centre)
    return np.asarray(matrix, np.float64)


def round_alpha() -> U8:
    disc = cv2.circle(np.zeros((CROP_SIZE, CROP_SIZE), np.uint8), (128, 128), 80, 255, -1)
    return np.asarray(cv2.GaussianBlur(disc, (0, 0), 5), np.uint8)


def new_crop() -> U8:
    return np.zeros((CROP_SIZE, CROP_SIZE, 3), np.uint8)


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", list(Matrix))
@pytest.mark.parametrize("name", list(PIXEL_FORMATS))
def test_colours_are_those_of_ffmpeg(name: str, matrix: Matrix, full_range: bool, make_canvas: MakeCanvas) -> None:
    rgb = smooth_picture(192, 128)
    layout = Layout(192, 128, name, matrix, full_range)
    seen = np.zeros_like(rgb)
    make_canvas(layout).crop(frame_of(rgb, layout), np.eye(2, 3), seen)
    error = np.abs(seen.astype(int) - rgb)
    assert error.mean() < 1.2
    # FFmpeg takes 4:2:0 and 4:2:2 chroma to lie on the left sample, half a px from the middle of its block.
    assert error.max() <= (3 if layout.pixel_format.subsampling == (0, 0) else 6)


@pytest.mark.parametrize("name", list(PIXEL_FORMATS))
def test_pasting_what_was_cropped_changes_little(name: str, make_canvas: MakeCanvas) -> None:
    layout = Layout(480, 360, name)
    frame = frame_of(smooth_picture(480, 360), layout)
    before = [plane.copy() for plane in frame.planes]
    canvas, matrix, crop = make_canvas(layout), face_crop((230, 170), 300, 13), new_crop()
    canvas.crop(frame, matrix, crop)
    canvas.paste(frame, matrix, crop, np.full((CROP_SIZE, CROP_SIZE), 255, np.uint8))
    step = 1 << (layout.pixel_format.bits - 8)
    for plane, old in zip(frame.planes, before, strict=True):
        error = np.abs(plane.astype(int) - old)
        assert error.any()
        assert error.max() <= 4 * step


@pytest.mark.parametrize(("width", "height"), [(640, 480), (161, 121), (1, 1)])
@pytest.mark.parametrize("name", list(PIXEL_FORMATS))
def test_nothing_changes_where_alpha_is_zero(name: str, width: int, height: int, make_canvas: MakeCanvas) -> None:
    layout = Layout(width, height, name)
    rng = np.random.default_rng(1)
    frame = empty_frame(layout)
    for plane in frame.planes:
        plane[...] = rng.integers(0, 1 << layout.pixel_format.bits, plane.shape)
    before = [plane.copy() for plane in frame.planes]
    matrix = face_crop((width / 2, height / 2), 0.5 * width, 20)
    painted, alpha = rng.integers(0, 256, (CROP_SIZE, CROP_SIZE, 3), np.uint8), round_alpha()
    make_canvas(layout).paste(frame, matrix, painted, np.zeros_like(alpha))
    assert all(np.array_equal(plane, old) for plane, old in zip(frame.planes, before, strict=True))

    make_canvas(layout).paste(frame, matrix, painted, alpha)
    y, x = np.mgrid[:height, :width]
    outside = np.hypot(x - width / 2, y - height / 2) > 0.5 * width * 110 / CROP_SIZE + 3
    sx, sy = layout.pixel_format.subsampling
    for index, (plane, old) in enumerate(zip(frame.planes, before, strict=True)):
        kept = outside[:: 1 << sy, :: 1 << sx] if index else outside
        assert np.array_equal(plane[kept], old[kept])
        assert width == 1 or not np.array_equal(plane, old)


@pytest.mark.parametrize("name", list(PIXEL_FORMATS))
def test_opaque_paint_has_the_painted_colour(name: str, make_canvas: MakeCanvas) -> None:
    layout = Layout(400, 300, name)
    frame = frame_of(smooth_picture(400, 300), layout)
    canvas, matrix = make_canvas(layout), face_crop((200, 150), 120)
    painted = np.full((CROP_SIZE, CROP_SIZE, 3), (200, 120, 60), np.uint8)
    canvas.paste(frame, matrix, painted, np.full((CROP_SIZE, CROP_SIZE), 255, np.uint8))
    seen = new_crop()
    canvas.crop(frame, matrix, seen)
    assert np.abs(seen[40:-40, 40:-40].astype(int) - (200, 120, 60)).max() <= 2


@pytest.mark.parametrize("name", ["rgb24", "yuv420p", "yuv422p10le"])
@pytest.mark.parametrize("centre", [(0, 0), (159, 90), (80, 121), (-30, 60)])
def test_a_face_across_the_edge_is_cut_and_pasted(
    name: str, centre: tuple[float, float], make_canvas: MakeCanvas
) -> None:
    layout = Layout(161, 121, name)
    frame = smooth_frame(layout)
    canvas, matrix, crop = make_canvas(layout), face_crop(centre, 100), new_crop()
    before = [plane.copy() for plane in frame.planes]
    canvas.crop(frame, matrix, crop)
    canvas.paste(frame, matrix, crop, np.full((CROP_SIZE, CROP_SIZE), 255, np.uint8))
    step = 1 << (layout.pixel_format.bits - 8)
    for plane, old in zip(frame.planes, before, strict=True):
        assert np.abs(plane.astype(int) - old).max() <= 5 * step


@pytest.mark.parametrize("centre", [(-500, 60), (80, -400), (900, 900)])
def test_a_face_outside_the_picture_shows_its_edge_and_paints_nothing(
    centre: tuple[float, float], make_canvas: MakeCanvas
) -> None:
    layout = Layout(161, 121)
    frame = smooth_frame(layout)
    canvas, crop, before = make_canvas(layout), new_crop(), frame.buffer.copy()
    canvas.crop(frame, face_crop(centre, 100), crop)
    assert crop.any()
    canvas.paste(frame, face_crop(centre, 100), crop, np.full((CROP_SIZE, CROP_SIZE), 255, np.uint8))
    assert np.array_equal(frame.buffer, before)


def test_a_large_face_does_not_alias(make_canvas: MakeCanvas) -> None:
    layout = Layout(1024, 1024, "rgb24")
    frame = empty_frame(layout)
    frame.planes[0][...] = 255 * (np.indices((1024, 1024)).sum(axis=0) % 2)[..., None]
    crop = new_crop()
    make_canvas(layout).crop(frame, face_crop((511.5, 511.5), 900), crop)
    assert np.abs(crop.astype(int) - 127).max() < 40


def test_a_small_crop_is_enlarged_without_blur(make_canvas: MakeCanvas) -> None:
    layout = Layout(800, 800, "rgb24")
    frame = empty_frame(layout)
    stripes = (128 + 100 * np.sin(np.arange(CROP_SIZE) * 2 * np.pi / 6)).astype(np.uint8)
    painted = np.repeat(np.tile(stripes, (CROP_SIZE, 1))[..., None], 3, axis=2)
    opaque = np.full((CROP_SIZE, CROP_SIZE), 255, np.uint8)
    make_canvas(layout).paste(frame, face_crop((400, 400), 700), painted, opaque)
    inside = frame.planes[0][350:450, 200:600, 0]
    assert np.ptp(inside) > 0.85 * np.ptp(stripes)


def test_ten_bits_survive_under_a_faint_paint(make_canvas: MakeCanvas) -> None:
    layout = Layout(300, 300, "yuv420p10le")
    frame = empty_frame(layout)
    luma = frame.planes[0]
    luma[...] = np.arange(300, dtype=np.uint16) + 401
    make_canvas(layout).paste(frame, face_crop((150, 150), 200), new_crop(), np.full((256, 256), 1, np.uint8))
    assert len(np.unique(luma[150, 100:200])) > 90


def test_what_is_sharpened_while_it_is_enlarged_stays_within_ten_bits(make_canvas: MakeCanvas) -> None:
    layout = Layout(600, 600, "yuv444p10le", full_range=True)
    frame = empty_frame(layout)
    stripes = np.zeros((CROP_SIZE, CROP_SIZE, 3), np.uint8)
    stripes[:, np.arange(CROP_SIZE) % 8 < 4] = 255
    opaque = np.full((CROP_SIZE, CROP_SIZE), 255, np.uint8)
    make_canvas(layout).paste(frame, np.array([[0.5, 0, 0], [0, 0.5, 0]]), stripes, opaque)
    assert frame.planes[0].max() == 1023


@pytest.mark.parametrize(("width", "height"), [(1280, 720), (639, 359), (100, 900), (64, 36)])
@pytest.mark.parametrize("name", ["rgb24", "yuv420p", "yuv444p10le"])
def test_the_downscaled_picture_has_the_size_and_colours_of_the_frame(
    name: str, width: int, height: int, make_canvas: MakeCanvas
) -> None:
    rgb = smooth_picture(width, height)
    layout = Layout(width, height, name)
    small, scale = make_canvas(layout).downscaled_rgb(frame_of(rgb, layout), 96)
    assert max(small.shape) == min(96, max(width, height))
    assert scale == pytest.approx(min(1.0, 96 / max(width, height)))
    expected = cv2.resize(rgb, (small.shape[1], small.shape[0]), interpolation=cv2.INTER_AREA)
    assert np.abs(small.astype(int) - expected).mean() < 2


def test_the_frame_mask_joins_the_masked_faces() -> None:
    layout = Layout(401, 301)
    frame = empty_frame(layout, max_faces=3)
    for position, (x, masked) in enumerate([(100, True), (300, True), (200, False)]):
        pictures = frame.face_pictures(position)
        pictures.mask[...] = round_alpha()
        crop_from_frame = face_crop((x, 150), 120)
        points = np.zeros((468, 3), np.float32)
        frame.faces.append(Face(position, (0, 0, 1, 1), 1.0, points, crop_from_frame, False, pictures, masked=masked))
    mask = Canvas(layout).frame_mask(frame)
    assert mask.shape == (301, 401)
    assert mask[150, 100] == mask[150, 300] == 255
    assert mask[150, 200] == mask[20, 100] == 0
    radius = np.sqrt((mask > 127).sum() / 2 / np.pi)
    assert radius == pytest.approx(80 * 120 / CROP_SIZE, rel=0.03)


def test_the_frame_mask_is_where_any_of_several_faces_has_one() -> None:
    """The faint mask of a face in front does not take away that of one behind."""
    layout = Layout(401, 301)
    frame = empty_frame(layout, max_faces=2)
    for position, value in enumerate((255, 100)):
        pictures = frame.face_pictures(position)
        pictures.mask[60:200, 60:200] = value
        points, crop_from_frame = np.zeros((468, 3), np.float32), face_crop((200, 150), 120)
        frame.faces.append(Face(position, (0, 0, 1, 1), 1.0, points, crop_from_frame, False, pictures, masked=True))
    assert Canvas(layout).frame_mask(frame)[150, 200] == 255


# --- the canvas on tensors --------------------------------------------------------------------------------------------


def photograph(portrait: Portrait, name: str) -> Frame:
    """A real picture in a layout, 512 px wide and 600 px high."""
    return frame_of(portrait.masked[: 2 * (portrait.masked.shape[0] // 2), :512], Layout(512, 600, name))


def apart(a: npt.NDArray[np.generic], b: npt.NDArray[np.generic], step: int = 1) -> tuple[float, float]:
    """Mean difference, and the share of samples that differ by more than 4, in units of 8 bits."""
    difference = np.abs(a.astype(np.int64) - b.astype(np.int64)) / step
    return float(difference.mean()), float((difference > 4).mean())


@pytest.mark.parametrize("name", ["rgb24", "yuv420p", "yuv422p10le"])
@pytest.mark.parametrize(("side", "degrees"), [(90, 0), (256, 7), (300, -20), (480, 12), (1100, 3)])
def test_both_canvases_agree_on_a_photograph(name: str, side: float, degrees: float, portrait: Portrait) -> None:
    ours, theirs = photograph(portrait, name), photograph(portrait, name)
    matrix = face_crop((270.3, 220.7), side, degrees)
    cut, cut_on_tensors = new_crop(), new_crop()
    Canvas(ours.layout).crop(ours, matrix, cut)
    OnTensors(ours.layout).crop(theirs, matrix, cut_on_tensors)
    mean, share = apart(cut, cut_on_tensors)
    assert mean < CANVAS_MEAN
    assert share < CANVAS_SHARE
    Canvas(ours.layout).paste(ours, matrix, cut[:, ::-1], round_alpha())
    OnTensors(ours.layout).paste(theirs, matrix, np.ascontiguousarray(cut[:, ::-1]), round_alpha())
    for plane, other in zip(ours.planes, theirs.planes, strict=True):
        mean, share = apart(plane, other, 1 << (ours.layout.pixel_format.bits - 8))
        assert mean < CANVAS_MEAN
        assert share < CANVAS_SHARE


@pytest.mark.parametrize(("side", "degrees"), [(90, 0), (300, -20), (1100, 3)])
def test_both_canvases_agree_on_brightness(side: float, degrees: float, portrait: Portrait) -> None:
    frame = photograph(portrait, "yuv420p")
    moved, matrix = in_tensors(frame), face_crop((270.3, 220.7), side, degrees)
    mean, share = apart(
        Canvas(frame.layout).grey(frame, matrix, 192), canvas_for(moved.layout).grey(moved, matrix, 192)
    )
    assert mean < CANVAS_MEAN
    assert share < CANVAS_SHARE


def test_faces_go_through_the_tensors_together_as_they_do_alone(portrait: Portrait) -> None:
    frame = photograph(portrait, "yuv420p")
    planes = [torch.from_numpy(plane) for plane in frame.planes]
    canvas = TorchCanvas(frame.layout)
    maps = np.stack([face_crop((150 + 90 * i, 200), 80 + 150 * i, 5 * i) for i in range(4)])
    together = torch.zeros(4, CROP_SIZE, CROP_SIZE, 3, dtype=torch.uint8)
    canvas.crop(planes, maps, together)
    alone = torch.zeros_like(together)
    for i in range(4):
        canvas.crop(planes, maps[i : i + 1], alone[i : i + 1])
    assert torch.equal(together, alone)


def in_tensors(frame: Frame) -> Frame:
    """The same frame, in a tensor of the processor."""
    layout = replace(frame.layout, tensors="cpu")
    buffer = np.zeros(layout.slot_bytes(2), np.uint8)
    moved = Frame(frame.index, frame.pts, frame.time_base, layout, buffer, 0, nv12=new_picture(layout))
    Mover(layout).upload(moved, frame.planes)
    return moved


def test_frames_in_tensors_are_cut_and_painted_like_separate_planes(portrait: Portrait) -> None:
    """The canvas that the stages use, on NV12, several faces at once."""
    frame = photograph(portrait, "yuv420p")
    moved = in_tensors(frame)
    planes, canvas = OnTensors(frame.layout), canvas_for(moved.layout)
    assert isinstance(canvas, TensorCanvas)
    maps = [face_crop((150 + 90 * i, 200), 80 + 150 * i, 5 * i) for i in range(3)]
    expected, cut = [new_crop() for _ in maps], [new_crop() for _ in maps]
    for matrix, out in zip(maps, expected, strict=True):
        planes.crop(frame, matrix, out)
    canvas.crop_all(moved, list(zip(maps, cut, strict=True)))
    np.testing.assert_array_equal(cut, expected)
    for matrix, out in zip(maps, expected, strict=True):
        planes.paste(frame, matrix, 255 - out, round_alpha())
    canvas.paste_all(moved, [(matrix, 255 - out, round_alpha()) for matrix, out in zip(maps, cut, strict=True)])
    for plane, other in zip(frame.planes, planes_of(moved), strict=True):
        np.testing.assert_array_equal(plane, other.numpy())
    small, scale = canvas.downscaled_rgb(moved, 64)
    expected_small, expected_scale = planes.downscaled_rgb(frame, 64)
    assert scale == expected_scale
    np.testing.assert_array_equal(small, expected_small)


@pytest.mark.gpu
def test_tensors_on_the_gpu_give_what_those_on_the_processor_give(portrait: Portrait) -> None:
    if not torch.cuda.is_available():
        pytest.skip("PyTorch finds no NVIDIA GPU")
    frame = photograph(portrait, "yuv420p")
    maps = face_crop((270, 220), 300, 9)[None]
    results = []
    for device in ("cpu", "cuda"):
        planes = [torch.from_numpy(plane).to(device, copy=True) for plane in frame.planes]
        out = torch.zeros(1, CROP_SIZE, CROP_SIZE, 3, dtype=torch.uint8, device=device)
        TorchCanvas(frame.layout).crop(planes, maps, out)
        TorchCanvas(frame.layout).paste(planes, maps, 255 - out, torch.from_numpy(round_alpha())[None].to(device))
        results.append([out, *planes])
    for here, there in zip(*results, strict=True):
        assert (here.int() - there.cpu().int()).abs().max() <= 1
