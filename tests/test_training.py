"""Data, training, export and evaluation, end to end on a few crops of the portrait."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import cv2
import msgspec
import numpy as np
import pytest
import torch
from faces import Portrait
from safetensors.torch import load_file
from training_faces import is_validation
from typer.testing import CliRunner

from unmask.cli import app
from unmask.errors import UnmaskError, UserError
from unmask.models.blocks import membrane
from unmask.models.engine import OpenVinoEngine, choose, load, weights_file
from unmask.models.export import mean_of, save_weights, ship
from unmask.models.geometry import transform_points
from unmask.models.mediapipe import FaceDetector, FaceMesh, find_landmarks
from unmask.models.placement import STEP_PX, USUAL
from unmask.models.segmenter import Segmenter
from unmask.stream.stills import crops_of_faces
from unmask.train import inpainter, segmenter
from unmask.train.config import Loss, Phase, Recipe
from unmask.train.data import FaceCrops, augment, draws, prefetch, prepare_crops
from unmask.train.ear_loops import loop_labels
from unmask.train.evaluate import (
    boundary_f,
    evaluate_inpainter,
    evaluate_labelled,
    false_alarms,
    iou_of,
    psnr,
    sharpness,
    structural_similarity,
)
from unmask.train.evaluate_run import evaluate_run
from unmask.train.glasses import Glasses, wear_glasses
from unmask.train.loop import check_finite, learning_rate, schedule
from unmask.train.more_masks import MoreMasksTrainer, with_borders_of
from unmask.train.objectives import random_windows, windows
from unmask.train.pseudo import PseudoLabels, loops_of
from unmask.train.registry import trainer_of
from unmask.train.symmetry import MIRRORED, mirror


@pytest.fixture(scope="module")
def crops(portrait: Portrait, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of eight variants of the portrait and of a picture without a face, some of them for validation."""
    folder = tmp_path_factory.mktemp("faces")
    for number in range(8):
        height, width = portrait.bare.shape[:2]
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), 5.0 * (number - 4), 1.0)
        picture = cv2.warpAffine(portrait.bare, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
        split = next(s for s in range(10_000) if is_validation(f"{number}-{s}.png") == (number < 2))
        cv2.imwrite(str(folder / f"{number}-{split}.png"), picture[..., ::-1])
    cv2.imwrite(str(folder / "no-face.png"), np.full((200, 200, 3), 90, np.uint8))
    out = tmp_path_factory.mktemp("crops")
    assert prepare_crops([folder], out, lambda done, total: None) == (8, 1)
    return out


def test_crops_are_aligned_and_split(crops: Path) -> None:
    data = FaceCrops.open(crops)
    assert data.crops.shape[0] >= len(data.names) == 8
    eyes = data.points[:, [33, 263], :2].mean(axis=1)
    assert np.ptp(eyes, axis=0).max() < 4, "turned pictures give the same crop"
    validation = set(data.split(validation=True))
    assert {data.names[i].split("/")[-1][0] for i in validation} == {"0", "1"}
    assert not validation & set(data.split(validation=False))


def test_missing_crops_say_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unmask data crops"):
        FaceCrops.open(tmp_path)
    with pytest.raises(UserError, match="no pictures"):
        prepare_crops([tmp_path], tmp_path / "out", lambda done, total: None)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("index.json", lambda path: path.write_text("{bad")),
        ("index.json", lambda path: path.write_text("5")),
        ("points.npy", lambda path: np.save(path, np.zeros((3, 468, 3), np.float32))),
        ("crops.npy", lambda path: path.write_bytes(path.read_bytes()[:-1000])),
        ("crops.npy", lambda path: np.save(path, np.zeros((7, 256, 256, 3), np.uint8))),
        ("inside.npy", lambda path: path.write_bytes(b"")),
        ("inside.npy", lambda path: np.save(path, np.zeros((9, 256, 256), np.uint8))),  # as an interrupted call left it
    ],
)
def test_damaged_crops_say_how_to_make_them(
    crops: Path, tmp_path: Path, file: str, change: Callable[[Path], object]
) -> None:
    shutil.copytree(crops, tmp_path / "crops")
    FaceCrops.open(tmp_path / "crops")
    change(tmp_path / "crops" / file)
    with pytest.raises(UserError, match=r"holds crops that are damaged .*; make them with: unmask data crops"):
        FaceCrops.open(tmp_path / "crops")


