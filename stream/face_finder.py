"""Finding faces in a frame: what whoever follows faces asks for, and the geometry of it."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Final, NamedTuple

import cv2
import numpy as np

from unmask.models.detections import (
    MESH_SIZE,
    Detection,
    roi_from_detection,
    upright_roi,
)
from unmask.models.geometry import transform_points
from unmask.stream.canvas import Canvas
from unmask.stream.frame import F32, F64, U8, Frame

Box = tuple[float, float, float, float]

MESH_SHARE: Final = 2 / 3
"""Size of the face in the picture that the mesh sees."""

_APPEARANCE_PX: Final = 48
_APPEARANCE_SHARE: Final = 0.45
"""Size of the face in the picture by which people are told apart."""

_HOPELESS: Final = 0.1
_DOUBT: Final = 0.7


class View(NamedTuple):
    """A square region of the frame to search.

    Attributes:
        view_from_frame: (2, 3) float64, affine map from frame px to px of the detector's input.
        reach: which detector, by the finder's own names.
    """

    view_from_frame: F64
    reach: str


class Sighting(NamedTuple):
    """A face in one frame, looked at closely.

    Attributes:
        landmarks_px: (468, 3) float32, as `unmask.stream.frame.Face.landmarks_px`.
        score: how likely it is that these points are on a face, 0..1.
        agreement: the same of a face that was there a moment ago, 0..1; in profile far higher.
        again_px: where `Finder.follow` would place the points from there, if that is known.
        box_px: what a detector that knows masks takes for the face, x0, y0, x1, y1, if it was asked and saw one.
        wears: how likely that detector thinks that the face wears a mask, well or not, 0..1; None like `box_px`.
    """

    landmarks_px: F32
    score: float
    agreement: float
    again_px: F32 | None = None
    box_px: Box | None = None
    wears: float | None = None


class Finder(ABC):
    """Looks for faces in frames, and follows them from frame to frame. Subclasses have the networks.

    Args:
        canvas: reads the frames.

    Attributes:
        slips: whether its points may slip off a face in doubt from one frame to the next.
        overviews: views of the whole frame.
        tiles: views of its parts, for small faces; none where the frame is small.
        margins: views of more than the whole frame, for faces that it cuts off.
        detector_runs: how often a detector has run.
    """

    slips: ClassVar[bool] = False
    overviews: list[View]
    tiles: list[View]
    margins: list[View]

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas
        self.detector_runs = 0

    @abstractmethod
    def search(self, frame: Frame, view: View) -> list[Detection]:
        """Proposals, in px of the frame, best first: most faces in the view, and things that look like one."""

    @abstractmethod
    def around(self, centre_px: F64, size_px: float) -> View:
        """The view to look for a face of about `size_px` in that should be at `centre_px`."""

    def search_around(self, frame: Frame, centre_px: F64, size_px: float) -> list[Detection]:
        """Proposals for a face of about `size_px` that should be at `centre_px`, best first."""
        found = self.search(frame, self.around(centre_px, size_px))
        return [d for d in found if is_about(d.box_px, centre_px, size_px)]

    @abstractmethod
    def points(self, frame: Frame, roi: F64) -> tuple[F32, bool]:
        """The points of the face in a region of the frame (`region`, or `roi_from_detection`), as
        `unmask.stream.frame.Face.landmarks_px`; False where there plainly is none."""

    @abstractmethod
    def look(self, frame: Frame, landmarks_px: F32) -> Sighting:
        """Check points in upright close-ups."""

    @staticmethod
    def region(landmarks_px: F32) -> F64:
        """The region that the network of points should look at, for a face with these (468, 3) landmarks: (2, 3)."""
        return upright_roi(landmarks_px)

    def follow(self, frame: Frame, landmarks_px: F32) -> tuple[F32, bool]:
        """The points of the face that was, or is expected, at `landmarks_px`; False where there plainly is none."""
        return self.points(frame, self.region(landmarks_px))

    def fit(self, frame: Frame, proposal: Detection) -> Sighting:
        """Find the points of a proposal, and look closely: twice, and a third time where that leaves doubt."""
        landmarks_px, there = self.points(frame, roi_from_detection(proposal))
        if not there:
            return Sighting(landmarks_px, 0.0, 0.0)
        latest = best = self.look(frame, landmarks_px)
        for doubt in (1.0, _DOUBT):
            if max(best.score, best.agreement) < _HOPELESS or best.score > doubt:
                break
            # The points frame a face better than a detector does, except in profile, where they may drift off.
            again_px = latest.again_px
            if again_px is None:
                again_px, _ = self.follow(frame, latest.landmarks_px)
            latest = self.look(frame, again_px)
            best = max(latest, best, key=lambda s: s.score + s.agreement)
        return self._steadied(frame, best)

    def _steadied(self, frame: Frame, sighting: Sighting) -> Sighting:
        """A sighting, or, where it leaves little doubt, with the mean of three looks for its points, which differ with
        where they begin."""
        if sighting.again_px is None or sighting.score < _DOUBT:
            return sighting
        third_px, _ = self.follow(frame, sighting.again_px)
        mean_px = (sighting.landmarks_px + sighting.again_px + third_px) / np.float32(3)
        return sighting._replace(landmarks_px=mean_px)

    def appearance(self, frame: Frame, landmarks_px: F32) -> F32:
        """What a head, with its hair and collar, has of each colour: (N,) float32 of unit length, to tell people apart
        by its dot product."""
        size = _APPEARANCE_PX
        view = closer(self.region(landmarks_px), _APPEARANCE_SHARE / MESH_SHARE, size)
        hsv = cv2.cvtColor(self.picture(frame, view, (size, size)), cv2.COLOR_RGB2HSV)
        histogram = cv2.calcHist([hsv], [0, 1, 2], None, [8, 4, 4], [0, 180, 0, 256, 0, 256]).reshape(-1)
        return np.asarray(np.sqrt(histogram / histogram.sum()), np.float32)

    def picture(self, frame: Frame, view_from_frame: F64, size: tuple[int, int]) -> U8:
        """A view of the frame: (height, width, 3) uint8 RGB."""
        picture = np.empty((*size, 3), np.uint8)
        self._canvas.crop(frame, view_from_frame, picture)
        return picture


def points_box(landmarks_px: F32) -> Box:
    """(x0, y0, x1, y1) around the points."""
    low, high = cv2.reduce(landmarks_px, 0, cv2.REDUCE_MIN)[0], cv2.reduce(landmarks_px, 0, cv2.REDUCE_MAX)[0]
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def box_centre(box: Box) -> F64:
    """(2,) float64, the middle of (x0, y0, x1, y1)."""
    return np.array([box[0] + box[2], box[1] + box[3]]) / 2


def box_size(box: Box) -> float:
    """The longer side of (x0, y0, x1, y1)."""
    return max(box[2] - box[0], box[3] - box[1])


def box_around(centre_px: F64, side_px: float) -> Box:
    """The square with a centre and a side, px."""
    x, y, half = float(centre_px[0]), float(centre_px[1]), side_px / 2
    return (x - half, y - half, x + half, y + half)


def is_about(box: Box, centre_px: F64, size_px: float) -> bool:
    """True where a detector's box may be of the face that is expected."""
    ratio = box_size(box) / size_px
    return bool(np.linalg.norm(box_centre(box) - centre_px) < size_px) and 0.5 < ratio < 1.8


