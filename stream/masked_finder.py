"""Finding faces in a frame with this project's own detector and landmarker, which know masks.

One look at the whole frame finds most faces at once, masked or not. What it proposes is looked at a second time,
upright and closely: the detector once more and the landmarker judge together whether the points are on a face.
"""

from typing import Final

import numpy as np

from unmask.models.detections import MESH_SIZE, Detection, points_to_frame, upright_roi
from unmask.models.masked_faces import FaceLandmarker, MaskedFaceDetector
from unmask.models.rows import BARE, LANDMARKER_SIZE, five_points_of
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
    is_about,
    log_odds,
    moved,
    points_box,
    probability,
    score_of,
    size_error,
)
from unmask.stream.frame import F32, F64, Frame, Layout

SHAPES: Final = {"wide": (384, 640), "tall": (640, 384), "square": (480, 480), "close": (160, 160)}
"""Height and width of the pictures that the detector sees, in px, by the reach of a view."""

_PROPOSAL_SCORE: Final = 0.3
_CLOSE_UP_SCORE: Final = 0.05

_SMALLEST_PX: Final = 24.0
"""Of a face in the frame: what is smaller cannot be painted, and is more often an eye, an ear or an ornament."""

_AROUND: Final = 4.0
"""Side of the region searched around a known face, in sizes of the face: it is then 40 px of the detector's 160."""

_CLOSE_UP_SHARE: Final = 0.4
"""Size of the face in a close-up."""

_LEAST: Final = 0.1
"""Where the landmarker gives a face less, there is none."""

_MARGIN: Final = 0.3
_TILE_PX: Final = 640
_TILE_SHARE: Final = 0.6
"""Width and height of a tile, in those of the frame: four tiles cover it and overlap."""

_SAME_PLACE: Final = 0.4
"""Of points and a detection in the close-up, in sizes of the face: so near they are of one face."""

# Logistic regressions: bias; log odds of the detector in the close-up; difference of points and detector in place and
# in size; log odds of the landmarker, and how far it moves the points when it looks again. The first one over proposals
# in training scenes with labelled boxes: is there a face? The second one over points that were pushed off such faces
# and followed from there: are they back on the face? The detector is sure of a face whether they are or not. Fitted by
# benchmarks/judge.py; with later networks it found others that separate faces from the rest equally well. The last
# weights, of what lies beyond the border of the frame, are not fitted: the first would be 16 and believe too much.
_FACE: Final = np.array([-6.14, 2.65, -0.81, -0.88, 0.79, -0.15, 6.0])
_PLACED: Final = np.array([-4.96, 0.0, -3.84, -1.29, 1.17, -6.83, 7.2])


