"""Finding the face of a single picture with the same finder that follows faces through a video."""

from fractions import Fraction
from typing import Final

import cv2
import numpy as np

from unmask.models.detections import Detection
from unmask.models.geometry import canonical_crop
from unmask.stream.canvas import Canvas
from unmask.stream.frame import F32, F64, U8, Frame, Layout
from unmask.stream.stage import Context
from unmask.stream.stages.track import FINDERS, Track
from unmask.stream.trackers import DEFAULT_TRACKER, Tracker

_PAD: Final = 0.35
"""The border is repeated this far around the picture (of its larger side): a face may fill it, or be cut off by it."""


_MAX_FACES: Final = 8

_SMALLEST: Final = 0.45
"""A face that fills the picture is at least this wide or high, in sizes of the picture."""

# Where the six keypoints of a detection lie in a face that fills its box: eyes, nose, mouth, ears.
_USUAL: Final = np.array([[0.3, 0.35], [0.7, 0.35], [0.5, 0.55], [0.5, 0.75], [0.05, 0.4], [0.95, 0.4]], np.float32)


def crop_of_portrait(rgb: U8) -> F64 | None:
    """The canonical crop of the face that fills a picture, as data sets of faces have them.

    Args:
        rgb: (H, W, 3) uint8; the face may touch the border or be cut off by it.

    Returns:
        (2, 3) float64 map from picture px to crop px; None where nothing of that size looks like a face.
    """
    pad = round(_PAD * max(rgb.shape[:2]))
    padded = np.ascontiguousarray(cv2.copyMakeBorder(rgb, pad, pad, pad, pad, cv2.BORDER_REPLICATE), np.uint8)
    layout = Layout(padded.shape[1], padded.shape[0], "rgb24")
    frame = Frame(0, 0, Fraction(1), layout, padded.reshape(-1), 0)
    finder = FINDERS[DEFAULT_TRACKER](layout, Canvas(layout))
    height, width = rgb.shape[:2]
    whole = (float(pad), float(pad), float(pad + width), float(pad + height))
    proposals = [Detection(whole, _USUAL * (width, height) + np.float32(pad), 0.0)]
    proposals += [proposal for view in finder.overviews for proposal in finder.search(frame, view)]
    sightings = [finder.fit(frame, proposal) for proposal in proposals]
    sightings = [s for s in sightings if np.ptp(s.landmarks_px[:, :2], axis=0).max() > _SMALLEST * max(height, width)]
    if not sightings:
        return None
    landmarks = max(sightings, key=lambda s: s.score).landmarks_px
    landmarks[:, :2] -= pad
    return canonical_crop(landmarks)


def crops_of_faces(rgb: U8, smallest_px: float = 48.0) -> list[F64]:
    """The canonical crops of all faces of a picture, as the pipeline would place them.

    Args:
        rgb: (H, W, 3) uint8; the border is repeated around it, as in `crop_of_portrait`.
        smallest_px: width or height of the smallest face given.

    Returns:
        (2, 3) float64 maps from picture px to crop px, largest face first.
    """
    return [crop for crop, _ in _faces_of_picture(rgb, smallest_px, DEFAULT_TRACKER)]


def landmarks_of_faces(rgb: U8, smallest_px: float = 16.0) -> list[F32]:
    """(468, 3) float32 landmarks of the faces of a picture, in px of it, by MediaPipe's networks, which teach ours."""
    return [landmarks for _, landmarks in _faces_of_picture(rgb, smallest_px, Tracker.MEDIAPIPE)]


def _faces_of_picture(rgb: U8, smallest_px: float, tracker: Tracker) -> list[tuple[F64, F32]]:
    """Canonical crop and landmarks of each face."""
    pad = round(_PAD * max(rgb.shape[:2]))
    padded = np.ascontiguousarray(cv2.copyMakeBorder(rgb, pad, pad, pad, pad, cv2.BORDER_REPLICATE), np.uint8)
    layout = Layout(padded.shape[1], padded.shape[0], "rgb24")
    context = Context(layout, _MAX_FACES)
    frame = Frame(0, 0, Fraction(1), layout, np.zeros(layout.slot_bytes(context.max_faces), np.uint8), 0)
    frame.planes[0][...] = padded
    track = Track(max_faces=_MAX_FACES, tracker=tracker)
    track.open(context)
    found = []
    for face in (face for given in track.process(frame) for face in given.faces):
        x0, y0, x1, y1 = face.box_px
        if max(x1 - x0, y1 - y0) >= smallest_px:
            moved = face.crop_from_frame.copy()
            moved[:, 2] += moved[:, :2] @ (pad, pad)
            found.append((moved, face.landmarks_px - np.array([pad, pad, 0], np.float32)))
    track.close()
    return found
