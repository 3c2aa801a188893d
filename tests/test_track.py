"""Following faces, on moving pictures made from matplotlib's sample portrait."""

import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest
from faces import Portrait

from unmask.models.detections import Detection
from unmask.models.geometry import transform_points
from unmask.models.mediapipe import FaceDetector, FaceMesh, find_landmarks
from unmask.stream.canvas import Canvas
from unmask.stream.face_finder import Sighting, box_size, moved, points_box
from unmask.stream.face_track import FaceTrack
from unmask.stream.frame import Face, Frame, Layout
from unmask.stream.masked_finder import MaskedFinder
from unmask.stream.one_euro import OneEuro, OneEuroSettings
from unmask.stream.pipeline import Settings, face_stages
from unmask.stream.stage import Context, Stage
from unmask.stream.stages.track import Track
from unmask.stream.trackers import DEFAULT_TRACKER, Tracker

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

WIDTH, HEIGHT, FPS = 640, 480, 25
LAYOUT = Layout(WIDTH, HEIGHT, "rgb24")
MAX_FACES = 4
GOLDEN = Path(__file__).parent / "golden" / "mediapipe_grace_hopper.json"
EYES_PX = (229.0, 308.0)
"""Outer eye corners of the portrait in x, px; the scale that errors are measured on is their distance."""


def placed(x: float, y: float, scale: float = 0.6, radians: float = 0.0) -> F64:
    """The map from the portrait to a frame that puts the middle of its face at x, y."""
    cos, sin = scale * np.cos(radians), scale * np.sin(radians)
    linear = np.array([[cos, -sin], [sin, cos]])
    return np.column_stack([linear, np.array([x, y]) - linear @ (268.0, 245.0)])


def picture(rgb: U8, *places: F64, background: int = 90) -> U8:
    """A frame-sized picture with the head of the portrait at each of `places`."""
    canvas = np.full((HEIGHT, WIDTH, 3), background, np.uint8)
    head = cv2.ellipse(np.zeros(rgb.shape[:2], np.uint8), (268, 240), (135, 190), 0, 0, 360, 255, -1)
    for place in places:
        shown = cv2.warpAffine(rgb, place, (WIDTH, HEIGHT), flags=cv2.INTER_AREA)
        alpha = cv2.warpAffine(head, place, (WIDTH, HEIGHT))[..., None] > 127
        canvas = np.where(alpha, shown, canvas).astype(np.uint8)
    return canvas


class Camera:
    """Gives pictures to the stage as frames, and remembers what it found, and how often a detector ran for it."""

    def __init__(self, stage: Stage | None = None, layout: Layout = LAYOUT, tracker: Tracker = DEFAULT_TRACKER) -> None:
        self.layout = layout
        self.stage = stage or Track(max_faces=MAX_FACES, tracker=tracker)
        self.stage.open(Context(self.layout, MAX_FACES))
        self.frames: list[Frame] = []
        self.runs: list[int] = []

    def show(self, rgb: U8, discontinuity: bool = False) -> list[Face]:
        index = len(self.frames)
        buffer = np.zeros(self.layout.slot_bytes(MAX_FACES), np.uint8)
        frame = Frame(index, index, Fraction(1, FPS), self.layout, buffer, 0, discontinuity)
        frame.planes[0][...] = rgb
        assert list(self.stage.process(frame)) == [frame]
        self.frames.append(frame)
        self.runs.append(self.stage.summary()["detector_runs"] - sum(self.runs))
        return frame.faces


def ids(faces: list[Face]) -> list[int]:
    return sorted(face.track_id for face in faces)


def test_the_networks_find_what_mediapipe_finds(portrait: Portrait) -> None:
    golden = json.loads(GOLDEN.read_text())
    ((detection, landmarks, _),) = find_landmarks(portrait.bare, FaceDetector(), FaceMesh(), rounds=1)
    assert detection.score == pytest.approx(golden["score"], abs=0.02)
    x0, _, x1, _ = golden["box_px"]
    assert np.allclose(detection.box_px, golden["box_px"], atol=0.04 * (x1 - x0))
    expected = np.array(golden["landmarks_px"])
    eye_distance = np.linalg.norm(expected[33, :2] - expected[263, :2])
    error = np.linalg.norm(landmarks[:, :2] - expected[:, :2], axis=1)
    assert error.mean() < 0.01 * eye_distance


