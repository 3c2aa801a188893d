"""From a network's name to an engine that is built, checked and kept: the one way, whatever the compiler."""

import hashlib
import importlib
import importlib.util
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, Final

from unmask.errors import EngineError
from unmask.models.engine import CompiledName, Engine, NetworkName, as_engine_error, cache_folder, weights_file
from unmask.models.engines import cache, parity
from unmask.models.engines.build import build_plan
from unmask.models.engines.device import Device, device_problem, open_device
from unmask.models.engines.runtime import BATCHES, TensorRtEngine

_TOLD_EVERY_SECONDS: Final = 10.0
_OLDEST_TENSORRT: Final = (8, 6)
Notice = Callable[[str], None]


class Compiler(ABC):
    """Compiles networks for one GPU.

    Attributes:
        title: name and version, for people and for the cache.
        source: which of a network's files is compiled, by its suffix.
    """

    title: str
    source: str

    @property
    @abstractmethod
    def gpu(self) -> str:
        """Name and compute capability of the GPU."""

    @abstractmethod
    def build(self, network: NetworkName, batch: int) -> bytes:
        """Compile a network."""

    @abstractmethod
    def open(self, built: dict[int, bytes], description: str) -> Engine:
        """The engine of what was built for some batch sizes."""


class TensorRtCompiler(Compiler):
    """TensorRT, from the ONNX that ships.

    Args:
        tensorrt: the module.
        device: the GPU.
    """

    source = "onnx"

    def __init__(self, tensorrt: Any, device: Device) -> None:
        self._tensorrt, self._device = tensorrt, device
        self.title = f"TensorRT {tensorrt.__version__}"

    @property
    def gpu(self) -> str:
        return f"{self._device.name}, {self._device.capability}"

    def build(self, network: NetworkName, batch: int) -> bytes:
        self._device.activate()
        return build_plan(self._tensorrt, weights_file(f"{network}.onnx").read_bytes(), batch)

    def open(self, built: dict[int, bytes], description: str) -> Engine:
        return TensorRtEngine(self._tensorrt, built, self._device, description)


class TorchTensorRtCompiler(Compiler):
    """Torch-TensorRT, from PyTorch's own network.

    Args:
        device: "cuda:N".
    """

    source = "safetensors"

    def __init__(self, device: str) -> None:
        import torch
        import torch_tensorrt

        self._device = device
        self._properties = torch.cuda.get_device_properties(torch.device(device))
        self.title = f"Torch-TensorRT {torch_tensorrt.__version__} with PyTorch {torch.__version__}"

    @property
    def gpu(self) -> str:
        return f"{self._properties.name}, {self._properties.major}.{self._properties.minor}"

    def build(self, network: NetworkName, batch: int) -> bytes:
        from unmask.models.engines.torch_runtime import build_program

        return build_program(network, batch, self._device)

    def open(self, built: dict[int, bytes], description: str) -> Engine:
        from unmask.models.engines.torch_runtime import TorchTensorRtEngine, load_program

        programs = {batch: load_program(data) for batch, data in built.items()}
        return TorchTensorRtEngine(programs, self._device, description)


def problem(engine: CompiledName, number: int) -> str | None:
    """Why `engine` cannot run on GPU `number`; None where it can."""
    module = engine.replace("-", "_")
    if importlib.util.find_spec(module) is None:
        extra = "gpu" if engine == "tensorrt" else "torch-tensorrt"
        return f"{engine} is not installed (pip install 'unmask[{extra}]')"
    if reason := device_problem(number):
        return reason
    try:
        version = importlib.import_module(module).__version__
    except (ImportError, OSError, RuntimeError) as error:  # its libraries are other packages, and want a driver
        return f"{engine} cannot be imported: {(str(error).splitlines() or ['no reason given'])[0]}"
    if engine == "tensorrt" and tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_TENSORRT:
        return f"TensorRT {version} is too old, {'.'.join(map(str, _OLDEST_TENSORRT))} is the first that works"
    return None


def compiler_for(engine: CompiledName, device: str) -> Compiler:
    """The compiler of an engine on "cuda:N"; `problem` must have found none."""
    if engine == "tensorrt":
        return TensorRtCompiler(importlib.import_module("tensorrt"), open_device(int(device.partition(":")[2] or 0)))
    return TorchTensorRtCompiler(device)


def prepare(network: NetworkName, compiler: Compiler, notice: Notice) -> Engine:
    """The engine of a network for all batch sizes: from the cache, or built, checked and kept.

    No other thread may load a network on a GPU meanwhile; `unmask.models.engine.load` sees to that.

    Args:
        network: which.
        compiler: of the GPU that it is to run on.
        notice: is told, about every ten seconds, what is being built.

    Raises:
        EngineError: it cannot be built, or does not compute what the network does.
    """
    weights = hashlib.sha256(weights_file(f"{network}.{compiler.source}").read_bytes()).hexdigest()
    keys = [cache.EngineKey(network, compiler.title, weights, batch, "fp16", compiler.gpu) for batch in BATCHES]
    kept = {key: stored for key in keys if (stored := cache.read(key, cache_folder()))}
    complete = kept | _build_missing(compiler, keys, kept, notice)
    try:
        with as_engine_error():
            return _open(compiler, complete)
    except EngineError:
        if not kept:
            raise
    notice(f"{compiler.title} cannot load what was compiled earlier; it is compiled again")
    with as_engine_error():
        return _open(compiler, _build_missing(compiler, keys, {}, notice))


_Stored = dict[cache.EngineKey, cache.StoredEngine]


def _open(compiler: Compiler, stored: _Stored) -> Engine:
    built = {key.batch: one.data for key, one in stored.items()}
    agreement = min(one.psnr_db for one in stored.values())
    return compiler.open(built, f"{compiler.title} on {_gpu_name(compiler)}, fp16, {agreement:.0f} dB")


def _gpu_name(compiler: Compiler) -> str:
    return compiler.gpu.partition(",")[0]


def _build_missing(compiler: Compiler, keys: Sequence[cache.EngineKey], kept: _Stored, notice: Notice) -> _Stored:
    """Build, check and keep the engines that are not there yet."""
    built: _Stored = {}
    for position, key in enumerate(keys):
        if key not in kept:
            what = f"the {key.network} for {_gpu_name(compiler)}, {key.batch} at a time ({position + 1} of {len(keys)})"
            built[key] = _build(key, compiler, what, notice)
    return built


def _build(key: cache.EngineKey, compiler: Compiler, what: str, notice: Notice) -> cache.StoredEngine:
    network: NetworkName = "segmenter" if key.network == "segmenter" else "inpainter"
    with as_engine_error():
        data = _patiently(lambda: compiler.build(network, key.batch), f"{compiler.title} compiles {what}", notice)
        stored = cache.StoredEngine(data, parity.check(network, compiler.open({key.batch: data}, ""), key.batch))
    try:
        cache.write(key, stored, cache_folder())
    except OSError as error:
        notice(f"{cache_folder()} cannot be written ({error.strerror}): the engine will be compiled again next time")
    return stored


def _patiently(work: Callable[[], bytes], what: str, notice: Notice) -> bytes:
    """Do long work in another thread, and say from this one, which may do so, that it goes on."""
    notice(f"{what}; this takes a while, once")
    began = time.monotonic()
    with ThreadPoolExecutor(1, "unmask-compile") as pool:
        done = pool.submit(work)
        while not wait([done], _TOLD_EVERY_SECONDS).done:
            notice(f"{what}: {time.monotonic() - began:.0f} s so far")
        return done.result()
