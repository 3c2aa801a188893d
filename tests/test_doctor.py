"""What the doctor finds, and how it says what it does not find."""

import hashlib
import re
from importlib.resources import files
from pathlib import Path

import pytest

from unmask import __version__, cli
from unmask.models.engine import ENGINES, has_nvidia_gpu
from unmask.stream import doctor
from unmask.stream.encoders import Codec


def findings(title: str) -> tuple[str, ...]:
    return next(section.lines for section in doctor.examine() if section.title == title)


def fake_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_every_topic_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    out, err = capfd.readouterr()
    titles = [line for line in out.splitlines() if not line.startswith(" ")]
    assert titles == [
        *("Versions", "Processors", "GPU", "Engine", "Decoder", "Tracker", "Encoder", "Cameras"),
        *("Outputs of unmask live", "Weights"),
    ]
    assert f"  unmask {__version__}\n" in out
    assert err == ""  # SVT-AV1, for one, likes to greet


def test_an_encoder_is_named_for_each_codec_or_the_reason_why_not() -> None:
    lines = findings("Encoder")
    assert [line.partition(":")[0] for line in lines] == list(Codec)
    assert all("libx264" in line or "nvenc" in line for line in lines if line.startswith("h264"))


def test_the_decoder_is_named_with_ffmpegs_reason() -> None:
    (line,) = findings("Decoder")
    if has_nvidia_gpu():
        assert "NVDEC" in line
    else:
        assert line == "CPU; NVDEC does not decode h264 (Operation not permitted)"


def test_engines_say_why_they_cannot_run() -> None:
    used, *engines = findings("Engine")
    assert used.endswith(" is used")
    assert [line.partition(":")[0] for line in engines] == list(ENGINES)
    if not has_nvidia_gpu():
        assert used == "openvino on cpu is used"
        assert all("not installed" in line or "no NVIDIA GPU" in line for line in engines[:-1])


def test_the_default_tracker_is_named() -> None:
    lines = findings("Tracker")
    assert [line.split()[1].rstrip(":") for line in lines] == ["unmask", "mediapipe"]
    assert ["(default)" in line for line in lines] == [True, False]


def test_weights_are_named_by_their_hash_and_card() -> None:
    name = "face_landmark.tflite"
    digest = hashlib.sha256((files("unmask.models.weights") / name).read_bytes()).hexdigest()
    [line] = [line for line in findings("Weights") if line.startswith(name)]
    assert re.fullmatch(rf"{name}, 1\.2 MB, sha256 {digest[:12]}: MediaPipe .+", line)


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (
            "echo 'NVIDIA H200, 143771 MiB, 570.1, 9.0'",
            "cuda:0 NVIDIA H200, 143771 MiB, driver 570.1, compute capability 9.0",
        ),
        ("echo 'couldn not talk to the driver'; exit 9", "none: nvidia-smi says: couldn not talk to the driver"),
        ("exit 0", "none: nvidia-smi says: nothing"),
    ],
)
def test_gpu_or_the_reason_why_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, says: str) -> None:
    fake_nvidia_smi(tmp_path, monkeypatch, script)
    assert findings("GPU") == (says,)


def test_missing_driver_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert findings("GPU") == ("none: no NVIDIA driver is installed (nvidia-smi is not on the PATH)",)
