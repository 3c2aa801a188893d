"""TensorRT and Torch-TensorRT as far as that can be seen without a GPU, and the engines' cache and check."""

import dataclasses
import json
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from fake_tensorrt import FakeDevice, fake_tensorrt

from unmask import cli
from unmask.errors import EngineError, UserError
from unmask.models import engine
from unmask.models.engine import (
    NETWORKS,
    U8,
    Engine,
    EngineChoice,
    NetworkName,
    OpenVinoEngine,
    TorchEngine,
    choose,
    load,
)
from unmask.models.engines import cache, parity, prepare
from unmask.models.engines.build import build_plan
from unmask.models.engines.cache import EngineKey, StoredEngine
from unmask.models.engines.device import CudaBindingsDevice
from unmask.models.engines.runtime import BATCHES, Program, TensorRtEngine
from unmask.models.engines.torch_runtime import TorchTensorRtEngine
from unmask.models.export import export_onnx
from unmask.models.runtime import load_runtime

KEY = EngineKey("segmenter", "TensorRT 11.0.0", "abc", 4, "fp16", "Fake GPU, 9.0")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def plan(**about: object) -> bytes:
    return json.dumps({"inputs": ["rgb"], **about}).encode()


# --- the runtime ------------------------------------------------------------------------------------------------------


def test_a_call_is_one_graph_between_pinned_buffers() -> None:
    device = FakeDevice()
    program = Program(fake_tensorrt(11, device), plan(inputs=["rgb", "mask"]), 2, device)
    queued = ["upload", "upload", "execute", "download"]
    # Once without recording, for what TensorRT prepares in its first call, then recorded.
    assert device.calls == [*queued, "wait", "capture", *queued, "captured"]
    device.calls.clear()
    program.inputs[0][:], program.inputs[1][:] = 40, [[[0]], [[255]]]
    result = program.run()
    assert device.calls == ["launch", "wait"]
    assert (result[0] == 40).all()
    assert (result[1] == 215).all()


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 11])
def test_batches_of_any_size_go_through_the_sizes_that_were_built(count: int) -> None:
    device = FakeDevice()
    network = TensorRtEngine(fake_tensorrt(10, device), {batch: plan() for batch in BATCHES}, device, "fake")
    faces = np.random.default_rng(count).integers(0, 256, (count, 4, 4, 3), np.uint8)
    device.calls.clear()
    assert np.array_equal(network(faces), 255 - faces)
    assert device.calls.count("launch") == -(-count // max(BATCHES))
    assert device.calls[0] == "activate"  # the caller may be another thread than the one that loaded it
    assert np.array_equal(network(faces[:1]), 255 - faces[:1])


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (b"damaged", "it is damaged, or was built elsewhere"),
        (plan(dtype="float32"), "does not hold bytes"),
        (plan(shape=4), "made for batches of 4, not 2"),
        (plan(broken=True), "could not run"),
    ],
)
def test_engines_that_cannot_be_used_are_refused(given: bytes, says: str) -> None:
    device = FakeDevice()
    with pytest.raises(EngineError, match=says):
        Program(fake_tensorrt(11, device), given, 2, device)


def test_programs_of_torch_tensorrt_get_full_batches() -> None:
    sizes: list[int] = []

    def program(rgb: "object") -> "object":
        sizes.append(len(rgb))  # type: ignore[arg-type]
        return 255 - rgb  # type: ignore[operator]

    network = TorchTensorRtEngine(dict.fromkeys(BATCHES, program), "cpu", "fake")
    faces = np.random.default_rng(0).integers(0, 256, (11, 4, 4, 3), np.uint8)
    assert np.array_equal(network(faces), 255 - faces)
    assert sizes == [8, 4]


