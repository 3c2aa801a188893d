"""What travels through the pipeline: a frame, the faces found in it, and the layout that all frames of a run share.

Pixels stay in the format in which the video was coded (planar YUV, 8 or 10 bits), so that a pixel that no stage touches
leaves the pipeline as it came, to the bit. Arrays are views into a slot (see `unmask.stream.pool`): whoever holds the
frame may write to them, and must not keep them after passing the frame on.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from unmask.models.geometry import CROP_SIZE

if TYPE_CHECKING:
    from torch import Tensor

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Plane = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]


class Matrix(StrEnum):
    """The matrix between YUV and RGB (ITU-R BT.601, BT.709, BT.2020 non-constant luminance)."""

    BT601 = "bt601"
    BT709 = "bt709"
    BT2020 = "bt2020"


class PixelFormat(NamedTuple):
    """How the samples of a frame lie in memory.

    Attributes:
        bits: significant bits per sample; more than 8 are stored as little-endian uint16.
        planar: True for Y, U, V planes; False for one packed (H, W, 3) RGB plane.
        subsampling: log2 of the horizontal and vertical chroma subsampling: (1, 1) is 4:2:0.
    """

    bits: int
    planar: bool
    subsampling: tuple[int, int]


PIXEL_FORMATS: Final[dict[str, PixelFormat]] = {
    "rgb24": PixelFormat(8, False, (0, 0)),
    "yuv420p": PixelFormat(8, True, (1, 1)),
    "yuv422p": PixelFormat(8, True, (1, 0)),
    "yuv444p": PixelFormat(8, True, (0, 0)),
    "yuv420p10le": PixelFormat(10, True, (1, 1)),
    "yuv422p10le": PixelFormat(10, True, (1, 0)),
    "yuv444p10le": PixelFormat(10, True, (0, 0)),
}
"""The formats that the pipeline works in, by FFmpeg's names; decoding converts anything else to the nearest one."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What all frames of a run have in common.

    Args:
        width, height: size in px of the upright picture.
        format: a key of `PIXEL_FORMATS`.
        matrix: the YUV matrix; meaningless for "rgb24".
        full_range: True where samples use the full range (JPEG), False for the limited one (MPEG).
        keep_source: True where each frame carries a second, untouched copy of its planes (for before/after pictures).
        tensors: PyTorch's name of the device on which the planes lie, as NV12 (see `unmask.stream.nv12`); empty where
            they lie in the slot.

    Raises:
        ValueError: a size below 1 px, an unknown format, or one that tensors cannot hold.
    """

    width: int
    height: int
    format: str = "yuv420p"
    matrix: Matrix = Matrix.BT709
    full_range: bool = False
    keep_source: bool = False
    tensors: str = ""

    def __post_init__(self) -> None:
        if self.width < 1 or self.height < 1:
            raise ValueError(f"a layout needs a size of at least 1x1 px, got {self.width}x{self.height}")
        if self.format not in PIXEL_FORMATS:
            raise ValueError(f"unknown pixel format '{self.format}', expected one of {', '.join(PIXEL_FORMATS)}")
        if self.tensors and (self.format != "yuv420p" or self.width % 2 or self.height % 2 or self.keep_source):
            raise ValueError("tensors hold 8-bit 4:2:0 of even size, without a copy of the source")

    @property
    def pixel_format(self) -> PixelFormat:
        return PIXEL_FORMATS[self.format]

    @property
    def dtype(self) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
        return np.dtype(np.uint16) if self.pixel_format.bits > 8 else np.dtype(np.uint8)

    @property
    def plane_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of each plane: ((H, W), (H', W'), (H', W')) for YUV, ((H, W, 3),) for RGB. Odd sizes round up."""
        if not self.pixel_format.planar:
            return ((self.height, self.width, 3),)
        sx, sy = self.pixel_format.subsampling
        chroma = (-(-self.height >> sy), -(-self.width >> sx))
        return ((self.height, self.width), chroma, chroma)

    @property
    def frame_bytes(self) -> int:
        return sum(math.prod(shape) for shape in self.plane_shapes) * self.dtype.itemsize

    def slot_bytes(self, max_faces: int) -> int:
        """Bytes that a slot needs: the planes, their untouched copy if kept, then the four pictures of each face."""
        return self.pixel_bytes + max_faces * FACE_BYTES

    @property
    def pixel_bytes(self) -> int:
        """Bytes of the slot that the planes take and, if kept, their untouched copy; 0 where they lie in tensors."""
        if self.tensors:
            return 0
        return self.frame_bytes * (2 if self.keep_source else 1)


CROP_BYTES: Final = CROP_SIZE * CROP_SIZE * 3
MASK_BYTES: Final = CROP_SIZE * CROP_SIZE
FACE_BYTES: Final = 2 * (CROP_BYTES + MASK_BYTES)
_PICTURE_ENDS: Final = (CROP_BYTES, CROP_BYTES + MASK_BYTES, CROP_BYTES + 2 * MASK_BYTES)


_LOOKS_MASKED: Final = 0.9
"""The detector gives 98 of 100 faces with masks more, and one of 835 bare ones."""
_LOOKS_A_FACE: Final = 0.6
"""Bags and denim sometimes look like masked faces, and less like faces."""