class MaskedFinder(Finder):
    """A `unmask.stream.face_finder.Finder` on this project's networks alone.

    Args:
        layout: of every frame.
        canvas: reads the frames.
    """

    def __init__(self, layout: Layout, canvas: Canvas) -> None:
        super().__init__(canvas)
        width, height = layout.width, layout.height
        self._extent = np.array([width, height])
        shape = _shape_of(width, height)
        # Both compiled before the first frame, which a live run would otherwise show late.
        self._detectors = {reach: MaskedFaceDetector(SHAPES[reach]) for reach in (shape, "close")}
        self._landmarker = FaceLandmarker()
        around = (-_MARGIN * width, -_MARGIN * height, (1 + _MARGIN) * width, (1 + _MARGIN) * height)
        self.overviews = [_view((0.0, 0.0, float(width), float(height)), shape)]
        self.margins = [_view(around, shape)]
        self.tiles = [_view(tile, shape) for tile in _tiles(width, height)]

    def search(self, frame: Frame, view: View, min_score: float = _PROPOSAL_SCORE) -> list[Detection]:
        size = SHAPES[view.reach]
        self.detector_runs += 1
        found = self._detectors[view.reach](self.picture(frame, view.view_from_frame, size), min_score)
        frame_from_view = inverse_affine(view.view_from_frame)
        faces = [moved(face, frame_from_view) for face in found]
        faces = [face for face in faces if box_size(face.box_px) >= _SMALLEST_PX]
        if view.reach == "close":
            return faces
        # Where a tile ends within the frame it may end in a face, and part of one looks like a smaller one. Another
        # view shows all of it.
        low, high = np.array([(0, 0), size[::-1]]) @ frame_from_view[:, :2].T + frame_from_view[:, 2]
        low, high = np.where(low > 1, low, -np.inf), np.where(high < self._extent - 1, high, np.inf)
        return [face for face in faces if (face.box_px[:2] >= low).all() and (face.box_px[2:] <= high).all()]

    def around(self, centre_px: F64, size_px: float) -> View:
        return _view(box_around(centre_px, size_px * _AROUND), "close")

    def points(self, frame: Frame, roi: F64) -> tuple[F32, bool]:
        found, likely = self._points(frame, roi)
        return found, likely >= _LEAST

    def _points(self, frame: Frame, roi: F64) -> tuple[F32, float]:
        """Points in px of the frame, and how likely a face is there."""
        roi = roi * (LANDMARKER_SIZE / MESH_SIZE)
        found, likely = self._landmarker(self.picture(frame, roi, (LANDMARKER_SIZE, LANDMARKER_SIZE)))
        return points_to_frame(found, roi), likely

    def look(self, frame: Frame, landmarks_px: F32) -> Sighting:
        evidence, again_px, seen = self._looked(frame, landmarks_px)
        sighting = judge(landmarks_px, evidence)._replace(again_px=again_px)
        return sighting._replace(box_px=seen.box_px, wears=1.0 - seen.kinds[BARE]) if seen else sighting

    def evidence(self, frame: Frame, landmarks_px: F32) -> F64:
        """What detector and landmarker say about points in a close-up, the inputs of `_FACE`: (7,) float64."""
        return self._looked(frame, landmarks_px)[0]

    def _looked(self, frame: Frame, landmarks_px: F32) -> tuple[F64, F32, Detection | None]:
        """The same, the points as the landmarker places them when it looks again, and what the detector found there."""
        box, roi = points_box(landmarks_px), upright_roi(landmarks_px)
        middle, size = box_centre(box), box_size(box)
        view = closer(roi, _CLOSE_UP_SHARE / MESH_SHARE, SHAPES["close"][0])
        found = self.search(frame, View(view, "close"), _CLOSE_UP_SCORE)
        about = [d for d in found if is_about(d.box_px, middle, size)]
        # Beside a face that is cut off or turned, its neighbour's detection is often the surer one.
        near = [d for d in about if np.linalg.norm(box_centre(d.box_px) - middle) < _SAME_PLACE * size]
        seen = next(iter(near or about), None)
        place = 1.0 if seen is None else _apart(seen.keypoints_px, five_points_of(landmarks_px), size)
        again, likely = self._points(frame, roi)
        shift = _apart(again[:, :2], landmarks_px[:, :2], size)
        errors = place, size_error(landmarks_px, seen, 1.0)
        beyond = self._share_beyond(box)
        return np.array([1.0, log_odds(score_of(seen)), *errors, log_odds(likely), shift, beyond]), again, seen

    def _share_beyond(self, box: Box) -> float:
        """How much of a box lies beyond the border of the frame."""
        low, high = np.asarray(box[:2]), np.asarray(box[2:])
        seen = np.clip(high, 0, self._extent) - np.clip(low, 0, self._extent)
        return 1.0 - float(np.prod(seen) / max(np.prod(high - low), 1e-6))


def judge(landmarks_px: F32, evidence: F64) -> Sighting:
    """What `MaskedFinder.evidence` means."""
    face, placed = (probability(float(weights @ evidence)) for weights in (_FACE, _PLACED))
    return Sighting(landmarks_px, min(face, placed), placed)


def _apart(some_px: F32, others_px: F32, size_px: float) -> float:
    """Mean distance of (N, 2) points to others, in sizes of the face; 1 at most. In profile the distance of the eyes,
    the usual unit, would be next to nothing."""
    return min(float(np.linalg.norm(some_px - others_px, axis=1).mean()) / max(size_px, 1e-6), 1.0)


def _shape_of(width: int, height: int) -> str:
    """The shape of `SHAPES` that a picture fills best."""
    if width > 1.25 * height:
        return "wide"
    return "tall" if height > 1.25 * width else "square"


def _view(box: Box, shape: str) -> View:
    """The view that shows a rectangle of the frame as large as it fits, in the middle."""
    height, width = SHAPES[shape]
    zoom = min(width / (box[2] - box[0]), height / (box[3] - box[1]))
    shift = np.array([width, height]) / 2 - zoom * box_centre(box)
    return View(np.array([[zoom, 0.0, shift[0]], [0.0, zoom, shift[1]]]), shape)


def _tiles(width: int, height: int) -> list[Box]:
    """Four overlapping parts of the frame; none where it is small."""
    if max(width, height) <= _TILE_PX:
        return []
    w, h = _TILE_SHARE * width, _TILE_SHARE * height
    return [(x, y, x + w, y + h) for y in (0.0, height - h) for x in (0.0, width - w)]
