"""Which faces the trackers find, how well their points lie, and how steadily: all of them in one run.

    python benchmarks/tracking.py --scenes SCENES --crops CROPS --textures TEXTURES --videos VIDEOS

Every part is left out whose data is not given, every tracker that `--trackers` does not name. Faces are those that the
pipeline gets (`unmask.stream.stages.track`).

scenes      pictures with labelled boxes (boxes.csv), the third that is kept for validation by the hash of its name: a
            face counts as found where a given one overlaps its box by more than 0.4 (IoU). Precision counts given faces
            of 32 px and more; faces that the labels leave out count as wrong. They are listed, by eye, in
            unlabelled.csv: the second precision leaves out what was given there. "detector alone" is one look of the
            detector at the whole picture, at the score at which it is used by itself.
pasted      bare validation faces pasted into those scenes, for bare faces.
points      validation faces with drawn masks: distance to the mesh of the bare face, over the distance of the outer eye
            corners, of the points under the mask and of those that place the crop; how far the canonical crop lies from
            where the bare face puts it (mean over its corners, px of the crop). All trackers start from the same
            disturbed place.
videos      real masked people (`CLIPS` says where how many can be seen). "tracked" is the share of frames and people
            that is covered by the identities given most often in each scene, one for each person; "other faces" counts
            what else was given, in faces and frames: an identity that changed, or no face at all. An identity is
            switched where a new one appears where another one was within the last second. Milliseconds a frame, over
            all frames and over those in which a detector ran, of frames as `unmask video` decodes them. And a frame
            held still under noise: how far points move.
"""

import argparse
import csv
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import cv2
import numpy as np
import numpy.typing as npt

from unmask.models.geometry import ANCHOR_POINTS, CROP_SIZE, canonical_crop, transform_points
from unmask.models.mediapipe import FaceDetector
from unmask.models.rows import BARE, overlap
from unmask.stream.canvas import Canvas, canvas_for
from unmask.stream.frame import Face, Frame, Layout
from unmask.stream.masked_finder import MaskedFinder
from unmask.stream.media import Orientation, probe
from unmask.stream.stage import Context
from unmask.stream.stages.decode import fill
from unmask.stream.stages.track import FINDERS, Track
from unmask.stream.trackers import Tracker
from unmask.train.data import FaceCrops, augment, read_rgb
from unmask.train.detector import Picture, paste_faces
from unmask.train.materials import load_templates
from unmask.train.tracker_data import (
    DrawnFace,
    TrackerData,
    draw_face,
    is_validation_scene,
    read_boxes,
)

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

CLASSES: Final = {">= 120 px": (120.0, 1e9), "64-120 px": (64.0, 120.0), "32-64 px": (32.0, 64.0)}
SMALLEST: Final = 32.0
FOUND: Final = 0.4
MAX_FACES: Final = 64
FPS: Final = 25
UNLABELLED: Final = Path(__file__).with_name("unlabelled.csv")
"""Real faces in the validation scenes that no label names, found by looking at everything that any tracker gave there
and no label fits: picture, x0, y0, x1, y1 px."""
UPRIGHT: Final = Orientation()
NOISE: Final = 2.5
"""Standard deviation of the noise on the still clip, of 255."""


@dataclass(frozen=True, slots=True)
class Clip:
    """Who can be seen in a video: `people` faces of 64 px and more in the frames `first` to `last`, none before. Behind
    `last` the person turns away."""

    people: int = 1
    first: int = 0
    last: int = 1_000_000


CLIPS: Final = {
    "four-people-506p.mp4": Clip(people=4),
    "glasses-vfr-audio-720p.mp4": Clip(first=281),
    "handheld-yaw-544p.mp4": Clip(last=278),
}


class Camera:
    """Gives pictures of one layout to a tracker."""

    def __init__(self, tracker: Tracker, layout: Layout) -> None:
        self.layout = layout
        self.stage = Track(max_faces=MAX_FACES, tracker=tracker)
        self.stage.open(Context(self.layout, MAX_FACES))
        self.seconds: list[float] = []
        self.detector_runs: list[int] = []

    @classmethod
    def of_rgb(cls, tracker: Tracker, rgb: U8) -> "Camera":
        return cls(tracker, Layout(rgb.shape[1], rgb.shape[0], "rgb24"))

    def show(self, picture: U8 | av.VideoFrame, orientation: Orientation = UPRIGHT) -> Frame:
        count = len(self.seconds)
        buffer = np.zeros(self.layout.slot_bytes(MAX_FACES), np.uint8)
        frame = Frame(count, count, Fraction(1, FPS), self.layout, buffer, 0)
        if isinstance(picture, av.VideoFrame):
            fill(frame, picture, orientation)
        else:
            frame.planes[0][...] = picture
        start = time.perf_counter()
        list(self.stage.process(frame))
        self.seconds.append(time.perf_counter() - start)
        self.detector_runs.append(self.stage.summary()["detector_runs"])
        return frame