class FacePictures(NamedTuple):
    """The canonical-crop pictures of one face, views into the frame's slot. S is `CROP_SIZE`.

    Attributes:
        crop: (S, S, 3) uint8 RGB, the face as filmed, written by `segment` where a network looks at it.
        mask: (S, S) uint8, 0..255, how far each pixel is to be replaced, written by `segment`; 1 where glasses lie
            before the mask.
        hidden: (S, S) uint8, 0 or 255, what says nothing about the face: the mask that it wears, written by `segment`.
            `mask` reaches further, over the mask's shadow and fibres.
        painted: (S, S, 3) uint8 RGB, the face without its mask, written by `inpaint`, steadied by `smooth`.
    """

    crop: U8
    mask: U8
    hidden: U8
    painted: U8


@dataclass(slots=True)
class Face:
    """One tracked face.

    Args:
        track_id: the same for the same person as long as the track lasts; never used twice in a run.
        box_px: (x0, y0, x1, y1) in px of the frame.
        score: how sure the tracker is of the face, 0..1.
        landmarks_px: (468, 3) float32, the points of MediaPipe's mesh: x, y in px of the frame, z on the same scale;
            `inpaint` puts them right where a mask over the eyes made them slip.
        crop_from_frame: (2, 3) float64, the affine map from frame px to canonical-crop px; `segment` moves it to where
            the mask goes on.
        reset: True where nothing remembered of this track lies where it did in the crop (new track, scene cut, jump).
        mask_score: how sure the segmenter is that the face wears a mask, 0..1.
        masked: True where the mask is to be taken off.
        pictures: the crop, mask, hidden and painted pictures in the frame's slot.
        still: True where the crop of the frame before has been moved along with the face, which looks in it as it did:
            what was found and painted there still holds, and `pictures.crop` is not filled. `segment` may take it back.
        wears: how likely the tracker thinks that the face wears a mask, 0..1; None where it does not know.
    """

    track_id: int
    box_px: tuple[float, float, float, float]
    score: float
    landmarks_px: F32
    crop_from_frame: F64
    reset: bool
    pictures: FacePictures
    mask_score: float = 0.0
    masked: bool = False
    still: bool = False
    wears: float | None = None

    @property
    def looks_masked(self) -> bool:
        """Whether the tracker, which has looked at the whole head, is to be believed that it is one with a mask."""
        return self.wears is not None and self.wears >= _LOOKS_MASKED and self.score >= _LOOKS_A_FACE


@dataclass(slots=True)
class Frame:
    """One picture of the video, with what the stages have found in it so far.

    Args:
        index: 0-based position in the run, without gaps.
        pts: presentation time in units of `time_base`.
        time_base: seconds per unit of `pts`.
        layout: size and pixel format.
        buffer: (N,) uint8, the slot: the planes, a copy of them if kept, then `FACE_BYTES` per possible face.
        slot: number of the slot in its pool.
        discontinuity: True on the first frame after a cut, a seek or a reconnection: temporal state must be forgotten.
        nv12: (3 * H / 2, W) uint8, the picture on the device that `Layout.tensors` names; None where it is in `buffer`.
        faces: filled by `track`, refined by the stages after it.
    """

    index: int
    pts: int
    time_base: Fraction
    layout: Layout
    buffer: U8
    slot: int
    discontinuity: bool = False
    nv12: "Tensor | None" = None
    faces: list[Face] = field(default_factory=list)

    @property
    def pts_seconds(self) -> float:
        return float(self.pts * self.time_base)

    @property
    def planes(self) -> Sequence[Plane]:
        """Views of the planes, shaped as `Layout.plane_shapes`, uint8 or (above 8 bits) uint16.

        Raises:
            ValueError: they lie in a tensor.
        """
        if self.layout.tensors:
            raise ValueError("the planes of this frame lie in a tensor; see unmask.stream.nv12")
        return self._planes_from(0)

    @property
    def source_planes(self) -> Sequence[Plane]:
        """Views of the untouched copy of the planes, written by `decode`. Raises ValueError where none is kept."""
        if not self.layout.keep_source:
            raise ValueError("this layout keeps no copy of the source")
        return self._planes_from(self.layout.frame_bytes)

    def _planes_from(self, start: int) -> Sequence[Plane]:
        planes: list[Plane] = []
        for shape in self.layout.plane_shapes:
            end = start + math.prod(shape) * self.layout.dtype.itemsize
            planes.append(self.buffer[start:end].view(self.layout.dtype).reshape(shape))
            start = end
        return planes

    @property
    def masks_left(self) -> int:
        """How many faces look masked and keep their mask."""
        return sum(face.looks_masked and not face.masked for face in self.faces)

    @property
    def max_faces(self) -> int:
        return (self.buffer.size - self.layout.pixel_bytes) // FACE_BYTES

    def face_pictures(self, position: int) -> FacePictures:
        """The pictures of the face at `position` in `faces`.

        Raises:
            IndexError: the slot has no room for that many faces.
        """
        if not 0 <= position < self.max_faces:
            raise IndexError(f"face {position} does not fit into a slot made for {self.max_faces} faces")
        start = self.layout.pixel_bytes + position * FACE_BYTES
        crop, mask, hidden, painted = np.split(self.buffer[start : start + FACE_BYTES], _PICTURE_ENDS)
        rgb = (CROP_SIZE, CROP_SIZE, 3)
        return FacePictures(crop.reshape(rgb), mask.reshape(rgb[:2]), hidden.reshape(rgb[:2]), painted.reshape(rgb))
