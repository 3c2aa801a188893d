"""The detector and the landmarker: data, training, export, and what the shipped ones find."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

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
from unmask.errors import UserError
from unmask.models.detections import MESH_SIZE, Detection, points_to_frame, roi_from_landmarks
from unmask.models.engine import WEIGHTS_VARIABLE, compile_network, read_network, weights_file
from unmask.models.export import ship
from unmask.models.masked_faces import FaceLandmarker, MaskedFaceDetector
from unmask.models.mediapipe import FaceMesh
from unmask.models.rows import BARE, KINDS, LANDMARKER_SIZE, LANDMARKS, MASKED, STRIDES, cell_centres, overlap
from unmask.models.runtime import load_runtime
from unmask.train import detector, landmarker, processes
from unmask.train.campaign import preview_sheet
from unmask.train.config import Recipe, load_recipe
from unmask.train.data import FaceCrops, prepare_crops
from unmask.train.evaluate_run import evaluate_run
from unmask.train.materials import load_templates
from unmask.train.registry import trainer_of
from unmask.train.tracker_data import (
    NOTHING,
    UNKNOWN,
    TrackerData,
    box_of,
    draw_face,
    is_validation_scene,
    prepare_scenes,
)

WIDE = (384, 640)
"""Height and width of a picture for the detector."""


@pytest.fixture(scope="module")
def crops(portrait: Portrait, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of four variants of the portrait, one of them for validation."""
    folder, out = tmp_path_factory.mktemp("faces"), tmp_path_factory.mktemp("crops")
    for number in range(4):
        picture = cv2.convertScaleAbs(portrait.bare, alpha=1.0 - 0.1 * number)
        split = next(s for s in range(10_000) if is_validation(f"{number}-{s}.png") == (number < 1))
        cv2.imwrite(str(folder / f"{number}-{split}.png"), picture[..., ::-1])
    prepare_crops([folder], out, lambda done, total: None)
    return out


