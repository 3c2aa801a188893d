"""Finding faces in a frame, masked ones too, with MediaPipe's detectors and mesh.

On masked faces the mesh's own presence score is low even where its points are right, and a detector that looks at the
whole picture is unsure. Both detectors are sure once they see the face upright and at the size that suits them. So
every face is looked at a second time, closely: the short-range detector is the better judge of what is a face, the
full-range one of where it is, above all in profile.
"""

import math
from typing import ClassVar, Final

import numpy as np

from unmask.models.detections import (
    LEFT_EYE_OUTER,
    MESH_SIZE,
    RIGHT_EYE_OUTER,
    Detection,
    points_to_frame,
    roi_from_landmarks,
)
from unmask.models.mediapipe import FaceDetector, FaceMesh
from unmask.stream.canvas import Canvas, inverse_affine
from unmask.stream.face_finder import (
    MESH_SHARE,
    Box,
    Finder,
    Sighting,
    View,
    box_around,
    box_centre,
    box_size,
    closer,
    log_odds,
    moved,
    points_box,
    probability,
    score_of,
    size_error,
)
from unmask.stream.frame import F32, F64, Frame, Layout

_INPUT_PX: Final[dict[str, int]] = {"full": 192, "short": 128}

_CLOSE_UP_SHARE: Final[dict[str, float]] = {"full": 1 / 3, "short": 1 / 2}
"""Size of the face in a close-up: at 44 to 64 px both detectors find most masked faces."""

_PROPOSAL_SCORE: Final = 0.15
_CLOSE_UP_SCORE: Final = 0.05
"""Low: what is seen in a close-up is only evidence."""

_AROUND: Final = 5.0
"""Side of the region searched around a known face, in sizes of the face: the full-range detector knows profiles best at
about 40 px, and by the head and shoulders around them."""

_MARGIN: Final = 0.4
_TILE_PX: Final = 640
"""Side of the tiles that small faces are searched in: 64 px of the frame are then 19 px of the detector's 192."""

_TILE_OVERLAP: Final = 0.25

# Logistic regressions over 1,083 proposals in street scenes with labelled boxes: bias; log odds of the short-range and
# of the full-range detector; difference of mesh and full-range detector in eyes and in size.
_SCORE: Final = np.array([1.10, 1.57, 0.26, -0.83, -2.72])
_AGREEMENT: Final = np.array([2.54, 0.0, 0.80, -2.34, -3.03])

_DETECTOR_BOX: Final = 0.9
"""Usual size of a detector's box, in sizes of the mesh's."""


class MediaPipeFinder(Finder):
    """A `Finder` on MediaPipe's networks alone.

    Args:
        layout: of every frame.
        canvas: reads the frames.
    """

    slips: ClassVar[bool] = True

    def __init__(self, layout: Layout, canvas: Canvas) -> None:
        super().__init__(canvas)
        self._mesh = FaceMesh()
        self._detectors = {"full": FaceDetector("full"), "short": FaceDetector("short")}
        width, height = layout.width, layout.height
        around = (-_MARGIN * width, -_MARGIN * height, (1 + _MARGIN) * width, (1 + _MARGIN) * height)
        self.overviews = [_view((0, 0, width, height), reach) for reach in _INPUT_PX]
        self.margins = [_view(around, reach) for reach in _INPUT_PX]
        self.tiles = [_view(tile, "full") for tile in _tiles(width, height)]

    @staticmethod
    def region(landmarks_px: F32) -> F64:
        return roi_from_landmarks(landmarks_px)

    def search(self, frame: Frame, view: View, min_score: float = _PROPOSAL_SCORE) -> list[Detection]:
        size = _INPUT_PX[view.reach]
        self.detector_runs += 1
        found = self._detectors[view.reach](self.picture(frame, view.view_from_frame, (size, size)), min_score)
        frame_from_view = inverse_affine(view.view_from_frame)
        return [moved(face, frame_from_view) for face in found]

    def around(self, centre_px: F64, size_px: float) -> View:
        return _view(box_around(centre_px, size_px * _AROUND), "full")

    def points(self, frame: Frame, roi: F64) -> tuple[F32, bool]:
        found, _ = self._mesh(self.picture(frame, roi, (MESH_SIZE, MESH_SIZE)))
        return points_to_frame(found, roi), True  # of a masked face the mesh often says that there is none

    def look(self, frame: Frame, landmarks_px: F32) -> Sighting:
        evidence = self.evidence(frame, landmarks_px)
        score, agreement = (probability(float(weights @ evidence)) for weights in (_SCORE, _AGREEMENT))
        return Sighting(landmarks_px, score, agreement)

    def evidence(self, frame: Frame, landmarks_px: F32) -> F64:
        """The inputs of `_SCORE` and `_AGREEMENT`: (5,) float64."""
        middle, size = box_centre(points_box(landmarks_px)), box_size(points_box(landmarks_px))
        seen: dict[str, Detection | None] = {}
        for view in _close_ups(landmarks_px):
            found = self.search(frame, view, _CLOSE_UP_SCORE)
            near = (d for d in found if np.linalg.norm(box_centre(d.box_px) - middle) < size / 2)
            seen[view.reach] = next(near, None)
        full = seen["full"]
        errors = eye_error(landmarks_px, full), size_error(landmarks_px, full, _DETECTOR_BOX)
        return np.array([1.0, log_odds(score_of(seen["short"])), log_odds(score_of(full)), *errors])


def eye_error(landmarks_px: F32, seen: Detection | None) -> float:
    """Mean distance of the eyes of points and detection, in distances of the outer eye corners; 1 at most and where
    nothing was seen."""
    if seen is None:
        return 1.0
    right, left = landmarks_px[RIGHT_EYE_OUTER], landmarks_px[LEFT_EYE_OUTER]
    eyes = np.stack(
        [landmarks_px[[RIGHT_EYE_OUTER, 133], :2].mean(axis=0), landmarks_px[[LEFT_EYE_OUTER, 362], :2].mean(axis=0)]
    )
    apart = np.linalg.norm(seen.keypoints_px[:2] - eyes, axis=1).mean()
    return min(float(apart / max(float(np.linalg.norm(right - left)), 1e-6)), 1.0)


def _close_ups(landmarks_px: F32) -> list[View]:
    """Views for both detectors in which the face is upright, in the middle, and of the size that suits them."""
    roi = roi_from_landmarks(landmarks_px)
    return [View(closer(roi, _CLOSE_UP_SHARE[reach] / MESH_SHARE, size), reach) for reach, size in _INPUT_PX.items()]


def _view(box: Box, reach: str) -> View:
    """The view that shows a rectangle of the frame as large as it fits, in the middle."""
    size = _INPUT_PX[reach]
    zoom = size / box_size(box)
    shift = size / 2 - zoom * box_centre(box)
    return View(np.array([[zoom, 0.0, shift[0]], [0.0, zoom, shift[1]]]), reach)


def _tiles(width: int, height: int) -> list[Box]:
    """Overlapping squares that cover the frame; none where one would hold all of it."""
    if max(width, height) <= _TILE_PX:
        return []
    return [(x, y, x + _TILE_PX, y + _TILE_PX) for y in _starts(height) for x in _starts(width)]


def _starts(length: int) -> list[float]:
    count = max(1, math.ceil((length / _TILE_PX - _TILE_OVERLAP) / (1 - _TILE_OVERLAP)))
    slack = length - _TILE_PX
    return [slack / 2] if count == 1 else [slack * i / (count - 1) for i in range(count)]