def test_the_stage_gives_the_points_of_mediapipe(portrait: Portrait) -> None:
    place = placed(300, 230, 0.9)
    (face,) = Camera(tracker=Tracker.MEDIAPIPE).show(picture(portrait.bare, place))
    expected = transform_points(place, np.asarray(json.loads(GOLDEN.read_text())["landmarks_px"], np.float32))
    eye_distance = np.linalg.norm(expected[33] - expected[263])
    assert np.linalg.norm(face.landmarks_px[:, :2] - expected, axis=1).mean() < 0.04 * eye_distance
    assert face.reset
    assert face.score > 0.8
    x0, y0, x1, y1 = face.box_px
    assert x0 < 300 < x1
    assert y0 < 230 < y1


def test_what_is_seen_of_a_neighbour_proves_nothing(portrait: Portrait, monkeypatch: pytest.MonkeyPatch) -> None:
    place = placed(320, 230, 0.5)
    flat = transform_points(place, portrait.landmarks)
    points = np.column_stack([flat, 0.5 * portrait.landmarks[:, 2]])
    frame = Frame(0, 0, Fraction(1, FPS), LAYOUT, np.zeros(LAYOUT.slot_bytes(MAX_FACES), np.uint8), 0)
    frame.planes[0][...] = picture(portrait.masked, place)
    finder = MaskedFinder(LAYOUT, Canvas(LAYOUT))
    alone = finder.evidence(frame, points)
    size = np.ptp(points[:, 1])
    (seen,) = finder.search_around(frame, points[:, :2].mean(axis=0), size)
    x0, y0, x1, y1 = seen.box_px
    aside = 0.8 * size
    points_aside = seen.keypoints_px + np.float32([aside, 0])
    neighbour = Detection((x0 + aside, y0, x1 + aside, y1), points_aside, 0.99, seen.kinds)
    search = finder.search
    monkeypatch.setattr(finder, "search", lambda *arguments: [neighbour, *search(*arguments)])
    np.testing.assert_array_equal(finder.evidence(frame, points), alone)


def test_a_detection_goes_through_a_turn() -> None:
    points = np.array([[10, 20], [30, 20], [20, 30], [14, 40], [26, 40]], np.float32)
    upright = Detection((0.0, 0.0, 40.0, 60.0), points, 0.9)
    larger = moved(upright, np.array([[2.0, 0, 5], [0, 2.0, 7]]))
    assert larger.box_px == pytest.approx((5, 7, 85, 127))
    np.testing.assert_allclose(larger.keypoints_px, 2 * points + (5, 7))
    quarter = moved(upright, np.array([[0, -1.0, 0], [1.0, 0, 0]]))
    assert quarter.box_px == pytest.approx((-60, 0, 0, 40)), "lies on its side"
    half = np.sqrt(0.5)
    eighth = moved(upright, np.array([[half, -half, 0], [half, half, 0]]))
    assert np.ptp(np.reshape(eighth.box_px, (2, 2)), axis=0) == pytest.approx((50, 50))


@pytest.mark.parametrize("masked", [False, True])
def test_the_tracker_knows_who_wears_a_mask(portrait: Portrait, masked: bool) -> None:
    camera = Camera()
    for _ in range(3):
        (face,) = camera.show(picture(portrait.masked if masked else portrait.bare, placed(320, 230, 0.8)))
        assert face.wears is not None
        assert face.looks_masked == masked
        assert masked or face.wears < 0.5


def test_whether_a_mask_is_worn_is_a_mean_of_the_last_looks(portrait: Portrait) -> None:
    def sighting(wears: float | None) -> Sighting:
        return Sighting(portrait.landmarks, 1.0, 1.0, wears=wears)

    track = FaceTrack(0, sighting(None), 0.0, True, np.ones(1, np.float32))
    assert track.wears is None
    for seen, expected in ((0.8, 0.8), (0.0, 0.4), (None, 0.4), (1.0, 0.7)):
        track.confirm(sighting(seen))
        assert track.wears == pytest.approx(expected)