def template(folder: Path) -> Path:
    """A folder with one mask picture."""
    folder.mkdir()
    cv2.imwrite(str(folder / "blue.png"), np.full((100, 200, 4), (200, 150, 100, 255), np.uint8))
    points = {"a": "10,20", "b": "100,5", "c": "190,20", "d": "20,70", "e": "100,95", "f": "180,70"}
    lines = ["[blue]", "template: blue.png", *(f"mask_{name}: {at}" for name, at in points.items())]
    (folder / "masks.cfg").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def data(crops: Path, portrait: Portrait, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `unmask data tracker` makes of the crops, a labelled scene and a still, all of the portrait."""
    folder = tmp_path_factory.mktemp("tracker")
    scenes, stills = folder / "scenes", folder / "incorrect"
    scenes.mkdir()
    stills.mkdir()
    names = [next(f"{n}.png" for n in range(100) if is_validation_scene(f"{n}.png") == kept) for kept in (False, True)]
    with (scenes / "boxes.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "label", "x0", "y0", "x1", "y1"])
        for name in names:
            cv2.imwrite(str(scenes / name), portrait.masked[..., ::-1])
            rows.writerow([name, "with_mask", *np.round(box_of(portrait.landmarks)).astype(int)])
    cv2.imwrite(str(stills / "still.png"), portrait.masked[..., ::-1])
    out = folder / "data"
    command = ["data", "tracker", str(crops), "--scenes", str(scenes), "--stills", str(stills), "-o", str(out)]
    result = CliRunner().invoke(app, [*command, "--textures", str(template(folder / "textures")), "--variants", "4"])
    assert result.exit_code == 0, result.output
    assert "12 drawn faces and 2 real ones" in result.output
    return out


def test_data_for_the_tracker_leave_validation_out(data: Path, portrait: Portrait) -> None:
    made = TrackerData.open(data)
    assert made.faces.shape == (12, 160, 160, 3)
    assert {BARE, MASKED} <= set(made.kinds.tolist())
    scene, still = made.scenes
    assert scene.kinds.tolist() == [MASKED]
    assert KINDS[still.kinds[0]] == "worn wrongly"
    assert overlap(still.boxes, box_of(portrait.landmarks)[None])[0, 0] > 0.6
    eyes = portrait.landmarks[[33, 133], :2].mean(axis=0)
    assert np.linalg.norm(scene.points[0, 0] - eyes) < 8, "the points of a labelled face are found"


def test_profiles_that_were_marked_are_part_of_the_data(crops: Path, portrait: Portrait, tmp_path: Path) -> None:
    name = next(f"{n}.png" for n in range(100) if not is_validation_scene(f"{n}.png"))
    (scenes := tmp_path / "scenes").mkdir()
    cv2.imwrite(str(scenes / name), portrait.masked[..., ::-1])
    box = ",".join(str(round(float(v))) for v in box_of(portrait.landmarks))
    (scenes / "boxes.csv").write_text(f"file,label,x0,y0,x1,y1\n{name},with_mask,{box}\n")
    marks = " ".join(f"{v:.1f}" for v in portrait.landmarks[[168, 33, 234, 4, 152], :2].ravel())
    (tmp_path / "profiles.csv").write_text(f"file,facing,yaw,marks\n{name},right,50,{marks}\n")
    out = tmp_path / "data"
    command = ["data", "tracker", str(crops), "--scenes", str(scenes), "--profiles", str(tmp_path / "profiles.csv")]
    more = ["--textures", str(template(tmp_path / "textures")), "--variants", "1", "-o", str(out)]
    result = CliRunner().invoke(app, [*command, *more])
    assert result.exit_code == 0, result.output
    made = TrackerData.open(out)
    assert made.profiles == ((0, 0),)
    shown = [landmarker.draw_example(made, np.random.default_rng(seed)) for seed in range(60)]
    whole = [example for example in shown if example.sure == 1]
    assert whole, "a face in profile can be drawn"


def test_faces_that_labels_leave_out_are_left_in_peace(portrait: Portrait, tmp_path: Path) -> None:
    name = next(f"{n}.png" for n in range(100) if not is_validation_scene(f"{n}.png"))
    cv2.imwrite(str(tmp_path / name), np.hstack([portrait.masked, portrait.bare])[..., ::-1])
    box = ",".join(str(round(float(v))) for v in box_of(portrait.landmarks))
    (tmp_path / "boxes.csv").write_text(f"file,label,x0,y0,x1,y1\n{name},with_mask,{box}\n")
    beside = portrait.landmarks + np.array([portrait.masked.shape[1], 0, 0], np.float32)
    listed = prepare_scenes(tmp_path, [], lambda rgb: [portrait.landmarks, beside], tmp_path, lambda done, total: None)
    assert listed == 2
    (entry,) = json.loads((tmp_path / "scenes.json").read_text())
    assert [face["kind"] for face in entry["faces"]] == [MASKED, UNKNOWN]
    assert entry["faces"][1]["box"] == pytest.approx(box_of(beside).tolist())


def test_more_labels_name_faces_and_what_is_none(portrait: Portrait, tmp_path: Path) -> None:
    """A portrait that the labels leave out is a face, what was found beside it is nothing, and is shown as such."""
    name = next(f"{n}.png" for n in range(100) if not is_validation_scene(f"{n}.png"))
    width = portrait.masked.shape[1]
    cv2.imwrite(str(tmp_path / name), np.hstack([portrait.masked, portrait.bare])[..., ::-1])
    (tmp_path / "boxes.csv").write_text("file,label,x0,y0,x1,y1\n" + f"{name},with_mask,0,0,20,20\n")
    face = box_of(portrait.landmarks)
    beside = portrait.landmarks + np.array([width, 0, 0], np.float32)
    rows = {"with_mask": face, "nothing": box_of(beside)}
    lines = [f"{name},{label}," + ",".join(f"{v:.1f}" for v in box) for label, box in rows.items()]
    (tmp_path / "more.csv").write_text("\n".join(["file,label,x0,y0,x1,y1", *lines]))
    found = [portrait.landmarks, beside]
    prepare_scenes(tmp_path, [], lambda rgb: found, tmp_path, lambda done, total: None, tmp_path / "more.csv")
    empty = TrackerData(*(np.zeros((0, 1)) for _ in range(4)), ())
    for array in ("faces", "inside", "points", "kinds"):
        np.save(tmp_path / f"{array}.npy", getattr(empty, array))
    data = TrackerData.open(tmp_path)
    (scene,) = data.scenes
    assert scene.kinds.tolist() == [MASKED, MASKED]
    assert np.isfinite(scene.points[1]).all(), "the found points are those of the face"
    np.testing.assert_allclose(scene.nothing, box_of(beside)[None], atol=0.1)
    shown = [detector.draw_scene(data, (96, 96), np.random.default_rng(seed)) for seed in range(60)]
    alone = [picture for picture in shown if not len(picture.boxes)]
    assert 0.1 < len(alone) / len(shown) < 0.8, "what is nothing is shown by itself, not always"


def test_what_is_wrongly_found_in_a_still_is_nothing(portrait: Portrait, tmp_path: Path) -> None:
    """In a still all that is found counts as a face, unless a label says otherwise."""
    stills = tmp_path / "cloth"
    stills.mkdir()
    cv2.imwrite(str(stills / "1.png"), np.hstack([portrait.masked, portrait.bare])[..., ::-1])
    beside = portrait.landmarks + np.array([portrait.masked.shape[1], 0, 0], np.float32)
    (tmp_path / "boxes.csv").write_text("file,label,x0,y0,x1,y1\n")
    line = "cloth/1.png,nothing," + ",".join(f"{v:.1f}" for v in box_of(beside))
    (tmp_path / "more.csv").write_text("file,label,x0,y0,x1,y1\n" + line)
    found = [portrait.landmarks, beside]
    prepare_scenes(tmp_path, [stills], lambda rgb: found, tmp_path, lambda done, total: None, tmp_path / "more.csv")
    (entry,) = json.loads((tmp_path / "scenes.json").read_text())
    assert sorted(face["kind"] for face in entry["faces"]) == [NOTHING, MASKED]


@pytest.mark.parametrize("line", ["a.png,face,1,2,3,4", "a.png,nothing,1,2,three,4", "a.png,nothing,1"])
def test_a_broken_line_of_labels_is_a_mistake(tmp_path: Path, line: str) -> None:
    (tmp_path / "boxes.csv").write_text("file,label,x0,y0,x1,y1\n")
    (tmp_path / "more.csv").write_text("file,label,x0,y0,x1,y1\n" + line)
    with pytest.raises(UserError, match="columns file,label,x0,y0,x1,y1"):
        prepare_scenes(tmp_path, [], lambda rgb: [], tmp_path, lambda done, total: None, tmp_path / "more.csv")


def test_scenes_without_boxes_are_a_mistake(crops: Path, tmp_path: Path) -> None:
    command = ["data", "tracker", str(crops), "--scenes", str(tmp_path), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*command, "--textures", str(template(tmp_path / "t")), "--variants", "1"])
    assert isinstance(result.exception, UserError)
    assert "boxes.csv" in str(result.exception)
    with pytest.raises(UserError, match="unmask data tracker"):
        TrackerData.open(tmp_path)


def test_data_for_the_tracker_stay_where_making_them_anew_fails(
    crops: Path, data: Path, portrait: Portrait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "data"
    shutil.copytree(data, out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    name = next(f"{n}.png" for n in range(100) if not is_validation_scene(f"{n}.png"))
    (tmp_path / "boxes.csv").write_text(f"file,label,x0,y0,x1,y1\n{name},with_mask,1,2,3,4\n")
    command = ["data", "tracker", str(crops), "--scenes", str(tmp_path), "-o", str(out), "--variants", "1"]
    command += ["--textures", str(data.parent / "textures")]
    result = CliRunner().invoke(app, command)
    assert "none of the 1 pictures that are listed can be read" in str(result.exception)
    monkeypatch.setattr("unmask.train.tracker_data.draw_face", lambda *_: pytest.fail("drawn before lists were read"))
    (tmp_path / "boxes.csv").unlink()
    assert "boxes.csv" in str(CliRunner().invoke(app, command).exception)
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_scenes_that_cannot_be_read_are_left_out(portrait: Portrait, tmp_path: Path) -> None:
    names = [f"{n}.png" for n in range(100) if not is_validation_scene(f"{n}.png")][:2]
    cv2.imwrite(str(tmp_path / names[0]), portrait.masked[..., ::-1])
    rows = [f"{name},with_mask,1,2,30,40" for name in names]
    (tmp_path / "boxes.csv").write_text("\n".join(["file,label,x0,y0,x1,y1", *rows]))
    said: list[str] = []
    quiet = {"progress": lambda done, total: None, "notice": said.append}
    assert prepare_scenes(tmp_path, [], lambda rgb: [], tmp_path, **quiet) == 1  # type: ignore[arg-type]
    assert said == [f"cannot read '{tmp_path / names[1]}' as a picture; what cannot be read is left out"]


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("scenes.json", lambda path: path.write_text("{bad")),
        ("scene_points.npy", lambda path: np.save(path, np.zeros((0, 468, 3), np.float32))),
        ("kinds.npy", lambda path: np.save(path, np.zeros(3, np.uint8))),
        ("inside.npy", lambda path: np.save(path, np.zeros((12, 160, 160), np.uint8))),
    ],
)
def test_damaged_data_for_the_tracker_are_a_mistake(
    data: Path, tmp_path: Path, file: str, change: Callable[[Path], object]
) -> None:
    shutil.copytree(data, tmp_path / "data")
    change(tmp_path / "data" / file)
    with pytest.raises(UserError, match=r"holds data for the tracker that are damaged .*; see unmask data tracker"):
        TrackerData.open(tmp_path / "data")


def test_processes_share_a_batch_of_the_landmarker(
    crops: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(recipe(crops, data, tmp_path / "run", "phases.0.batch=4", name="landmarker"))
    phase = trainer.recipe.phases[0]
    whole = trainer.batch(phase, 3)
    monkeypatch.setattr(processes, "count", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(processes, "rank", lambda: rank)  # noqa: B023
        part = trainer.batch(phase, 3)
        torch.testing.assert_close(part.rgb, whole.rgb[rank::2], rtol=0, atol=0)
        torch.testing.assert_close(part.points, whole.points[rank::2], rtol=0, atol=0)


def test_cells_are_given_to_the_faces_around_them() -> None:
    boxes = np.array([(10, 10, 30, 34), (100, 60, 240, 220), (280, 280, 310, 318)], np.float32)
    points = np.full((3, 5, 2), np.nan, np.float32)
    picture = detector.Picture(np.zeros((320, 320, 3), np.uint8), boxes, np.array([0, 2, -1]), points)
    centres = cell_centres(320, 320)
    sides = np.concatenate([np.full((320 // s) ** 2, s) for s in STRIDES])
    face, which = detector.assign(picture, centres, sides)
    for number, stride in ((0, 8), (1, 32)):
        box, mine = boxes[number], (face == 1) & (which == number)
        assert mine.any()
        assert set(sides[mine].tolist()) == {stride}
        assert ((centres[mine] > box[:2]) & (centres[mine] < box[2:])).all()
    inside = ((centres > boxes[2, :2]) & (centres < boxes[2, 2:])).all(axis=1)
    assert (face[inside] == -1).all(), "a face that is not to be learnt is left in peace"
    assert (face[:40] == 0).all(), "nothing is to be found at the upper border"


def one_face(box: tuple[float, float, float, float]) -> detector.Picture:
    """Noise with one face in it, which is as light as it is large."""
    rgb = np.random.default_rng(1).integers(0, 100, (320, 320, 3)).astype(np.uint8)
    x0, y0, x1, y1 = (int(v) for v in box)
    rgb[y0:y1, x0:x1] = 200
    points = np.zeros((1, 5, 2), np.float32)
    return detector.Picture(rgb, np.array([box], np.float32), np.array([MASKED]), points)


def test_a_picture_ends_within_a_face_as_views_of_a_frame_do() -> None:
    left_in_peace = 0
    for seed in range(150):
        picture = one_face((60, 100, 140, 200))
        ended = detector.ended_within(picture, np.random.default_rng(seed))
        cut = (ended.rgb != picture.rgb).any(axis=2)
        columns, rows = cut.all(axis=0), cut.all(axis=1)
        assert columns.any() or rows.any(), "from somewhere on everything is new"
        beyond = ended.rgb[:, columns] if columns.any() else ended.rgb[rows].swapaxes(0, 1)
        if columns.any() != rows.any():
            assert (beyond == beyond[:, :1]).all(), "the last pixels, repeated"
        x0, y0, x1, y1 = (int(v) for v in picture.boxes[0])
        assert not cut[y0:y1, x0:x1].all()
        np.testing.assert_array_equal(ended.boxes, picture.boxes)
        left_in_peace += int(ended.kinds[0] < 0)
    assert 0 < left_in_peace < 30, "corners leave less of a face than can be found"
    empty = detector.Picture(
        np.zeros((320, 320, 3), np.uint8), *(a[:0] for a in (ended.boxes, ended.kinds, ended.points))
    )
    assert detector.ended_within(empty, np.random.default_rng(0)) is empty


def test_things_that_are_no_face_are_put_beside_faces() -> None:
    picture = one_face((100, 100, 220, 240))
    changed = np.zeros((320, 320), bool)
    for seed in range(40):
        distracted = detector.put_distractors(picture, np.random.default_rng(seed))
        changed |= (distracted.rgb != picture.rgb).any(axis=2)
        np.testing.assert_array_equal(distracted.boxes, picture.boxes)
    assert not changed[100:240, 100:220].any()
    assert changed.mean() > 0.2


def recipe(crops: Path, data: Path, out: Path, *overrides: str, name: str = "detector") -> Recipe:
    """A recipe that ships, made short."""
    textures = data.parent / "textures"
    places = [f"crops={crops}", f"tracker={data}", f"textures={textures}", f"out={out}", "epoch=4"]
    count = len(load_recipe(name).phases)
    sizes = [f"phases.{i}.{key}" for i in range(count) for key in ("steps=2", "size=128", "batch=2")]
    if name == "landmarker":
        places.append(f"encoder={weights_file('detector.safetensors')}")
    return load_recipe(name, [*places, *sizes, *overrides])


@pytest.mark.parametrize("name", ["detector", "landmarker"])
def test_the_trackers_networks_train_resume_and_ship(name: str, crops: Path, data: Path, tmp_path: Path) -> None:
    whole, part = (recipe(crops, data, tmp_path / folder, name=name) for folder in ("whole", "part"))
    whole, part = (msgspec.structs.replace(r, phases=2 * r.phases[:1]) for r in (whole, part))
    trainer = trainer_of(whole)
    figures = trainer.fit()
    assert 0 <= figures[trainer.figure] <= 1
    if name == "detector":
        assert figures["validation_giou"] == pytest.approx(1 - figures["validation_box"])
    trainer_of(msgspec.structs.replace(part, phases=part.phases[:1])).fit()
    trainer_of(part).fit()  # goes on after the first phase
    straight, resumed = (torch.load(tmp_path / folder / "state.pt", weights_only=True) for folder in ("whole", "part"))
    assert straight["done"] == resumed["done"] == 4
    for weight, value in straight["model"].items():
        torch.testing.assert_close(value, resumed["model"][weight], rtol=0, atol=0)
    integers = ["--calibrate", str(data)] if name == "detector" else []
    command = ["export", name, str(tmp_path / "whole" / "state.pt"), "-o", str(tmp_path), *integers]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert (tmp_path / f"{name}.onnx").stat().st_size < 2.5e6
    with pytest.raises(UserError, match=r"benchmarks/tracking\.py"):
        evaluate_run(tmp_path / "whole", None, lambda done, total: None)


@pytest.mark.parametrize(
    ("name", "override", "message"),
    [
        ("detector", "tracker=", "unmask data tracker"),
        ("detector", "losses.l1=1", "cannot be chosen"),
        ("detector", "augmentation=[{name: RandomGaussianBlur}]", "boxes"),
        ("detector", "split.fold=1", "by hash"),
        ("detector", "phases.0.size=100", "multiple of 32"),
        ("detector", "encoder=x.safetensors", "segmenter-imagenet and landmarker"),
        ("landmarker", "tracker=", "unmask data tracker"),
        ("landmarker", "losses.l1=1", "cannot be chosen"),
        ("landmarker", "augmentation=[{name: RandomGaussianBlur}]", "points"),
        ("landmarker", "split.fold=1", "by hash"),
        ("landmarker", "phases.0.size=160", "must be 128"),
        ("landmarker", "accumulate=2", "leave the key out"),
        ("landmarker", "encoder=x.safetensors", "cannot read 'x.safetensors'"),
        ("landmarker", f"encoder={weights_file('inpainter.safetensors')}", "no weights that fit"),
    ],
)
def test_what_the_trackers_networks_cannot_do_is_said(
    name: str, override: str, message: str, crops: Path, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        trainer_of(recipe(crops, data, tmp_path / "run", override, name=name))
    assert not (tmp_path / "run").exists()


def test_a_batch_of_the_detector_can_be_seen(crops: Path, data: Path, tmp_path: Path) -> None:
    sheet = preview_sheet(recipe(crops, data, tmp_path / "run"), 0)
    assert sheet.shape[1:] == (128, 3)
    assert sheet[30:].std() > 10


def rows_of(picture: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the detector in use says of a picture under OpenVINO, and its weights under PyTorch."""
    with torch.inference_mode():
        runtime = load_runtime("detector", weights_file("detector.safetensors"))
        expected = runtime(torch.from_numpy(picture[None])).numpy()[0]
    compiled = compile_network(read_network("detector.onnx"), threads=1, size=picture.shape[:2])
    found = compiled.model.create_infer_request().infer([picture[None]])[0][0]
    assert found.shape == expected.shape
    return found, expected


@pytest.mark.parametrize("size", [WIDE, (160, 160)])
def test_openvino_agrees_with_pytorch(size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ship("detector", load_file(weights_file("detector.safetensors")), tmp_path)
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path))
    found, expected = rows_of(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [0.25, 0.6])
