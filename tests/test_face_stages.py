"""segment, inpaint and smooth with the shipped networks, on the portrait."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from faces import Portrait

from unmask.models.engine import Engine, EngineChoice, NetworkName, load
from unmask.models.geometry import CROP_SIZE, canonical_crop, fit_affine, transform_points
from unmask.models.mask_region import mask_region
from unmask.models.placement import placed
from unmask.stream.frame import U8, Frame
from unmask.stream.mask_shape import MaskShape
from unmask.stream.stage import Context, Stage
from unmask.stream.stages import segment as segment_stage
from unmask.stream.stages.inpaint import Inpaint
from unmask.stream.stages.segment import Segment
from unmask.stream.stages.smooth import Smooth
from unmask.train.masks import Outline
from unmask.train.materials import draw_mask


def fresh_stages(portrait: Portrait) -> tuple[Stage, ...]:
    opened: tuple[Stage, ...] = (Segment("cpu"), Inpaint("cpu"), Smooth())
    for stage in opened:
        stage.open(Context(portrait.frame(masked=True).layout))
    return opened


@pytest.fixture
def stages(portrait: Portrait) -> tuple[Stage, ...]:
    return fresh_stages(portrait)


def run(stages: tuple[Stage, ...], frame: Frame) -> Frame:
    for stage in stages:
        (frame,) = stage.process(frame)
    return frame


def test_mask_comes_off_and_nothing_else_changes(portrait: Portrait, stages: tuple[Stage, ...]) -> None:
    frame = run(stages, portrait.frame(masked=True))
    (face,) = frame.faces
    assert face.masked
    assert face.mask_score > 0.9
    result = np.asarray(frame.planes[0])
    changed = (result != portrait.masked).any(axis=2)
    inside = portrait.coverage > 0.5
    assert changed[inside].mean() > 0.97
    # What changes outside is the mask's shadow and the soft edge: a few pixels around it.
    assert changed[~inside].mean() < 0.05
    error_before = np.abs(portrait.masked[inside].astype(int) - portrait.bare[inside]).mean()
    error_after = np.abs(result[inside].astype(int) - portrait.bare[inside]).mean()
    assert error_after < 0.6 * error_before


def test_bare_face_is_left_alone_to_the_bit(portrait: Portrait, stages: tuple[Stage, ...]) -> None:
    frame = run(stages, portrait.frame(masked=False))
    assert not frame.faces[0].masked
    np.testing.assert_array_equal(frame.planes[0], portrait.bare)


def test_frame_without_faces_is_left_alone_to_the_bit(portrait: Portrait, stages: tuple[Stage, ...]) -> None:
    frame = portrait.frame(masked=True)
    frame.faces.clear()
    np.testing.assert_array_equal(run(stages, frame).planes[0], portrait.masked)


@pytest.mark.parametrize(
    ("score", "bare_frames", "painted"), [(0.7, 0, True), (0.7, 3, True), (0.7, 8, False), (0.95, 8, True)]
)
def test_a_mask_that_passes_before_what_may_be_no_face_is_left(
    portrait: Portrait, score: float, bare_frames: int, painted: bool
) -> None:
    """What never was a certain face, and had no mask at first, may be an emblem; a certain face puts one on."""
    stage = Segment("cpu")
    stage.open(Context(portrait.frame(masked=True).layout))
    for index in range(bare_frames + 6):
        frame = portrait.frame(masked=index >= bare_frames, index=index)
        frame.faces[0].score = score
        (frame,) = stage.process(frame)
        assert index >= bare_frames or not frame.faces[0].masked
    assert frame.faces[0].masked == painted


def taken_off(
    portrait: Portrait, monkeypatch: pytest.MonkeyPatch, rows: Sequence[tuple[int, int] | None]
) -> list[bool]:
    """In which frames a mask comes off that is found in those rows of the crop."""
    stage = Segment("cpu")
    stage.open(Context(portrait.frame(masked=True).layout))
    shown: list[bool] = []
    for index, worn in enumerate(rows):
        found = np.zeros((1, CROP_SIZE, CROP_SIZE), np.uint8)
        if worn:
            found[0, slice(*worn), 70:186] = 255
        monkeypatch.setattr(stage, "_engine", lambda crops, found=found: np.repeat(found, len(crops), axis=0))
        (frame,) = stage.process(portrait.frame(masked=worn is not None, index=index))
        shown.append(frame.faces[0].masked)
    return shown


@pytest.mark.parametrize(("bare_frames", "top"), [(3, 150), (0, 150), (3, 100)])
def test_a_mask_that_comes_from_below_stays_whole_until_it_is_in_the_crop(
    portrait: Portrait, monkeypatch: pytest.MonkeyPatch, bare_frames: int, top: int
) -> None:
    """It goes on beyond the crop's lower border for two frames, and half of it would be left there. Who wore one all
    the time, a long one for instance, does not wait."""
    rows = [None] * bare_frames + [(top, CROP_SIZE)] * 2 + [(top, 220)] * 5
    shown = taken_off(portrait, monkeypatch, rows)
    first = shown.index(True)
    assert all(shown[first:])
    assert first == 0 if not bare_frames else bare_frames + 2 <= first <= bare_frames + 4


def test_a_long_mask_that_is_put_on_comes_off_after_a_while(
    portrait: Portrait, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = taken_off(portrait, monkeypatch, [None] * 3 + [(140, CROP_SIZE)] * 17)
    assert shown.index(True) == 3 + segment_stage._PUT_ON_FRAMES
    assert all(shown[3 + segment_stage._PUT_ON_FRAMES :])


def test_a_long_mask_that_is_missed_for_some_frames_does_not_wait(
    portrait: Portrait, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = (140, CROP_SIZE)
    shown = taken_off(portrait, monkeypatch, [long] * 6 + [None] * 3 + [long] * 7)
    assert all(shown[:6])
    assert not all(shown[6:9])
    assert all(shown[10:])


@pytest.mark.parametrize("rows", [(110, 220), (205, 250)], ids=["over the mouth", "below it"])
@pytest.mark.parametrize(
    ("wears", "score", "likely", "painted"),
    [
        (None, 0.7, 0.8, False),
        (0.98, 0.7, 0.8, True),
        (0.98, 0.7, 0.6, False),
        (0.98, 0.5, 0.8, False),
        (0.8, 0.7, 0.8, False),
    ],
)
def test_the_tracker_says_of_what_is_in_doubt_whether_it_is_a_masked_face(
    portrait: Portrait,
    monkeypatch: pytest.MonkeyPatch,
    rows: tuple[int, int],
    wears: float | None,
    score: float,
    likely: float,
    painted: bool,
) -> None:
    stage = Segment("cpu")
    stage.open(Context(portrait.frame(masked=True).layout))
    found = np.zeros((1, CROP_SIZE, CROP_SIZE), np.uint8)
    found[0, rows[0] : rows[1], 70:186] = round(255 * likely)
    monkeypatch.setattr(stage, "_engine", lambda crops: np.repeat(found, len(crops), axis=0))
    frame = portrait.frame(masked=True)
    frame.faces[0].wears, frame.faces[0].score = wears, score
    (frame,) = stage.process(frame)
    assert frame.faces[0].masked == painted
    left = wears == 0.98 and score == 0.7 and not painted
    assert (stage._masks_left, stage._faces_unmasked) == (left, painted)


@pytest.mark.parametrize(
    ("wears", "likely", "painted"),
    [
        *((None, 0.6, True), (0.98, 0.6, True)),
        *((0.1, 0.8, False), (0.1, 0.95, True)),
        *((0.5, 0.6, False), (0.5, 0.7, True)),
    ],
)
def test_what_the_tracker_does_not_take_for_a_masked_face_needs_a_surer_mask(
    portrait: Portrait, monkeypatch: pytest.MonkeyPatch, wears: float | None, likely: float, painted: bool
) -> None:
    stage = Segment("cpu")
    stage.open(Context(portrait.frame(masked=True).layout))
    found = np.zeros((1, CROP_SIZE, CROP_SIZE), np.uint8)
    found[0, 110:220, 70:186] = round(255 * likely)
    monkeypatch.setattr(stage, "_engine", lambda crops: np.repeat(found, len(crops), axis=0))
    frame = portrait.frame(masked=True)
    frame.faces[0].wears = wears
    (frame,) = stage.process(frame)
    assert frame.faces[0].masked == painted


class Counted(Engine):
    """An engine that counts the crops it is given."""

    def __init__(self, network: NetworkName, choice: EngineChoice, notice: Callable[[str], None]) -> None:
        self.engine = load(network, choice, notice)
        self.description = self.engine.description
        self.crops = 0

    def __call__(self, *inputs: U8) -> U8:
        self.crops += len(inputs[0])
        return self.engine(*inputs)


@pytest.mark.parametrize("spread", [False, True])
def test_live_looks_closer_at_bare_faces_only_now_and_then(portrait: Portrait, spread: bool) -> None:
    counted: list[Counted] = []

    def load_counted(network: NetworkName, choice: EngineChoice, notice: Callable[[str], None]) -> Engine:
        counted.append(Counted(network, choice, notice))
        return counted[-1]

    stage = Segment("cpu", spread=spread)
    stage.open(Context(portrait.frame(masked=False).layout, load=load_counted))
    for index in range(12):
        (frame,) = stage.process(portrait.frame(masked=False, index=index))
        assert not frame.faces[0].masked
    assert counted[0].crops == 12 + (12 // 4 if spread else 12)


def test_live_sees_as_much_of_a_partly_hidden_mask(portrait: Portrait) -> None:
    """Only the upper left part of the mask is there: a closer look alone shows it, and is taken in each frame, live or
    not."""
    rows, columns = (np.flatnonzero((portrait.coverage > 0.5).any(axis=axis)) for axis in (1, 0))
    part = np.s_[rows[0] : rows[0] + int(0.6 * len(rows)), columns[0] : columns[0] + int(0.7 * len(columns))]
    rgb = portrait.bare.copy()
    rgb[part] = portrait.masked[part]
    masks: list[list[U8]] = []
    for spread in (False, True):
        stage = Segment("cpu", spread=spread)
        stage.open(Context(portrait.frame(masked=True).layout))
        masks.append([])
        for index in range(6):
            frame = portrait.frame(masked=True, index=index)
            frame.planes[0][:] = rgb
            (frame,) = stage.process(frame)
            assert frame.faces[0].masked
            masks[-1].append(frame.faces[0].pictures.mask.copy())
        assert 0.03 < np.mean(masks[-1][-1] > 127) < 0.15
    np.testing.assert_array_equal(*masks)


def test_noise_flickers_less_than_frame_by_frame(portrait: Portrait, stages: tuple[Stage, ...]) -> None:
    rng = np.random.default_rng(0)
    noise = [rng.normal(0, 6, portrait.masked.shape) for _ in range(12)]

    def flicker(reset: bool) -> float:
        painted = []
        for index, grain in enumerate(noise):
            frame = portrait.frame(masked=True, index=index, reset=reset or index == 0)
            frame.planes[0][:] = np.clip(portrait.masked + grain, 0, 255).astype(np.uint8)
            painted.append(run(stages, frame).faces[0].pictures.painted.astype(np.float32))
        inside = portrait.crop_coverage()
        return float(np.abs(np.diff(np.stack(painted[4:]), axis=0))[:, inside].mean())

    assert flicker(reset=False) < 0.5 * flicker(reset=True)


def test_reset_forgets_what_was_painted(portrait: Portrait, stages: tuple[Stage, ...]) -> None:
    first = run(stages, portrait.frame(masked=True, reset=True)).faces[0].pictures.painted.copy()
    dark = portrait.frame(masked=True, index=1)
    dark.planes[0][:] = portrait.masked // 2
    run(stages, dark)
    again = run(stages, portrait.frame(masked=True, index=2, reset=True)).faces[0].pictures.painted
    np.testing.assert_array_equal(again, first)


def with_mask(portrait: Portrait, chin: float) -> Portrait:
    """The portrait in a mask that hangs so far below the chin, in eye distances."""
    bare = portrait.bare.astype(np.float32) / 255
    worn = draw_mask(bare, portrait.landmarks, np.random.default_rng(3), "surgical", Outline(chin=chin))
    return replace(portrait, masked=np.rint(worn.rgb * 255).astype(np.uint8), coverage=worn.coverage)


def test_a_mask_that_hangs_out_of_the_crop_comes_off_whole(portrait: Portrait, stages: tuple[Stage, ...]) -> None:
    low = with_mask(portrait, 0.7)
    frame = run(stages, low.frame(masked=True))
    usual = canonical_crop(low.landmarks)
    below = transform_points(usual, np.argwhere(low.coverage > 0.5)[:, ::-1].astype(np.float32))[:, 1] > CROP_SIZE
    assert below.mean() > 0.03, "or the test shows nothing"
    np.testing.assert_allclose(frame.faces[0].crop_from_frame, placed(usual, (0, 1)))
    changed = (np.asarray(frame.planes[0]) != low.masked).any(axis=2)[low.coverage > 0.5]
    assert changed.mean() > 0.95
    assert changed[below].mean() > 0.9


def test_a_mask_that_is_taken_away_to_the_side_does_not_take_the_crop_along(
    portrait: Portrait, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only on a head that looks aside does a worn mask go on there; this one looks into the camera."""
    segment = Segment("cpu")
    segment.open(Context(portrait.frame(masked=False).layout))
    found = np.zeros((1, CROP_SIZE, CROP_SIZE), np.uint8)
    found[0, 120:220, 100:] = 255
    monkeypatch.setattr(segment, "_engine", lambda crops: np.repeat(found, len(crops), axis=0))
    (frame,) = segment.process(portrait.frame(masked=False))
    assert frame.faces[0].masked
    np.testing.assert_allclose(frame.faces[0].crop_from_frame, canonical_crop(portrait.landmarks))


