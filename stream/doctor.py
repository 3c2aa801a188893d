"""What this machine can do, and why not more."""

import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Final

import av
import cv2

from unmask import __version__
from unmask.errors import UserError
from unmask.models import engine
from unmask.models.processors import usable_processors
from unmask.stream.encoders import Codec, EncodeOptions, VideoSettings, choose_encoder
from unmask.stream.frame import Layout
from unmask.stream.nvcodec import nvdec_problem
from unmask.stream.trackers import DEFAULT_TRACKER, Tracker

_PACKAGES: Final = ("av", "openvino", "numpy", "pyzmq", "msgspec", "torch", "tensorrt", "torch-tensorrt")
_LIVE_PACKAGES: Final = (
    ("--window", "pygame-ce"),
    ("--virtual-camera", "pyvirtualcam"),
    ("--http", "aiohttp"),
    ("--page-camera", "aiortc"),
)


@dataclass(frozen=True, slots=True)
class Section:
    """One topic of the report.

    Args:
        title: such as "Processors".
        lines: what was found, one finding each.
    """

    title: str
    lines: tuple[str, ...]


def examine() -> tuple[Section, ...]:
    """Look at everything that decides how fast unmask runs here. Opens encoders and engines; takes a few seconds."""
    return (
        Section("Versions", tuple(_versions())),
        Section("Processors", tuple(_processors())),
        Section("GPU", tuple(_gpus())),
        Section("Engine", tuple(_engines())),
        Section("Decoder", tuple(_decoders())),
        Section("Tracker", tuple(_trackers())),
        Section("Encoder", tuple(_encoders())),
        Section("Cameras", tuple(_cameras())),
        Section("Outputs of unmask live", tuple(_live_outputs())),
        Section("Weights", tuple(_weights())),
    )


def _versions() -> Iterator[str]:
    yield f"unmask {__version__}"
    yield f"python {platform.python_version()} on {platform.platform(terse=True)}"
    yield f"opencv {cv2.__version__}"  # several distributions provide cv2
    for name in _PACKAGES:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"{name} is not installed"


def _processors() -> Iterator[str]:
    name = engine.openvino_core().get_property("CPU", "FULL_DEVICE_NAME")
    yield f"{name}, {usable_processors()} of {os.cpu_count()} cores usable"
    if engine.cpu_has_integers():
        yield "8-bit integers: yes"
    else:
        yield "8-bit integers: no, they are used on x86 only, where the networks run about twice as fast with them"
    yield f"bfloat16: {'yes' if engine.cpu_precision() == 'bf16' else 'no'}"


def _gpus() -> Iterator[str]:
    query = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version,compute_cap", "--format=csv,noheader"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except OSError:  # absent, or in a folder of the PATH that this user may not read
        yield "none: no NVIDIA driver is installed (nvidia-smi is not on the PATH)"
        return
    except subprocess.TimeoutExpired:
        yield "unknown: nvidia-smi did not answer within 20 s"
        return
    lines = (answer.stdout if answer.returncode == 0 else answer.stderr or answer.stdout).strip().splitlines()
    if answer.returncode != 0 or not lines:
        yield f"none: nvidia-smi says: {lines[0] if lines else 'nothing'}"
        return
    for number, line in enumerate(lines):
        name, memory, driver, capability = (part.strip() for part in line.split(","))
        yield f"cuda:{number} {name}, {memory}, driver {driver}, compute capability {capability}"


def _engines() -> Iterator[str]:
    """What `--device auto` would run the networks with, and whether each engine can run at all."""
    choice = engine.choose("auto")
    yield f"{choice.engine} on {choice.device} is used"
    for name in engine.ENGINES:
        if name == "openvino":
            numbers = "8-bit integers and float32" if engine.cpu_has_integers() else engine.cpu_precision()
            yield f"openvino: on the CPU, {numbers}"
            continue
        problem = engine.engine_problem(name, "cuda:0")
        yield f"{name}: {problem or 'on cuda:0; nobody has run unmask with it yet'}"


def _decoders() -> Iterator[str]:
    """Whether the GPU decodes H.264, found out with a picture of it. Without one everything is decoded on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 256, 256, "yuv420p"
            container.mux(stream.encode(av.VideoFrame(256, 256, "yuv420p")))
            container.mux(stream.encode(None))
        problem = nvdec_problem(path, 0, 0)
    yield f"CPU; NVDEC does not decode h264 ({problem})" if problem else "NVDEC on cuda:0"


def _trackers() -> Iterator[str]:
    """Whose networks find the faces."""
    found_by = {
        Tracker.UNMASK: "this project's detector finds the faces, its landmarker gives their points",
        Tracker.MEDIAPIPE: "MediaPipe's detectors find the faces, its mesh gives their points",
    }
    for tracker, text in found_by.items():
        yield f"--tracker {tracker}{' (default)' if tracker is DEFAULT_TRACKER else ''}: {text}"


def _encoders() -> Iterator[str]:
    """What would write each codec, found out by opening it at 1280x720, and why not the GPU's encoder."""
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 writes a greeting to the terminal otherwise
    settings = VideoSettings(1280, 720, time_base=Fraction(1, 25), fps=Fraction(25))
    for codec in Codec:
        options = EncodeOptions(codec=codec, gpu=True)
        try:
            choice = choose_encoder(options, settings, Layout(1280, 720), frozenset(Codec), "a file")
        except UserError as error:
            yield f"{codec}: none; {error}"
            continue
        yield f"{codec}: {'; '.join((choice.encoder.name, *choice.refused))}"


def _cameras() -> Iterator[str]:
    devices = sorted(Path("/dev").glob("video*"))
    for device in devices:
        label = Path("/sys/class/video4linux") / device.name / "name"
        yield f"{device} {label.read_text().strip() if label.is_file() else ''}".rstrip()
    if not devices:
        yield "none: there is no /dev/video*"


def _live_outputs() -> Iterator[str]:
    for option, name in _LIVE_PACKAGES:
        try:
            yield f"{option}: {name} {version(name)}"
        except PackageNotFoundError:
            yield f"{option}: needs {name}: pip install 'unmask[live]'"


def _weights() -> Iterator[str]:
    folder = files("unmask.models.weights")
    names = sorted(entry.name for entry in folder.iterdir())
    for name in names:
        if name.endswith((".onnx", ".tflite", ".safetensors")):
            data = (folder / name).read_bytes()
            card = "mediapipe.md" if name.endswith(".tflite") else f"{name.rpartition('.')[0]}.md"
            title = _title((folder / card).read_text(encoding="utf-8")) if card in names else "no model card"
            yield f"{name}, {len(data) / 1e6:.1f} MB, sha256 {hashlib.sha256(data).hexdigest()[:12]}: {title}"


def _title(card: str) -> str:
    """The first line of a model card, without its heading mark."""
    return card.strip().partition("\n")[0].lstrip("# ")