def test_in_8_bit_integers_a_face_stays_where_it_is(portrait: Portrait, masked: bool, scale: float) -> None:
    found, expected = rows_of(on_canvas(portrait.masked if masked else portrait.bare, scale)[0])
    face = expected[:, 0] > 0.3
    assert face.any()
    size = expected[face, 1:5].sum(axis=1, keepdims=True) / 2
    assert np.abs(found[face, 0] - expected[face, 0]).max() < 0.06
    assert (np.abs(found[face, 1:5] - expected[face, 1:5]) / size).max() < 0.04
    assert np.abs(found[face, 5:8] - expected[face, 5:8]).max() < 0.1
    assert (np.abs(found[face, 8:] - expected[face, 8:]) / size).max() < 0.06
    assert found[expected[:, 0] < 0.05, 0].max() < 0.2


def test_a_landmarker_does_not_run_in_8_bit_integers(data: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", "landmarker", "x.pt", "-o", str(tmp_path), "--calibrate", str(data)])
    assert isinstance(result.exception, UserError)
    assert "the landmarker does not run in 8-bit integers" in str(result.exception)


def on_canvas(rgb: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The portrait on a grey picture for the detector, and the map that placed it."""
    place = np.array([[scale, 0, 320 - 268 * scale], [0, scale, 190 - 245 * scale]])
    return cv2.warpAffine(rgb, place, WIDE[::-1], flags=cv2.INTER_AREA, borderValue=(110, 110, 110)), place


def best(found: list[Detection]) -> Detection:
    assert found, "no face was found"
    return found[0]


@pytest.mark.parametrize("scale", [0.25, 0.6])
@pytest.mark.parametrize("masked", [False, True])
def test_the_shipped_detector_finds_faces_and_sees_their_masks(portrait: Portrait, masked: bool, scale: float) -> None:
    picture, place = on_canvas(portrait.masked if masked else portrait.bare, scale)
    found = best(MaskedFaceDetector(WIDE)(picture, 0.4))
    truth = portrait.landmarks[:, :2] @ place[:, :2].T + place[:, 2]
    box = np.concatenate([truth.min(axis=0), truth.max(axis=0)])[None].astype(np.float32)
    assert overlap(np.array([found.box_px], np.float32), box)[0, 0] > 0.6
    eye = truth[[33, 133]].mean(axis=0)
    assert np.linalg.norm(found.keypoints_px[0] - eye) < 0.15 * (box[0, 2] - box[0, 0])
    assert KINDS[int(np.argmax(found.kinds))] == ("masked" if masked else "bare")


def test_the_shipped_detector_finds_nothing_in_nothing() -> None:
    y, x = np.mgrid[: WIDE[0], : WIDE[1]]
    for grey in (np.full_like(x, 128), x * 255 // WIDE[1], 255 * ((x // 32 + y // 32) % 2)):
        picture = np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)
        assert MaskedFaceDetector(WIDE)(picture, 0.4) == []


def roi_crop(rgb: np.ndarray, points: np.ndarray, off: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """What the landmarker sees of a face with these points, `off` of its view aside; and the map that cut it out."""
    roi = landmarker.roi_of(points)
    roi[0, 2] += off * LANDMARKER_SIZE
    return cv2.warpAffine(rgb, roi, (LANDMARKER_SIZE, LANDMARKER_SIZE), flags=cv2.INTER_AREA), roi


def test_openvino_agrees_with_pytorch_on_points(portrait: Portrait) -> None:
    picture, _ = roi_crop(portrait.masked, portrait.landmarks)
    runtime = load_runtime("landmarker", weights_file("landmarker.safetensors"))
    with torch.inference_mode():
        expected = runtime(torch.from_numpy(picture[None])).numpy()[0]
    points, likely = FaceLandmarker()(picture)
    assert points.shape == (LANDMARKS, 3)
    np.testing.assert_allclose(points.reshape(-1), expected[:-1], atol=0.1)
    assert likely == pytest.approx(expected[-1], abs=0.01)


@pytest.mark.parametrize("masked", [False, True])
def test_the_shipped_landmarker_places_hidden_points_too(portrait: Portrait, masked: bool) -> None:
    eyes = np.linalg.norm(portrait.landmarks[33] - portrait.landmarks[263])
    for off in (-0.05, 0.05):
        picture, roi = roi_crop(portrait.masked if masked else portrait.bare, portrait.landmarks, off)
        points, likely = FaceLandmarker()(picture)
        away = np.linalg.norm((points_to_frame(points, roi) - portrait.landmarks)[:, :2], axis=1) / eyes
        assert away.mean() < 0.1
        assert likely > 0.9


def test_the_shipped_landmarker_knows_when_it_sees_no_face(portrait: Portrait) -> None:
    far, _ = roi_crop(portrait.masked, portrait.landmarks, 0.8)
    for picture in (far, np.full_like(far, 120)):
        assert FaceLandmarker()(picture)[1] < 0.2


@pytest.mark.shared
def test_hidden_points_of_real_faces_are_placed_better_than_by_mediapipe(shared: Path, tmp_path: Path) -> None:
    """Validation faces, which trained nothing, with drawn masks: how far both are from the mesh of the bare face."""
    folder = tmp_path / "faces"
    folder.mkdir()
    for path in sorted((shared / "data" / "faces" / "celebahq").iterdir()):
        if is_validation(path.name):
            (folder / path.name).symlink_to(path)
    prepare_crops([folder], tmp_path / "crops", lambda done, total: None)
    faces, templates = FaceCrops.open(tmp_path / "crops"), load_templates(shared / "data" / "textures")
    find, mesh, rng = FaceLandmarker(), FaceMesh(), np.random.default_rng(0)
    ours, theirs = [], []
    for index in faces.split(True)[:30]:
        drawn = draw_face(faces, int(index), templates, rng)
        if drawn.kind == BARE:
            continue
        below = drawn.points[:, 1] > drawn.points[4, 1]
        eyes = np.linalg.norm(drawn.points[33] - drawn.points[263])
        roi = roi_from_landmarks(drawn.points)
        roi[:, 2] += rng.normal(0, 0.05 * MESH_SIZE, 2)
        mesh_sees = cv2.warpAffine(drawn.rgb, roi, (MESH_SIZE, MESH_SIZE), flags=cv2.INTER_AREA)
        roi_of_ours = roi * (LANDMARKER_SIZE / MESH_SIZE)
        we_see = cv2.warpAffine(drawn.rgb, roi_of_ours, (LANDMARKER_SIZE, LANDMARKER_SIZE), flags=cv2.INTER_AREA)
        for errors, points in (
            (ours, points_to_frame(find(we_see)[0], roi_of_ours)),
            (theirs, points_to_frame(mesh(mesh_sees)[0], roi)),
        ):
            errors.append(np.linalg.norm((points - drawn.points)[below, :2], axis=1).mean() / eyes)
    assert len(ours) >= 10
    assert np.mean(ours) < 0.09
    assert np.mean(ours) < np.mean(theirs)