def test_a_crop_that_goes_back_takes_nothing_along(portrait: Portrait, stages: tuple[Stage, ...]) -> None:
    """What was painted in the crop as it lay must not be pasted where it lies now, also on a face that keeps still."""
    low, well = with_mask(portrait, 0.7), with_mask(portrait, -0.05)
    run(stages, low.frame(masked=True))
    usual = canonical_crop(well.landmarks)
    for index in range(1, 12):  # what was found before counts for some frames
        run(stages, well.frame(masked=True, index=index))
        frame = well.frame(masked=True, index=index)
        frame.faces[0].still = True
        run(stages, frame)
        if np.allclose(frame.faces[0].crop_from_frame, usual):
            break
    np.testing.assert_allclose(frame.faces[0].crop_from_frame, usual)
    shown = np.asarray(frame.planes[0]).astype(int)
    alone = np.asarray(run(fresh_stages(portrait), well.frame(masked=True)).planes[0]).astype(int)
    assert np.abs(shown - alone).mean() < 0.35 * np.abs(well.masked.astype(int) - alone).mean()


def test_mask_shape_drops_specks_grows_and_softens() -> None:
    shape = MaskShape()
    probability = np.zeros((CROP_SIZE, CROP_SIZE), np.float32)
    probability[100:160, 80:180] = 255
    probability[20:22, 20:22] = 255
    solid = shape.solid(probability)
    assert not solid[:40, :40].any()
    alpha, hidden = shape.regions(solid, probability, np.full((468, 2), -100, np.float32))
    assert (alpha[100:160, 80:180] == 255).all()
    assert alpha[98, 130] == 255
    assert 0 < alpha[96, 130] < 255
    assert not alpha[95, 130]
    assert (hidden[99:161, 80:180] == 255).all()
    assert not hidden[98].any(), "beyond the fringe the network sees what there is"