# --- building ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("major", "flags"), [(8, ["fp16"]), (10, ["fp16"]), (11, None)])
def test_each_version_gets_the_flags_that_it_has(major: int, flags: list[str] | None) -> None:
    tensorrt = fake_tensorrt(major)
    assert build_plan(tensorrt, b"onnx", 4) == b"a plan"
    assert tensorrt.seen.get("flags") == flags
    assert tensorrt.seen["network flags"] == (1 if major < 11 else 0)
    assert tensorrt.seen.get("tactic sources") == (0b11000 if major < 11 else None)  # neither cuDNN nor cuBLAS
    assert tensorrt.seen["rgb"] == tensorrt.seen["mask"] == ((4, 4, 4, 3),) * 3
    assert tensorrt.seen["profiles"] == 1


def test_tensorrts_own_reason_is_given() -> None:
    with pytest.raises(EngineError, match=r"cannot compile the network: no kernel for this layer$"):
        build_plan(fake_tensorrt(11, fails=True), b"onnx", 1)
    with pytest.raises(EngineError, match=r"cannot read the network: unknown operator$"):
        build_plan(fake_tensorrt(11), b"no onnx", 1)


@pytest.mark.parametrize("network", NETWORKS)
def test_bytes_appear_at_the_edges_of_the_exported_network_only(network: NetworkName, tmp_path: Path) -> None:
    """TensorRT takes and gives bytes, and converts them; nothing else may touch them."""
    path = tmp_path / "network.onnx"
    export_onnx(load_runtime(network, engine.weights_file(f"{network}.safetensors")), path)
    graph = onnx.load(path).graph
    for tensor in graph.input:
        assert {node.op_type for node in graph.node if tensor.name in node.input} == {"Cast"}
    (last,) = (node for node in graph.node if graph.output[0].name in node.output)
    assert last.op_type == "Cast"
    assert sum(node.op_type == "Cast" and node.attribute[0].i == onnx.TensorProto.UINT8 for node in graph.node) == 1


# --- the cache --------------------------------------------------------------------------------------------------------


def test_an_engine_is_found_again_by_its_key_alone(folder: Path) -> None:
    cache.write(KEY, StoredEngine(b"\x00plan\n\xff", 47.11), folder)
    assert cache.read(KEY, folder) == StoredEngine(b"\x00plan\n\xff", 47.11)
    for change in (
        {"weights": "abd"},
        {"batch": 8},
        {"gpu": "Other GPU, 9.0"},
        {"precision": "fp32"},
        {"compiler": "TensorRT 11.0.1"},
        {"network": "inpainter"},
    ):
        other = dataclasses.replace(KEY, **change)
        assert other.path(folder) != KEY.path(folder)
        assert cache.read(other, folder) is None
    assert [path.name for path in folder.iterdir()] == [KEY.path(folder).name]


@pytest.mark.parametrize("harm", [lambda d: d[:-1], lambda d: d[:-1] + b"?", lambda d: b"", lambda d: b"{}\n" + d])
def test_a_damaged_file_counts_as_absent(harm: Callable[[bytes], bytes], folder: Path) -> None:
    cache.write(KEY, StoredEngine(b"plan", 50.0), folder)
    path = KEY.path(folder)
    path.write_bytes(harm(path.read_bytes()))
    assert cache.read(KEY, folder) is None


def test_a_failed_write_leaves_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache.os, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        cache.write(KEY, StoredEngine(b"plan", 50.0), folder)
    assert list(folder.iterdir()) == []


# --- from name to engine ----------------------------------------------------------------------------------------------


class _Black(Engine):
    """What half precision makes of a network that overflows."""

    description = "black"

    def __init__(self, network: NetworkName = "segmenter") -> None:
        self._network = network

    def __call__(self, *inputs: U8) -> U8:
        return np.zeros_like(inputs[0] if self._network == "inpainter" else inputs[0][..., 0])


class _Compiler(prepare.Compiler):
    """Compiles at once, to OpenVINO."""

    title, source, gpu = "TensorRT 11.0.0", "onnx", "Fake GPU, 9.0"

    def __init__(self, *, black: bool = False) -> None:
        self.built: list[int] = []
        self.opened: list[tuple[int, ...]] = []
        self._black = black

    def build(self, network: NetworkName, batch: int) -> bytes:
        self.built.append(batch)
        return network.encode()

    def open(self, built: dict[int, bytes], description: str) -> Engine:
        self.opened.append(tuple(built))
        if not all(data in (b"segmenter", b"inpainter") for data in built.values()):
            raise EngineError("TensorRT cannot load the engine")
        result = _Black() if self._black else OpenVinoEngine("segmenter")
        result.description = description
        return result