def test_the_box_of_a_face_lies_between_its_points_and_the_detector(portrait: Portrait) -> None:
    camera = Camera()
    place = placed(320, 230, 0.8)
    for _ in range(3):
        (face,) = camera.show(picture(portrait.masked, place))
    finder = MaskedFinder(LAYOUT, Canvas(LAYOUT))
    seen = finder.look(camera.frames[-1], face.landmarks_px).box_px
    assert seen is not None
    points = np.array(points_box(face.landmarks_px))
    half_way = (points + np.array(seen)) / 2
    assert np.abs(half_way - points).max() > 2, "they differ"
    np.testing.assert_allclose(face.box_px, half_way, atol=3)


@pytest.mark.parametrize("tracker", Tracker)
@pytest.mark.parametrize("masked", [False, True])
def test_a_moving_face_keeps_its_identity_and_its_crop(portrait: Portrait, masked: bool, tracker: Tracker) -> None:
    camera, in_portrait = Camera(tracker=tracker), []
    rgb = portrait.masked if masked else portrait.bare
    for i in range(40):
        seconds = i / FPS
        place = placed(
            320 + 120 * np.sin(3 * seconds), 240, 0.7 + 0.15 * np.sin(4 * seconds), 0.25 * np.sin(5 * seconds)
        )
        (face,) = camera.show(picture(rgb, place))
        assert face.track_id == 0
        assert face.reset == (i == 0)
        frame_from_crop = np.linalg.inv(np.vstack([face.crop_from_frame, (0, 0, 1)]))
        portrait_from_crop = (np.linalg.inv(np.vstack([place, (0, 0, 1)])) @ frame_from_crop)[:2]
        in_portrait.append(
            transform_points(portrait_from_crop, np.array([(64, 64), (192, 64), (128, 192)], np.float32))
        )
    # The crop shows the same part of the portrait all the time: no lag, no jitter. Peak speed is 360 px/s.
    wander = np.linalg.norm(np.array(in_portrait) - np.median(in_portrait, axis=0), axis=-1)
    assert wander.mean() < 0.04 * (EYES_PX[1] - EYES_PX[0])
    assert not any(frame.discontinuity for frame in camera.frames)


def test_the_crop_of_a_still_face_is_steady_under_noise(portrait: Portrait) -> None:
    rng, camera, crops = np.random.default_rng(3), Camera(), []
    still = picture(portrait.bare, placed(320, 240, 0.8)).astype(np.float64)
    for _ in range(25):
        (face,) = camera.show(np.clip(still + rng.normal(0, 2.5, still.shape), 0, 255).astype(np.uint8))
        crops.append(face.crop_from_frame @ (320, 200, 1))
    jumps = np.linalg.norm(np.diff(crops[5:], axis=0), axis=1)
    assert jumps.mean() < 0.3


def test_two_faces_keep_their_identities_and_the_larger_comes_first(portrait: Portrait) -> None:
    camera = Camera()
    for i in range(20):
        faces = camera.show(picture(portrait.bare, placed(170 + 2 * i, 240, 0.5), placed(480 - 2 * i, 240, 0.65)))
        assert len(faces) == 2
        assert faces[0].crop_from_frame[0, 0] < faces[1].crop_from_frame[0, 0]
        large, small = faces
        assert large.landmarks_px[:, 0].mean() > small.landmarks_px[:, 0].mean()
        assert ids(faces) == [0, 1]
    assert camera.stage.summary()["most_at_once"] == 2


@pytest.mark.parametrize(
    ("place", "score", "given"),
    [((300, 370), 0.75, False), ((300, 370), 0.95, True), ((540, 370), 0.75, True), ((560, 150), 0.75, True)],
)
def test_what_may_be_an_emblem_on_a_chest_is_no_face(
    portrait: Portrait, monkeypatch: pytest.MonkeyPatch, place: tuple[int, int], score: float, given: bool
) -> None:
    """A small face below a large one is taken for a print if it leaves doubt; beside it, or beyond doubt, it counts."""
    fit = MaskedFinder.fit

    def doubtful(finder: MaskedFinder, frame: Frame, proposal: Detection) -> Sighting:
        sighting = fit(finder, frame, proposal)
        return sighting._replace(score=score) if box_size(points_box(sighting.landmarks_px)) < 60 else sighting

    monkeypatch.setattr(MaskedFinder, "fit", doubtful)
    faces = Camera().show(picture(portrait.bare, placed(300, 170, 0.7), placed(*place, 0.25)))
    assert len(faces) == 1 + given


