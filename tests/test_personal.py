"""A personal model: made from a video of the portrait, used by the engines and by every command that paints."""

import json
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from faces import Portrait
from safetensors.numpy import load_file, save_file
from served import server_program
from tolerances import ENGINE_PSNR_DB
from typer.testing import CliRunner

from unmask.cli import app
from unmask.errors import EngineError, UserError
from unmask.models.engine import choose, load, weights_file
from unmask.models.person import BASE_KEY, Person, PersonalOpenVinoEngine, PersonalTorchEngine, base_hash
from unmask.models.runtime import load_runtime
from unmask.stream import Client
from unmask.train.evaluate import psnr
from unmask.train.personal import MOST_BYTES, PersonalInpainter, shipped_inpainter


@pytest.fixture(scope="module")
def clip(portrait: Portrait, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of the bare portrait, moving a little."""
    path = tmp_path_factory.mktemp("video") / "bare.mp4"
    height, width = (x // 2 * 2 for x in portrait.bare.shape[:2])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 8, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(16):
            turn = cv2.getRotationMatrix2D((width / 2, height / 2), 8 * np.sin(index / 2), 1.0 + 0.01 * index)
            rgb = cv2.warpAffine(portrait.bare, turn, (width, height), borderMode=cv2.BORDER_REPLICATE)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        container.mux(stream.encode())
    return path


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
    with pytest.raises(EngineError, match=r"has no network\.nowhere\.bias"):
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


def test_too_few_faces_are_said(portrait: Portrait, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "one.png"), portrait.bare[..., ::-1])
    result = CliRunner().invoke(app, ["personalize", str(tmp_path), "-o", str(tmp_path / "p.safetensors")])
    assert "1 found, 8 are the least" in str(result.exception)
