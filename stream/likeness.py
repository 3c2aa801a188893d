"""Seeing whether a face keeps still: whether it looks as it did, wherever it has moved to in the picture."""

from typing import Final

import cv2
import numpy as np

from unmask.models.detections import MESH_SIZE, upright_roi
from unmask.models.geometry import ANCHOR_POINTS, transform_points
from unmask.models.outline import hull
from unmask.stream.canvas import Canvas, compose, inverse_affine
from unmask.stream.frame import F32, F64, U8, Frame

_MOST_FEATURES: Final = 60
_FEWEST_FEATURES: Final = 12
"""Features whose movement can be seen, below which nothing is known of it."""
_FEATURE_QUALITY: Final = 0.01
_FEATURES_APART_PX: Final = 4

_AGREES_PX: Final = 0.7
_AGREE: Final = 0.7
"""So many of the features, as a share, must move as one similarity says, to within `_AGREES_PX`."""

_BELOW_PX: Final = 20
"""How far below the face change counts, too: a mask may hang under the chin. The face is 128 px high here."""

_CELLS: Final = 16
_CHANGE: Final = 5.0
"""Difference in brightness, of 255, averaged over a cell of 12 x 12 px, from which on a face has changed. With faces of
six real videos it stayed below 3 where nothing happened, whatever the noise; an eye that closes, a jaw or a mask that
moves by a pixel or two, a head that turns by a degree or two are beyond it."""
_LIGHT: Final = 2.0
"""The same, averaged over the face."""


class Likeness:
    """How a face looked in one frame.

    Movement in the picture plane is found by the optical flow of features above a mask (Lucas and Kanade 1981, in
    Bouguet's pyramids) and a similarity that most of them agree with. What it leaves, over all of the face, is change.

    Args:
        canvas: reads the frames.
        frame: in which the face looked so.
        landmarks_px: (468, 3) float32, its points, px of the frame.
    """

    def __init__(self, canvas: Canvas, frame: Frame, landmarks_px: F32) -> None:
        self._canvas = canvas
        self._view_from_frame = upright_roi(landmarks_px)
        self._grey = canvas.grey(frame, self._view_from_frame, MESH_SIZE)
        points = transform_points(self._view_from_frame, landmarks_px)
        self._face = hull(np.concatenate([points, points + np.array([0, _BELOW_PX], np.float32)]), MESH_SIZE)
        found = cv2.goodFeaturesToTrack(
            self._grey,
            _MOST_FEATURES,
            _FEATURE_QUALITY,
            _FEATURES_APART_PX,
            mask=hull(points[ANCHOR_POINTS], MESH_SIZE),
        )
        self._features = np.empty((0, 2), np.float32) if found is None else np.asarray(found[:, 0], np.float32)
        self._moved = np.eye(2, 3)

    def follow(self, frame: Frame) -> F64 | None:
        """Where the face has moved to since the last call, if it otherwise still looks as it did at first.

        Returns:
            (2, 3) float64, the similarity from px of the last frame to px of this one; None where the face has changed,
            or nothing is known. Call no more after that.
        """
        view_from_frame = compose(self._view_from_frame, inverse_affine(self._moved))
        now = self._canvas.grey(frame, view_from_frame, MESH_SIZE)
        in_view = self._movement(now)
        if in_view is None or self._changed(now, in_view):
            return None
        before = self._moved
        self._moved = compose(inverse_affine(view_from_frame), compose(in_view, self._view_from_frame))
        return compose(self._moved, inverse_affine(before))

    def _movement(self, now: U8) -> F64 | None:
        """The similarity (2, 3) from the view at first to the one of now."""
        if len(self._features) < _FEWEST_FEATURES:
            return None
        after, found, _ = cv2.calcOpticalFlowPyrLK(
            self._grey,
            now,
            self._features,
            self._features.copy(),
            winSize=(11, 11),
            maxLevel=2,
            criteria=(cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 10, 0.03),
            flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
        )
        seen = found[:, 0] == 1
        if np.count_nonzero(seen) < _FEWEST_FEATURES:
            return None
        matrix, agreeing = cv2.estimateAffinePartial2D(
            self._features[seen], after[seen], method=cv2.RANSAC, ransacReprojThreshold=_AGREES_PX
        )
        if matrix is None or agreeing.mean() < _AGREE:
            return None
        return np.asarray(matrix, np.float64)

    def _changed(self, now: U8, in_view: F64) -> bool:
        """Whether the face looks different from what it did, apart from the movement."""
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        back = cv2.warpAffine(now, in_view, self._grey.shape, flags=flags, borderMode=cv2.BORDER_REPLICATE)
        change = cv2.subtract(back, self._grey, mask=self._face, dtype=cv2.CV_32F)
        light = abs(cv2.mean(change, mask=self._face)[0])
        cells = cv2.resize(change, (_CELLS, _CELLS), interpolation=cv2.INTER_AREA)
        return light > _LIGHT or float(np.abs(cells).max()) > _CHANGE