def test_only_the_largest_faces_are_given(portrait: Portrait) -> None:
    camera = Camera(Track(max_faces=1))
    (face,) = camera.show(picture(portrait.bare, placed(170, 240, 0.5), placed(480, 240, 0.65)))
    assert face.landmarks_px[:, 0].mean() > 400


def test_of_two_faces_of_one_size_neither_flickers_where_one_is_given(portrait: Portrait) -> None:
    camera = Camera(Track(max_faces=1))
    shown = []
    for index in range(12):
        wobble = 0.02 if index % 2 else -0.02
        places = placed(170, 240, 0.6 + wobble), placed(480, 240, 0.6 - wobble)
        shown += [face.track_id for face in camera.show(picture(portrait.bare, *places))]
    assert len(shown) == 12
    assert len(set(shown)) == 1
    larger = [camera.show(picture(portrait.bare, placed(170, 240, 0.45), placed(480, 240, 0.75))) for _ in range(12)]
    assert larger[-1][0].landmarks_px[:, 0].mean() > 400


def test_a_cut_resets_everything(portrait: Portrait) -> None:
    camera = Camera()
    for _ in range(5):
        camera.show(picture(portrait.bare, placed(200, 240)))
    inverted = 255 - picture(portrait.bare)
    (face,) = camera.show(picture(portrait.bare, placed(450, 200, 0.7), background=int(inverted[0, 0, 0])))
    assert camera.frames[-1].discontinuity
    assert face.reset
    assert face.track_id == 1
    assert camera.stage.summary()["scene_cuts"] == 1
    assert not any(frame.discontinuity for frame in camera.frames[:-1])


def crowd(rgb: U8) -> U8:
    """A 720p picture with three faces of different sizes, the smallest for the tiles alone."""
    whole = np.full((720, 1280, 3), 90, np.uint8)
    for x, y, scale in ((60, 40, 0.8), (660, 60, 0.55), (700, 300, 0.4)):
        whole[y : y + 420, x : x + 500] = picture(rgb, placed(250, 230, scale))[:420, :500]
    return whole


@pytest.mark.parametrize("cut_at", [0, 25])
def test_a_live_scene_costs_no_frame_much_and_ends_up_with_the_same_faces(portrait: Portrait, cut_at: int) -> None:
    rgb, layout = crowd(portrait.masked), Layout(1280, 720, "rgb24")
    whole, live = (Camera(face_stages(Settings(max_faces=MAX_FACES), live=live)[0], layout) for live in (False, True))
    at_once = whole.show(rgb)
    assert len(at_once) == 3
    assert whole.runs[0] >= 6 + 2 * 3  # six views, and closer looks at each face
    for i in range(cut_at + 25):
        live.show(rgb, discontinuity=0 < i == cut_at)
    assert max(live.runs) <= 5  # a view and a closer look, or checks of known faces
    scene = [len(frame.faces) for frame in live.frames[cut_at:]]
    assert scene[0] == 1
    assert scene == sorted(scene)
    assert scene[20 - 1] == 3  # each view twice at most
    for found, expected in zip(live.frames[-1].faces, at_once, strict=True):
        apart = np.linalg.norm(found.landmarks_px[:, :2] - expected.landmarks_px[:, :2], axis=1)
        assert apart.mean() < 0.1 * (expected.box_px[2] - expected.box_px[0])


def test_live_faces_in_doubt_wait_for_their_turn_and_keep_their_identities(portrait: Portrait) -> None:
    rgb, layout = crowd(portrait.masked), Layout(1280, 720, "rgb24")
    whole, live = (Camera(face_stages(Settings(max_faces=MAX_FACES), live=live)[0], layout) for live in (False, True))
    for camera in (whole, live):
        for i in range(40):
            camera.show(np.full_like(rgb, 90) if 25 <= i < 30 else rgb)
    assert max(whole.runs[25:]) > 5  # all three are looked for at once
    assert max(live.runs) <= 5
    assert live.stage.summary()["looks_put_off"] > 0
    assert whole.stage.summary()["looks_put_off"] == 0
    for camera in (whole, live):
        assert ids(camera.frames[24].faces) == ids(camera.frames[-1].faces) == [0, 1, 2]