def probability(odds: float) -> float:
    """The inverse of `log_odds`."""
    return 1.0 / (1.0 + math.exp(-odds))


def log_odds(probability: float) -> float:
    """Of a probability, within what a thousand looks could tell."""
    clipped = min(max(probability, 1e-3), 1 - 1e-3)
    return math.log(clipped / (1 - clipped))


def score_of(seen: Detection | None) -> float:
    """Of a detection; 0 where nothing was seen."""
    return seen.score if seen else 0.0


def size_error(landmarks_px: F32, seen: Detection | None, usual: float) -> float:
    """How far points and detection differ in size, as a logarithm, 1 at most and where nothing was seen; `usual` is the
    usual size of the detector's box, in sizes of the mesh's."""
    if seen is None:
        return 1.0
    ratio = box_size(seen.box_px) / max(box_size(points_box(landmarks_px)), 1e-6)
    return min(abs(math.log(ratio / usual)), 1.0)


def closer(roi: F64, zoom: float, size: int) -> F64:
    """The view of `size` px that shows the middle of the mesh's region, `zoom` times as close as the mesh sees it."""
    zoom *= size / MESH_SIZE
    view = zoom * roi
    view[:, 2] += (size - zoom * MESH_SIZE) / 2
    return view


def moved(detection: Detection, target_from_source: F64) -> Detection:
    """A detection through a similarity. Its box stays upright, and takes as much of the other side's length as it was
    turned."""
    box, linear = detection.box_px, target_from_source[:, :2]
    points = np.vstack([box_centre(box), detection.keypoints_px]).astype(np.float32)
    placed = transform_points(target_from_source, points)
    half = np.abs(linear) ** 2 @ (box[2] - box[0], box[3] - box[1]) / math.sqrt(abs(np.linalg.det(linear))) / 2
    (x0, y0), (x1, y1) = placed[0] - half, placed[0] + half
    return Detection((float(x0), float(y0), float(x1), float(y1)), placed[1:], detection.score, detection.kinds)