def boxes_of(faces: list[Face]) -> F32:
    return np.array([face.box_px for face in faces], np.float32).reshape(-1, 4)


def size_class(box: F32) -> str | None:
    size = float((box[2:] - box[:2]).max())
    return next((name for name, (low, high) in CLASSES.items() if low <= size < high), None)


class Tally:
    """Found and missed faces by class, right and wrong ones given."""

    def __init__(self) -> None:
        self.found: dict[str, list[bool]] = defaultdict(list)
        self.right: list[bool] = []
        self.unlabelled = 0

    def add(self, given: F32, labelled: F32, kinds: list[str], unlabelled: F32 | None = None) -> None:
        both = overlap(given, labelled) if len(given) and len(labelled) else np.zeros((len(given), len(labelled)))
        for column, (box, kind) in enumerate(zip(labelled, kinds, strict=True)):
            if name := size_class(box):
                hit = bool(both[:, column].max(initial=0) > FOUND)
                self.found[f"{kind}, {name}"].append(hit)
                self.found[f"all, {name}"].append(hit)
        for row, box in enumerate(given):
            if (box[2:] - box[:2]).max() >= SMALLEST:
                self.right.append(bool(both[row].max(initial=0) > FOUND))
                if unlabelled is not None and len(unlabelled) and not self.right[-1]:
                    self.unlabelled += bool(overlap(box[None], unlabelled).max() > FOUND)

    def figures(self) -> dict[str, str]:
        rows = {f"recall, {name}": f"{np.mean(hits):.3f} of {len(hits)}" for name, hits in sorted(self.found.items())}
        if not self.right:
            return rows | {"precision": "none given"}
        right, given, known = sum(self.right), len(self.right), len(self.right) - self.unlabelled
        return rows | {
            "precision": f"{right / given:.3f} of {given}",
            "precision, without unlabelled faces": f"{right / known:.3f} of {known}",
        }


def alone(tracker: Tracker) -> Callable[[U8], list[tuple[float, float, float, float]]]:
    """A tracker's detector, looking at the whole picture once."""
    if tracker is Tracker.MEDIAPIPE:
        detector = FaceDetector("full")
        return lambda rgb: [d.box_px for d in detector(rgb, 0.5)]

    def look(rgb: U8) -> list[tuple[float, float, float, float]]:
        layout = Layout(rgb.shape[1], rgb.shape[0], "rgb24")
        finder = MaskedFinder(layout, Canvas(layout))
        frame = Frame(0, 0, Fraction(1), layout, rgb.reshape(-1), 0)
        return [d.box_px for d in finder.search(frame, finder.overviews[0], 0.4)]

    return look


def unlabelled_faces() -> dict[str, F32]:
    """The boxes of `UNLABELLED`, (N, 4) for each picture that has any."""
    found: dict[str, list[list[float]]] = defaultdict(list)
    with UNLABELLED.open(newline="") as file:
        for row in csv.DictReader(file):
            found[row["picture"]].append([float(row[side]) for side in ("x0", "y0", "x1", "y1")])
    return {name: np.array(boxes, np.float32) for name, boxes in found.items()}


def validation_scenes(folder: Path) -> Iterator[tuple[str, U8, F32, list[str]]]:
    names = ("masked", "worn wrongly", "bare")
    for name, labelled in sorted(read_boxes(folder).items()):
        if is_validation_scene(name):
            boxes = np.array([box for _, box in labelled], np.float32)
            yield name, read_rgb(folder / name), boxes, [names[kind] for kind, _ in labelled]


def faces_of_picture(tracker: Tracker, rgb: U8) -> F32:
    return boxes_of(Camera.of_rgb(tracker, rgb).show(rgb).faces)


def measure_scenes(folder: Path, trackers: Sequence[Tracker]) -> dict[str, dict[str, str]]:
    looks = {tracker: alone(tracker) for tracker in trackers}
    tallies = {name: Tally() for name in (*trackers, *(f"{name}, detector alone" for name in looks))}
    unlabelled = unlabelled_faces()
    for name, rgb, boxes, kinds in validation_scenes(folder):
        for tracker in trackers:
            tallies[tracker].add(faces_of_picture(tracker, rgb), boxes, kinds, unlabelled.get(name))
        for tracker, look in looks.items():
            seen = np.array(look(rgb), np.float32).reshape(-1, 4)
            tallies[f"{tracker}, detector alone"].add(seen, boxes, kinds, unlabelled.get(name))
    return {name: tally.figures() for name, tally in tallies.items()}


