"""Finding faces in a frame with MediaPipe's detectors and this project's own; its landmarker gives the points.

Ours knows masked and small faces, MediaPipe's know profiles, and what is no face: three opinions on a close-up are
better than one.
"""

from typing import Final

import numpy as np

from unmask.models.mediapipe import Detection
from unmask.stream.canvas import Canvas
from unmask.stream.face_finder import Finder, MediaPipeFinder, Sighting, View, probability
from unmask.stream.frame import F32, F64, Frame, Layout
from unmask.stream.masked_finder import SHAPES, MaskedFinder, judge

# Logistic regression over proposals in training scenes with labelled boxes: the evidence of MediaPipe's detectors, then
# that of this project's networks without its bias.
_FACE: Final = np.array([-3.82, 0.87, 0.03, -0.86, 1.03, 1.21, -0.38, 0.24, 0.45, 0.15])

_CONVINCED: Final = 0.85
"""Where this project's networks are so sure, MediaPipe's detectors are not asked."""


class UnitedFinder(Finder):
    """A `unmask.stream.face_finder.Finder` on MediaPipe's detectors and this project's networks.

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
        return self._own.around(centre_px, size_px)

    def search_around(self, frame: Frame, centre_px: F64, size_px: float) -> list[Detection]:
        found = self._own.search_around(frame, centre_px, size_px)
        found = found or self._mediapipe.search_around(frame, centre_px, size_px)
        self._count()
        return found

    def points(self, frame: Frame, roi: F64) -> tuple[F32, bool]:
        return self._own.points(frame, roi)

    def look(self, frame: Frame, landmarks_px: F32) -> Sighting:
        ours = self._own.evidence(frame, landmarks_px)
        sighting = judge(landmarks_px, ours)
        if sighting.score < _CONVINCED:
            evidence = np.concatenate([self._mediapipe.evidence(frame, landmarks_px), ours[1:]])
            sighting = sighting._replace(score=min(probability(float(_FACE @ evidence)), sighting.agreement))
        self._count()
        return sighting

    def _count(self) -> None:
        self.detector_runs = self._mediapipe.detector_runs + self._own.detector_runs
