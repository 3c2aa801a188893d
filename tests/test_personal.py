"""A personal model: made from a video of the portrait, used by the engines and by every command that paints."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch
from faces import Portrait
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_tensors
from served import server_program
from test_outline import aside
from tolerances import ENGINE_PSNR_DB
from typer.testing import CliRunner, Result

from unmask.cli import app, main
from unmask.errors import UserError
from unmask.models.engine import choose, load, weights_file
from unmask.models.person import (
    BASE_KEY,
    Person,
    PersonalOpenVinoEngine,
    PersonalTorchEngine,
    base_hash,
    views_to_tensors,
)
from unmask.models.runtime import load_runtime
from unmask.models.seen import Seen, Views
from unmask.stream import Client
from unmask.stream.naming import shown
from unmask.train import personal as personal_module
from unmask.train.adapters import PersonalInpainter, shipped_inpainter
from unmask.train.evaluate import psnr
from unmask.train.inpainter import PaintTrainer
from unmask.train.personal import MOST_BYTES

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


def moved(rgb: U8, index: int) -> U8:
    """The same picture, turned and enlarged a little, in even sizes as codecs want them."""
    height, width = (x // 2 * 2 for x in rgb.shape[:2])
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), 8 * np.sin(index / 2), 1.0 + 0.01 * index)
    return np.asarray(cv2.warpAffine(rgb, turn, (width, height), borderMode=cv2.BORDER_REPLICATE), np.uint8)


def write_clip(path: Path, rgb: U8) -> Path:
    """Two seconds of a picture, moving a little."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 8, options={"crf": "12"})
        stream.height, stream.width = (x // 2 * 2 for x in rgb.shape[:2])
        stream.pix_fmt = "yuv420p"
        for index in range(16):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved(rgb, index), format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def clip(portrait: Portrait, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of the bare portrait."""
    return write_clip(tmp_path_factory.mktemp("video") / "bare.mp4", portrait.bare)


@pytest.fixture(scope="module")
def person(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A personal model of a few steps."""
    path = tmp_path_factory.mktemp("person") / "person.safetensors"
    result = CliRunner().invoke(app, ["personalize", str(clip), "-o", str(path), "--steps", "12"])
    assert result.exit_code == 0, result.output
    assert "from 14 faces" in result.output
    return path


def test_the_shipped_network_is_taken_as_it_is() -> None:
    network, runtime = shipped_inpainter(), load_runtime("inpainter", weights_file("inpainter.safetensors"))
    rgb, mask = torch.rand(1, 3, 64, 64), torch.zeros(1, 1, 64, 64)
    mask[..., 30:50, 20:40] = 1
    with torch.inference_mode():
        wanted = runtime.network(rgb, mask)
        torch.testing.assert_close(network(rgb, mask), wanted, atol=0.01, rtol=0)
        torch.testing.assert_close(PersonalInpainter().eval()(rgb, mask), wanted, atol=0.01, rtol=0)


def test_a_personal_model_is_small_and_knows_the_face(person: Path, portrait: Portrait) -> None:
    assert person.stat().st_size < MOST_BYTES
    truth = portrait.crop(masked=False)
    mask = portrait.crop_coverage().astype(np.uint8) * np.uint8(255)
    general = load("inpainter", choose("cpu"))(truth[None], mask[None])[0].copy()
    personal = load("inpainter", choose("cpu", person=str(person)))(truth[None], mask[None])[0].copy()
    hidden = mask > 0
    before, after = (psnr(x[hidden].astype(np.float64) - truth[hidden]) for x in (general, personal))
    assert after > before + 0.5, "a dozen steps on the very same face"


def test_engines_agree_on_a_personal_model(person: Path, portrait: Portrait) -> None:
    truth = portrait.crop(masked=False)
    mask = portrait.crop_coverage().astype(np.uint8) * np.uint8(255)
    model = Person.load(person)
    a = PersonalOpenVinoEngine(model)(truth[None], mask[None])[0].astype(int).copy()
    b = PersonalTorchEngine(model, "cpu")(truth[None], mask[None])[0].astype(int)
    assert psnr((a - b).astype(np.float64)) > ENGINE_PSNR_DB
    nobody = Person({name: np.zeros_like(value) for name, value in model.tensors.items()})
    general = load("inpainter", choose("cpu"))(truth[None], mask[None])[0].astype(int).copy()
    without = PersonalOpenVinoEngine(nobody)(truth[None], mask[None])[0].astype(int).copy()
    assert np.abs(without - general).max() <= 1, "the compiled networks of two people are kept apart"


def test_a_file_that_does_not_fit_is_refused(person: Path, tmp_path: Path, portrait: Portrait) -> None:
    tensors = load_file(person)
    other, plain, strange = (tmp_path / f"{name}.safetensors" for name in ("other", "plain", "strange"))
    save_file(tensors, other, {BASE_KEY: "0" * 64})
    save_file(tensors, plain)
    save_file({"nowhere.bias": np.zeros(3, np.float16)}, strange, {BASE_KEY: base_hash()})
    for path, message in ((other, "another inpainter"), (plain, "no personal model"), (tmp_path / "x", "cannot read")):
        with pytest.raises(UserError, match=message):
            Person.load(path)
    with pytest.raises(UserError, match=r"strange\.safetensors' is damaged"):
        load("inpainter", choose("cpu", person=str(strange)))
    picture = tmp_path / "a.png"
    cv2.imwrite(str(picture), portrait.masked[..., ::-1])
    result = CliRunner().invoke(app, ["image", str(picture), "--person", str(other)])
    assert isinstance(result.exception, UserError)
    assert list(tmp_path.glob("*unmasked*")) == []


def test_videos_and_pictures_are_painted_with_it(person: Path, portrait: Portrait, tmp_path: Path) -> None:
    picture, video = tmp_path / "a.png", tmp_path / "a.mp4"
    cv2.imwrite(str(picture), portrait.masked[..., ::-1])
    results = []
    for name, options in (("general", []), ("personal", ["--person", str(person)])):
        out = tmp_path / f"{name}.png"
        result = CliRunner().invoke(app, ["image", str(picture), "-o", str(out), "--device", "cpu", *options])
        assert result.exit_code == 0, result.output
        results.append(cv2.imread(str(out)).astype(int))
    changed = np.abs(results[0] - results[1]).max(axis=2) > 3
    assert changed.mean() > 0.01
    assert not changed[: portrait.bare.shape[0] // 4].any(), "nothing changes but the painted part"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", 8)
        stream.width, stream.height = (x // 2 * 2 for x in portrait.bare.shape[1::-1])
        stream.pix_fmt = "yuv420p"
        rgb = np.ascontiguousarray(portrait.masked[: stream.height, : stream.width])
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    report = tmp_path / "report.json"
    command = ["video", str(video), "--person", str(person), "--device", "cpu", "--report", str(report)]
    assert CliRunner().invoke(app, command).exit_code == 0
    done = json.loads(report.read_text())
    assert done["masks_removed"] == 4
    assert "personal" in done["details"]["inpaint"]["engine"]


def test_clients_of_a_server_get_what_a_picture_becomes(person: Path, portrait: Portrait, tmp_path: Path) -> None:
    picture, out = tmp_path / "a.png", tmp_path / "personal.png"
    cv2.imwrite(str(picture), portrait.masked[..., ::-1])
    command = ["image", str(picture), "-o", str(out), "--device", "cpu", "--person", str(person)]
    assert CliRunner().invoke(app, command).exit_code == 0
    expected = cv2.imread(str(out))[..., ::-1]
    with server_program("--person", str(person)) as server:
        assert "personal" in server.wait_for("ready")["engine"]
        for _ in range(2):  # the second client shares the network with the first
            with Client(server.address) as unmask:
                np.testing.assert_array_equal(unmask(portrait.masked), expected)


def test_a_server_goes_on_without_the_file(photo: Path, portrait: Portrait, tmp_path: Path) -> None:
    path = Path(shutil.copy(photo, tmp_path / "p.safetensors"))
    with server_program("--person", str(path)) as server, Client(server.address) as unmask:
        server.wait_for("ready")
        path.unlink()
        with Client(server.address) as other:
            np.testing.assert_array_equal(unmask(portrait.masked), other(portrait.masked))


def test_a_live_picture_is_painted_with_it(person: Path, portrait: Portrait, tmp_path: Path) -> None:
    clip = tmp_path / "a.mkv"
    height, width = (x // 2 * 2 for x in portrait.bare.shape[:2])
    with av.open(str(clip), "w") as container:
        stream = container.add_stream("libx264", 5, options={"crf": "10"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        rgb = np.ascontiguousarray(portrait.masked[:height, :width])
        for _ in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    shown = []
    for name, options in (("general", []), ("personal", ["--person", str(person)])):
        out, report = tmp_path / f"{name}.mkv", tmp_path / f"{name}.json"
        command = ["live", str(clip), "--record", str(out), "--report", str(report), "--device", "cpu", "--quiet"]
        result = CliRunner().invoke(app, [*command, *options])
        assert result.exit_code == 0, result.output
        done = json.loads(report.read_text())
        assert done["masks_removed"] == done["frames"] > 0
        assert ("personal" in done["engine"]) is (name == "personal")
        with av.open(str(out)) as container:
            shown.append([frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)][-1])
    differs = np.abs(shown[0] - shown[1]).mean(axis=2)
    inside = portrait.coverage[:height, :width] > 0.9
    assert differs[inside].mean() > 2
    assert differs[: height // 4].mean() < 1, "nothing changes but the painted part, and what the codec makes of it"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.mp4", "-o", "p.safetensors"], "is not there"),
        ([".", "-o", "p.pt"], "give FILE.safetensors"),
        (["FOLDER", "-o", "p.safetensors"], "no video and no picture"),
    ],
)
def test_mistakes_are_said(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    given = [str(tmp_path / "empty") if a == "FOLDER" else a for a in arguments]
    given[-1] = str(tmp_path / given[-1])
    result = CliRunner().invoke(app, ["personalize", *given])
    assert isinstance(result.exception, UserError)
    assert message in str(result.exception)
    assert not (tmp_path / "p.safetensors").exists()


@pytest.fixture(scope="module")
def photo(portrait: Portrait, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A personal model of one photo, darker and turned."""
    folder = tmp_path_factory.mktemp("photo")
    dark = cv2.convertScaleAbs(moved(portrait.bare, 3), alpha=0.7)
    cv2.imwrite(str(folder / "one.png"), dark[..., ::-1])
    path = folder / "p.safetensors"
    result = CliRunner().invoke(app, ["personalize", str(folder / "one.png"), "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert "from 1 face, 1 view\n" in result.stdout
    assert "views alone: to learn from, 8 bare faces are needed, and 1 found" in result.stderr
    return path


def likeness(result: U8, truth: U8, area: tuple[slice, slice]) -> float:
    """Correlation of what is finer than light and shade in an area, which may lie some px aside."""
    grey = [cv2.cvtColor(np.ascontiguousarray(x), cv2.COLOR_RGB2GRAY).astype(np.float32) for x in (result, truth)]
    one, other = (x - cv2.GaussianBlur(x, (0, 0), 6) for x in grey)
    around = tuple(slice(part.start - 8, part.stop + 8) for part in area)
    return float(cv2.matchTemplate(one[around], other[area], cv2.TM_CCOEFF_NORMED).max())


def test_one_photo_is_shown_in_place_of_the_mask(photo: Path, portrait: Portrait, tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    cv2.imwrite(str(picture), portrait.masked[..., ::-1])
    nose, chin, left, right = portrait.landmarks[[1, 152, 61, 291], :2].astype(int)
    area, alike = np.s_[nose[1] : chin[1], left[0] - 10 : right[0] + 10], {}
    for name, options in (("general", []), ("photo", ["--person", str(photo)])):
        out = tmp_path / f"{name}.png"
        result = CliRunner().invoke(app, ["image", str(picture), "-o", str(out), "--device", "cpu", *options])
        assert result.exit_code == 0, result.output
        alike[name] = likeness(cv2.imread(str(out))[..., ::-1], portrait.bare, area)
    assert alike["photo"] > 0.6 > 0.5 > alike["general"]


def test_a_model_of_photos_alone_paints_like_the_general_one(photo: Path, portrait: Portrait) -> None:
    assert photo.stat().st_size < 100_000
    assert Person.load(photo).tensors == {}
    truth, mask = portrait.crop(masked=False), portrait.crop_coverage().astype(np.uint8) * np.uint8(255)
    engines = [load("inpainter", choose("cpu", person=person)) for person in ("", str(photo))]
    general, personal = (engine(truth[None], mask[None])[0].copy() for engine in engines)
    np.testing.assert_array_equal(general, personal)
    assert engines[0].description == engines[1].description, "the fastest engine runs it"


def test_views_need_no_packages_for_training(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "p.safetensors"
    program = "import sys; sys.modules['torch'] = None; from unmask.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "personalize", str(clip), "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "views alone: learning needs torch: pip install 'unmask[train]'" in done.stderr
    assert "from 16 faces, " in done.stdout
    model = Person.load(path)
    assert model.views
    assert model.tensors == {}


def test_without_memory_only_the_network_is_personal(photo: Path, portrait: Portrait, tmp_path: Path) -> None:
    clip = write_clip(tmp_path / "masked.mp4", portrait.masked)
    counts = {}
    for option in ("--memory", "--no-memory"):
        out, report = tmp_path / f"{option}.mp4", tmp_path / f"{option}.json"
        command = ["video", str(clip), "-o", str(out), "--person", str(photo), option, "--report", str(report)]
        assert CliRunner().invoke(app, [*command, "--device", "cpu"]).exit_code == 0
        done = json.loads(report.read_text())
        counts[option] = done["masks_removed"], done["as_seen"]
    assert counts == {"--memory": (16, 16), "--no-memory": (16, 0)}


def test_views_alone_go_with_any_inpainter(photo: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file(load_file(photo), other, {BASE_KEY: "0" * 64})
    assert Person.load(other).views


def test_views_survive_the_file(person: Path, photo: Path, portrait: Portrait) -> None:
    for path in (person, photo):
        for view in Person.load(path).views.views.values():
            assert view.crop.shape == (256, 256, 3)
    (view,) = Person.load(photo).views.views.values()
    truth = portrait.crop(masked=False).astype(np.float64)
    near = cv2.blur(view.crop, (9, 9)).astype(np.float64) / 0.7 - cv2.blur(truth, (9, 9))
    assert psnr(near[60:230, 60:200]) > 20, "the same face, where it was"


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], command: str = "personalize") -> str:
    """The one line that is said of what cannot be used."""
    assert main([command, *arguments]) == UserError.exit_code
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


def refused_model(path: Path, portrait: Portrait, capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that is said of a personal model with which a picture was to be painted."""
    picture, out = path.parent / "a.png", path.parent / "out.png"
    cv2.imwrite(str(picture), portrait.masked[..., ::-1])
    line = refused([str(picture), "-o", str(out), "--device", "cpu", "--person", str(path)], capsys, "image")
    assert not out.exists()
    return line


def picture_of(rgb: U8, suffix: str) -> U8:
    """Its file as a file holds it."""
    return np.asarray(cv2.imencode(suffix, rgb)[1], np.uint8).ravel()


def png_that_claims(width: int, height: int) -> U8:
    """A file whose header alone is of so large a picture."""
    data = bytearray(picture_of(SQUARE, ".png").tobytes())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return np.frombuffer(bytes(data), np.uint8)


SQUARE = np.zeros((256, 256, 3), np.uint8)
DAMAGED_VIEWS: dict[str, Callable[[F32], dict[str, npt.NDArray[Any] | None]]] = {
    "no picture": lambda points: {"picture": np.arange(100, dtype=np.uint8)},
    "empty": lambda points: {"picture": np.zeros(0, np.uint8)},
    "another size": lambda points: {"picture": picture_of(SQUARE[:9, :9], ".webp")},
    "too large for OpenCV": lambda points: {"picture": png_that_claims(60000, 20000)},
    "floats": lambda points: {"picture": picture_of(SQUARE, ".webp").astype(np.float32)},
    "points alone": lambda points: {"picture": None},
    "no points": lambda points: {"points": None},
    "nowhere": lambda points: {"points": np.where(np.arange(468)[:, None] == 5, np.float32(np.nan), points)},
    "infinitely far": lambda points: {"points": np.where(np.arange(468)[:, None] == 5, np.float32(np.inf), points)},
    "too few": lambda points: {"points": points[:467]},
    "in one place": lambda points: {"points": np.zeros_like(points)},
    "in a line": lambda points: {"points": np.outer(np.arange(468), [1, 0.5, 0]).astype(np.float32) / 2},
    "far": lambda points: {"points": points + np.float32(5000)},
    "very far": lambda points: {"points": points * np.float32(1e30)},
    "integers": lambda points: {"points": points.astype(np.int64)},
    "another part": lambda points: {"nonsense": np.zeros(3, np.float32), "points": None},
}


@pytest.mark.parametrize("damage", DAMAGED_VIEWS)
def test_damaged_views_are_refused(
    damage: str, photo: Path, tmp_path: Path, portrait: Portrait, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors, path = load_file(photo), tmp_path / "p.safetensors"
    changed = {f"views.0.{part}": value for part, value in DAMAGED_VIEWS[damage](tensors["views.0.points"]).items()}
    save_file({name: x for name, x in (tensors | changed).items() if x is not None}, path, {BASE_KEY: base_hash()})
    wanted = f"unmask: '{path}' is damaged; make it again with: unmask personalize"
    assert refused_model(path, portrait, capsys) == wanted


CONV = "dec0.0.first.0"
"""A convolution of the inpainter, of 24 channels each of which sees 216 numbers."""
DAMAGED_WEIGHTS: dict[str, dict[str, npt.NDArray[Any]]] = {
    "another name": {"nowhere.bias": np.zeros(24, np.float16)},
    "no name": {"bias": np.zeros(24, np.float16)},
    "another part": {f"{CONV}.weight": np.zeros((24, 24, 3, 3), np.float16)},
    "folded in": {"dec0.0.first.1.bias": np.zeros(24, np.float16)},
    "another size": {f"{CONV}.bias": np.zeros(3, np.float16)},
    "another shape": {f"{CONV}.delta": np.zeros((24, 216), np.float16)},
    "no numbers": {f"{CONV}.bias": np.full(24, np.nan, np.float16)},
    "infinite": {f"{CONV}.bias": np.full(24, np.inf, np.float16)},
    "integers": {f"{CONV}.bias": np.zeros(24, np.int32)},
    "up alone": {f"{CONV}.up": np.zeros((24, 16), np.float16)},
    "down alone": {f"{CONV}.down": np.zeros((16, 216), np.float16)},
    "no product": {f"{CONV}.up": np.zeros((24, 16), np.float16), f"{CONV}.down": np.zeros((15, 216), np.float16)},
    "one row": {f"{CONV}.up": np.zeros(24, np.float16), f"{CONV}.down": np.zeros((16, 216), np.float16)},
}


@pytest.mark.parametrize("damage", DAMAGED_WEIGHTS)
def test_weights_that_do_not_fit_the_inpainter_are_refused(
    damage: str, tmp_path: Path, portrait: Portrait, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.safetensors"
    save_file(DAMAGED_WEIGHTS[damage], path, {BASE_KEY: base_hash()})
    wanted = f"unmask: '{path}' is damaged; make it again with: unmask personalize"
    assert refused_model(path, portrait, capsys) == wanted


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float8_e4m3fn])
def test_numbers_that_numpy_does_not_have_are_refused(
    kind: torch.dtype, tmp_path: Path, portrait: Portrait, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "p.safetensors"
    save_tensors({f"{CONV}.bias": torch.zeros(24, dtype=kind)}, path, {BASE_KEY: base_hash()})
    assert f"'{path}' is damaged" in refused_model(path, portrait, capsys)
    save_tensors({f"{CONV}.bias": torch.zeros(24, dtype=kind)}, path)
    assert f"'{path}' is no personal model" in refused_model(path, portrait, capsys)


@pytest.mark.parametrize("yaw", [0, 45, 80])
def test_views_of_turned_heads_are_none_that_are_damaged(portrait: Portrait, tmp_path: Path, yaw: float) -> None:
    views, path = Views(), tmp_path / "p.safetensors"
    views.add(Seen(portrait.crop(masked=False), aside(portrait, yaw).astype(np.float32), 0.0))
    save_file(views_to_tensors(views), path, {BASE_KEY: base_hash()})
    assert Person.load(path).views


def test_a_file_without_views_is_said_once(person: Path, portrait: Portrait, tmp_path: Path) -> None:
    picture, path = tmp_path / "a.png", tmp_path / "p.safetensors"
    tensors = {name: x for name, x in load_file(person).items() if not name.startswith("views.")}
    save_file(tensors, path, {BASE_KEY: base_hash()})
    cv2.imwrite(str(picture), portrait.masked[..., ::-1])
    result = CliRunner().invoke(app, ["image", str(picture), "--device", "cpu", "--person", str(path)])
    assert result.exit_code == 0, result.output
    assert result.stderr.count(f"'{path}' holds no views of the face; make it again with: unmask personalize\n") == 1
    assert "no face was like" not in result.output


@pytest.fixture(scope="module")
def stranger(photo: Path) -> Path:
    """A personal model of somebody whom nobody is like: the photo, upside down, in a file of an odd name."""
    tensors, path = load_file(photo), photo.with_name(os.fsdecode(b"stranger-\xff.safetensors"))
    picture = cv2.imdecode(tensors["views.0.picture"], cv2.IMREAD_COLOR)
    tensors["views.0.picture"] = picture_of(np.ascontiguousarray(picture[::-1]), ".webp")
    save_file(tensors, path, {BASE_KEY: base_hash()})
    return path


@pytest.mark.parametrize("command", ["image", "video", "live"])
def test_it_is_said_where_no_face_was_like_that_of_the_person(
    command: str, photo: Path, stranger: Path, portrait: Portrait, tmp_path: Path
) -> None:
    source = tmp_path / ("a.png" if command == "image" else "a.mp4")
    if command == "image":
        cv2.imwrite(str(source), portrait.masked[..., ::-1])
    else:
        write_clip(source, portrait.masked)
    for name, path in (("photo", photo), ("stranger", stranger)):
        out, report = tmp_path / f"{name}{source.suffix}", tmp_path / f"{name}.json"
        record = ["--record", str(out.with_suffix(".mkv"))] if command == "live" else ["-o", str(out)]
        given = [command, str(source), *record, "--device", "cpu", "--report", str(report), "--person", str(path)]
        result = CliRunner().invoke(app, given)
        assert result.exit_code == 0, result.output
        said = result.stdout.splitlines()[-1]
        done = json.loads(report.read_text())
        assert done["masks_removed"] > 0
        assert (done["as_seen"] > 0) == (" as the face was seen)" in said) == (path == photo), said
        assert said.endswith(f"; no face was like that of {shown(str(path))}") == (path == stranger), said
        if command != "image":
            assert (done["details"]["inpaint"]["person_shown"] > 0) == (path == photo)


def test_a_clip_of_a_masked_face_is_refused(
    portrait: Portrait, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_clip(tmp_path / "masked.mp4", portrait.masked)
    line = refused([str(clip), "-o", str(tmp_path / "p.safetensors"), "--steps", "1"], capsys)
    assert "no bare face was found (left out because of a mask: 16)" in line
    assert list(tmp_path.iterdir()) == [clip]


@pytest.fixture(scope="module")
def mixed(portrait: Portrait, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """What is said of a folder of nine bare faces, two with a mask and files that are no pictures, and what is written
    over another file."""
    folder = tmp_path_factory.mktemp("mixed")
    pictures, out = folder / "pictures", folder / "p.safetensors"
    pictures.mkdir()
    for index in range(11):
        rgb = moved(portrait.masked if index in (4, 7) else portrait.bare, index)
        (pictures / f"{index:02}.png").write_bytes(cv2.imencode(".png", rgb[..., ::-1])[1].tobytes())
    os.rename(pictures / "10.png", os.fsencode(pictures) + b"/caf\xe9.png")  # OpenCV ends the program at such a name
    (pictures / "empty.jpg").touch()
    (pictures / "notes.png").write_text("this is no picture")
    (pictures / "broken.mp4").write_text("nor is this a video")
    out.write_text("something else")
    before = os.umask(0o027)
    try:
        given = ["personalize", str(pictures), "-o", str(out), "--steps", "1", "--overwrite"]
        return CliRunner().invoke(app, given), out
    finally:
        os.umask(before)


def test_faces_with_a_mask_are_left_out_and_counted(mixed: tuple[Result, Path]) -> None:
    result, _ = mixed
    assert result.exit_code == 0, result.output
    assert "from 8 faces (2 more wear a mask and were left out)" in result.output
    assert "PSNR in the mask on 1 other " in result.output


def test_one_face_with_a_mask_is_counted_and_an_odd_name_spelt_out(
    portrait: Portrait, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, rgb in (("bare", portrait.bare), ("masked", portrait.masked)):
        cv2.imwrite(str(tmp_path / f"{name}.png"), rgb[..., ::-1])
    out = Path(os.fsdecode(os.fsencode(tmp_path) + b"/p\xff.safetensors"))
    assert main(["personalize", str(tmp_path), "-o", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{tmp_path}/p\\xff.safetensors: ")
    assert said.endswith(" MB from 1 face (1 more wears a mask and was left out), 1 view\n")
    assert Person.load(out).views


def test_files_that_cannot_be_read_are_said_and_left_out(mixed: tuple[Result, Path]) -> None:
    result, _ = mixed
    said = [line for line in result.stderr.splitlines() if "cannot read" in line]
    assert len(said) == 3
    for name in ("empty.jpg", "notes.png", "broken.mp4"):
        assert any(name in line and line.endswith("; what cannot be read is left out") for line in said)


def test_the_file_is_as_open_as_the_umask_says_and_whole(mixed: tuple[Result, Path]) -> None:
    _, out = mixed
    assert out.stat().st_mode & 0o777 == 0o640
    assert Person.load(out).tensors, "what --overwrite replaced is gone"
    assert sorted(path.name for path in out.parent.iterdir()) == ["p.safetensors", "pictures"], "no draft stays"


def test_an_output_that_exists_is_kept(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "p.safetensors"
    out.write_text("mine")
    assert "exists and is kept; use --overwrite" in refused([str(clip), "-o", str(out), "--steps", "1"], capsys)
    assert out.read_text() == "mine"


def test_a_closed_folder_is_said_before_anything_is_learnt(
    clip: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/proc").is_dir():
        pytest.skip("there is no /proc")
    monkeypatch.setattr(personal_module, "collect_faces", lambda *_: pytest.fail("it began"))
    assert "/proc: cannot be written to" in refused([str(clip), "-o", "/proc/p.safetensors"], capsys)


def then_signal(number: int, what: Callable[..., Any]) -> Callable[..., Any]:
    """What a function does, and a signal to this process."""

    def work(*arguments: Any) -> Any:
        result = what(*arguments)
        os.kill(os.getpid(), number)
        return result

    return work


@pytest.mark.parametrize(
    ("place", "name", "number"),
    [
        (personal_module, "largest_face", signal.SIGTERM),
        (personal_module, "largest_face", signal.SIGHUP),
        (PaintTrainer, "step", signal.SIGINT),
        (PaintTrainer, "step", signal.SIGHUP),
    ],
)
def test_stopped_it_says_so_and_leaves_nothing(
    place: Any,
    name: str,
    number: int,
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("the tests run under nohup")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(place, name, then_signal(number, getattr(place, name)))
    assert main(["personalize", str(clip), "-o", str(tmp_path / "p.safetensors"), "--steps", "3"]) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "unmask: stopped; nothing was written\n"
    assert [path.name for path in tmp_path.rglob("*")] == ["temporary"]
