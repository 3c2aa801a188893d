"""Fits what `unmask.stream.masked_finder` believes of a face: the weights `_FACE` and `_PLACED`.

    python benchmarks/judge.py --scenes SCENES [--tracker data/tracker]

Two logistic regressions over what the finder measures in training scenes with labelled boxes, to be run again whenever
the detector or the landmarker has new weights. The validation third of the scenes is not looked at. What the border of
the frame cuts off counts for itself, since few labelled faces are: its weight is fitted with the others as they are, in
the same scenes with drawn faces (of a folder that `unmask data tracker` wrote) pasted across the border.
"""

import argparse
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.models.detections import roi_from_detection
from unmask.models.geometry import transform_points
from unmask.models.rows import POINTS, overlap
from unmask.stream.canvas import Canvas
from unmask.stream.face_finder import box_centre, box_size, points_box
from unmask.stream.frame import Frame, Layout
from unmask.stream.masked_finder import _FACE, _PLACED, MaskedFinder
from unmask.stream.stages.track import distinct
from unmask.train.data import read_rgb
from unmask.train.detector import Picture, paste_faces
from unmask.train.tracker_data import TrackerData, is_validation_scene, read_boxes

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Rows = list[tuple[F64, bool]]

SMALLEST: Final = 24.0
FACE: Final = 0.4
"""Overlap (IoU) with a label from which on a proposal is a face."""
NO_FACE: Final = 0.2
"""Below it there is none; between the two nothing is learnt."""
AWAY: Final = 0.08
"""Mean distance up to which points are back on the face, in sizes of the face; from twice that on they are not."""
DETECTOR: Final = 1
"""Column of the detector's odds. It is sure of a face wherever the points are, so `_PLACED` does without."""
BEYOND: Final = -1
"""Column of what lies beyond the border of the frame."""
PASTED: Final = 4
ACROSS: Final = 0.75
"""How many drawn faces a scene gets, and how many of them the border cuts off."""
PUSHES: Final = 4
"""How often each face's points are pushed off it."""


def evidence_of_proposals(finder: MaskedFinder, frame: Frame, labelled: F32) -> Iterator[tuple[F64, bool]]:
    """What is measured of each proposal of a picture, each time its points are looked at, and whether it is a face."""
    views = [*finder.overviews, *finder.margins, *finder.tiles]
    for proposal in distinct([d for view in views for d in finder.search(frame, view)]):
        landmarks, _ = finder.points(frame, roi_from_detection(proposal))
        for _ in range(2):
            best = float(overlap(np.array([points_box(landmarks)], np.float32), labelled).max(initial=0))
            large = box_size(points_box(landmarks)) >= SMALLEST
            if large and not NO_FACE <= best <= FACE:
                yield finder.evidence(frame, landmarks), best > FACE
            landmarks, _ = finder.follow(frame, landmarks)


def evidence_of_pushes(
    finder: MaskedFinder, frame: Frame, labelled: F32, rng: np.random.Generator
) -> Iterator[tuple[F64, bool]]:
    """What is measured of points that were pushed off a face and followed from there, and whether they are back."""
    views = [*finder.overviews, *finder.margins]
    for proposal in distinct([d for view in views for d in finder.search(frame, view)]):
        if float(overlap(np.array([proposal.box_px], np.float32), labelled).max(initial=0)) <= FACE:
            continue
        truth = finder.fit(frame, proposal).landmarks_px
        size = box_size(points_box(truth))
        if size < SMALLEST or float(overlap(np.array([points_box(truth)], np.float32), labelled).max()) <= 0.5:
            continue
        for _ in range(PUSHES):
            landmarks, _ = finder.follow(frame, pushed(truth, rng))
            away = float(np.linalg.norm((landmarks - truth)[:, :2], axis=1).mean()) / size
            if away <= AWAY or away >= 2 * AWAY:
                yield finder.evidence(frame, landmarks), away <= AWAY


def pushed(points: F32, rng: np.random.Generator) -> F32:
    """(468, 3) points, turned, scaled and shifted, from a little to quite beside the face."""
    middle, size = box_centre(points_box(points)), box_size(points_box(points))
    far = rng.uniform(0, 1)
    turn = cv2.getRotationMatrix2D(tuple(middle), rng.normal(0, 30) * far, float(np.exp(rng.normal(0, 0.35) * far)))
    turn[:, 2] += rng.normal(0, 0.45, 2) * far * size
    placed = transform_points(np.asarray(turn, np.float64), points)
    return np.concatenate([placed, points[:, 2:]], axis=1).astype(np.float32)