def test_engines_are_built_once_checked_and_announced(folder: Path) -> None:
    lines: list[str] = []
    compiler = _Compiler()
    built = prepare.prepare("segmenter", compiler, lines.append)
    assert compiler.built == list(BATCHES)
    assert compiler.opened[-1] == BATCHES
    assert [line.partition(";")[0] for line in lines] == [
        f"TensorRT 11.0.0 compiles the segmenter for Fake GPU, {batch} at a time ({n} of 4)"
        for n, batch in enumerate(BATCHES, 1)
    ]
    assert built.description.startswith("TensorRT 11.0.0 on Fake GPU, fp16, ")
    again = _Compiler()
    assert prepare.prepare("segmenter", again, lines.append).description == built.description
    assert again.built == []
    assert len(lines) == 4


def test_what_the_compiler_no_longer_loads_is_built_again(folder: Path) -> None:
    prepare.prepare("segmenter", _Compiler(), lambda line: None)
    for path in folder.iterdir():
        if "-b4-" in path.name:
            head, _, _ = path.read_bytes().partition(b"\n")
            about = json.loads(head)
            stale = EngineKey(**about["key"])
    cache.write(stale, StoredEngine(b"of another driver", 50.0), folder)
    lines: list[str] = []
    compiler = _Compiler()
    prepare.prepare("segmenter", compiler, lines.append)
    assert lines[0] == "TensorRT 11.0.0 cannot load what was compiled earlier; it is compiled again"
    assert compiler.built == list(BATCHES)
    again = _Compiler()
    prepare.prepare("segmenter", again, lines.append)
    assert again.built == []


def test_an_engine_that_computes_something_else_is_refused_and_not_kept(folder: Path) -> None:
    with pytest.raises(EngineError, match=r"to \d+\.\d dB only where 35 dB are needed, so it is not used$"):
        prepare.prepare("segmenter", _Compiler(black=True), lambda line: None)
    assert not folder.exists() or not list(folder.iterdir())


