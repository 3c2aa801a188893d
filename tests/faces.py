"""The public-domain portrait of matplotlib's wheel, as the tests use it."""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from unmask.models.geometry import canonical_crop
from unmask.stream.frame import Face, Frame, Layout
from unmask.train.data import warp_crop

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Portrait:
    """A bare face, and the same face with a mask drawn on it.

    Attributes:
        bare, masked: (H, W, 3) uint8 RGB.
        coverage: (H, W) float32 0..1, where the mask is.
        landmarks: (468, 3) float32 px, of the bare face.
    """

    bare: U8
    masked: U8
    coverage: F32
    landmarks: F32

    def crop(self, masked: bool) -> U8:
        """(256, 256, 3) uint8 canonical crop."""
        return warp_crop(self.masked if masked else self.bare, canonical_crop(self.landmarks))[0]

    def crop_coverage(self) -> npt.NDArray[np.bool_]:
        """(256, 256), where the mask is in the canonical crop."""
        three = np.repeat((self.coverage * 255).astype(np.uint8)[..., None], 3, axis=2)
        return warp_crop(three, canonical_crop(self.landmarks))[0][..., 0] > 127

    def frame(self, masked: bool, *, index: int = 0, reset: bool = False) -> Frame:
        """An rgb24 frame with the tracked face in it."""
        rgb = self.masked if masked else self.bare
        layout = Layout(rgb.shape[1], rgb.shape[0], "rgb24")
        frame = Frame(index, index, Fraction(1, 25), layout, np.zeros(layout.slot_bytes(1), np.uint8), 0)
        frame.planes[0][:] = rgb
        low, high = self.landmarks[:, :2].min(axis=0), self.landmarks[:, :2].max(axis=0)
        box = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
        matrix = canonical_crop(self.landmarks)
        frame.faces.append(Face(0, box, 1.0, self.landmarks.copy(), matrix, reset, frame.face_pictures(0)))
        return frame