def fitted(x: F64, y: npt.NDArray[np.bool_], strength: float = 1.0) -> F64:
    """Weights of a logistic regression by Newton's method; `strength` of the pull of all but the bias towards 0."""
    pull = strength * np.eye(x.shape[1])
    pull[0, 0] = 1e-6
    weights = np.zeros(x.shape[1])
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        gradient = x.T @ (p - y) + pull @ weights
        hessian = (x * (p * (1 - p))[:, None]).T @ x + pull
        weights -= np.linalg.solve(hessian, gradient)
    return weights


def fitted_last(x: F64, y: npt.NDArray[np.bool_], weights: F64) -> float:
    """The weight of the last column, with those of the others as they are."""
    given, weight = x[:, :-1] @ weights[:-1], 0.0
    for _ in range(50):
        p = 1 / (1 + np.exp(-np.clip(given + weight * x[:, -1], -30, 30)))
        weight -= float(x[:, -1] @ (p - y) / max((p * (1 - p)) @ x[:, -1] ** 2, 1e-9))
    return weight


def report(name: str, rows: Rows, used: npt.NDArray[np.bool_]) -> None:
    x, label = np.array([row * used for row, _ in rows]), np.array([y for _, y in rows])
    weights = fitted(x, label)
    odds = x @ weights
    right = ((odds > 0) == label).mean()
    # Rank statistic: how often something true has better odds than something false.
    above = (odds[label][:, None] > odds[~label][None]).mean()
    print(f"{name}: {len(rows)} rows, {label.mean():.2f} true; right {right:.3f}, area under the curve {above:.3f}")
    print("  ", [round(float(w), 2) for w in weights], flush=True)


def gathered(pictures: Iterable[tuple[U8, F32]], rng: np.random.Generator) -> tuple[Rows, Rows]:
    """What is measured in pictures with labelled boxes (N, 4) px, for `_FACE` and for `_PLACED`."""
    faces: Rows = []
    places: Rows = []
    for rgb, boxes in pictures:
        layout = Layout(rgb.shape[1], rgb.shape[0], "rgb24")
        finder = MaskedFinder(layout, Canvas(layout))
        frame = Frame(0, 0, Fraction(1), layout, rgb.reshape(-1), 0)
        faces += evidence_of_proposals(finder, frame, boxes)
        places += evidence_of_pushes(finder, frame, boxes, rng)
    return faces, places


def with_pasted(rgb: U8, boxes: F32, drawn: TrackerData, rng: np.random.Generator) -> tuple[U8, F32]:
    """A picture and its labelled boxes with drawn faces pasted into it, most of them across its border."""
    unknown = np.full((len(boxes), POINTS, 2), np.nan, np.float32)
    picture = paste_faces(Picture(rgb, boxes, np.zeros(len(boxes), np.int64), unknown), drawn, PASTED, rng, ACROSS)
    return picture.rgb, picture.boxes


def report_beyond(faces: Rows, places: Rows) -> None:
    for title, rows, weights in (("_FACE", faces, _FACE), ("_PLACED", places, _PLACED)):
        x, y = np.array([row for row, _ in rows]), np.array([label for _, label in rows])
        weight = fitted_last(x, y, weights)
        print(f"{title}, what lies beyond the frame: {weight:.1f}")
        for low, high in ((0.0, 0.2), (0.2, 0.35), (0.35, 0.5), (0.5, 0.8)):
            part = (x[:, -1] > low) & (x[:, -1] <= high)
            before = x[part][:, :-1] @ weights[:-1]
            odds = {"0": before, "as it is": x[part] @ weights, "fitted": before + weight * x[part][:, -1]}
            for how, values in odds.items():
                kept, wrong = (values[y[part]] > 0).mean(), (values[~y[part]] > 0).mean()
                print(
                    f"  {low} to {high}, {how}: {kept:.2f} of {y[part].sum()}, {wrong:.2f} of {(~y[part]).sum()} false"
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=Path, required=True, help="folder with pictures and boxes.csv")
    parser.add_argument("--limit", type=int, default=10_000, help="scenes at most")
    parser.add_argument("--tracker", type=Path, help="folder that `unmask data tracker` wrote")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    labels = read_boxes(arguments.scenes)
    names = [name for name in sorted(labels) if not is_validation_scene(name)]
    scenes = [
        (read_rgb(arguments.scenes / name), np.array([box for _, box in labels[name]], np.float32).reshape(-1, 4))
        for name in names[: arguments.limit]
    ]
    faces, places = gathered(scenes, rng)
    everything = np.ones(len(faces[0][0]), bool)
    everything[BEYOND] = False
    report("_FACE", faces, everything)
    everything[DETECTOR] = False
    report("_PLACED", places, everything)
    if arguments.tracker is not None:
        drawn = TrackerData.open(arguments.tracker)
        report_beyond(*gathered((with_pasted(rgb, boxes, drawn, rng) for rgb, boxes in scenes), rng))


if __name__ == "__main__":
    main()
