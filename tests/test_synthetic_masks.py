"""Synthetic masks: they sit where masks sit, look like their material, and come again from the same seed."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from faces import Portrait

from unmask.errors import UserError
from unmask.models.geometry import CROP_SIZE, canonical_crop, transform_landmarks, transform_points
from unmask.train import materials
from unmask.train.data import Sample
from unmask.train.fabrics import load_fabrics, printed
from unmask.train.glasses import wear_glasses
from unmask.train.inpainter import turned_face
from unmask.train.masks import (
    Outline,
    hidden_region,
    loosened,
    lowered_coverage,
    mask_coverage,
    raised,
    random_outline,
    straps,
)
from unmask.train.materials import (
    MATERIALS,
    Masked,
    Material,
    Sheet,
    add_long_loops,
    cut_off,
    degrade,
    draw_mask,
    load_templates,
    put_in_front,
    wear_template,
)
from unmask.train.segmenter import lines_of
from unmask.train.turning import Turn, random_turn, turn_head

F32 = npt.NDArray[np.float32]


@pytest.fixture
def face(portrait: Portrait) -> F32:
    return portrait.bare.astype(np.float32) / np.float32(255)


def covers(coverage: npt.NDArray[np.uint8], portrait: Portrait, point: int) -> bool:
    x, y = np.round(portrait.landmarks[point, :2]).astype(int)
    return bool(coverage[y, x] > 127)


NOSE_TIP, UPPER_LIP, CHIN, LEFT_EYE, FOREHEAD = 4, 0, 152, 263, 10


@pytest.mark.parametrize(
    ("outline", "hidden"),
    [
        (Outline(), {NOSE_TIP, UPPER_LIP, CHIN}),
        (replace(Outline(), nose=0.9, cheek=0.9), {UPPER_LIP, CHIN}),
        (replace(Outline(), nose=1.4, cheek=1.5, side_top=0.3), {CHIN}),
    ],
    ids=["well", "under the nose", "under the mouth"],
)
def test_outline_hides_what_it_should(outline: Outline, hidden: set[int], portrait: Portrait) -> None:
    coverage = mask_coverage(portrait.landmarks, outline, portrait.bare.shape[:2])
    points = {NOSE_TIP, UPPER_LIP, CHIN, LEFT_EYE, FOREHEAD}
    assert {p for p in points if covers(coverage, portrait, p)} == hidden


def test_well_worn_masks_never_hide_the_eyes(portrait: Portrait) -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        coverage = mask_coverage(portrait.landmarks, random_outline(rng), portrait.bare.shape[:2])
        assert covers(coverage, portrait, UPPER_LIP)
        assert not covers(coverage, portrait, LEFT_EYE)


@pytest.mark.parametrize("kind", list(MATERIALS))
def test_drawn_mask_changes_what_it_covers(kind: str, face: F32, portrait: Portrait) -> None:
    first = draw_mask(face, portrait.landmarks, np.random.default_rng(5), kind)
    again = draw_mask(face, portrait.landmarks, np.random.default_rng(5), kind)
    other = draw_mask(face, portrait.landmarks, np.random.default_rng(6), kind)
    np.testing.assert_array_equal(first.rgb, again.rgb)
    assert (first.rgb != other.rgb).any()
    assert first.rgb.dtype == np.float32
    assert first.rgb.min() >= 0
    assert first.rgb.max() <= 1
    inside = first.coverage > 0.9
    assert 0.02 < inside.mean() < 0.4
    assert np.abs(first.rgb - face)[inside].mean() > 0.05
    assert (first.rgb[:20] == face[:20]).all(), "the top of the picture is not the mask's"


@pytest.fixture
def small(portrait: Portrait) -> tuple[F32, F32]:
    """A picture that is quickly drawn on, grey all over, and the landmarks of a face in it."""
    landmarks = transform_landmarks(canonical_crop(portrait.landmarks), portrait.landmarks)
    return np.full((CROP_SIZE, CROP_SIZE, 3), 0.6, np.float32), landmarks


def white(sheet: Sheet, rng: np.random.Generator) -> F32:
    return np.full((*sheet.u.shape, 3), 0.9, np.float32)


def test_masks_of_all_kinds_are_drawn_as_often_as_they_should_be(
    small: tuple[F32, F32], monkeypatch: pytest.MonkeyPatch
) -> None:
    rng, drawn = np.random.default_rng(0), Counter[str]()

    def counted(name: str) -> Material:
        def make(sheet: Sheet, rng: np.random.Generator) -> F32:
            drawn[name] += 1
            return white(sheet, rng)

        return make

    def lowered(landmarks: F32, rng: np.random.Generator, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        drawn["lowered"] += 1
        return lowered_coverage(landmarks, rng, size)

    for name, kind in MATERIALS.items():
        monkeypatch.setitem(MATERIALS, name, kind._replace(make=counted(name)))
    monkeypatch.setattr(materials, "lowered_coverage", lowered)
    rgb, landmarks = small[0][:64, :64], small[1] / np.float32(4)
    for _ in range(400):
        draw_mask(rgb, landmarks, rng)
    shares = {name: count / 400 for name, count in drawn.items()}
    assert shares == pytest.approx({"surgical": 0.4, "n95": 0.2, "cloth": 0.4, "lowered": 0.1}, abs=0.06)


def test_a_mask_is_darker_in_a_dark_picture(small: tuple[F32, F32]) -> None:
    rgb, landmarks = small

    def brightness(rgb: F32) -> float:
        masked = draw_mask(rgb, landmarks, np.random.default_rng(4), white, Outline())
        return float(masked.rgb[mask_coverage(landmarks, Outline(), (CROP_SIZE, CROP_SIZE)) > 250].mean())

    assert brightness(0.4 * rgb) == pytest.approx(0.4 * brightness(rgb), rel=0.1)


def test_light_that_comes_from_one_side_falls_on_a_mask_too(small: tuple[F32, F32]) -> None:
    rgb, landmarks = small
    lit = rgb * np.linspace(1.3, 0.3, CROP_SIZE, dtype=np.float32)[None, :, None]
    masked = draw_mask(lit, landmarks, np.random.default_rng(4), white, Outline())
    solid = mask_coverage(landmarks, Outline(), (CROP_SIZE, CROP_SIZE)) > 250
    left, right = (masked.rgb[:, part][solid[:, part]].mean() for part in (np.s_[:110], np.s_[146:]))
    assert left > 1.15 * right


@pytest.mark.parametrize("kind", list(MATERIALS))
def test_ear_loops_are_grey_but_those_of_cloth_may_be_of_it(kind: str, small: tuple[F32, F32]) -> None:
    rgb, landmarks = small
    mask = cv2.dilate(mask_coverage(landmarks, Outline(), rgb.shape[:2]), np.ones((11, 11), np.uint8))
    seen = coloured = 0
    for seed in range(30):
        masked = draw_mask(rgb, landmarks, np.random.default_rng(seed), kind, Outline())
        loops = (masked.coverage > 0.9) & (mask == 0)
        seen += loops.any()
        coloured += bool(loops.any()) and float(np.ptp(masked.rgb[loops], axis=1).max()) > 0.03
    assert 15 <= seen < 30
    assert 0 < coloured < seen if kind == "cloth" else coloured == 0


def test_things_in_front_are_not_mask(face: F32, portrait: Portrait) -> None:
    masked = draw_mask(face, portrait.landmarks, np.random.default_rng(1))
    covered = [put_in_front(masked, face, portrait.landmarks, np.random.default_rng(seed)) for seed in range(12)]
    assert all((c.coverage <= masked.coverage).all() for c in covered)
    assert min(c.coverage.sum() for c in covered) < 0.9 * masked.coverage.sum()


def test_hidden_regions_vary_and_repeat(portrait: Portrait) -> None:
    size = portrait.bare.shape[:2]
    regions = [hidden_region(portrait.landmarks, np.random.default_rng(seed), size) for seed in range(20)]
    np.testing.assert_array_equal(regions[3], hidden_region(portrait.landmarks, np.random.default_rng(3), size))
    assert {0.0, 1.0} == set(np.unique(regions[0]))
    shares = [float(r.mean()) for r in regions]
    assert max(shares) > 1.3 * min(shares)


def test_straps_reach_the_ears(portrait: Portrait) -> None:
    drawn = straps(portrait.landmarks, np.random.default_rng(0), portrait.bare.shape[:2])
    columns = np.nonzero(drawn.any(axis=0))[0]
    assert columns.min() < portrait.landmarks[93, 0]
    assert columns.max() > portrait.landmarks[323, 0]


def test_degrading_and_cutting_off_keep_shape_and_range(face: F32, portrait: Portrait) -> None:
    rng = np.random.default_rng(2)
    worse = degrade(face, rng)
    assert worse.shape == face.shape
    assert worse.dtype == np.float32
    assert worse.min() >= 0
    assert worse.max() <= 1
    assert np.abs(worse - face).mean() < 0.2
    cut = cut_off(Masked(face, portrait.coverage), rng)
    assert cut.rgb.shape == face.shape
    np.testing.assert_array_equal(cut.rgb[0], cut.rgb[1])


def test_some_pictures_are_sharpened() -> None:
    step = np.full((256, 256, 3), 0.3, np.float32)
    step[:, 128:] = 0.7
    across = [degrade(step, np.random.default_rng(seed)).mean((0, 2)) for seed in range(80)]  # noise averages out
    halos = [columns[:128].min() < 0.27 and columns[128:].max() > 0.73 for columns in across]
    assert 10 <= sum(halos) <= 40


def print_in(face: F32, points: F32, fabrics: Sequence[F32], seed: int) -> tuple[F32, npt.NDArray[np.bool_]]:
    masked = draw_mask(face, points, np.random.default_rng(seed), printed(fabrics), Outline())
    return masked.rgb, masked.coverage > 0.9


def test_prints_are_of_all_kinds_and_colours(face: F32, portrait: Portrait) -> None:
    made = [print_in(face, portrait.landmarks, (), seed) for seed in range(24)]
    again, _ = print_in(face, portrait.landmarks, (), 3)
    np.testing.assert_array_equal(made[3][0], again)
    assert all(rgb.min() >= 0 and rgb.max() <= 1 for rgb, _ in made)
    busy = [float(np.abs(np.diff(rgb, axis=1))[inside[:, 1:]].mean()) for rgb, inside in made]
    assert max(busy) > 5 * min(busy), "plain ones and prints"
    colours = np.array([rgb[inside].mean(axis=0) for rgb, inside in made])
    assert colours.std(axis=0).min() > 0.1


def test_pictures_of_fabrics_are_worn(tmp_path: Path, face: F32, portrait: Portrait) -> None:
    assert load_fabrics(tmp_path) == []
    (tmp_path / "textures" / "check").mkdir(parents=True)
    stripes = np.zeros((300, 200, 3), np.uint8)
    stripes[::2] = (0, 255, 0)
    cv2.imwrite(str(tmp_path / "textures" / "check" / "green.png"), stripes)
    (fabric,) = load_fabrics(tmp_path)
    assert fabric.shape == (256, 256, 3)
    assert 0.3 < fabric[..., 1].mean() < 0.7
    assert fabric[..., (0, 2)].max() == 0
    green = 0
    for seed in range(12):
        rgb, inside = print_in(face, portrait.landmarks, [fabric], seed)
        red, other, blue = rgb[inside].mean(axis=0)
        green += bool(other > 5 * max(red, blue))
    assert 2 <= green <= 9, "half of the prints are pictures, half of these in their own colours"


@pytest.mark.shared
def test_templates_fit_the_face(shared: Path, face: F32, portrait: Portrait) -> None:
    templates = load_templates(shared / "data" / "textures")
    assert len(templates) == 21
    outline = mask_coverage(portrait.landmarks, Outline(), portrait.bare.shape[:2]) > 127
    frontal = [t for t in templates if not t.name.endswith(("left", "right"))]
    for template in frontal:
        worn = wear_template(face, portrait.landmarks, template, np.random.default_rng(0), jitter=0).coverage > 0.5
        assert (worn & outline).sum() / (worn | outline).sum() > 0.5, template.name


@pytest.mark.parametrize("seed", range(8))
def test_lowered_mask_lies_under_the_chin_and_leaves_nose_and_mouth_free(seed: int, portrait: Portrait) -> None:
    height, width = portrait.bare.shape[:2]
    coverage = lowered_coverage(portrait.landmarks, np.random.default_rng(seed), (height, width))
    at = np.round(portrait.landmarks[:, :2]).astype(int)
    for landmark in (4, 1, 0, 13):  # the tip of the nose, below it, the upper lip, between the lips
        assert coverage[at[landmark, 1], at[landmark, 0]] == 0
    assert coverage[at[152, 1] + 3, at[152, 0]] > 0, "below the chin"


@pytest.mark.parametrize("seed", range(6))
def test_raised_mask_covers_the_eyes(seed: int, portrait: Portrait) -> None:
    rng = np.random.default_rng(seed)
    coverage = mask_coverage(portrait.landmarks, raised(random_outline(rng), rng), portrait.bare.shape[:2])
    assert covers(coverage, portrait, 168), "between the eyes"
    assert covers(coverage, portrait, 145), "below the pupil"
    assert not covers(coverage, portrait, FOREHEAD)


@pytest.mark.parametrize("degrees", [0, 60])
def test_long_loops_reach_the_ear_that_is_seen_and_are_mask(degrees: float, face: F32, portrait: Portrait) -> None:
    rng = np.random.default_rng(4)
    narrow = Outline(ear=0.6)  # ends on the cheek
    square, points = face[:512, :512], portrait.landmarks
    masked = draw_mask(square, points, rng, "cloth", narrow)
    if degrees:
        masked, points = turn_head(masked, points, np.zeros_like(square), Turn(np.radians(degrees)))
    looped = add_long_loops(masked, points, rng)
    added = (looped.coverage > 0.5) & (masked.coverage <= 0.5)
    assert 20 < added.sum() < 0.25 * (masked.coverage > 0.5).sum()
    eye = float(np.linalg.norm(points[33] - points[263]))
    near = [
        np.linalg.norm(np.argwhere(added)[:, ::-1] - points[ear, :2], axis=1).min() < 0.5 * eye for ear in (234, 454)
    ]
    assert any(near) if degrees else all(near)
    assert np.abs(looped.rgb - masked.rgb).max(axis=2)[added].mean() > 0.05


def test_lines_are_told_from_edges_and_areas() -> None:
    rgb = np.full((256, 256, 3), 0.5, np.float32)
    rgb[:, 60:63] = 0.9
    rgb[100:103, 150:] = 0.1
    rgb[180:, :] = 0.2
    found = lines_of(rgb)
    assert found[20:90, 60:63].all()
    assert found[100:103, 160:].all()
    assert not found[130:, 80:].any(), "a step is no line"
    assert not found[:90, 80:140].any()


def test_missing_templates_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no masks\.cfg"):
        load_templates(tmp_path)


@pytest.mark.parametrize("degrees", [-70, -30, 30, 70])
def test_turned_head_takes_its_mask_along(degrees: float, face: F32, portrait: Portrait) -> None:
    small = cv2.resize(face, (256, 256), interpolation=cv2.INTER_AREA)
    points = portrait.landmarks * np.float32(256) / np.array([face.shape[1], face.shape[0], face.shape[1]], np.float32)
    masked = draw_mask(small, points, np.random.default_rng(3), "cloth", Outline())
    behind = np.zeros_like(small)
    turned, moved = turn_head(masked, points, behind, Turn(np.radians(degrees)))
    nose, ears = moved[4], moved[[234, 454]].mean(axis=0)
    assert np.sign(nose[0] - ears[0]) == np.sign(degrees), "a positive yaw turns the nose to the right"
    assert turned.rgb.dtype == turned.coverage.dtype == np.float32
    assert 0 <= turned.rgb.min() <= turned.rgb.max() <= 1
    x, y = np.round(moved[13, :2]).astype(int)
    assert turned.coverage[y, x] > 0.9, "the mouth is still behind the mask"
    brow = 300 if degrees < 0 else 70
    x, y = np.round(moved[brow, :2]).astype(int)
    assert turned.coverage[y, x] < 0.1, "the brow is still bare"
    narrower = (turned.coverage > 0.5).sum() / (masked.coverage > 0.5).sum()
    assert narrower < 1.0 if abs(degrees) > 45 else narrower < 1.3


def test_bare_head_turns_bare(face: F32, portrait: Portrait) -> None:
    bare = Masked(face, np.zeros(face.shape[:2], np.float32))
    square = min(face.shape[:2])
    bare = Masked(bare.rgb[:square, :square].copy(), bare.coverage[:square, :square].copy())
    turned, _ = turn_head(bare, portrait.landmarks, np.zeros_like(bare.rgb), random_turn(np.random.default_rng(0)))
    assert not turned.coverage.any()


def test_profile_is_drawn_without_dots(portrait: Portrait) -> None:
    """Where the side of the head is stretched, what lies behind it would show between the points that are drawn."""
    matrix, side = canonical_crop(portrait.landmarks), CROP_SIZE
    depth = portrait.landmarks[:, 2:] * np.sqrt(np.linalg.det(matrix[:, :2]))
    points = np.hstack([transform_points(matrix, portrait.landmarks), depth]).astype(np.float32)
    ramp = np.ascontiguousarray(
        np.broadcast_to(np.linspace(0, 1, side, dtype=np.float32)[None, :, None], (side, side, 3))
    )
    bare = Masked(ramp, np.zeros((side, side), np.float32))
    turned, _ = turn_head(bare, points, np.full((side, side, 3), 0.5, np.float32), Turn(1.45))
    dots = np.abs(turned.rgb - cv2.medianBlur(turned.rgb, 3)).max(axis=2) > 0.1
    assert dots.sum() < 20, "without care there are 200"


def test_loose_mask_is_wider_than_the_face_and_leaves_the_eyes(portrait: Portrait) -> None:
    size = portrait.bare.shape[:2]
    rng = np.random.default_rng(2)
    for _ in range(20):
        outline = random_outline(rng)
        loose, tight = (mask_coverage(portrait.landmarks, o, size) for o in (loosened(outline, rng), outline))
        jaw = portrait.landmarks[[132, 361], :2]
        columns = np.flatnonzero(loose.max(axis=0))
        assert columns[0] < jaw[:, 0].min()
        assert columns[-1] > jaw[:, 0].max()
        assert (loose > 127).sum() > 0.9 * (tight > 127).sum()
        eyes = np.round(portrait.landmarks[[159, 386], :2]).astype(int)
        assert not (loose[eyes[:, 1], eyes[:, 0]] > 127).any()


@pytest.mark.parametrize("seed", range(6))
def test_turned_face_lies_as_a_tracker_would_cut_it(seed: int, face: F32, portrait: Portrait) -> None:
    side = 256
    small = cv2.resize(face, (side, side), interpolation=cv2.INTER_AREA)
    points = portrait.landmarks * np.float32(side) / np.array([face.shape[1], face.shape[0], face.shape[1]], np.float32)
    sample = Sample(small, np.ones((side, side), np.float32), points)
    turned, seen, hidden = turned_face(sample, np.zeros_like(small), np.random.default_rng(seed), ())
    corners = np.array([[0, 0], [side, 0], [0, side], [side, side]], np.float64)
    strayed = transform_points(canonical_crop(turned.points), corners) - corners
    assert 0 < np.abs(strayed).max() < 0.3 * side, "it strays, as tracks of profiles do"
    assert set(np.unique(hidden)) <= {0, 1}
    assert 0.02 < hidden.mean() < 0.5
    chin = np.round(turned.points[175, :2]).astype(int)
    region = hidden[chin[1] - 3 : chin[1] + 4, chin[0] - 3 : chin[0] + 4]
    assert region.any(), "what is hidden turned with the face"
    away = cv2.erode((1 - hidden).astype(np.uint8), np.ones((15, 15), np.uint8)) > 0
    away[: side // 3] = True
    assert np.abs(seen - turned.rgb)[away & (hidden == 0)].mean() < 0.05, "what is not hidden is the truth"


@pytest.mark.parametrize("seed", range(8))
def test_glasses_sit_before_the_eyes_and_change_little_else(seed: int, face: F32, portrait: Portrait) -> None:
    before = face.copy()
    worn = wear_glasses(face, portrait.landmarks, np.random.default_rng(seed))
    points = portrait.landmarks[:, :2]
    distance = float(np.linalg.norm(points[263] - points[33]))
    rows, columns = np.nonzero(worn.frame > 0.5)
    eyes = (points[33] + points[263]) / 2
    assert abs(columns.mean() - eyes[0]) < 0.15 * distance
    assert abs(rows.mean() - eyes[1]) < 0.3 * distance
    assert np.ptp(columns) > distance, "both lenses"
    far = np.ones(face.shape[:2], bool)
    far[:, max(0, round(eyes[0] - 1.5 * distance)) : round(eyes[0] + 1.5 * distance)] = False
    far |= np.arange(face.shape[0])[:, None] > points[CHIN, 1]
    assert np.allclose(worn.rgb[far], face[far], atol=1e-6)
    assert np.array_equal(face, before), "the picture given is left alone"
    assert worn.rgb.min() >= 0
    assert worn.rgb.max() <= 1