def test_a_discontinuity_from_upstream_resets_everything(portrait: Portrait) -> None:
    camera, rgb = Camera(), picture(portrait.bare, placed(200, 240))
    camera.show(rgb)
    (face,) = camera.show(rgb, discontinuity=True)
    assert face.reset
    assert face.track_id == 1


def test_a_flash_is_no_cut(portrait: Portrait) -> None:
    camera, rgb = Camera(), picture(portrait.bare, placed(200, 240))
    for gain in (1.0, 1.0, 1.3, 1.0, 1.0):
        faces = camera.show(np.clip(rgb * gain, 0, 255).astype(np.uint8))
        assert ids(faces) == [0]


def test_our_own_tracker_needs_no_network_of_mediapipe(portrait: Portrait, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: str, threads: int) -> None:
        raise AssertionError(f"{file} is not needed")

    monkeypatch.setattr("unmask.models.mediapipe._compile", refuse)
    camera = Camera(tracker=Tracker.UNMASK)
    for _ in range(12):
        (face,) = camera.show(picture(portrait.masked, placed(320, 240)))
    assert face.score > 0.8


@pytest.mark.parametrize("tracker", Tracker)
def test_a_face_that_leaves_is_given_no_more(portrait: Portrait, tracker: Tracker) -> None:
    camera = Camera(tracker=tracker)
    for i in range(45):
        camera.show(picture(portrait.bare, placed(320 + 16 * i, 240)))
    assert all(ids(frame.faces) == [0] for frame in camera.frames[:16])
    assert not any(frame.faces for frame in camera.frames[-10:])


@pytest.mark.parametrize("tracker", Tracker)
def test_a_face_that_is_hidden_for_a_moment_keeps_its_identity(portrait: Portrait, tracker: Tracker) -> None:
    camera = Camera(tracker=tracker)
    shown, hidden = picture(portrait.bare, placed(320, 240)), picture(portrait.bare)
    for i in range(40):
        camera.show(hidden if 10 <= i < 22 else shown)
    found = [ids(frame.faces) for frame in camera.frames]
    assert found[9] == found[30] == [0]
    assert [] in found[10:22]
    again = next(frame for frame in camera.frames[22:] if frame.faces)
    assert again.faces[0].reset
    assert again.index < 30


@pytest.mark.parametrize("tracker", Tracker)
def test_a_late_face_is_found_soon(portrait: Portrait, tracker: Tracker) -> None:
    camera = Camera(tracker=tracker)
    for i in range(30):
        camera.show(picture(portrait.masked, *([placed(400, 220)] if i >= 10 else [])))
    first = next(frame.index for frame in camera.frames if frame.faces)
    assert 10 <= first <= 20