def test_whatever_a_compiler_raises_the_next_engine_gets_its_turn(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(_Compiler):
        def build(self, network: NetworkName, batch: int) -> bytes:
            raise RuntimeError("CUDA error: out of memory\nand much more")

    monkeypatch.setattr(prepare, "compiler_for", lambda *_: Broken())
    with pytest.raises(EngineError, match=r"segmenter: RuntimeError: CUDA error: out of memory$"):
        load("segmenter", EngineChoice("torch-tensorrt", "cuda:0"))


@pytest.mark.parametrize("name", ["tensorrt", "torch-tensorrt", "torch"])
@pytest.mark.parametrize("error", [RuntimeError("CUDA error: out of memory"), AttributeError("no such thing")])
def test_a_gpu_that_cannot_be_opened_leaves_the_next_engine_its_turn(
    name: engine.EngineName, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.0.0"))
    monkeypatch.setattr(prepare, "open_device", fail)
    monkeypatch.setattr(prepare, "TorchTensorRtCompiler", fail)
    monkeypatch.setattr(engine, "TorchEngine", fail)
    lines: list[str] = []
    loaded = load("segmenter", EngineChoice(name, "cuda:0", otherwise=(EngineChoice("openvino", "cpu"),)), lines.append)
    assert isinstance(loaded, OpenVinoEngine)
    assert lines == [f"{name} not used for the segmenter: {type(error).__name__}: {error}; openvino is used"]


def test_pytorch_on_a_gpu_has_to_run_once_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """That it has no kernels for a GPU shows in the first call only."""

    class Unsupported(TorchEngine):
        def __init__(self, network: NetworkName, device: str = "cpu") -> None:
            super().__init__(network)

        def __call__(self, *inputs: U8) -> U8:
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")

    monkeypatch.setattr(engine, "TorchEngine", Unsupported)
    lines: list[str] = []
    last = EngineChoice("openvino", "cpu")
    assert isinstance(
        load("segmenter", EngineChoice("torch", "cuda:0", otherwise=(last,)), lines.append), OpenVinoEngine
    )
    assert lines == [
        "torch not used for the segmenter: RuntimeError: CUDA error: no kernel image is available for execution on the "
        "device; openvino is used"
    ]
    assert isinstance(load("segmenter", EngineChoice("torch", "cpu")), Unsupported)  # the reference itself


def test_networks_are_loaded_on_a_gpu_one_after_the_other(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What PyTorch does before it records a graph spoils another thread's recording, and compilers time kernels."""
    at_work: list[str] = []
    together: list[tuple[str, ...]] = []

    class Slow(_Compiler):
        def build(self, network: NetworkName, batch: int) -> bytes:
            with working(f"{network} is built"):
                return super().build(network, batch)

        def open(self, built: dict[int, bytes], description: str) -> Engine:
            with working("opened"):
                return super().open(built, description)

    @contextmanager
    def working(what: str) -> Iterator[None]:
        at_work.append(what)
        together.append(tuple(at_work))
        time.sleep(0.02)
        yield
        at_work.remove(what)

    monkeypatch.setattr(prepare, "compiler_for", lambda *_: Slow())
    monkeypatch.setattr(parity, "check", lambda *_: 50.0)
    threads = [
        threading.Thread(target=load, args=(network, EngineChoice("tensorrt", "cuda:0"))) for network in NETWORKS
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(together) == len(NETWORKS) * (2 * len(BATCHES) + 1)
    assert {len(moment) for moment in together} == {1}


def test_an_installation_has_the_weights_that_engines_are_checked_against() -> None:
    """The rest is checked by .ci/wheel: all of this works from a wheel."""
    pyproject = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())
    patterns = pyproject["tool"]["setuptools"]["package-data"]["unmask.models.weights"]
    weights = [path.name for path in engine.weights_file("segmenter.safetensors").parent.iterdir() if path.is_file()]
    assert "inpainter.safetensors" in weights
    left_out = [name for name in weights if not any(fnmatch(name, pattern) for pattern in patterns)]
    assert left_out == ["__init__.py"]


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNMASK_CACHE", str(tmp_path / "file"))
    lines: list[str] = []
    prepare.prepare("segmenter", _Compiler(), lines.append)
    assert sum("cannot be written (File exists): the engine will be compiled again" in line for line in lines) == 4


def test_long_work_is_announced_from_the_callers_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_TOLD_EVERY_SECONDS", 0.01)
    lines: list[str] = []

    def work() -> bytes:
        while len(lines) < 3:
            pass
        return b"done"

    assert prepare._patiently(work, "compiling", lines.append) == b"done"
    assert lines[0] == "compiling; this takes a while, once"
    assert lines[2] == "compiling: 0 s so far"


@pytest.mark.parametrize("network", NETWORKS)
def test_the_check_tells_a_sound_engine_from_a_spoilt_one(network: NetworkName) -> None:
    assert parity.check(network, OpenVinoEngine(network), parity.MOST_CROPS) > 45
    with pytest.raises(EngineError, match=r"PyTorch .* float32"):
        parity.check(network, _Black(network), 1)


# --- choosing ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_gpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """A machine with a GPU, on which each engine has the problem that the test gives it."""
    problems: dict[str, str | None] = {"tensorrt": "no wheel", "torch-tensorrt": None, "torch": None}
    monkeypatch.setattr(engine, "has_nvidia_gpu", lambda: True)
    monkeypatch.setattr(
        engine, "engine_problem", lambda name, device: None if device == "cpu" else problems.get(name, "CPU only")
    )
    return problems


def test_every_faster_engine_that_is_passed_over_is_said(with_gpu: dict[str, str | None]) -> None:
    choice = choose()
    assert (choice.engine, choice.device) == ("torch-tensorrt", "cuda:0")
    assert choice.why_not_better == ("tensorrt not used: no wheel",)
    assert [(c.engine, c.device) for c in choice.otherwise] == [("torch", "cuda:0"), ("openvino", "cpu")]
    assert [c.engine for c in choose("cuda:1").otherwise] == ["torch"]
    with_gpu |= {"torch-tensorrt": "old", "torch": "no CUDA"}
    assert choose().engine == "openvino"
    assert len(choose().why_not_better) == 3
    with pytest.raises(UserError, match=r"--device cuda: tensorrt not used: no wheel; .*use --device cpu"):
        choose("cuda")


def test_an_engine_by_name_is_that_one_or_none(with_gpu: dict[str, str | None]) -> None:
    assert choose(engine="torch-tensorrt") == EngineChoice("torch-tensorrt", "cuda:0")
    assert choose("cpu", "torch") == EngineChoice("torch", "cpu")
    assert choose(engine="openvino") == EngineChoice("openvino", "cpu")
    with pytest.raises(UserError, match="--engine tensorrt: no wheel; `unmask doctor`"):
        choose("cuda", "tensorrt")
    with pytest.raises(UserError, match="unknown engine 'onnx': use auto, tensorrt, "):
        choose(engine="onnx")


@pytest.mark.parametrize("name", ["tensorrt", "torch-tensorrt"])
def test_on_this_machine_gpu_engines_say_why_they_cannot_run(name: str) -> None:
    with pytest.raises(UserError, match=f"--engine {name}: "):
        choose("cpu", name)
    problem = engine.engine_problem(name, "cuda:0")  # type: ignore[arg-type]
    assert problem is None or "not installed" in problem or "GPU" in problem


def test_a_tensorrt_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(prepare, "device_problem", lambda number: None)
    for version, problem in {"8.5.3": "TensorRT 8.5.3 is too old, 8.6 is the first that works", "8.6.0": None}.items():
        monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__=version))
        assert prepare.problem("tensorrt", 0) == problem


def test_the_next_engine_steps_in_and_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "compiler_for", lambda *_: _Compiler(black=True))
    lines: list[str] = []
    last = EngineChoice("openvino", "cpu")
    loaded = load("segmenter", EngineChoice("tensorrt", "cuda:0", otherwise=(last,)), lines.append)
    assert isinstance(loaded, OpenVinoEngine)
    assert lines[-1].startswith("tensorrt not used for the segmenter: it agrees with PyTorch")
    assert lines[-1].endswith("; openvino is used")
    with pytest.raises(EngineError, match="tensorrt cannot run the segmenter: it agrees"):
        load("segmenter", EngineChoice("tensorrt", "cuda:0"))


