"""Finding faces in a frame with MediaPipe's detectors and this project's own; MediaPipe's mesh gives the points.

Ours proposes masked and small faces that MediaPipe's pass over, MediaPipe's know profiles; three opinions on a close-up
are better than two.
"""

from typing import Final

import numpy as np

from unmask.models.mediapipe import Detection
from unmask.stream.canvas import Canvas
from unmask.stream.face_finder import AGREEMENT, SCORE, Finder, MediaPipeFinder, Sighting, View, probability
from unmask.stream.frame import F32, F64, Frame, Layout
from unmask.stream.masked_finder import SHAPES, MaskedFinder

# Logistic regression over 1,212 proposals in 102 training scenes with labelled boxes: bias; log odds of MediaPipe's
# short-range and full-range detectors; difference of mesh and full-range detector in eyes and in size; log odds of this
# project's detector; difference of mesh and that detector in eyes and in size.
_SCORE: Final = np.array([-0.05, 0.65, 0.11, -1.51, -1.04, 1.74, -1.25, -1.90])

_CONVINCED: Final = 0.85
"""Where MediaPipe's detectors are so sure, this project's is not asked."""


class UnitedFinder(Finder):
    """A `unmask.stream.face_finder.Finder` on MediaPipe's detectors and this project's.

    Args:
        layout: of every frame.
        canvas: reads the frames.
    """

    def __init__(self, layout: Layout, canvas: Canvas) -> None:
        super().__init__(canvas)
        self._mediapipe, self._own = MediaPipeFinder(layout, canvas), MaskedFinder(layout, canvas)
        self.overviews = [*self._mediapipe.overviews, *self._own.overviews]
        self.margins = [*self._mediapipe.margins, *self._own.margins]
        self.tiles = [*self._mediapipe.tiles, *self._own.tiles]

    def search(self, frame: Frame, view: View) -> list[Detection]:
        found = (self._own if view.reach in SHAPES else self._mediapipe).search(frame, view)
        self._count()
        return found

    def around(self, centre_px: F64, size_px: float) -> View:
        return self._mediapipe.around(centre_px, size_px)

    def search_around(self, frame: Frame, centre_px: F64, size_px: float) -> list[Detection]:
        found = super().search_around(frame, centre_px, size_px)
        found = found or self._own.search_around(frame, centre_px, size_px)
        self._count()
        return found

    def points(self, frame: Frame, roi: F64) -> F32:
        return self._mediapipe.points(frame, roi)

    def look(self, frame: Frame, landmarks_px: F32) -> Sighting:
        known = self._mediapipe.evidence(frame, landmarks_px)
        score, agreement = (probability(float(weights @ known)) for weights in (SCORE, AGREEMENT))
        if score < _CONVINCED:  # MediaPipe's detectors are seldom wrong where they are sure, and most faces end here
            agreement = max(agreement, score)
            evidence = np.concatenate([known, self._own.evidence(frame, landmarks_px)])
            score = probability(float(_SCORE @ evidence))
        self._count()
        return Sighting(landmarks_px, score, agreement)

    def _count(self) -> None:
        self.detector_runs = self._mediapipe.detector_runs + self._own.detector_runs
