"""Data sets from pictures and video, through the command line: pairs, regions, frames, checks, previews."""

import json
import shutil
import wave
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from faces import Portrait
from training_faces import GOLDEN, drawn_face, small_recipe
from typer.testing import CliRunner

from unmask.cli import app
from unmask.errors import UserError
from unmask.models.engine import weights_file
from unmask.models.geometry import CROP_SIZE
from unmask.train.config import Split
from unmask.train.data import FaceCrops
from unmask.train.pseudo import PseudoLabels
from unmask.train.regions import REGIONS
from unmask.train.video import spread_frames


def call(*arguments: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.output


@pytest.fixture(scope="module")
def faces(portrait: Portrait, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The portrait, its mirror image in a folder of its own, and a picture without a face."""
    folder = tmp_path_factory.mktemp("faces")
    (folder / "00001").mkdir()
    cv2.imwrite(str(folder / "a.png"), portrait.bare[..., ::-1])
    cv2.imwrite(str(folder / "00001" / "b.png"), portrait.bare[:, ::-1, ::-1])
    cv2.imwrite(str(folder / "none.png"), np.full((200, 200, 3), 90, np.uint8))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_pairs_differ_only_under_the_mask(faces: Path, tmp_path: Path) -> None:
    output = call("data", "masks", faces, "-o", tmp_path / "a", "--kinds", "n95=1", "--size", "256")
    assert "pairs: 2\n" in output
    assert "without a face: 1\n" in output
    for name in ("a", "00001_b"):
        masked, truth = (cv2.imread(str(tmp_path / "a" / part / f"{name}.png")) for part in ("masked", "truth"))
        mask = cv2.imread(str(tmp_path / "a" / "mask" / f"{name}.png"), cv2.IMREAD_GRAYSCALE)
        assert masked.shape == truth.shape == (256, 256, 3)
        assert set(np.unique(mask)) == {0, 255}
        changed = np.abs(masked.astype(int) - truth).max(axis=2) > 20
        near = cv2.dilate(mask, np.ones((25, 25), np.uint8)) > 0
        assert changed[mask > 0].mean() > 0.8
        assert not changed[~near].any()
        record = json.loads((tmp_path / "a" / "landmarks" / f"{name}.json").read_text())
        assert record["kind"] == "n95"
        eyes = np.array(record["points"])[[33, 263], :2]
        assert np.linalg.norm(eyes[0] - eyes[1]) == pytest.approx(98, abs=6)


def test_pairs_are_the_same_whoever_makes_them(faces: Path, tmp_path: Path) -> None:
    call("data", "masks", faces, "-o", tmp_path / "one", "--workers", "1", "--size", "128")
    call("data", "masks", faces, "-o", tmp_path / "two", "--workers", "3", "--size", "128")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    (tmp_path / "two" / "landmarks" / "a.json").unlink()  # as if it had been interrupted there
    assert "before: 1\n" in call("data", "masks", faces, "-o", tmp_path / "two", "--size", "128")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    call("data", "masks", faces, "-o", tmp_path / "other", "--seed", "1", "--size", "128")
    assert contents(tmp_path / "one") != contents(tmp_path / "other")


def test_pairs_made_with_other_options_are_not_mixed(faces: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    call("data", "masks", faces, "-o", out, "--size", "64")
    before = contents(out)
    with pytest.raises(UserError, match="made with another --seed and --size; choose another folder"):
        call("data", "masks", faces, "-o", out, "--size", "96", "--seed", "1")
    assert "before: 2\n" in call("data", "masks", faces, "-o", out, "--size", "64", "--workers", "1")
    assert contents(out) == before
    (out / "options.json").unlink()  # as versions before this one left it
    result = CliRunner().invoke(app, ["data", "masks", str(faces), "-o", str(out), "--size", "96"])
    assert "those there are kept as they are" in result.stderr
    assert "before: 2\n" in result.stdout
    assert not (out / "options.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kinds", "scarf=1"], "unknown kind of mask 'scarf'"),
        (["--kinds", "n95=much"], "not KIND=SHARE"),
        (["--kinds", "n95=0"], "above 0"),
        (["--region", "ear"], "unknown region 'ear'"),
    ],
)
def test_wrong_masks_are_refused(arguments: list[str], message: str, faces: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        call("data", "masks", faces, "-o", tmp_path / "out", *arguments)
    assert not (tmp_path / "out").exists()


def test_regions_hide_what_they_are_called() -> None:
    _, points = drawn_face(0)
    at = {"mouth": 13, "nose": 1, "left eye": 159, "right eye": 386, "chin": 152, "brow": 9}
    hides = {
        "lower-face": {"mouth", "nose"},
        "mouth": {"mouth"},
        "nose": {"nose"},
        "eyes": {"left eye", "right eye"},
        "left": {"left eye"},
        "right": {"right eye"},
    }
    shows = {"lower-face": {"left eye", "right eye", "brow"}, "left": {"right eye"}, "right": {"left eye"}}
    for name, draw in REGIONS.items():
        region = draw(points, np.random.default_rng(0), (CROP_SIZE, CROP_SIZE))
        seen = {k for k, i in at.items() if region[tuple(np.round(points[i, 1::-1]).astype(int))] == 255}
        assert hides.get(name, set()) <= seen, name
        assert not shows.get(name, set()) & seen, name
        assert 0.005 < (region > 0).mean() < 0.6, name


@pytest.fixture(scope="module")
def video(portrait: Portrait, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of the portrait, which turns in the second one; every third frame is blurred; with sound."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    height, width = portrait.bare.shape[:2]
    with av.open(str(path), "w") as container:
        pictures, sound = container.add_stream("libx264", 10), container.add_stream("aac", 48_000)
        pictures.width, pictures.height, pictures.pix_fmt = width // 2 * 2, height // 2 * 2, "yuv420p"
        for index in range(20):
            turn = cv2.getRotationMatrix2D((width / 2, height / 2), 0, 1.0)
            rgb = cv2.warpAffine(portrait.bare, turn, (pictures.width, pictures.height))
            if index >= 10:
                rgb = np.ascontiguousarray(rgb[:, ::-1])
            if index % 3:
                rgb = cv2.GaussianBlur(rgb, (0, 0), 3)
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(pictures.encode())
        wave_form = np.sin(np.arange(96_000) / 20).astype(np.float32)[None]
        frame = av.AudioFrame.from_ndarray(wave_form, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, 0, Fraction(1, 48_000)
        container.mux(sound.encode(frame))
        container.mux(sound.encode())
    return path


def test_frames_are_sharp_and_not_twice_the_same(video: Path, tmp_path: Path) -> None:
    output = call("data", "frames", video, "-o", tmp_path, "--fps", "3", "--size", "320")
    pictures = sorted(tmp_path.glob("*.png"))
    assert f"pictures: {len(pictures)}\n" in output
    assert 1 <= len(pictures) <= 4, "seven spans of time show two different pictures"
    assert cv2.imread(str(pictures[0])).shape == (320, 320, 3)
    sharp = [cv2.Laplacian(cv2.imread(str(p), cv2.IMREAD_GRAYSCALE), cv2.CV_64F).var() for p in pictures]
    assert min(sharp) > 40, "of each span the sharpest was kept"
    with wave.open(str(tmp_path / "clip.wav")) as sound:
        assert sound.getnframes() / sound.getframerate() == pytest.approx(2, abs=0.1)
    with pytest.raises(UserError, match="cannot read"):
        call("data", "frames", GOLDEN / "loss_curves.json", "-o", tmp_path)


def test_how_alike_frames_may_be_is_chosen(video: Path, tmp_path: Path) -> None:
    counts = [
        len(list((tmp_path / str(alike)).glob("*.png")))
        for alike in (0.5, 1)
        if call("data", "frames", video, "-o", tmp_path / str(alike), "--fps", "10", "--size", "64", "--alike", alike)
    ]
    assert counts[0] < 4
    assert counts[1] == 20, "1 keeps all"


def test_a_persons_own_data_set_fine_tunes_the_inpainter(video: Path, tmp_path: Path) -> None:
    call("data", "frames", video, "-o", tmp_path / "me", "--fps", "10", "--size", "256", "--alike", "1")
    call("data", "crops", tmp_path / "me", "-o", tmp_path / "crops")
    start = weights_file("inpainter.safetensors")
    recipe = [f"crops={tmp_path}/crops", "textures=", "perceptual_weights=", f"start={start}", "split.folds=4"]
    small = ["phases=[{steps: 60, size: 64, batch: 4}]", "epoch=20", "ema=0.5", f"out={tmp_path}/run"]
    call("train", "inpainter", *recipe, *small)
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    figures = [row["validation_psnr"] for row in rows]
    assert [row["step"] for row in rows] == [20, 40, 60]
    assert figures[-1] > figures[0]
    call("export", "inpainter", tmp_path / "run" / "state.pt", "-o", tmp_path)
    assert (tmp_path / "inpainter.onnx").exists()


def write_layout(folder: Path, portrait: Portrait, names: Sequence[str]) -> Path:
    """The portrait, turned a little for each name."""
    height, width = portrait.bare.shape[:2]
    for number, name in enumerate(names):
        turn = cv2.getRotationMatrix2D((width / 2, height / 2), number - len(names) / 2, 1.0)
        picture = cv2.warpAffine(portrait.bare, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), picture[..., ::-1])
    return folder


def test_ffhq_lies_in_folders_of_thousands(portrait: Portrait, tmp_path: Path) -> None:
    names = ["00000/00000.png", "00000/00999.png", "01000/01000.png", "69000/69999.png"]
    output = call("data", "crops", write_layout(tmp_path / "ffhq", portrait, names), "-o", tmp_path / "crops")
    assert "4 crops" in output
    faces = FaceCrops.open(tmp_path / "crops")
    assert list(faces.names) == names
    (tmp_path / "last.txt").write_text("69999.png\n")  # FFHQ's own split: from 60000 on
    held_out = faces.split(True, Split(by="file", file=str(tmp_path / "last.txt")))
    assert [faces.names[i] for i in held_out] == names[3:]


def test_lfw_keeps_people_whole(portrait: Portrait, tmp_path: Path) -> None:
    people = ["Grace_Hopper", "Ada_Lovelace", "Alan_Turing", "Emmy_Noether"]
    names = [f"{person}/{person}_{number:04}.jpg" for person in people for number in (1, 2)]
    call("data", "crops", write_layout(tmp_path / "lfw", portrait, names), "-o", tmp_path / "crops")
    faces = FaceCrops.open(tmp_path / "crops")
    parts = [set(faces.split(v, Split(by="identity", folds=3))) for v in (True, False)]
    people_in = [{faces.names[i].split("/")[0] for i in part} for part in parts]
    assert people_in[0] | people_in[1] == set(people)
    assert not people_in[0] & people_in[1]


def test_celeba_has_a_partition_and_landmarks(portrait: Portrait, tmp_path: Path) -> None:
    root = tmp_path / "celeba"
    names = [f"{number:06}.jpg" for number in range(1, 5)]
    write_layout(root / "img_align_celeba", portrait, names)
    small = cv2.resize(portrait.bare, None, fx=0.7, fy=0.7)
    two = np.full((portrait.bare.shape[0], portrait.bare.shape[1] + small.shape[1], 3), 90, np.uint8)
    two[:, : portrait.bare.shape[1]] = portrait.bare
    two[: small.shape[0], portrait.bare.shape[1] :] = small
    cv2.imwrite(str(root / "img_align_celeba" / names[0]), two[..., ::-1])
    (root / "list_eval_partition.txt").write_text("".join(f"{n} {i % 3}\n" for i, n in enumerate(names)))
    eyes = portrait.landmarks[:, :2]
    five = np.array([eyes[[33, 133]].mean(0), eyes[[362, 263]].mean(0), eyes[1], eyes[61], eyes[291]])
    rows = dict.fromkeys(names, five)
    rows[names[0]] = 0.7 * five + [portrait.bare.shape[1], 0]  # the smaller of the two is meant
    rows[names[3]] = five + 200  # and here is nobody
    lines = [f"{name} {' '.join(str(round(v)) for v in values.ravel())}" for name, values in rows.items()]
    heading = (
        "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y"
    )
    listed = root / "list_landmarks_align_celeba.txt"
    listed.write_text("\n".join([str(len(lines)), heading, *lines]) + "\n")

    pictures = root / "img_align_celeba"
    output = call("data", "crops", pictures, "-o", tmp_path / "crops", "--landmarks", listed)
    assert "3 crops" in output
    assert "1 pictures without a face" in output
    faces = FaceCrops.open(tmp_path / "crops")
    assert [name.split("/")[1] for name in faces.names] == names[:3]
    by_partition = Split(by="partition", file=str(root / "list_eval_partition.txt"))
    assert [list(faces.split(v, by_partition)) for v in (False, True)] == [[0], [1]], "the third is for testing"
    call("data", "crops", pictures, "-o", tmp_path / "largest")
    largest = FaceCrops.open(tmp_path / "largest")
    sharp = [cv2.Laplacian(np.asarray(data.crops[0]), cv2.CV_64F).var() for data in (faces, largest)]
    assert sharp[0] < sharp[1], "without the list the larger one is taken"
    listed.write_text("\n".join(lines[:1]) + "\n")
    with pytest.raises(UserError, match=r"says nothing about 3 pictures, such as 000002\.jpg"):
        call("data", "crops", pictures, "-o", tmp_path / "crops", "--landmarks", listed)
    with pytest.raises(UserError, match="holds no landmarks"):
        call("data", "crops", pictures, "-o", tmp_path / "crops", "--landmarks", root / "list_eval_partition.txt")


@pytest.mark.shared
def test_real_celeba_pictures_are_read(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "img_align_celeba"
    folder.mkdir()
    for path in sorted((shared / "data" / "eval" / "celeba").glob("*.jpg"))[:12]:  # as published, 178 x 218 px
        shutil.copy(path, folder)
    output = call("data", "crops", folder, "-o", tmp_path / "crops")
    faces = FaceCrops.open(tmp_path / "crops")
    assert f"{len(faces.names)} crops" in output
    assert len(faces.names) >= 11
    eyes = faces.points[:, [33, 263], :2]
    assert np.linalg.norm(eyes[:, 1] - eyes[:, 0], axis=1) == pytest.approx(98, abs=15)


def test_check_finds_what_is_wrong(faces: Path, portrait: Portrait, tmp_path: Path) -> None:
    assert "nothing wrong" in call("data", "check", faces / "00001")
    other = tmp_path / "test"
    other.mkdir()
    cv2.imwrite(str(other / "leaked.jpg"), portrait.bare[:, ::-1, ::-1])
    again = tmp_path / "again"
    again.mkdir()
    for name in ("a.png", "b.jpg"):
        cv2.imwrite(str(again / name), portrait.bare[..., ::-1])
    (again / "broken.jpg").write_bytes(b"no picture")
    cv2.imwrite(str(again / "other.png"), drawn_face(3)[0])
    output = call("data", "check", again, "--against", other, "--sheet", tmp_path / "sheet.jpg", code=1)
    assert f"the same: {again}/a.png, {again}/b.jpg" in output
    assert f"broken: {again}/broken.jpg" in output
    assert f"{again}/a.png" in output.split("the same")[1]
    assert output.count("too: ") == 2, "both show what the other split has, mirrored"
    assert "4 problems" in output
    assert "512x600: 2" in output
    assert cv2.imread(str(tmp_path / "sheet.jpg")).shape[1] == 12 * 96


def test_check_says_how_many_sizes_it_leaves_out(tmp_path: Path) -> None:
    for number in range(12):
        picture = np.random.default_rng(number).integers(0, 256, (40 + number, 40, 3), np.uint8)
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture)
    output = call("data", "check", tmp_path)
    assert (output.count(": 1\n"), "  and 2 others\n" in output) == (10, True)


def test_crops_stay_where_making_them_anew_fails(faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "crops"
    call("data", "crops", faces, "-o", out)
    before, mapped = contents(out), FaceCrops.open(out)
    first = mapped.crops[0].copy()

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("unmask.train.data.largest_face", stopped)
        CliRunner().invoke(app, ["data", "crops", str(faces), "-o", str(out)])
    assert contents(out) == before
    call("data", "crops", faces / "00001", "-o", out)
    assert FaceCrops.open(out).names == ("00001/b.png",)
    np.testing.assert_array_equal(mapped.crops[0], first, "who has the old ones open keeps them")


def test_pictures_that_cannot_be_read_are_left_out(faces: Path, portrait: Portrait, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    shutil.copytree(faces, folder)
    (folder / "broken.jpg").write_bytes(b"no picture")
    result = CliRunner().invoke(app, ["data", "crops", str(folder), "-o", str(tmp_path / "crops")])
    assert result.exit_code == 0
    assert "2 crops" in result.stdout
    assert "1 pictures without a face" in result.stdout
    assert f"cannot read '{folder}/broken.jpg' as a picture; what cannot be read is left out" in result.stderr
    result = CliRunner().invoke(app, ["data", "masks", str(folder), "-o", str(tmp_path / "pairs"), "--size", "64"])
    assert (result.exit_code, "pairs: 2\n" in result.stdout, "unreadable: 1\n" in result.stdout) == (0, True, True)
    assert f"cannot read '{folder}/broken.jpg' as a picture; what cannot be read is left out" in result.stderr
    cv2.imwrite(str(folder / "masked.png"), portrait.masked[..., ::-1])
    assert "crops: 1\n" in call("data", "label", folder, "-o", tmp_path / "labels", "--device", "cpu")


def test_pictures_that_would_share_a_name_are_refused(faces: Path, tmp_path: Path) -> None:
    for other in ("a.jpg", "00001_b.png"):
        folder = tmp_path / other
        shutil.copytree(faces, folder)
        shutil.copy(folder / "a.png", folder / other)
        with pytest.raises(UserError, match="would both be written as"):
            call("data", "masks", folder, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_lies_where_frames_go_is_kept(video: Path, tmp_path: Path) -> None:
    command = ("data", "frames", video, "--size", "64", "--fps", "1", "-o")
    for name in ("clip.wav", "clip-0000.300.png"):
        (folder := tmp_path / name).mkdir()
        (folder / name).write_bytes(b"my own")
        with pytest.raises(UserError, match=f"{name}: exists and is kept; use --overwrite"):
            call(*command, folder)
        assert contents(folder) == {name: b"my own"}
        (folder / "clip-art.png").write_bytes(b"my own")
        call(*command, folder, "--overwrite")
        assert (folder / "clip.wav").read_bytes()[:4] == b"RIFF"
        assert (folder / "clip-art.png").read_bytes() == b"my own"
        assert all(file.read_bytes() != b"my own" for file in folder.glob("clip-0*.png")), "nothing old is left"


def test_videos_of_one_name_have_files_of_their_own(video: Path, tmp_path: Path) -> None:
    other = tmp_path / "other" / video.name
    other.parent.mkdir()
    shutil.copy(video, other)
    shutil.copy(video, other.with_stem("clip-2"))
    out = tmp_path / "out"
    output = call("data", "frames", video, other, other.with_stem("clip-2"), "-o", out, "--size", "64")
    assert {file.stem for file in out.glob("*.wav")} == {"clip", "clip-2", "clip-3"}
    assert f"pictures: {len(list(out.glob('*.png')))}\n" in output
    with pytest.raises(UserError, match="cannot read"):
        call("data", "frames", video, GOLDEN / "loss_curves.json", "-o", tmp_path / "more", "--size", "64")
    assert (tmp_path / "more" / "clip.wav").exists(), "a video that is done stays"


def test_file_with_sound_alone_is_named_in_one_line(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        sound = container.add_stream("aac", rate=48_000, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 48_000
        container.mux([*sound.encode(samples), *sound.encode()])
    with pytest.raises(UserError, match="holds no video"):
        list(spread_frames(tmp_path / "song.mp4", 10))


def test_preview_shows_what_the_network_gets(tmp_path: Path) -> None:
    recipe = small_recipe("inpainter", tmp_path / "data", tmp_path / "run")
    for name, more, columns in (("gated", [], 4), ("oagan", [], 5), ("segmenter", ["augmentation=[]"], 3)):
        sheet = tmp_path / f"{name}.jpg"
        labels = [f"real={tmp_path}/data/labels"] if name == "oagan" else []
        weights = [f"perceptual_weights={tmp_path}/data/vgg.pth"] if name == "oagan" else []
        changes = [f"crops={recipe.crops}", "textures=", "phases.0.size=64", "phases.0.batch=2", *more]
        call("data", "preview", name, *changes, *labels, *weights, "-o", sheet)
        assert cv2.imread(str(sheet)).shape == (22 + 2 * 64, columns * 64, 3)
    assert not (tmp_path / "run").exists(), "nothing is left but the sheet"


def test_labelled_pairs_become_training_data(portrait: Portrait, tmp_path: Path) -> None:
    around = np.s_[100:400, 120:420]  # as data sets have faces: they fill the picture
    label = np.rint(portrait.coverage * 255).astype(np.uint8)
    for folder, picture in (("image", portrait.masked[..., ::-1]), ("mask", label)):
        (tmp_path / folder).mkdir()
        cv2.imwrite(str(tmp_path / folder / "one.png"), picture[around])
    assert "crops: 1" in call("data", "paired", tmp_path, "-o", tmp_path / "labels")
    real = PseudoLabels.open(tmp_path / "labels")
    truth, found = portrait.crop_coverage(), real.labels[0] > 127
    assert real.crops.shape == (1, 256, 256, 3)
    assert (truth & found).sum() / (truth | found).sum() > 0.7
    with pytest.raises(UserError, match="no pairs"):
        call("data", "paired", tmp_path / "labels", "-o", tmp_path / "labels")