def test_augmenting_moves_picture_and_points_together(crops: Path) -> None:
    data = FaceCrops.open(crops)
    same = augment(data, 0, 256, np.random.default_rng(0), jitter=0.0)
    np.testing.assert_allclose(same.rgb * 255, data.crops[0], atol=0.6)
    np.testing.assert_allclose(same.points, data.points[0], atol=1e-3)
    dark = []
    for seed in range(8):  # the pupils stay the darkest thing around the eyes, wherever the crop moves
        sample = augment(data, 0, 256, np.random.default_rng(seed))
        x, y = np.round(sample.points[[33, 133], :2].mean(axis=0)).astype(int)
        around = sample.rgb[y - 12 : y + 12, x - 12 : x + 12].mean()
        dark.append(around < sample.rgb[y + 30 : y + 50, x - 10 : x + 10].mean())
    assert sum(dark) >= 6


def test_shifted_crop_shows_the_face_elsewhere(crops: Path) -> None:
    data = FaceCrops.open(crops)
    usual, lower = (augment(data, 0, 256, np.random.default_rng(0), 0.0, shift) for shift in (USUAL, (0, 1)))
    np.testing.assert_allclose(usual.points[:, 1] - lower.points[:, 1], STEP_PX, atol=1e-3)
    np.testing.assert_allclose(usual.rgb[STEP_PX:], lower.rgb[:-STEP_PX], atol=1e-6)
    assert not lower.inside[-STEP_PX + 1 :].any(), "there the crop has nothing to show"


def test_points_are_mirrored_with_their_picture(portrait: Portrait) -> None:
    np.testing.assert_array_equal(MIRRORED[MIRRORED], np.arange(468))
    rgb, points = mirror(portrait.bare, portrait.landmarks)
    np.testing.assert_array_equal(rgb[:, ::-1], portrait.bare)
    # The mesh in the mirrored picture, found without knowing that it is mirrored.
    ((_, found, _),) = find_landmarks(rgb, FaceDetector(), FaceMesh())
    eyes = np.linalg.norm(points[33] - points[263])
    assert np.linalg.norm((found - points)[:, :2], axis=1).mean() < 0.03 * eyes
    unpaired = portrait.landmarks * (-1, 1, 1) + (rgb.shape[1], 0, 0)
    assert np.linalg.norm((found - unpaired)[:, :2], axis=1).mean() > 0.3 * eyes


def recipe(model: str, crops: Path, out: Path, losses: dict[str, float | Loss] | None = None) -> Recipe:
    first = Phase(steps=4, size=64, batch=2)
    second = Phase(steps=2, size=64, batch=2, lr=1e-4, window=32, losses=losses or {})
    return Recipe(model=model, crops=str(crops), out=str(out), phases=(first, second), checkpoint_minutes=0)


def test_segmenter_trains_resumes_and_exports(crops: Path, tmp_path: Path) -> None:
    whole = recipe("segmenter", crops, tmp_path / "whole")
    trainer_of(whole).fit()
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert log[-1]["step"] == 6
    assert 0 <= log[-1]["validation_iou"] <= 1
    metrics = list((tmp_path / "mlruns").rglob("metrics/validation_iou"))
    assert len(metrics) == 1
    assert float(metrics[0].read_text().splitlines()[-1].split()[1]) == pytest.approx(log[-1]["validation_iou"])
    assert len(next((tmp_path / "mlruns").rglob("tags/data.crops")).read_text()) == 64, "the data is pinned by its hash"
    assert next((tmp_path / "mlruns").rglob("params/phase1.steps")).read_text() == "2"

    part = recipe("segmenter", crops, tmp_path / "part")
    trainer_of(msgspec.structs.replace(part, phases=part.phases[:1])).fit()
    trainer_of(part).fit()  # goes on after the first phase
    straight, resumed = (torch.load(tmp_path / x / "state.pt", weights_only=True) for x in ("whole", "part"))
    assert straight["done"] == resumed["done"] == 6
    for name, value in straight["model"].items():
        torch.testing.assert_close(value, resumed["model"][name], rtol=0, atol=0)


