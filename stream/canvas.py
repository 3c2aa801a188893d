"""Cutting faces out of frames and putting them back, on the CPU, without converting whole frames to RGB.

Coordinates are px whose integer values lie on sample centres, as in OpenCV. A chroma sample stands for the middle of
the block of luma samples that it covers.
"""

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from unmask.stream.frame import F64, U8, Frame, Layout, Matrix, Plane

Samples = npt.NDArray[Any]
"""uint8 or uint16; (H, W) or (H, W, 3)."""

_LUMA_WEIGHTS: Final = {Matrix.BT601: (0.299, 0.114), Matrix.BT709: (0.2126, 0.0722), Matrix.BT2020: (0.2627, 0.0593)}
"""Kr and Kb of ITU-R BT.601, BT.709 and BT.2020."""

_MAX_MINIFICATION: Final = 1.75
"""Bilinear sampling skips samples where it shrinks a source to less than half; from here on an area is averaged first.
Averaging any earlier would blur."""

_SHARP_MARGIN: Final = 1.4
"""Bilinear sampling blurs at its own scale; a source with this many samples per px of the target hides it."""

_MAX_ENLARGEMENT: Final = 3


class _Roi(NamedTuple):
    """A rectangle of the frame in px, x1 and y1 exclusive. It holds whole chroma blocks, and so may pass the edge."""

    x0: int
    y0: int
    x1: int
    y1: int


class _PlaneSpec(NamedTuple):
    """A plane of the layout.

    Attributes:
        block: px of the frame that a sample covers, in x and in y.
        sharp: True for brightness (or RGB), where the eye would see bilinear enlargement.
    """

    block: tuple[int, int]
    sharp: bool


def canvas_for(layout: Layout) -> "Canvas":
    """The canvas for frames of a layout: on the processor, or where their tensors lie."""
    if not layout.tensors:
        return Canvas(layout)
    from unmask.stream.canvas_torch import TensorCanvas  # runs without tensors are spared PyTorch

    return TensorCanvas(layout)