def test_rim_of_glasses_across_a_mask_is_not_painted_over() -> None:
    shape = MaskShape()
    probability = np.zeros((CROP_SIZE, CROP_SIZE), np.float32)
    probability[100:180, 80:180] = 250
    probability[120:124, 80:180] = 5
    probability[150:154, 80:180] = 45
    solid = shape.solid(probability)
    alpha, _ = shape.regions(solid, probability, np.full((468, 2), -100, np.float32))
    assert not alpha[121:123, 90:170].any(), "a rim, certainly no mask"
    assert (alpha[126:146, 80:180] == 255).all()
    assert (alpha[151:153, 90:170] == 255).all(), "a fold that the network is unsure of"
    assert alpha[98, 130] == 255, "at its border the mask still grows"


def test_mask_leaves_eyes_alone_unless_it_certainly_hides_them(portrait: Portrait) -> None:
    shape = MaskShape()
    face = portrait.frame(masked=False).faces[0]
    points = transform_points(face.crop_from_frame, face.landmarks_px)
    eye = points[[33, 133, 159, 145]].mean(axis=0).round().astype(int)
    solid = np.full((CROP_SIZE, CROP_SIZE), 255, np.uint8)
    likely = shape.regions(solid, np.full(solid.shape, 150, np.float32), points)[0]
    assert likely[eye[1], eye[0]] == 0
    everything = shape.regions(solid, np.full(solid.shape, 255, np.float32), points)[0]
    assert (likely == 0).mean() < 0.05 + (everything == 0).mean()
    certain = shape.regions(solid, np.full(solid.shape, 250, np.float32), points)[0]
    assert certain[eye[1], eye[0]] == 255