@pytest.fixture(scope="module")
def labels(portrait: Portrait, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The masked portrait, labelled by the shipped segmenter."""
    folder, out = tmp_path_factory.mktemp("masked"), tmp_path_factory.mktemp("labels")
    cv2.imwrite(str(folder / "masked.png"), portrait.masked[..., ::-1])
    cv2.imwrite(str(folder / "bare.png"), portrait.bare[..., ::-1])
    result = CliRunner().invoke(app, ["data", "label", str(folder), "-o", str(out), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    assert "crops: 1\n" in result.output
    assert "faces without a sure label: 1\n" in result.output, "a bare face has no mask to label"
    return out


@pytest.mark.parametrize("file", ["index.json", "labels.npy"])
def test_damaged_labels_say_how_to_make_them(labels: Path, tmp_path: Path, file: str) -> None:
    shutil.copytree(labels, tmp_path / "labels")
    (tmp_path / "labels" / file).write_text("[]")
    with pytest.raises(UserError, match=r"holds labels that are damaged .*; make them with: unmask data label"):
        PseudoLabels.open(tmp_path / "labels")


def test_labels_lie_on_the_mask(labels: Path, portrait: Portrait) -> None:
    real = PseudoLabels.open(labels)
    truth, found = portrait.crop_coverage(), real.labels[0] > 127
    assert (truth & found).sum() / (truth | found).sum() > 0.8
    _, label, weight = real.draw(0, 128, np.random.default_rng(0), 1.0)
    assert set(np.unique(label)) <= {0.0, 1.0}
    assert 0.5 < weight.mean() < 1, "a rim around the mask has no label"


def test_labels_keep_apart_what_must_not_be_trained_on(portrait: Portrait, tmp_path: Path) -> None:
    for name, picture in (("train", portrait.masked), ("test", portrait.masked[:, ::-1])):
        (tmp_path / name).mkdir()
        cv2.imwrite(str(tmp_path / name / "a.jpg"), picture[..., ::-1])
    command = ["data", "label", str(tmp_path / "train"), "-o", str(tmp_path / "out"), "--device", "cpu"]
    result = CliRunner().invoke(app, [*command, "--apart-from", str(tmp_path / "test")])
    assert isinstance(result.exception, UserError)
    assert "no masked face with a sure label" in str(result.exception)


def test_segmenter_trains_on_real_faces_too(crops: Path, labels: Path, tmp_path: Path) -> None:
    sources = segmenter.Sources(FaceCrops.open(crops), (), PseudoLabels.open(labels))
    batch = segmenter.make_batch(sources, draws(np.arange(4), 0), 64, real=2)
    known = batch.weight.mean((1, 2, 3))
    assert (known[:2] < 1).all()
    assert (known[2:] == 1).all()
    real = msgspec.structs.replace(recipe("segmenter", crops, tmp_path), real=str(labels))
    trainer_of(real).fit()
    assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["step"] == 6


def test_borders_are_the_teachers_where_it_sees_the_same_mask() -> None:
    label, seen = torch.zeros(2, 3, 1, 256, 256)
    label[:2, :, 100:200, 100:200] = 1
    seen[0, :, 102:202, 100:200] = 0.7  # nearly the same
    seen[1, :, 150:200, 100:200] = 0.7  # half of it
    seen[2, :, 10:40, 10:40] = 0.7  # where there is none
    wanted = label.clone()
    wanted[0, :, 96:106, 110:190] = seen[0, :, 96:106, 110:190]
    nowhere = torch.zeros_like(label)
    found, known = with_borders_of(seen, label, nowhere)
    assert known[0, :, 96:104, 110:190].all()
    assert not known[1:].any()
    assert not known[0, :, 106:194, 106:194].any()
    torch.testing.assert_close(found[1:], label[1:])
    torch.testing.assert_close(found[0, :, :104, 110:190], wanted[0, :, :104, 110:190])
    assert (found[0, :, 196:204, 110:190] == seen[0, :, 196:204, 110:190]).all()
    assert (found[0, :, 106:194, 106:194] == 1).all(), "within it the label counts"
    assert not found[0, :, :95].any()


def test_more_masks_are_learnt_and_ear_loops_and_statistics_stay(crops: Path, labels: Path, tmp_path: Path) -> None:
    shipped = str(weights_file("segmenter.safetensors"))
    plan = msgspec.structs.replace(recipe("more-masks", crops, tmp_path), real=str(labels), ema=0.0)
    with pytest.raises(UserError, match="teacher=FILE"):
        trainer_of(plan)
    trainer = trainer_of(msgspec.structs.replace(plan, start=shipped, teacher=shipped))
    trainer.fit()
    figures, _ = evaluate_run(tmp_path, None, lambda done, total: None)
    assert 0 < figures["iou"] < 1
    before, after = load_file(shipped), trainer.averaged().state_dict()
    changed = {name for name in before if not torch.equal(after[name], before[name])}
    assert {"head.weight", "deep.0.conv1.weight"} & changed
    assert not any("running" in name or name.startswith("loops.") for name in changed)
    assert isinstance(trainer, MoreMasksTrainer)
    assert all(torch.equal(value, before[name]) for name, value in trainer.teacher.state_dict().items())


def test_loops_are_what_is_narrow_of_a_label() -> None:
    mask, label, known = torch.zeros(3, 1, 1, 256, 256)
    mask[..., 100:200, 100:150] = 0.8
    label[..., 120:220, 100:150] = 1
    label[..., 130:136, 150:200] = 1  # an ear loop
    known[..., 60:240, 60:190] = 1
    loops, weight = loop_labels(mask, label, known)
    wanted = torch.zeros_like(label)
    wanted[..., 130:136, 150:200] = 1
    torch.testing.assert_close(loops, wanted)
    assert not weight[..., 190:].any(), "not known"
    assert not weight[..., 100:220, 100:150].any(), "mask, by what is found or by the label"
    assert (weight[..., 130:136, 150:190] > 1).all(), "they are few"
    assert (weight[..., 136:240, 150:190] == 1).all()


def test_ear_loops_are_learnt_and_the_mask_stays(crops: Path, labels: Path, tmp_path: Path) -> None:
    shipped = str(weights_file("segmenter.safetensors"))
    plan = msgspec.structs.replace(recipe("ear-loops", crops, tmp_path), real=str(labels), start=shipped, ema=0.0)
    trainer = trainer_of(plan)
    figures = trainer.fit()
    assert 0 <= figures["validation_iou"] <= 1
    before, after = Segmenter(), trainer.averaged()
    before.load_state_dict(load_file(shipped))
    changed = {name for name, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[name])}
    assert changed
    assert all(name.startswith("loops.") for name in changed)


def test_ear_loops_are_what_is_long_narrow_and_begins_at_the_mask(labels: Path, tmp_path: Path) -> None:
    label = np.zeros((256, 256), np.uint8)
    label[120:220, 60:140] = 255
    seen = label.copy()
    seen[128:132, 140:200] = 255  # an ear loop
    seen[180:200, 140:200] = 255  # no loop: wide
    seen[150:154, 140:150] = 255  # short
    seen[150:154, 190:240] = 255  # elsewhere
    seen[40:44, 60:200] = 255  # hair
    found = np.zeros_like(label, bool)
    found[128:132, 140:200] = True
    np.testing.assert_array_equal(loops_of(seen > 0, label > 0), found)

    out = tmp_path / "loops"
    result = CliRunner().invoke(app, ["data", "loops", str(labels), "-o", str(out), "--device", "cpu"])
    assert result.exit_code == 0, result.output
    old, new = PseudoLabels.open(labels), PseudoLabels.open(out)
    np.testing.assert_array_equal(old.crops, new.crops)
    assert (new.labels >= old.labels).all()
    assert PseudoLabels.names(out) == PseudoLabels.names(labels)
    result = CliRunner().invoke(app, ["data", "loops", str(labels), "-o", str(labels)])
    assert "give another folder" in str(result.exception)


def test_ear_loops_drawn_by_hand_come_in_place_of_those_seen(portrait: Portrait, labels: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures" / "masked"
    folder.mkdir(parents=True)
    cv2.imwrite(str(folder / "masked.png"), portrait.masked[..., ::-1])
    (matrix,) = crops_of_faces(portrait.masked)
    back = cv2.invertAffineTransform(matrix)
    x, y, ear_x, ear_y, high_x, high_y = transform_points(back, np.array([[128, 128], [220, 70], [200, 60]])).flat
    width = 6 / np.sqrt(np.linalg.det(matrix[:, :2]))
    name, old = PseudoLabels.names(labels)[0], PseudoLabels.open(labels)
    name = f"masked/{Path(name).name}"
    (labels_of := tmp_path / "labels").mkdir()
    for array in ("crops", "labels"):
        np.save(labels_of / f"{array}.npy", getattr(old, array))
    (labels_of / "index.json").write_text(json.dumps([name]))
    lines = tmp_path / "lines.csv"
    lines.write_text(
        f"file,x,y,width,points\n{name},{x},{y},{width},{ear_x} {ear_y} {high_x} {high_y}\n"
        f"{name},{x - 9e3},{y},0,\n"  # a face that is not there
    )
    out, command = tmp_path / "out", ["data", "loops", str(labels_of), "--lines", str(lines), "--device", "cpu"]
    result = CliRunner().invoke(app, [*command, "--pictures", str(tmp_path / "pictures"), "-o", str(out)])
    assert result.exit_code == 0, result.output
    assert "1 faces by hand, 0 others" in result.output
    assert PseudoLabels.names(out) == [name] * 3
    new = PseudoLabels.open(out).labels[0]
    assert (new[64:67, 208:212] == 230).all(), "the line is mask"
    assert (new[40:53, 180:240] == 0).all(), "nothing beside it is"
    assert ((new > 127) & (old.labels[0] > 127)).sum() > 0.9 * (old.labels[0] > 127).sum()

    result = CliRunner().invoke(app, [*command, "-o", str(out)])
    assert "name them with --pictures" in str(result.exception)
    lines.write_text("file,x,y\na,1,2\n")
    result = CliRunner().invoke(app, [*command, "-o", str(out)])
    assert "as a list of file,x,y,width,points" in str(result.exception)


def test_membrane_goes_on_where_values_are_trusted() -> None:
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64).contiguous()
    trust = torch.ones(1, 1, 64, 64)
    trust[..., 20:40, 24:40] = 0
    filled = membrane(ramp, trust)
    torch.testing.assert_close(filled * trust, ramp * trust, atol=2e-3, rtol=0)
    inside = filled[0, 0, 20:40, 24:40]
    assert (inside - ramp[0, 0, 20:40, 24:40]).abs().mean() < 0.03, "the ramp goes on inside the hole"
    assert (inside[:, 1:] >= inside[:, :-1] - 0.02).all()


def test_training_regions_hide_masks_and_leave_traces(crops: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inpainter, "WORN_SHARE", 0.35)
    data = FaceCrops.open(crops)
    faces = np.arange(32) % 8
    batch = inpainter.make_training_batch(data, draws(faces, 3), 64)
    again = inpainter.make_training_batch(data, draws(faces, 3), 64)
    torch.testing.assert_close(batch.seen, again.seen, rtol=0, atol=0)
    half = inpainter.make_training_batch(data, draws(faces, 3, slice(1, None, 2)), 64)
    torch.testing.assert_close(batch.seen[1::2], half.seen, rtol=0, atol=0)
    hidden = batch.mask.mean((1, 2, 3))
    assert (hidden > 0.01).all()
    assert (hidden < 0.6).all()
    traces = ((batch.seen - batch.truth).abs().amax(1, keepdim=True) * (1 - batch.mask)).amax((1, 2, 3)) > 0.05
    assert 0 < traces.sum() < 16, "some masks are not hidden to the last thread"


def test_rests_of_masks_close_to_a_hole_are_judged() -> None:
    truth = torch.full((1, 3, 64, 64), 0.5)
    seen, hole = truth.clone(), torch.zeros(1, 1, 64, 64)
    hole[..., 30:40, 20:40] = 1
    seen[..., 27:43, 17:43] = 0.1  # a mask that is wider than the hole
    seen[..., 5:8, 20:40] = 0.1  # a strap, far away
    seen[..., 50:60, 50:60] = 0.52
    rest = inpainter.rest_of_mask(seen, truth, hole)
    assert rest[..., 27:43, 17:43].all()
    assert rest.sum() == 16 * 26


def test_poor_cameras_show_face_and_mask_alike(crops: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, share in {"TURNED_SHARE": 0, "FILMED_SHARE": 1, "GLASSES_SHARE": 0, "BAD_LIGHT_SHARE": 0}.items():
        monkeypatch.setattr(inpainter, name, share)
    data = FaceCrops.open(crops)
    filmed = inpainter.make_training_batch(data, draws(np.arange(64) % 8, 3), 64)
    monkeypatch.setattr(inpainter, "FILMED_SHARE", 0)
    clean = inpainter.make_training_batch(data, draws(np.arange(64) % 8, 3), 64)
    changed = (filmed.truth - clean.truth).abs().amax((1, 2, 3)) > 0.02
    assert changed.sum() > 16
    bare = (filmed.seen - filmed.truth).abs().amax((1, 2, 3)) == 0
    assert (changed & bare).any(), "a bare face is seen as it is judged, noise included"


def test_faces_that_look_aside_are_shown_with_background_beyond_them(
    crops: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, share in {"TURNED_SHARE": 1, "_WHOLE_SHARE": 0, "FILMED_SHARE": 0, "SPILLED_SHARE": 0}.items():
        monkeypatch.setattr(inpainter, name, share)
    data, faces, size = FaceCrops.open(crops), np.arange(16) % 8, 128
    monkeypatch.setattr(inpainter, "OUTLINED_SHARE", 0)
    plain = inpainter.make_training_batch(data, draws(faces, 3), size)
    monkeypatch.setattr(inpainter, "OUTLINED_SHARE", 1)
    cut = inpainter.make_training_batch(data, draws(faces, 3), size)
    assert (cut.mask <= plain.mask).all()
    smaller = cut.mask.sum((1, 2, 3)) < plain.mask.sum((1, 2, 3))
    assert 3 < smaller.sum() < 16, "some look aside too little"
    changed = (cut.truth - plain.truth).abs().amax(1, keepdim=True) > 0
    assert changed.any()
    torch.testing.assert_close(cut.seen[changed.expand_as(cut.seen)], cut.truth[changed.expand_as(cut.truth)])
    assert (cut.mask[changed] == 0).all(), "what is filled is not to be painted"


def test_holes_take_in_what_lies_beside_a_mask() -> None:
    hidden = np.zeros((128, 128), np.float32)
    hidden[60:100, 40:90] = 1
    for seed in range(20):
        more = inpainter.spilled(hidden, np.random.default_rng(seed))
        assert set(np.unique(more)) == {0, 1}
        assert (more >= hidden).all()
        assert cv2.connectedComponents(more.astype(np.uint8))[0] == 2, "one hole"
        assert more.mean() < 0.35
    grown = [inpainter.spilled(hidden, np.random.default_rng(seed)).sum() > hidden.sum() for seed in range(20)]
    assert sum(grown) > 10
    assert not inpainter.spilled(np.zeros_like(hidden), np.random.default_rng(0)).any()


def test_faces_photographed_aside_are_drawn_more_often(crops: Path) -> None:
    data = FaceCrops.open(crops)
    assert len(inpainter.photographed_aside(data, np.arange(8))) == 0, "the portrait looks ahead"
    turned = data.points.copy()
    turned[5, 234, 2] += turned[5, 454, 0] - turned[5, 234, 0]  # one ear is as far behind the other as they are apart
    data = dataclasses.replace(data, points=turned)
    assert list(inpainter.photographed_aside(data, np.arange(8))) == [5]
    first, second = (
        inpainter.make_training_batch(data, draws(np.arange(32) % 8, 3), 64, aside=aside)
        for aside in (None, np.array([5]))
    )
    changed = (first.truth - second.truth).abs().amax((1, 2, 3)) > 0
    assert 0 < changed.sum() < 16


@pytest.mark.parametrize("in_front", [True, False])
def test_glasses_lie_before_a_mask_or_under_it(crops: Path, monkeypatch: pytest.MonkeyPatch, in_front: bool) -> None:
    frames = []

    def wear(*given: Any) -> Glasses:
        frames.append(wear_glasses(*given))
        return frames[-1]

    shares = {"GLASSES_SHARE": 1, "_IN_FRONT_SHARE": int(in_front), "TURNED_SHARE": 0, "FILMED_SHARE": 0}
    shares["SPILLED_SHARE"] = 0  # such a hole takes in whatever lies beside the mask
    for name, share in shares.items():
        monkeypatch.setattr(inpainter, name, share)
    monkeypatch.setattr(inpainter, "wear_glasses", wear)
    batch = inpainter.make_training_batch(FaceCrops.open(crops), draws(np.arange(16) % 8, 5), 128)
    frame = torch.from_numpy(np.stack([worn.frame for worn in frames]))[:, None] > 0.9
    assert frame.sum() > 1000
    covered = (batch.mask > 0) & frame
    assert bool(covered.any()) is not in_front
    if in_front:
        assert torch.where(frame, (batch.seen - batch.truth).abs(), 0).max() < 0.2, "it is seen as it is"


def test_windows_lie_around_what_is_hidden() -> None:
    weight = torch.zeros(2, 1, 64, 64)
    weight[0, 0, 40:44, 20:24] = 1
    weight[1, 0, 63, 63] = 1
    corners = random_windows(weight, 16)
    cut = windows(weight, corners, 16)
    assert cut.shape == (2, 1, 16, 16)
    assert (cut.sum((1, 2, 3)) > 0).all()


def test_mean_of_weights_leaves_counters_alone() -> None:
    first, second = ({"w": torch.full((2,), x), "n": torch.tensor(n)} for x, n in ((1.0, 3), (2.0, 5)))
    mean = mean_of([first, second])
    assert mean["w"].tolist() == [1.5, 1.5]
    assert mean["n"].item() == 5


def test_weights_are_written_with_the_rights_of_other_files(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    save_weights({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    assert (tmp_path / "x.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
    assert load_file(tmp_path / "x.safetensors")["x"].dtype is torch.float16


def test_weights_that_do_not_fit_replace_nothing(tmp_path: Path) -> None:
    for suffix in ("safetensors", "onnx"):
        (tmp_path / f"landmarker.{suffix}").write_text("mine")
    with pytest.raises(UserError, match="these are no weights of the landmarker"):
        ship("landmarker", {"x": torch.zeros(2)}, tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "landmarker.safetensors": "mine",
        "landmarker.onnx": "mine",
    }


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.pt").write_text("hi\n")
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"model": {}}, tmp_path / "other.pt")
    files = [*sorted(tmp_path.glob("*.pt")), weights_file("inpainter.safetensors")]
    for file in files:
        result = CliRunner().invoke(app, ["export", "inpainter", str(file), "-o", str(tmp_path)])
        assert isinstance(result.exception, UserError), file
        assert f"'{file}' is no checkpoint, or a damaged one; give the state.pt" in str(result.exception)


def test_inpainter_trains_with_an_adversary_and_ships(
    crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, portrait: Portrait
) -> None:
    losses: dict[str, float | Loss] = {
        "l1": 1.0,
        "adversarial": Loss(weight=0.1, view="lower", shrink=2, matching=0.1),
        "fine": Loss(kind="adversarial", weight=0.1, view="window", every=2),
    }
    trainer_of(recipe("inpainter", crops, tmp_path / "run", losses)).fit()
    result = CliRunner().invoke(app, ["export", "inpainter", str(tmp_path / "run" / "state.pt"), "-o", str(tmp_path)])
    assert result.exit_code == 0, result.output
    wrong = CliRunner().invoke(app, ["export", "segmenter", str(tmp_path / "run" / "state.pt"), "-o", str(tmp_path)])
    assert "holds the model inpainter" in str(wrong.exception)
    monkeypatch.setenv("UNMASK_WEIGHTS", str(tmp_path))
    engine = OpenVinoEngine("inpainter", threads=3)  # an unusual number, so that no compiled network is reused
    crop, mask = portrait.crop(masked=True), portrait.crop_coverage().astype(np.uint8) * np.uint8(255)
    painted = engine(crop[None], mask[None])[0].astype(int)
    assert np.abs(painted - crop)[mask == 0].max() <= 1
    assert np.abs(painted - crop)[mask > 0].mean() > 5


def test_learning_rate_rises_and_falls() -> None:
    phase = Phase(steps=1000, size=64, lr=1.0)
    rates = [learning_rate(phase, step) for step in range(1000)]
    assert rates[0] < 0.05
    assert max(rates) == rates[30] == 1.0
    assert rates[-1] == pytest.approx(0.05, abs=0.01)


def test_schedule_goes_on_where_it_stopped() -> None:
    plan = Recipe(model="", crops="", out="", phases=(Phase(steps=3, size=64), Phase(steps=2, size=128)))
    everything = list(schedule(plan, 0))
    assert [(p.size, step) for p, step, _ in everything] == [(64, 0), (64, 1), (64, 2), (128, 0), (128, 1)]
    assert list(schedule(plan, 2)) == everything[2:]


def test_broken_loss_stops_the_run() -> None:
    check_finite(torch.tensor(1.0), 3)
    with pytest.raises(UnmaskError, match="nan at step 3"):
        check_finite(torch.tensor(float("nan")), 3)


def test_prefetch_passes_errors_on() -> None:
    numbers = iter(range(3))
    made = prefetch(lambda: next(numbers))
    assert [next(made) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RuntimeError):
        next(made)


def test_measures_have_their_known_values() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert psnr(np.full(10, 255.0)) == pytest.approx(0)
    assert psnr(np.full(10, 25.5)) == pytest.approx(20)
    assert structural_similarity(picture, picture) == pytest.approx(1)
    assert structural_similarity(picture, 255 - picture) < 0
    blurred = cv2.GaussianBlur(picture, (0, 0), 2)
    everywhere = np.ones((64, 64), bool)
    assert sharpness(blurred, everywhere) < 0.1 * sharpness(picture, everywhere)
    square = np.zeros((64, 64), bool)
    square[20:40, 20:40] = True
    assert boundary_f(square, square) == 1
    assert boundary_f(np.roll(square, 1, axis=0), square) == pytest.approx(1)
    assert boundary_f(np.roll(square, 12, axis=(0, 1)), square) < 0.3


def test_what_cannot_be_judged_does_not_count(crops: Path, tmp_path: Path) -> None:
    truth, weight = torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 8)
    weight[1] = 1
    assert inpainter.psnr_in(truth + 1, truth, weight).tolist() == pytest.approx([0], abs=1e-3)

    shutil.copytree(crops, tmp_path / "crops")
    data = FaceCrops.open(tmp_path / "crops")
    inside = data.inside.copy()
    inside[data.split(validation=True)[0]] = 0  # its hidden part lies beyond the border of the picture
    np.save(tmp_path / "crops" / "inside.npy", inside)
    for model in ("inpainter", "oagan"):
        whole, part = (
            trainer_of(recipe(model, folder, tmp_path / f"{model} of {folder.parent.name}", {"l1": 1.0})).validate(64)
            for folder in (crops, tmp_path / "crops")
        )
        assert part["validation_psnr"] == pytest.approx(whole["validation_psnr"], abs=4), "not the mean with 80 dB"
        if model == "inpainter":
            assert part["validation_sharpness"] > 0


def test_nothing_found_where_nothing_is_is_right(tmp_path: Path) -> None:
    for folder, value in (("image", 90), ("mask", 0)):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "a.png"), np.full((256, 256, 3), value, np.uint8))

    class Blind:
        def __call__(self, rgb: Any) -> Any:
            return np.zeros(rgb.shape[:3], np.uint8)

    figures = evaluate_labelled(cast(Any, Blind()), tmp_path, lambda rgb: np.eye(3)[:2], lambda done, total: None)
    assert figures["iou"] == figures["iou_mean"] == figures["boundary_f_2px"] == 1
    assert iou_of(1, 2) == 0.5


def test_evaluations_run_on_the_shipped_networks(crops: Path, portrait: Portrait, tmp_path: Path) -> None:
    data = FaceCrops.open(crops)
    figures = evaluate_inpainter(load("inpainter", choose("cpu")), data, lambda done, total: None)
    assert figures["pictures"] == 2
    assert figures["psnr_in_mask"] > figures["psnr_in_mask_telea"]
    for folder in ("image", "mask"):
        (tmp_path / folder).mkdir()
    cv2.imwrite(str(tmp_path / "image" / "a.png"), portrait.crop(masked=True)[..., ::-1])
    cv2.imwrite(str(tmp_path / "mask" / "a.png"), portrait.crop_coverage().astype(np.uint8) * 255)
    engine = load("segmenter", choose("cpu"))
    labelled = evaluate_labelled(engine, tmp_path, lambda rgb: np.eye(3)[:2], lambda done, total: None)
    assert labelled["iou"] > 0.85
    assert labelled["no_face_found"] == 0
    assert false_alarms(engine, iter([portrait.crop(masked=False)]))["painted"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["evaluate", "segmenter"], "nothing to measure on"),
        (["evaluate", "inpainter", "--crops", "nowhere"], "unmask data crops"),
        (["data", "crops", "nowhere", "-o", "x"], "not a folder"),
        (["train", "none.yaml"], "cannot read the recipe"),
        (["train", "inpaintr"], "did you mean 'inpainter'"),
        (["export", "segmenter", "none.pt", "-o", "."], "no checkpoint"),
        (["export", "painter", "none.pt", "-o", "."], "unknown network"),
    ],
)
def test_mistakes_are_said(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)


def test_likelihood_that_runs_is_that_of_the_logits_that_train() -> None:
    torch.manual_seed(1)
    network = Segmenter().eval()
    for values in network.loops.head.parameters():  # both parts have a say
        torch.nn.init.normal_(values)
    rgb = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        mask, loops = network.parts(rgb)
        assert 0.05 < (loops > mask).float().mean() < 0.95
        torch.testing.assert_close(network.likelihood(rgb), network(rgb).sigmoid())