class Canvas:
    """Reads and paints the frames of one layout.

    Args:
        layout: of every frame given to the methods.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        sx, sy = layout.pixel_format.subsampling
        chroma = _PlaneSpec((1 << sx, 1 << sy), sharp=False)
        self._specs = [_PlaneSpec((1, 1), sharp=True)] + [chroma, chroma] * layout.pixel_format.planar
        self._block = np.array(self._specs[-1].block)
        self._rgb_from_yuv = rgb_from_yuv(layout)
        self._yuv_from_rgb = inverse_affine(self._rgb_from_yuv)

    def crop(self, frame: Frame, crop_from_frame: F64, out: U8) -> None:
        """Cut a region out of a frame, as RGB. Outside the picture its edge is repeated.

        Args:
            frame: read only.
            crop_from_frame: (2, 3) float64, affine map from frame px to px of `out`.
            out: (H, W, 3) uint8 RGB, written.
        """
        size = (out.shape[1], out.shape[0])
        warped = []
        for plane, (block, sharp) in zip(frame.planes, self._specs, strict=True):
            out_from_plane = compose(crop_from_frame, frame_from_plane(block))
            warped.append(_warp(plane, out_from_plane, size, cv2.BORDER_REPLICATE, sharp))
        out[...] = self._to_rgb(warped)

    def crop_all(self, frame: Frame, crops: Sequence[tuple[F64, U8]]) -> None:
        """Cut several regions out of a frame, all of one size: (`crop_from_frame`, `out`) of `crop` for each."""
        for crop_from_frame, out in crops:
            self.crop(frame, crop_from_frame, out)

    def grey(self, frame: Frame, crop_from_frame: F64, size: int) -> U8:
        """The brightness of a region, in samples of the layout, brought to 8 bits; otherwise like `crop`.

        Returns:
            (size, size) uint8.
        """
        if not self._layout.pixel_format.planar:
            rgb = np.empty((size, size, 3), np.uint8)
            self.crop(frame, crop_from_frame, rgb)
            return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)
        samples = _warp(frame.planes[0], crop_from_frame, (size, size), cv2.BORDER_REPLICATE, sharp=False)
        return np.asarray(samples >> (self._layout.pixel_format.bits - 8), np.uint8)

    def paste_all(self, frame: Frame, pictures: Sequence[tuple[F64, U8, U8]]) -> None:
        """Blend several painted crops into the frame, in their order: (`crop_from_frame`, `rgb`, `alpha`) of `paste`
        for each, all of one size."""
        for crop_from_frame, rgb, alpha in pictures:
            self.paste(frame, crop_from_frame, rgb, alpha)

    def downscaled_rgb(self, frame: Frame, max_side: int) -> tuple[U8, float]:
        """The whole frame as a small picture; never enlarged.

        Args:
            frame: read only.
            max_side: longest side of the result in px.

        Returns:
            (h, w, 3) uint8 RGB, and the scale: px of the result per px of the frame, <= 1.
        """
        width, height = self._layout.width, self._layout.height
        scale = min(1.0, max_side / max(width, height))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        return self._to_rgb([_resized(plane, size) for plane in frame.planes]), scale

    def paste(self, frame: Frame, crop_from_frame: F64, rgb: U8, alpha: U8) -> None:
        """Blend a painted crop into the frame, in the frame's own format. Where alpha is 0 no bit changes.

        Args:
            frame: its planes are written.
            crop_from_frame: (2, 3) float64, the map that the crop was cut out with.
            rgb: (S, S, 3) uint8 RGB.
            alpha: (S, S) uint8, 0 keeps the frame, 255 takes `rgb`.
        """
        frame_from_crop = inverse_affine(crop_from_frame)
        roi = self._covered(frame_from_crop, alpha)
        if roi is None:
            return
        rows, columns = _part(alpha, frame_from_crop)
        rgb, alpha = rgb[rows, columns], alpha[rows, columns]
        frame_from_crop = compose(frame_from_crop, frame_from_plane((1, 1), (columns.start, rows.start)))
        weight = _warp_alpha(alpha, frame_from_crop, roi)
        for plane, painted, (block, sharp) in zip(frame.planes, self._from_rgb(rgb), self._specs, strict=True):
            new = _warp_to_roi(painted, frame_from_crop, roi, block, cv2.BORDER_REPLICATE, sharp)
            np.minimum(new, self._peak, out=new)  # cubic overshoots; 10 bits in 16 do not saturate by themselves
            _blend(plane, new, _block_mean(weight, block), roi.x0 // block[0], roi.y0 // block[1])

    def frame_mask(self, frame: Frame) -> U8:
        """The masks of all faces to be unmasked, in the frame.

        Args:
            frame: the `mask` pictures of its faces are read where `masked` is set.

        Returns:
            (H, W) uint8, 0..255; the greater one where masks overlap.
        """
        mask = np.zeros((self._layout.height, self._layout.width), np.uint8)
        for face in frame.faces:
            frame_from_crop = inverse_affine(face.crop_from_frame)
            roi = self._covered(frame_from_crop, face.pictures.mask) if face.masked else None
            if roi is not None:
                warped = _warp_alpha(face.pictures.mask, frame_from_crop, roi)
                target = mask[roi.y0 : roi.y1, roi.x0 : roi.x1]
                np.maximum(target, warped[: target.shape[0], : target.shape[1]], out=target)
        return mask

    @property
    def _peak(self) -> int:
        return (1 << self._layout.pixel_format.bits) - 1

    def _to_rgb(self, planes: Sequence[Samples]) -> U8:
        """Planes of one size, in the layout's format, to (H, W, 3) uint8 RGB."""
        if not self._layout.pixel_format.planar:
            return np.asarray(planes[0], np.uint8)
        samples = cv2.merge(planes)
        if samples.dtype == np.uint8:  # off by one at times, which no network sees, and several times as fast
            return np.asarray(cv2.transform(samples, self._rgb_from_yuv), np.uint8)
        return _transform(samples, self._rgb_from_yuv, np.dtype(np.uint8))

    def _from_rgb(self, rgb: U8) -> Sequence[Samples]:
        """(H, W, 3) uint8 RGB to planes of the same size, in the layout's format."""
        if not self._layout.pixel_format.planar:
            return [rgb]
        return [np.asarray(plane) for plane in cv2.split(_transform(rgb, self._yuv_from_rgb, self._layout.dtype))]

    def _covered(self, frame_from_crop: F64, alpha: U8) -> _Roi | None:
        """The part of the frame that `alpha` can touch, None where it touches nothing."""
        x, y, width, height = cv2.boundingRect(alpha)
        spread = 1 + (1 / rescaling_of(frame_from_crop, sharp=False)).max()  # how far resampling carries a sample
        corners = np.array([(x, y), (x + width, y), (x, y + height), (x + width, y + height)], np.float64)
        corners += np.sign(corners - (x + width / 2, y + height / 2)) * spread
        in_frame = corners @ frame_from_crop[:, :2].T + frame_from_crop[:, 2]
        limit = np.array([self._layout.width, self._layout.height])
        low = np.maximum(np.floor(in_frame.min(axis=0) / self._block), 0).astype(int) * self._block
        high = np.ceil(np.minimum(in_frame.max(axis=0) + 1, limit) / self._block).astype(int) * self._block
        if width == 0 or (high <= low).any():
            return None
        return _Roi(int(low[0]), int(low[1]), int(high[0]), int(high[1]))


