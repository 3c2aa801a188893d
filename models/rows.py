"""What the detector and the landmarker give, in numbers: shared by training, runtime and tracker."""

from typing import Final

import numpy as np
import numpy.typing as npt

KINDS: Final = ("masked", "worn wrongly", "bare")
"""How a face wears a mask."""
MASKED, WRONGLY, BARE = range(len(KINDS))

POINTS: Final = 5
"""The detector's points: right eye, left eye, tip of the nose, right and left corner of the mouth, as the person has
them."""

CHANNELS: Final = 1 + 4 + len(KINDS) + 2 * POINTS
"""Numbers in a row of the detector: see `unmask.models.detector.Detector.forward`."""

STRIDES: Final = (8, 16, 32)
"""px of the picture per cell of each level of the detector's pyramid."""

LANDMARKER_SIZE: Final = 128
"""Width and height in px of the picture that the landmarker sees."""

LANDMARKS: Final = 468
"""The landmarker's points: those of MediaPipe's mesh."""

_POINTS_OF_MESH: Final = ((33, 133), (362, 263), (1,), (61,), (291,))
"""Points of the mesh whose mean is one of the detector's."""


def five_points_of(landmarks: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """(5, 2) float32 from (468, 2 or more) of the mesh: the detector's points."""
    return np.array([landmarks[list(points), :2].mean(axis=0) for points in _POINTS_OF_MESH], np.float32)


def cell_centres(height: int, width: int) -> npt.NDArray[np.float32]:
    """(P, 2) float32 x, y px of the middles of the cells of a (height, width) picture, in the order of the rows."""
    levels = []
    for stride in STRIDES:
        y, x = np.mgrid[: height // stride, : width // stride].astype(np.float32)
        levels.append((np.stack([x, y], axis=-1).reshape(-1, 2) + np.float32(0.5)) * np.float32(stride))
    return np.concatenate(levels)


def overlap(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """IoU of boxes x0, y0, x1, y1: (N, 4) and (M, 4) to (N, M) float32."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    width, height = np.maximum(high - low, 0).transpose(2, 0, 1)  # several times as fast as np.prod
    both = width * height
    area_a, area_b = ((x[:, 2] - x[:, 0]) * (x[:, 3] - x[:, 1]) for x in (a, b))
    return np.asarray(both / np.maximum(area_a[:, None] + area_b - both, 1e-9), np.float32)
