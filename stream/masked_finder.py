"""Finding faces in a frame with this project's own networks, which know masks.

One detector searches the frame, its parts, and close-ups; one landmarker gives the points, and says at every step
whether it still sees a face. So a face that is followed costs one small network a frame, and a close look is taken
when that network doubts.
"""

import math
from typing import Final

import numpy as np

from unmask.models.masked_faces import FaceLandmarker, MaskedFaceDetector
from unmask.models.mediapipe import MESH_SIZE, Detection, points_to_frame, roi_from_detection, roi_from_landmarks
from unmask.models.rows import LANDMARKER_SIZE
from unmask.stream.canvas import Canvas, inverse_affine
from unmask.stream.face_finder import Box, Sighting, View, box_centre, box_size, is_about, moved, points_box
from unmask.stream.frame import F32, F64, U8, Frame, Layout

_SHAPES: Final = {"wide": (384, 640), "tall": (640, 384), "square": (480, 480), "close": (160, 160)}
"""Height and width of the pictures that the detector sees, in px."""

_PROPOSAL_SCORE: Final = 0.25
_CLOSE_UP_SCORE: Final = 0.1
_HOPELESS: Final = 0.2
_DOUBT: Final = 0.7
"""Below this the landmarker is not sure that it still sees the face."""

_AROUND: Final = 4.0
"""Side of the region searched around a known face, in sizes of the face: it is then 40 px of the detector's 160."""

_CLOSE_UP: Final = 2.4
"""Side of a close-up, in sizes of the face."""

_MARGIN: Final = 0.3
_TILE_PX: Final = 640
_TILE_SHARE: Final = 0.6
"""Width and height of a tile, in those of the frame: four tiles cover it and overlap."""

# Logistic regression over proposals in scenes with labelled boxes: bias; log odds of the landmarker; of the detector in
# the close-up.
_SCORE: Final = np.array([0.0, 0.5, 1.0])


class MaskedFinder:
    """A `unmask.stream.face_finder.Finder` on this project's networks.

    Args:
        layout: of every frame.
        canvas: reads the frames.
    """

    def __init__(self, layout: Layout, canvas: Canvas) -> None:
        self._canvas = canvas
        self._detectors: dict[str, MaskedFaceDetector] = {}
        self._landmarker = FaceLandmarker()
        width, height = layout.width, layout.height
        whole = (0.0, 0.0, float(width), float(height))
        self.overviews = [_view(whole, _shape_of(width, height))]
        around = (-_MARGIN * width, -_MARGIN * height, (1 + _MARGIN) * width, (1 + _MARGIN) * height)
        self.margins = [_view(around, _shape_of(width, height))]
        self.tiles = [_view(tile, _shape_of(width, height)) for tile in _tiles(width, height)]
        self.detector_runs = 0

    def search(self, frame: Frame, view: View, min_score: float = _PROPOSAL_SCORE) -> list[Detection]:
        if view.reach not in self._detectors:
            self._detectors[view.reach] = MaskedFaceDetector(_SHAPES[view.reach])
        picture = self._picture(frame, view.view_from_frame, _SHAPES[view.reach])
        self.detector_runs += 1
        frame_from_view = inverse_affine(view.view_from_frame)
        return [moved(found, frame_from_view) for found in self._detectors[view.reach](picture, min_score)]

    def search_around(self, frame: Frame, centre_px: F64, size_px: float) -> list[Detection]:
        half = size_px * _AROUND / 2
        box = (centre_px[0] - half, centre_px[1] - half, centre_px[0] + half, centre_px[1] + half)
        found = self.search(frame, _view(box, "close"))
        return [d for d in found if is_about(d.box_px, centre_px, size_px)]

    def follow(self, frame: Frame, landmarks_px: F32) -> tuple[F32, bool]:
        found, likely = self._points(frame, roi_from_landmarks(landmarks_px))
        return found, likely < _DOUBT

    def fit(self, frame: Frame, proposal: Detection) -> Sighting:
        landmarks_px, likely = self._points(frame, roi_from_detection(proposal))
        if likely < _HOPELESS:
            return Sighting(landmarks_px, 0.0, 0.0)
        return self.look(frame, landmarks_px)

    def look(self, frame: Frame, landmarks_px: F32) -> Sighting:
        landmarks_px, likely = self._points(frame, roi_from_landmarks(landmarks_px))
        box = points_box(landmarks_px)
        middle, size = box_centre(box), box_size(box)
        found = self.search(frame, _close_up(landmarks_px), _CLOSE_UP_SCORE)
        near = (d for d in found if is_about(d.box_px, middle, size))
        seen = max((d.score for d in near), default=0.0)
        score = _probability(_SCORE, np.array([1.0, _log_odds(likely), _log_odds(seen)]))
        return Sighting(landmarks_px, score, score)

    def _points(self, frame: Frame, roi: F64) -> tuple[F32, float]:
        """Points in px of the frame, from the region where MediaPipe's mesh would look; and how likely a face is."""
        roi = roi * (LANDMARKER_SIZE / MESH_SIZE)
        picture = self._picture(frame, roi, (LANDMARKER_SIZE, LANDMARKER_SIZE))
        points, likely = self._landmarker(picture)
        return points_to_frame(points, roi), likely

    def _picture(self, frame: Frame, view_from_frame: F64, size: tuple[int, int]) -> U8:
        picture = np.empty((*size, 3), np.uint8)
        self._canvas.crop(frame, view_from_frame, picture)
        return picture


def _shape_of(width: int, height: int) -> str:
    """The shape of `_SHAPES` that a picture fills best."""
    if width > 1.25 * height:
        return "wide"
    return "tall" if height > 1.25 * width else "square"


def _view(box: Box, shape: str) -> View:
    """The view that shows a rectangle of the frame as large as it fits, in the middle."""
    height, width = _SHAPES[shape]
    zoom = min(width / (box[2] - box[0]), height / (box[3] - box[1]))
    shift = np.array([width, height]) / 2 - zoom * box_centre(box)
    return View(np.array([[zoom, 0.0, shift[0]], [0.0, zoom, shift[1]]]), shape)


def _close_up(landmarks_px: F32) -> View:
    """A view in which the face is upright and in the middle."""
    roi = roi_from_landmarks(landmarks_px)  # the face fills two thirds of it
    size = _SHAPES["close"][0]
    zoom = 1.5 / _CLOSE_UP * size / MESH_SIZE
    view = zoom * roi
    view[:, 2] += (size - zoom * MESH_SIZE) / 2
    return View(view, "close")


def _tiles(width: int, height: int) -> list[Box]:
    """Four overlapping parts of the frame; none where it is small."""
    if max(width, height) <= _TILE_PX:
        return []
    w, h = _TILE_SHARE * width, _TILE_SHARE * height
    return [(x, y, x + w, y + h) for y in (0.0, height - h) for x in (0.0, width - w)]


def _probability(weights: F64, evidence: F64) -> float:
    return 1.0 / (1.0 + math.exp(-float(weights @ evidence)))


def _log_odds(probability: float) -> float:
    clipped = min(max(probability, 1e-3), 1 - 1e-3)
    return math.log(clipped / (1 - clipped))