@pytest.mark.parametrize("tracker", Tracker)
def test_no_face_is_found_where_there_is_none(tracker: Tracker) -> None:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    for grey in (np.full_like(x, 128), x * 255 // WIDTH, 255 * (x // 20 % 2), 255 * ((x // 32 + y // 32) % 2)):
        camera, rgb = Camera(tracker=tracker), np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
        assert not any(camera.show(rgb) for _ in range(6))


@pytest.mark.parametrize("tracker", Tracker)
def test_what_only_resembles_a_face_is_dropped_soon(portrait: Portrait, tracker: Tracker) -> None:
    camera, medals = Camera(tracker=tracker), cv2.resize(portrait.bare[400:], (WIDTH, HEIGHT))
    for _ in range(20):
        camera.show(np.asarray(medals, np.uint8))
    assert not camera.frames[-1].faces


def test_one_euro_rests_and_follows() -> None:
    rng, settings = np.random.default_rng(0), OneEuroSettings(min_cutoff_hz=0.5, beta=45.0, speed_cutoff_hz=2.0)
    noise = rng.normal(0, 0.5, (100, 2))
    steady = run_filter(settings, lambda i: noise[i])
    assert steady[20:].std() < 0.7 * noise[20:].std()
    ramp = run_filter(settings, lambda i: np.full(2, 20.0 * i))
    assert np.abs(ramp[50:] - 20.0 * np.arange(50, 100)[:, None]).max() < 4.0


def run_filter(settings: OneEuroSettings, signal: Callable[[int], F64]) -> F64:
    """100 filtered samples at 25 Hz, of a thing 100 px large."""
    smooth = OneEuro(settings, signal(0), 0.0)
    return np.array([signal(0), *(smooth(signal(i), i / FPS, unit=100.0) for i in range(1, 100))])


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "people", "frames", "tracker"),
    [
        ("looking-down-404p.mp4", 1, 60, Tracker.MEDIAPIPE),
        ("looking-down-404p.mp4", 1, 60, Tracker.UNMASK),
        ("handheld-yaw-544p.mp4", 1, 160, Tracker.MEDIAPIPE),
        ("handheld-yaw-544p.mp4", 1, 160, Tracker.UNMASK),
        ("four-people-506p.mp4", 4, 40, Tracker.MEDIAPIPE),
        ("four-people-506p.mp4", 4, 40, Tracker.UNMASK),
    ],
)
def test_real_masked_people_are_followed(shared: Path, name: str, people: int, frames: int, tracker: Tracker) -> None:
    stage, found = None, []
    for frame in read_video(shared / "data" / "videos" / "masked" / name, frames):
        if stage is None:
            stage = Track(tracker=tracker)
            stage.open(Context(frame.layout))
        stage.process(frame)
        found.append({face.track_id for face in frame.faces})
    always = set.intersection(*found)
    assert len(always) >= people


@pytest.mark.shared
@pytest.mark.parametrize("spread", [False, True])
def test_a_face_is_found_where_it_has_gone_between_frames_that_are_far_apart(shared: Path, *, spread: bool) -> None:
    """A slow camera or machine: nothing is given where the face was."""
    stage, found = None, []
    for frame in read_video(shared / "data" / "videos" / "masked" / "handheld-yaw-544p.mp4", 86):
        if frame.index % 5:
            continue
        if stage is None:
            stage = Track(spread=spread)
            stage.open(Context(frame.layout))
        stage.process(frame)
        found.append(list(frame.faces))
    assert len(found) == 18
    assert {len(faces) for faces in found[2:]} == {1}, "at first a car is in doubt, too"
    assert len({faces[0].track_id for faces in found[2:]}) == 1


def read_video(path: Path, count: int) -> Iterator[Frame]:
    with av.open(str(path)) as container:
        for index, source in zip(range(count), container.decode(video=0), strict=False):
            rgb = source.to_ndarray(format="rgb24")
            layout = Layout(source.width, source.height, "rgb24")
            buffer = np.zeros(layout.slot_bytes(8), np.uint8)
            frame = Frame(index, index, Fraction(1, FPS), layout, buffer, 0)
            frame.planes[0][...] = rgb
            yield frame


def test_people_who_cross_keep_their_identities(portrait: Portrait) -> None:
    """Two people in clothes and light of their own walk past each other, one behind the other."""
    tinted = (portrait.masked * np.array([0.65, 0.9, 1.0])).astype(np.uint8)
    camera = Camera()
    for i in range(60):
        behind, front = placed(140 + 6 * i, 240, 0.45), placed(500 - 6 * i, 250, 0.55)
        camera.show(over(picture(portrait.masked, behind), tinted, front))
    left, right = sorted(camera.frames[2].faces, key=lambda face: face.box_px[0])
    last_left, last_right = sorted(camera.frames[-1].faces, key=lambda face: face.box_px[0])
    assert (last_left.track_id, last_right.track_id) == (right.track_id, left.track_id)


def over(canvas: U8, rgb: U8, place: F64) -> U8:
    """Another head in front of what a picture shows."""
    empty = picture(rgb)
    shown = picture(rgb, place)
    return np.where((shown != empty).any(axis=2, keepdims=True), shown, canvas).astype(np.uint8)