def as_data(drawn: list[DrawnFace]) -> TrackerData:
    arrays = (np.stack([getattr(d, name) for d in drawn]) for name in ("rgb", "inside", "points"))
    return TrackerData(*arrays, np.array([d.kind for d in drawn], np.uint8), ())


def measure_pasted(folder: Path, crops: Path, trackers: Sequence[Tracker]) -> dict[str, dict[str, str]]:
    """Bare validation faces, pasted at all sizes where the scenes have none."""
    faces = FaceCrops.open(crops)
    rng = np.random.default_rng(5)
    tallies = {tracker: Tally() for tracker in trackers}
    indices = iter(np.tile(faces.split(True), 4))
    for _, rgb, boxes, _ in validation_scenes(folder):
        drawn = []
        for index in (next(indices) for _ in range(3)):
            bare = augment(faces, int(index), 160, rng, 0.0)
            inside = (bare.inside * 255).astype(np.uint8)
            drawn.append(DrawnFace(np.rint(bare.rgb * 255).astype(np.uint8), inside, bare.points, BARE))
        unknown = np.full((len(boxes), 5, 2), np.nan, np.float32)
        scene = Picture(rgb, boxes, np.zeros(len(boxes), np.int64), unknown)
        pasted = paste_faces(scene, as_data(drawn), 3, rng)
        added = pasted.boxes[len(boxes) :]
        for tracker in trackers:
            tallies[tracker].add(faces_of_picture(tracker, pasted.rgb), added, ["bare"] * len(added))
    return {
        name: {k: v for k, v in tally.figures().items() if k.startswith("recall, bare")}
        for name, tally in tallies.items()
    }


def measure_points(crops: Path, textures: Path, count: int, trackers: Sequence[Tracker]) -> dict[str, dict[str, str]]:
    """Points of masked validation faces against the bare face's mesh."""
    faces, templates = FaceCrops.open(crops), load_templates(textures)
    figures: dict[str, dict[str, list[float]]] = {tracker: defaultdict(list) for tracker in trackers}
    layout = Layout(160, 160, "rgb24")
    finders = {tracker: FINDERS[tracker](layout, Canvas(layout)) for tracker in trackers}
    for seed, index in enumerate(faces.split(True)[:count]):
        rng = np.random.default_rng(seed)
        drawn = draw_face(faces, int(index), templates, rng)
        if drawn.kind == BARE:
            continue
        truth = drawn.points
        turn = cv2.getRotationMatrix2D((80, 80), float(rng.normal(0, 8)), float(np.exp(rng.normal(0, 0.1))))
        turn[:, 2] += rng.normal(0, 6, 2)
        start = np.concatenate([transform_points(turn, truth), truth[:, 2:]], axis=1).astype(np.float32)
        frame = Frame(0, 0, Fraction(1), layout, drawn.rgb.reshape(-1), 0)
        eyes = float(np.linalg.norm(truth[33] - truth[263]))  # in space, so that it holds for turned heads too
        hidden = truth[:, 1] > truth[4, 1]
        for tracker, finder in finders.items():
            points = start
            for _ in range(3):
                points, _ = finder.follow(frame, points)
            away = np.linalg.norm((points - truth)[:, :2], axis=1) / eyes
            row = figures[tracker]
            row["all points"].append(float(away.mean()))
            row["hidden points"].append(float(away[hidden].mean()))
            row["points that place the crop"].append(float(away[ANCHOR_POINTS].mean()))
            row["canonical crop, px"].append(crop_error(points, truth))
    return {
        tracker: {
            name: f"{np.mean(v):.4f} mean, {np.median(v):.4f} median, {np.percentile(v, 95):.4f} p95"
            for name, v in rows.items()
        }
        for tracker, rows in figures.items()
    }


def crop_error(points: F32, truth: F32) -> float:
    """How far the corners of the crop that some points give lie from those of the true one, px of the crop."""
    corners = np.array([(0, 0), (CROP_SIZE, 0), (0, CROP_SIZE), (CROP_SIZE, CROP_SIZE)], np.float32)
    back = cv2.invertAffineTransform(canonical_crop(truth))
    moved = transform_points(canonical_crop(points), transform_points(np.asarray(back, np.float64), corners))
    return float(np.linalg.norm(moved - corners, axis=1).mean())