def rgb_from_yuv(layout: Layout) -> F64:
    """(3, 4) float64: [R G B] = M @ [Y U V 1], from samples of the layout to 0..255."""
    kr, kb = _LUMA_WEIGHTS[layout.matrix]
    from_ratio = np.array(
        [
            [1.0, 0.0, 2 * (1 - kr)],
            [1.0, -2 * (1 - kb) * kb / (1 - kr - kb), -2 * (1 - kr) * kr / (1 - kr - kb)],
            [1.0, 2 * (1 - kb), 0.0],
        ]
    )
    bits = layout.pixel_format.bits
    step = float(1 << (bits - 8))
    peak = float((1 << bits) - 1)
    black, luma, chroma = (0.0, peak, peak) if layout.full_range else (16 * step, 219 * step, 224 * step)
    linear = 255.0 * from_ratio / (luma, chroma, chroma)
    offset = -linear @ (black, 128 * step, 128 * step)
    return np.column_stack([linear, offset])


def _transform(samples: Samples, matrix: F64, dtype: np.dtype[Any]) -> Samples:
    """(H, W, 3) through a (3, 4) colour matrix, rounded and saturated to uint8 or uint16."""
    # OpenCV computes 16-bit pictures in float32; its 8-bit path keeps 10 bits of the matrix and is off by one at times.
    wide = cv2.transform(samples.astype(np.uint16, copy=False), matrix)
    return cv2.convertScaleAbs(wide) if dtype == np.uint8 else np.asarray(np.minimum(wide, 1023))


def compose(outer: F64, inner: F64) -> F64:
    """The (2, 3) affine map that applies `inner`, then `outer`."""
    composed: F64 = outer[:, :2] @ inner
    composed[:, 2] += outer[:, 2]
    return composed


def inverse_affine(affine: F64) -> F64:
    """The inverse of an affine map, (2, 3) of the plane or (3, 4) of colours."""
    if affine.shape == (2, 3):
        return np.asarray(cv2.invertAffineTransform(affine), np.float64)
    linear = np.linalg.inv(affine[:, :-1])
    return np.column_stack([linear, -linear @ affine[:, -1]])


def frame_from_plane(block: tuple[int, int], start: tuple[int, int] = (0, 0)) -> F64:
    """From samples of a plane to px of the frame; a sample covers `block` px and the first one begins at `start`."""
    (bx, by), (x, y) = block, start
    return np.array([[bx, 0.0, x + (bx - 1) / 2], [0.0, by, y + (by - 1) / 2]])


def rescaling_of(target_from_source: F64, sharp: bool) -> F64:
    """By how much to resize the source, in x and in y, before it is sampled: 1/n where it shrinks, n where it grows."""
    (xx, xy, _), (yx, yy, _) = target_from_source.tolist()  # plain numbers: NumPy takes longer than all else for two
    return np.array([_rescaling(math.hypot(xx, yx), sharp), _rescaling(math.hypot(xy, yy), sharp)])


def _rescaling(magnified: float, sharp: bool) -> float:
    """The same for one axis."""
    reduction = math.floor(1 / max(magnified, 1e-6) + 2 - _MAX_MINIFICATION)
    if reduction > 1:
        return 1 / reduction
    return min(max(math.ceil(_SHARP_MARGIN * magnified), 1), _MAX_ENLARGEMENT) if sharp else 1


def _warp(source: Samples, target_from_source: F64, size: tuple[int, int], border: int, sharp: bool) -> Samples:
    """Sample `source` through an affine map: by area where it shrinks, bilinear, or bicubic where it grows and `sharp`.

    `size` is (width, height) of the result. Bicubic is done by enlarging to whole multiples, several times as fast as
    OpenCV's bicubic warp.
    """
    rescaling = rescaling_of(target_from_source, sharp)
    if (rescaling != 1).any():
        source, source_from_rescaled = _rescaled(source, target_from_source, size, rescaling)
        target_from_source = compose(target_from_source, source_from_rescaled)
    return np.asarray(cv2.warpAffine(source, target_from_source, size, flags=cv2.INTER_LINEAR, borderMode=border))