@pytest.mark.parametrize("over", [True, False])
def test_a_mask_over_an_eye_grows_there_as_elsewhere(portrait: Portrait, over: bool) -> None:
    """Its rim, of which the network is less sure, would stay as a bright slit."""
    face = portrait.frame(masked=False).faces[0]
    points = transform_points(face.crop_from_frame, face.landmarks_px)
    upper, lower = (round(float(points[[left, right], 1].mean())) for left, right in ((159, 386), (145, 374)))
    top = (upper + lower) // 2 if over else lower + 4
    probability = np.zeros((CROP_SIZE, CROP_SIZE), np.float32)
    probability[top - 2 : top] = 150
    probability[top:200] = 250
    shape = MaskShape()
    _, hidden = shape.regions(shape.solid(probability), probability, points)
    x = round(float(points[[159, 145], 0].mean()))
    assert bool(hidden[top - 2, x]) is over
    assert hidden[top + 8, x], "the mask itself is hidden in any case"


def masks_found(
    portrait: Portrait, monkeypatch: pytest.MonkeyPatch, *found: tuple[slice, slice, int], score: float = 1.0
) -> list[U8]:
    """`mask` after each frame, in which the network gives rows and columns of the crop a value; `score` is the
    face's."""
    segment = Segment("cpu")
    segment.open(Context(portrait.frame(masked=False).layout))
    given = []
    for index, (rows, columns, value) in enumerate(found):
        probability = np.zeros((1, CROP_SIZE, CROP_SIZE), np.uint8)
        probability[0, rows, columns] = value
        monkeypatch.setattr(segment, "_engine", lambda crops, p=probability: np.repeat(p, len(crops), axis=0))
        shown = portrait.frame(masked=False, index=index)
        shown.faces[0].score = score
        (frame,) = segment.process(shown)
        given.append(frame.faces[0].pictures.mask.copy())
    return given