def pictures_of(video: Path, limit: int) -> Iterator[av.VideoFrame]:
    with av.open(str(video)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for _, picture in zip(range(limit), container.decode(video=0), strict=False):
            yield picture


@dataclass(slots=True)
class Followed:
    """Who was given in which frames of a clip."""

    clip: Clip
    scenes: list[Counter[int]] = field(default_factory=lambda: [Counter()])
    last: dict[int, tuple[int, F32]] = field(default_factory=dict)
    shown: int = 0
    switches: int = 0
    nothing: int = 0

    def add(self, frame: Frame) -> None:
        if frame.discontinuity:
            self.scenes.append(Counter())
            self.last.clear()
        if not self.clip.first <= frame.index <= self.clip.last:
            self.nothing += len(frame.faces) if frame.index < self.clip.first else 0
            return
        self.shown += 1
        now = {face.track_id: np.array(face.box_px, np.float32) for face in frame.faces}
        self.scenes[-1].update(now.keys())
        for box in (box for track, box in now.items() if track not in self.last):
            lately = [at for other, (when, at) in self.last.items() if other not in now and frame.index - when <= FPS]
            self.switches += any(overlap(box[None], at[None])[0, 0] > FOUND for at in lately)
        self.last |= {track: (frame.index, box) for track, box in now.items()}

    def figures(self) -> dict[str, str]:
        best = sum(n for scene in self.scenes for _, n in scene.most_common(self.clip.people))
        others = sum(scene.total() for scene in self.scenes) - best + self.nothing
        wanted = self.clip.people * self.shown
        return {
            "tracked": f"{best / wanted:.4f} of {wanted}" if wanted else "nobody to be seen",
            "identity switches": str(self.switches),
            "other faces": str(others),
            "scenes": str(sum(bool(scene) for scene in self.scenes)),
        }


def measure_video(video: Path, tracker: Tracker, limit: int) -> dict[str, str]:
    clip = CLIPS.get(video.name, Clip())
    info = probe(video)
    camera = Camera(tracker, info.layout)
    followed, still = Followed(clip), "no face"
    for number, picture in enumerate(pictures_of(video, limit)):
        frame = camera.show(picture, info.orientation)
        followed.add(frame)
        if number == clip.first:
            still = held_still(upright_rgb(frame), tracker)
    work, ran = 1000 * np.array(camera.seconds[1:]), np.diff(camera.detector_runs) > 0
    return followed.figures() | {
        "detector runs": str(camera.detector_runs[-1]),
        "ms a frame": f"{work.mean():.2f} mean, {np.median(work):.2f} median, {np.percentile(work, 95):.2f} p95",
        "ms a frame with detection": f"{work[ran].mean():.2f} mean, {np.percentile(work[ran], 95):.2f} p95",
        "first frame, ms": f"{1000 * camera.seconds[0]:.1f}",
        "held still": still,
    }


def upright_rgb(frame: Frame) -> U8:
    return canvas_for(frame.layout).downscaled_rgb(frame, max(frame.layout.width, frame.layout.height))[0]


def held_still(rgb: U8, tracker: Tracker) -> str:
    """How far the points of the largest face move from frame to frame at 720p, when nothing but noise changes."""
    scale = 720 / min(rgb.shape[:2])
    rgb = np.asarray(cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    rng, camera, points = np.random.default_rng(1), Camera.of_rgb(tracker, rgb), []
    for _ in range(30):
        noisy = rgb + rng.normal(0, NOISE, rgb.shape).astype(np.float32)
        faces = camera.show(np.clip(noisy, 0, 255).astype(np.uint8)).faces
        if faces:
            points.append(faces[0].landmarks_px[:, :2].copy())
    if len(points) < 10:
        return "no face"
    steps = np.linalg.norm(np.diff(points[5:], axis=0), axis=2)
    return f"{np.median(steps):.3f} px median, {np.percentile(steps, 95):.3f} px p95"


def show(title: str, columns: dict[str, dict[str, str]]) -> None:
    print(f"\n{title}")
    for column, rows in columns.items():
        print(f"  {column}")
        for name, value in rows.items():
            print(f"    {name:38} {value}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=Path, help="folder with pictures and boxes.csv")
    parser.add_argument("--crops", type=Path, help="folder written by `unmask data crops`")
    parser.add_argument("--textures", type=Path, help="folder with mask pictures and masks.cfg")
    parser.add_argument("--videos", type=Path, help="folder of videos of masked people")
    parser.add_argument("--frames", type=int, default=100_000, help="of each video at most")
    parser.add_argument("--faces", type=int, default=400, help="validation faces at most")
    parser.add_argument("--trackers", type=Tracker, nargs="+", default=list(Tracker), help="of unmask, mediapipe")
    arguments = parser.parse_args()
    trackers = arguments.trackers
    if arguments.scenes:
        show("scenes", measure_scenes(arguments.scenes, trackers))
    if arguments.scenes and arguments.crops:
        show("pasted", measure_pasted(arguments.scenes, arguments.crops, trackers))
    if arguments.crops and arguments.textures:
        show("points", measure_points(arguments.crops, arguments.textures, arguments.faces, trackers))
    for video in sorted(arguments.videos.glob("*.mp4")) if arguments.videos else ():
        show(video.name, {t: measure_video(video, t, arguments.frames) for t in trackers})


if __name__ == "__main__":
    main()