def test_without_a_driver_cuda_bindings_say_so() -> None:
    pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    if engine.has_nvidia_gpu():
        pytest.skip("this machine has an NVIDIA driver")
    with pytest.raises(EngineError, match=r"^CUDA: .*driver.* \(cudaSetDevice\)$"):
        CudaBindingsDevice(0)


# --- unmask compile ---------------------------------------------------------------------------------------------------


def test_compile_fills_the_cache_and_reports_the_agreement(folder: Path) -> None:
    command = [sys.executable, "-m", "unmask.cli", "compile", "--device", "cpu"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [*NETWORKS, "the trackers' networks"]
    assert all("dB against float32; ready in " in line for line in lines[:2])
    assert len(list(folder.rglob("*.blob"))) >= 5
    assert done.stderr == ""


def test_compile_for_a_missing_gpu_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    if engine.has_nvidia_gpu():
        pytest.skip("this machine has a GPU")
    assert cli.main(["compile", "--engine", "tensorrt"]) == 2
    assert capfd.readouterr().err.startswith("unmask: --engine tensorrt: ")


# --- with a GPU -------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tensorrt", "torch-tensorrt"])
@pytest.mark.parametrize("network", NETWORKS)
def test_engines_agree_on_the_gpu(name: str, network: NetworkName, folder: Path) -> None:
    if problem := engine.engine_problem(name, "cuda:0"):  # type: ignore[arg-type]
        pytest.skip(f"{name} cannot run here: {problem}")
    loaded = load(network, choose("cuda:0", name))
    for count in (1, 3, 8):
        assert parity.check(network, loaded, count) > parity.LEAST_PSNR_DB