def test_a_mask_that_moves_leaves_no_trail_and_is_over_an_eye_at_once(
    portrait: Portrait, monkeypatch: pytest.MonkeyPatch
) -> None:
    face = portrait.frame(masked=False).faces[0]
    points = transform_points(face.crop_from_frame, face.landmarks_px)
    eye = points[[33, 133, 159, 145]].mean(axis=0).round().astype(int)
    across = slice(60, 196)
    before, after = masks_found(
        portrait, monkeypatch, (slice(150, 235), across, 255), (slice(eye[1] - 20, 180), across, 255)
    )
    assert before[220, 128] == 255
    assert after[220, 128] == 0
    assert after[eye[1], eye[0]] == 255


def test_a_mask_that_keeps_still_does_not_flicker(portrait: Portrait, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, across = slice(130, 225), slice(60, 196)
    _, doubt = masks_found(portrait, monkeypatch, (rows, across, 255), (rows, across, 90))
    assert doubt[180, 128] == 255


@pytest.mark.parametrize(("score", "kept"), [(0.6, [True, True, True, True, False]), (1.0, [True] + 4 * [False])])
def test_a_mask_that_is_missed_for_a_moment_is_kept_where_the_face_is_in_doubt_too(
    portrait: Portrait, monkeypatch: pytest.MonkeyPatch, score: float, kept: list[bool]
) -> None:
    """In full profile crops jump; a bare face that is seen beyond doubt is bare at once."""
    rows, across = slice(130, 225), slice(60, 196)
    nothing = (slice(0, 0), across, 0)
    masks = masks_found(portrait, monkeypatch, (rows, across, 255), *4 * [nothing], score=score)
    assert [bool(mask[180, 128]) for mask in masks] == kept


@pytest.mark.parametrize(("sure", "loops", "worn"), [(0.87, True, True), (0.87, False, False), (0.7, True, False)])
def test_below_the_chin_ear_loops_tell_a_mask_from_a_scarf(
    portrait: Portrait, monkeypatch: pytest.MonkeyPatch, sure: float, loops: bool, worn: bool
) -> None:
    shown = portrait.frame(masked=False)
    lips = transform_points(shown.faces[0].crop_from_frame, shown.faces[0].landmarks_px)[[61, 37, 267, 291, 314, 84]]
    below = int(lips[:, 1].max()) + 12
    seen = np.zeros((CROP_SIZE, CROP_SIZE), np.uint8)
    seen[below : below + 34, 70:186] = 255
    if loops:
        for x, ear in ((72, 46), (184, 210)):
            cv2.line(seen, (x, below + 2), (ear, below - 60), 255, 4)
    segment = Segment("cpu")
    segment.open(Context(shown.layout))
    probability = (sure * seen).astype(np.uint8)
    monkeypatch.setattr(segment, "_engine", lambda crops: np.repeat(probability[None], len(crops), axis=0))
    (frame,) = segment.process(shown)
    assert frame.faces[0].masked is worn


@pytest.mark.parametrize(("score", "seen"), [(0.6, True), (1.0, False)])
def test_a_mask_that_is_hardly_seen_in_profile_is_looked_at_with_the_head_lowered(
    portrait: Portrait, monkeypatch: pytest.MonkeyPatch, score: float, seen: bool
) -> None:
    segment = Segment("cpu")
    segment.open(Context(portrait.frame(masked=False).layout))
    size = (CROP_SIZE, CROP_SIZE)
    worn = np.zeros(size, np.uint8)
    worn[140:220, 120:210] = 255  # to the right
    turn = cv2.getRotationMatrix2D((CROP_SIZE / 2, CROP_SIZE / 2), -15, 1.0)
    lowered = cv2.warpAffine(worn, turn, size)
    views = iter([worn, (0.6 * worn).astype(np.uint8), lowered])
    monkeypatch.setattr(segment, "_engine", lambda crops: next(views)[None])
    for index in range(2):
        shown = portrait.frame(masked=False, index=index)
        shown.faces[0].score = 1.0 if index == 0 else score
        (frame,) = segment.process(shown)
    assert (frame.faces[0].mask_score > 0.9) is seen
    assert frame.faces[0].pictures.mask[170, 160] == 255
    assert (next(views, None) is None) is seen, "looked at once more"


@pytest.mark.parametrize("aside", [True, False])
def test_what_looks_like_a_mask_far_from_it_is_left_on_a_head_in_profile(
    portrait: Portrait, monkeypatch: pytest.MonkeyPatch, aside: bool
) -> None:
    worn = np.zeros((1, CROP_SIZE, CROP_SIZE), np.uint8)
    worn[0, 130:200, 80:180] = 255
    spilled = worn.copy()
    spilled[0, 130:160, 180:250] = 200  # a wall
    spilled[0, 190:194, 180:240] = 200  # an ear loop
    spilled[0, 200:240, 80:180] = 255  # more of the mask
    segment = Segment("cpu")
    segment.open(Context(portrait.frame(masked=False).layout))
    monkeypatch.setattr(segment_stage, "_looks_aside", lambda face: aside)
    for index, probability in enumerate((worn, spilled)):
        monkeypatch.setattr(segment, "_engine", lambda crops, p=probability: np.repeat(p, len(crops), axis=0))
        (frame,) = segment.process(portrait.frame(masked=False, index=index))
    mask = frame.faces[0].pictures.mask
    assert mask[145, 187] == 255, "a mask may reach a little further than before"
    assert bool(mask[145, 230] == 0) is aside
    assert mask[192, 225] == 255
    assert mask[225, 130] == 255


@pytest.mark.parametrize(("sure", "painted"), [(180, False), (250, True)])
def test_what_leaves_the_mouth_free_must_be_sure(
    portrait: Portrait, monkeypatch: pytest.MonkeyPatch, sure: int, painted: bool
) -> None:
    """Scarves look like masks under the chin."""
    segment = Segment("cpu")
    segment.open(Context(portrait.frame(masked=False).layout))
    found = np.zeros((1, CROP_SIZE, CROP_SIZE), np.uint8)
    found[0, 205:, 60:196] = sure
    monkeypatch.setattr(segment, "_engine", lambda crops: np.repeat(found, len(crops), axis=0))
    (frame,) = segment.process(portrait.frame(masked=False))
    assert frame.faces[0].masked is painted


def test_smoothing_steadies_shape_and_light_and_leaves_most_fine_detail_to_each_frame(portrait: Portrait) -> None:
    smooth = Smooth()
    smooth.open(Context(portrait.frame(masked=True).layout))
    rng = np.random.default_rng(3)
    shape = cv2.GaussianBlur(rng.normal(128, 60, (2, CROP_SIZE, CROP_SIZE)).transpose(1, 2, 0), (0, 0), 6)
    shape += 128 - shape.mean(axis=(0, 1))
    pictures = [np.clip(shape[..., i : i + 1] + rng.normal(0, 8, (CROP_SIZE, CROP_SIZE, 3)), 0, 255) for i in (0, 1)]
    shown = []
    for index, picture in enumerate(pictures):
        frame = portrait.frame(masked=True)
        frame.index, face = index, frame.faces[0]
        face.masked, face.reset, face.pictures.mask[:] = True, index == 0, 255
        face.pictures.painted[:] = picture.astype(np.uint8)
        list(smooth.process(frame))
        shown.append(face.pictures.painted.astype(np.float32))

    def broad(picture: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        return np.asarray(cv2.GaussianBlur(np.asarray(picture, np.float32), (0, 0), 5), np.float32)

    before, now, result = pictures[0], pictures[1], shown[1]
    towards = float((broad(result - now) * broad(before - now)).sum() / (broad(before - now) ** 2).sum())
    assert 0.5 < towards < 0.9, "mostly what was there before"
    fine, wanted = (x - cv2.GaussianBlur(np.asarray(x, np.float32), (3, 3), 0) for x in (result, now))
    assert np.corrcoef(fine.ravel(), wanted.ravel())[0, 1] > 0.95
    assert fine.std() > 0.85 * wanted.std(), "detail that has nothing in common from frame to frame"


def smoothed(
    portrait: Portrait, pictures: Sequence[npt.NDArray[Any]], masks: Sequence[slice], shifts: Sequence[float]
) -> list[npt.NDArray[np.float32]]:
    """What `Smooth` shows in frames in which `pictures` were painted, a mask covers some columns of the crop, and the
    points of the face lie so many px of the crop beside where it is. All but the first and the last keep still."""
    smooth = Smooth()
    smooth.open(Context(portrait.frame(masked=True).layout))
    shown = []
    for index, (picture, mask, shift) in enumerate(zip(pictures, masks, shifts, strict=True)):
        frame = portrait.frame(masked=True)
        frame.index, face = index, frame.faces[0]
        face.masked, face.reset, face.still = True, index == 0, 0 < index < len(pictures) - 1
        face.pictures.mask[:] = 0
        face.pictures.mask[:, mask] = 255
        face.landmarks_px = face.landmarks_px + shift / float(np.hypot(*face.crop_from_frame[0, :2]))
        face.pictures.painted[:] = picture
        list(smooth.process(frame))
        shown.append(face.pictures.painted.astype(np.float32))
    return shown


def test_nothing_comes_from_where_nothing_was_painted_before(portrait: Portrait) -> None:
    """A mask moves on the face; what the network's picture holds beside it has no meaning."""
    first = np.full((CROP_SIZE, CROP_SIZE, 3), 120, np.uint8)
    first[:, 160:] = (200, 0, 200)
    after = np.full_like(first, 120)
    shown = smoothed(portrait, [first, after], [np.s_[60:160], np.s_[60:180]], [0, 0])
    np.testing.assert_allclose(shown[1], 120, atol=1)


def stripes() -> npt.NDArray[np.uint8]:
    waves = 128 + 80 * np.sin(np.arange(CROP_SIZE) / 3)
    return np.repeat(np.repeat(waves[None, :, None], CROP_SIZE, 0), 3, 2).astype(np.uint8)


def test_points_that_jump_do_not_smear_what_is_shown(portrait: Portrait) -> None:
    shown = smoothed(portrait, [stripes()] * 2, [np.s_[:]] * 2, [0, 9])
    assert np.abs(shown[1] - stripes()).mean() < 2


def test_a_still_face_keeps_the_points_it_was_painted_with(portrait: Portrait) -> None:
    """Those of the tracker may be worse where a mask covers eyes, and are put right only when it is painted."""
    shown = smoothed(portrait, [stripes()] * 4, [np.s_[:]] * 4, [0, 2, 2, 0])
    assert np.abs(shown[-1] - stripes()).mean() < 2


def test_affine_fit_recovers_a_known_map_and_reports_what_is_left() -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform(0, 256, (50, 2)).astype(np.float32)
    matrix = np.array([[1.1, 0.1, 5], [-0.05, 0.9, -3]])
    moved = (points @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)
    found, left = fit_affine(points, moved)
    np.testing.assert_allclose(found, matrix, atol=1e-3)
    assert left < 1e-3
    _, left = fit_affine(points, moved + rng.normal(0, 2, moved.shape).astype(np.float32))
    assert left == pytest.approx(2 * np.sqrt(2), rel=0.25)


def test_mask_region_takes_in_what_hangs_together_with_something_sure() -> None:
    probability = np.zeros((64, 64), np.uint8)
    probability[20:40, 20:40] = 90
    probability[25:35, 25:35] = 220
    probability[50:60, 50:60] = 90
    region = mask_region(probability)
    assert (region[21:39, 21:39] == 255).all()
    assert not region[50:60, 50:60].any(), "likely, but next to nothing sure"
    assert not mask_region(np.full((8, 8), 120, np.uint8)).any()
    np.testing.assert_array_equal(region, mask_region(probability.astype(np.float32)))


def test_mask_region_fills_holes_smooths_its_border_and_leaves_what_is_certainly_no_mask() -> None:
    probability = np.zeros((128, 128), np.uint8)
    probability[20:100, 20:100] = 230
    probability[36:50, 40:56] = 0  # a print, a valve
    probability[60, 20:100] = 24  # a thin rim in front, to both borders
    probability[20, 40] = 30  # a notch
    probability[80, 100] = 40  # where the border fades
    region = mask_region(probability)
    assert (region[36:50, 40:56] == 255).all()
    assert not region[60].any()
    assert region[20, 40] == 255
    assert region[80, 100] == 255
    probability[24:96, 24:96] = 0
    assert not mask_region(probability)[24:96, 24:96].any(), "too large for a hole"


def test_the_cheek_between_ear_loop_and_mask_is_no_hole() -> None:
    probability = np.zeros((64, 64), np.uint8)
    probability[10:50, 10:40] = 230
    cv2.ellipse(probability, (40, 30), (12, 9), 0, -90, 90, 230, 3)
    region = mask_region(probability)
    assert region[30, 52] == 255, "the loop"
    assert not region[26:34, 42:48].any()


BODY = np.s_[100:200, 60:160]
"""Where the body of a mask is drawn."""


def region_of(*parts: tuple[tuple[slice, slice], int]) -> U8:
    """The region of a mask, and of parts that are drawn over it one after the other."""
    probability = np.zeros((CROP_SIZE, CROP_SIZE), np.uint8)
    for part, value in ((BODY, 255), *parts):
        probability[part] = value
    return mask_region(probability)


def test_a_hole_is_filled_that_is_small_for_its_mask() -> None:
    assert region_of((np.s_[140:150, 100:110], 0))[145, 105] == 255
    assert region_of((np.s_[120:180, 80:140], 0))[150, 110] == 0


def test_what_is_thin_is_mask_where_it_is_as_long_as_an_ear_loop() -> None:
    assert region_of((np.s_[140:144, 160:170], 255))[142, 168] == 0
    assert region_of((np.s_[140:144, 160:190], 255))[142, 185] == 255


def test_what_is_thin_and_away_from_the_mask_is_no_ear_loop() -> None:
    assert region_of((np.s_[140:144, 190:230], 255))[142, 210] == 0


# --- what was found and painted stays while the face keeps still ------------------------------------------------------


def counting_stages(portrait: Portrait) -> tuple[tuple[Stage, ...], dict[NetworkName, Counted]]:
    """All stages behind the tracker, and their engines."""
    engines: dict[NetworkName, Counted] = {}

    def load_counted(network: NetworkName, choice: EngineChoice, notice: Callable[[str], None]) -> Engine:
        engines[network] = Counted(network, choice, notice)
        return engines[network]

    stages: tuple[Stage, ...] = (Segment("cpu"), Inpaint("cpu"), Smooth())
    for stage in stages:
        stage.open(Context(portrait.frame(masked=True).layout, load=load_counted))
    return stages, engines


def test_networks_pass_over_a_face_that_keeps_still(portrait: Portrait) -> None:
    stages, engines = counting_stages(portrait)
    first = run(stages, portrait.frame(masked=True))
    for index in (1, 2):
        frame = portrait.frame(masked=True, index=index)
        frame.faces[0].still = True
        frame = run(stages, frame)
        for before, now in zip(first.faces[0].pictures[1:], frame.faces[0].pictures[1:], strict=True):
            # A mean of a picture with itself is rounded.
            np.testing.assert_allclose(now.astype(int), before, atol=1)
        assert (frame.faces[0].masked, frame.faces[0].mask_score) == (True, first.faces[0].mask_score)
    assert {name: engine.crops for name, engine in engines.items()} == {"segmenter": 1, "inpainter": 1}
    assert stages[0].summary()["masks_removed"] == 3
    assert (stages[1].summary()["painted"], stages[1].summary()["kept"]) == (1, 2)
    run(stages, portrait.frame(masked=True, index=3))
    assert engines["segmenter"].crops == engines["inpainter"].crops == 2


def test_a_bare_face_that_keeps_still_is_left_alone(portrait: Portrait) -> None:
    stages, engines = counting_stages(portrait)
    run(stages, portrait.frame(masked=False))
    crops = engines["segmenter"].crops
    frame = portrait.frame(masked=False, index=1)
    frame.faces[0].still = True
    np.testing.assert_array_equal(run(stages, frame).planes[0], portrait.bare)
    assert engines["segmenter"].crops == crops


def test_nothing_is_remembered_of_a_face_that_was_not_there(portrait: Portrait) -> None:
    """The tracker gives the largest faces only: one may have kept still unseen."""
    stages, engines = counting_stages(portrait)
    run(stages, portrait.frame(masked=True))
    nobody = portrait.frame(masked=True, index=1)
    nobody.faces.clear()
    run(stages, nobody)
    frame = portrait.frame(masked=True, index=2)
    frame.faces[0].still = True
    assert run(stages, frame).faces[0].masked
    assert engines["segmenter"].crops == engines["inpainter"].crops == 2