def _rescaled(source: Samples, target_from_source: F64, size: tuple[int, int], rescaling: F64) -> tuple[Samples, F64]:
    """The part of `source` that the target shows, resized, and the map from its px to those of `source`."""
    back = inverse_affine(target_from_source)
    corners = np.array([(x, y) for x in (-1, size[0]) for y in (-1, size[1])]) @ back[:, :2].T + back[:, 2]
    block = np.maximum(1 / rescaling, 1)
    limit = np.array([source.shape[1], source.shape[0]])
    low = np.clip(np.floor(corners.min(axis=0) - 2 * block), 0, limit - 1).astype(int)
    count = np.ceil((np.clip(corners.max(axis=0) + 3 * block, low + 1, limit) - low) / block)
    high = np.minimum(low + count * block, limit).astype(int)  # whole blocks where the picture has them: much faster
    width, height = (int(n) for n in np.rint(count * block * rescaling))
    interpolation = cv2.INTER_AREA if (rescaling < 1).any() else cv2.INTER_CUBIC
    resized = cv2.resize(source[low[1] : high[1], low[0] : high[0]], (width, height), interpolation=interpolation)
    scale = (high - low) / (width, height)
    return np.asarray(resized), np.column_stack([np.diag(scale), low + (scale - 1) / 2])


def _resized(plane: Plane, size: tuple[int, int]) -> Samples:
    """The plane at (width, height), by area where bilinear sampling would skip samples."""
    small: Samples = plane
    while small.shape[1] >= 2 * size[0] and small.shape[0] % 2 == small.shape[1] % 2 == 0:
        half = (small.shape[1] // 2, small.shape[0] // 2)  # OpenCV is many times as fast by two as by a fraction
        small = np.asarray(cv2.resize(small, half, interpolation=cv2.INTER_AREA))
    shrinks = small.shape[1] > _MAX_MINIFICATION * size[0]
    return np.asarray(cv2.resize(small, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR))


def _warp_to_roi(
    source: Samples, frame_from_source: F64, roi: _Roi, block: tuple[int, int], border: int, sharp: bool
) -> Samples:
    """Sample a crop where one plane of the frame has its samples, in `roi`."""
    size = ((roi.x1 - roi.x0) // block[0], (roi.y1 - roi.y0) // block[1])
    plane_from_frame = inverse_affine(frame_from_plane(block, (roi.x0, roi.y0)))
    return _warp(source, compose(plane_from_frame, frame_from_source), size, border, sharp)


def _warp_alpha(alpha: U8, frame_from_crop: F64, roi: _Roi) -> U8:
    """Sample an alpha or mask picture at the px of `roi`; it is 0 beyond its edge."""
    warped = _warp_to_roi(alpha, frame_from_crop, roi, (1, 1), cv2.BORDER_CONSTANT, sharp=False)
    return np.asarray(warped, np.uint8)


def _part(alpha: U8, frame_from_crop: F64) -> tuple[slice, slice]:
    """Rows and columns of a crop that are not 0 in `alpha`, and as much around them as resampling may reach."""
    x, y, width, height = cv2.boundingRect(alpha)
    reach = 1 + math.ceil(3 * float((1 / rescaling_of(frame_from_crop, sharp=False)).max()))
    rows = slice(max(0, y - reach), min(alpha.shape[0], y + height + reach))
    return rows, slice(max(0, x - reach), min(alpha.shape[1], x + width + reach))


def _block_mean(weight: U8, block: tuple[int, int]) -> U8:
    """Average over blocks of `block` px; the shape is a multiple of the block."""
    if block == (1, 1):
        return weight
    size = (weight.shape[1] // block[0], weight.shape[0] // block[1])
    return np.asarray(cv2.resize(weight, size, interpolation=cv2.INTER_AREA), np.uint8)


def _blend(plane: Plane, new: Samples, weight: U8, x: int, y: int) -> None:
    """plane += weight / 255 * (new - plane) in the rectangle at x, y; `new` and `weight` may pass the plane's edge."""
    target = plane[y : y + new.shape[0], x : x + new.shape[1]]
    height, width = target.shape[:2]
    wide = np.dtype(np.uint16 if plane.dtype == np.uint8 else np.uint32)  # 255 * 255 + 127 fits into 16 bits
    alpha: Samples = weight[:height, :width].astype(wide)
    if target.ndim == 3:
        alpha = alpha[..., None]
    mixed = target * (255 - alpha)
    mixed += new[:height, :width] * alpha
    mixed += 127
    mixed //= 255
    target[...] = mixed
