"""One call, several engines: OpenVINO on a processor; TensorRT, Torch-TensorRT and PyTorch on an NVIDIA GPU.

An engine takes and gives the 8-bit arrays described in `unmask.models.runtime`. PyTorch in float32 is the reference
that all others are checked against. Those for GPUs are in `unmask.models.engines`.
"""

import importlib.util
import os
import platform
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from unmask.errors import EngineError, UnmaskError, UserError
from unmask.models.integers import known_ranges, use_integers
from unmask.models.processors import usable_processors
from unmask.models.vino import openvino

U8 = npt.NDArray[np.uint8]
CompiledName = Literal["tensorrt", "torch-tensorrt"]
"""The engines that compile a network for one GPU."""
EngineName = Literal["tensorrt", "torch-tensorrt", "torch", "openvino"]
NetworkName = Literal["segmenter", "inpainter"]
Precision = Literal["bf16", "f32"]
NETWORKS: Final[tuple[NetworkName, ...]] = ("segmenter", "inpainter")


_MOST_STREAMS: Final = 4
"""Faces computed at once on a processor; each more takes its own memory."""

WEIGHTS_VARIABLE: Final = "UNMASK_WEIGHTS"
"""Names a folder of the user's own networks, as `unmask export` writes them, used instead of those that ship."""


def weights_file(name: str) -> Path:
    """Path of a file that ships, or of the user's own of the same name. Raises EngineError where it is missing."""
    own = Path(os.environ.get(WEIGHTS_VARIABLE, ""), name)
    if os.environ.get(WEIGHTS_VARIABLE) and own.is_file():
        return own
    path = Path(str(files("unmask.models.weights") / name))
    if not path.is_file():
        raise EngineError(f"the weights '{name}' are missing from this installation; install unmask again")
    return path


def cache_folder() -> Path:
    """Where compiled networks are kept: $UNMASK_CACHE, or `unmask` in the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "unmask"
    return Path(os.environ.get("UNMASK_CACHE", default))


class Engine(ABC):
    """A loaded network.

    Attributes:
        description: engine, device and precision, for people.
    """

    description: str

    @abstractmethod
    def __call__(self, *inputs: U8) -> U8:
        """Run the network. One thread at a time may call it, and the result is valid until the next call.

        Args:
            inputs: crops, (N, 256, 256, 3) uint8 RGB, from one face to as many as a frame has; for the inpainter also
                what is hidden of them, (N, 256, 256) uint8, 0 or 255.

        Returns:
            Of the segmenter the likelihood of a mask, (N, 256, 256) uint8, 255 for 1; of the inpainter
            (N, 256, 256, 3) uint8 RGB.

        Raises:
            EngineError: the device fails.
        """


@cache
def openvino_core() -> openvino.Core:
    """The one OpenVINO core of this process, with the cache of compiled networks if it can be written.

    It is never let go: with the last core OpenVINO's code for processors would be unloaded (2026.4), and the next
    Ctrl-C ends in it.
    """
    core = openvino.Core()
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            core.set_property({"CACHE_DIR": str(folder)})
    except OSError:
        pass  # without a cache the networks are compiled at each start, which takes a second longer
    return core


def cpu_precision() -> Precision:
    """bfloat16 where the processor computes in it (twice as fast), else float32."""
    return "bf16" if "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


def cpu_has_integers() -> bool:
    """Whether convolutions in 8-bit integers are faster here: measured on x86 processors only, where they are."""
    x86 = platform.machine().lower() in {"x86_64", "amd64"}
    return x86 and "INT8" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def cpu_streams() -> tuple[int, int]:
    """How many faces the processor computes at once, and with how many threads each.

    The stages run at the same time and leave little for a second thread: a face on one thread costs less processor
    time than on two that wait for each other, and several faces at once fill the cores that are free.
    """
    cores = usable_processors()
    return min(cores, _MOST_STREAMS), max(1, cores // _MOST_STREAMS)


class Compiled(NamedTuple):
    """A network that can run, and what numbers it computes in, for people."""

    model: openvino.CompiledModel
    numbers: str


@cache
def compile_for_cpu(
    file: str,
    precision: Precision | None = None,
    threads: int = 0,
    size: tuple[int, int] | None = None,
    streams: int = 1,
) -> Compiled:
    """A network that ships, compiled for this processor; the second call with the same arguments costs nothing.

    Args:
        file: its name.
        precision: of all of the arithmetic; None for the fastest that the processor has: convolutions in 8-bit integers
            where the file knows how and the rest in float32 (what lies between two of them is not worth its conversion
            to bfloat16 and back), else bfloat16.
        threads: CPU threads of one run; 0 leaves it to OpenVINO.
        size: height and width in px of the pictures, where the network leaves them open.
        streams: how many runs there may be at once.

    Raises:
        EngineError: it cannot be read or compiled.
    """
    return compile_network(read_network(file), precision, threads, size, streams)


def read_network(file: str) -> openvino.Model:
    """A network that ships, by its name. Raises EngineError where it cannot be read."""
    try:
        return openvino_core().read_model(str(weights_file(file)))
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot load '{file}': {str(error).splitlines()[0]}") from error


def compile_network(
    model: openvino.Model,
    precision: Precision | None = None,
    threads: int = 0,
    size: tuple[int, int] | None = None,
    streams: int = 1,
) -> Compiled:
    """A network that was read, compiled for this processor; arguments as in `compile_for_cpu`.

    Raises:
        EngineError: OpenVINO cannot do it.
    """
    ranges = known_ranges(model) if precision is None and cpu_has_integers() else {}
    precision = precision or ("f32" if ranges else cpu_precision())
    options: dict[str, Any] = {"NUM_STREAMS": streams, "INFERENCE_PRECISION_HINT": precision}
    # Unless told otherwise OpenVINO ties whoever calls a network to the first core, for as long as it runs: the stages
    # would wait for one core while others idle.
    options["ENABLE_CPU_PINNING"] = False
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads * streams
    # One face a run: a fixed shape runs faster, and on a processor a batch would gain nothing.
    shapes = {port: [1, *list(port.partial_shape)[1:]] for port in model.inputs}
    if size is not None:
        shapes = {port: [1, *size, 3] for port in shapes}
    try:
        use_integers(model, ranges)
        model.reshape(shapes)
        compiled = openvino_core().compile_model(model, "CPU", options)
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot compile a network: {str(error).splitlines()[0]}") from error
    return Compiled(compiled, f"int8 and {precision}" if ranges else precision)


class OpenVinoEngine(Engine):
    """A network on the processor.

    Args:
        network: which.
        threads: CPU threads for one face; 0 for as many as `cpu_streams` says.
        precision: as of `compile_for_cpu`.
    """

    def __init__(self, network: NetworkName, threads: int = 0, precision: Precision | None = None) -> None:
        streams, usual = cpu_streams()
        self._use(compile_for_cpu(f"{network}.onnx", precision, threads or usual, streams=streams))

    def _use(self, compiled: Compiled) -> None:
        """Take a compiled network, with a request for each of its streams."""
        self._requests = [compiled.model.create_infer_request() for _ in range(cpu_streams()[0])]
        self.description = f"OpenVINO {openvino.__version__.split('-')[0]} on CPU, {compiled.numbers}"

    def __call__(self, *inputs: U8) -> U8:
        inputs = tuple(np.ascontiguousarray(x) for x in inputs)
        count = len(inputs[0])
        # Inputs are shared in every call: without it OpenVINO would write into the arrays that were shared last.
        if count == 1:
            request = self._requests[0]
            request.infer(list(inputs), share_inputs=True)
            return np.asarray(request.get_output_tensor(0).data)
        results: list[U8] = []
        for start in range(0, count, len(self._requests)):
            faces = range(start, min(start + len(self._requests), count))
            running = list(zip(self._requests, faces, strict=False))
            for request, face in running:
                request.start_async([x[face : face + 1] for x in inputs], share_inputs=True)
            for request, _ in running:
                request.wait()
                results.append(request.get_output_tensor(0).data.copy())
        return np.concatenate(results)


class TorchEngine(Engine):
    """A network under PyTorch, operation by operation: the reference that the other engines are checked against.

    Args:
        network: which.
        device: "cpu" or "cuda:N".
    """

    def __init__(self, network: NetworkName, device: str = "cpu") -> None:
        import torch  # only who asks for this engine needs PyTorch

        from unmask.models.runtime import load_runtime

        self._torch, self._device = torch, torch.device(device)
        self._runtime = load_runtime(network, weights_file(f"{network}.safetensors")).to(self._device)
        self.description = f"PyTorch {torch.__version__} on {device}, float32"

    def __call__(self, *inputs: U8) -> U8:
        with self._torch.inference_mode():
            tensors = [self._torch.from_numpy(np.ascontiguousarray(x)).to(self._device) for x in inputs]
            result: U8 = self._runtime(*tensors).cpu().numpy()
            return result


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """Which engine runs the networks.

    Attributes:
        engine: its name.
        device: "cpu" or "cuda:N".
        why_not_better: a line for each faster engine that was passed over.
        otherwise: what to take where it cannot be loaded, best first; empty where the user named the engine.
        threads: CPU threads of each network; 0 leaves it to the engine.
        person: file with a personal model, which changes the inpainter; empty for the general one.
    """

    engine: EngineName
    device: str
    why_not_better: tuple[str, ...] = ()
    otherwise: "tuple[EngineChoice, ...]" = ()
    threads: int = 0
    person: str = ""


GPU_ENGINES: Final[tuple[EngineName, ...]] = ("tensorrt", "torch-tensorrt", "torch")
"""Fastest first."""
ENGINES: Final[tuple[EngineName, ...]] = (*GPU_ENGINES, "openvino")


def has_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver is there; costs nothing, unlike asking PyTorch."""
    return Path("/proc/driver/nvidia/version").exists()


def cuda_problem() -> str | None:
    """Why PyTorch cannot use an NVIDIA GPU here; None where it can."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed (pip install 'unmask[gpu]')"
    import torch

    if not torch.cuda.is_available():
        return "PyTorch finds no NVIDIA GPU or no driver for it"
    return None


def engine_problem(engine: EngineName, device: str) -> str | None:
    """Why an engine cannot run on a device, "cpu" or "cuda:N", of this machine; None where it can."""
    if device == "cpu":
        if engine == "openvino":
            return None
        return _missing_packages() if engine == "torch" else f"{engine} needs an NVIDIA GPU"
    if engine == "openvino":
        return "OpenVINO runs on the processor only"
    number = int(device.partition(":")[2] or 0)
    if engine == "torch":
        return _missing_packages() or cuda_problem() or _missing_gpu(number)
    from unmask.models.engines.prepare import problem

    return problem(engine, number)


def _missing_packages() -> str | None:
    missing = [name for name in ("torch", "safetensors") if importlib.util.find_spec(name) is None]
    return f"{' and '.join(missing)} not installed (pip install 'unmask[gpu]')" if missing else None


def _missing_gpu(number: int) -> str | None:
    import torch

    count = torch.cuda.device_count()
    return None if number < count else f"this machine has {count} GPU(s), counted from 0"


def choose(device: str = "auto", engine: str = "auto", *, threads: int = 0, person: str = "") -> EngineChoice:
    """Pick the engine, the fastest that can run.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N". Where it is "auto", a GPU is used if there is one.
        engine: "auto" or one of `ENGINES`, and then that one or none.
        threads, person: as in `EngineChoice`.

    Raises:
        UserError: another value, or what was asked for cannot run here.
    """
    kind, _, number = device.partition(":")
    if device not in {"auto", "cpu"} and (kind != "cuda" or (number and not number.isdigit())):
        raise UserError(f"unknown device '{device}': use auto, cpu, cuda or cuda:N")
    if engine == "auto":
        return replace(_choose_fastest(device), threads=threads, person=person)
    named = next((name for name in ENGINES if name == engine), None)
    if named is None:
        raise UserError(f"unknown engine '{engine}': use auto, {', '.join(ENGINES)}")
    places = {"auto": ("cpu",) if named == "openvino" else ("cuda:0", "cpu"), "cpu": ("cpu",)}
    reasons: list[str] = []
    for place in places.get(device, (f"cuda:{number or 0}",)):
        reason = engine_problem(named, place)
        if reason is None:
            return EngineChoice(named, place, tuple(reasons), threads=threads, person=person)
        reasons.append(f"{named} not on {place}: {reason}")
    raise UserError(f"--engine {engine}: {reasons[0].partition(': ')[2]}; `unmask doctor` says what can run here")


def _choose_fastest(device: str) -> EngineChoice:
    if device == "cpu" or (device == "auto" and not has_nvidia_gpu()):
        return EngineChoice("openvino", "cpu")
    place = "cuda:0" if device in {"auto", "cuda"} else device
    usable: list[EngineChoice] = []
    reasons: list[str] = []
    for name in GPU_ENGINES:
        reason = engine_problem(name, place)
        if reason is None:
            usable.append(EngineChoice(name, place, tuple(reasons)))
        elif not usable:
            reasons.append(f"{name} not used: {reason}")
    if device == "auto":
        usable.append(EngineChoice("openvino", "cpu", tuple(reasons)))
    if not usable:
        raise UserError(f"--device {device}: {'; '.join(reasons)}; use --device cpu")
    return replace(usable[0], otherwise=tuple(usable[1:]))


def _discard(line: str) -> None:
    del line


def load(network: NetworkName, choice: EngineChoice, notice: Callable[[str], None] = _discard) -> Engine:
    """Load a network on the chosen engine, or on the next one where that fails.

    Args:
        network: which.
        choice: made by `choose`.
        notice: takes a line for the user: what is being compiled, which engine failed and why.

    Raises:
        UserError: the file of a person is no personal model for this inpainter.
        EngineError: it cannot be loaded.
    """
    if choice.person and network == "inpainter":
        from unmask.models.person import Person, load_personal  # only who asks for one needs it

        person = Person.load(Path(choice.person))
        if person.tensors:  # it may hold views alone
            with as_engine_error(), _alone_on_gpu(choice.device):
                return load_personal(person, choice, notice)
    for candidate, following in zip((choice, *choice.otherwise), (*choice.otherwise, None), strict=True):
        try:
            with as_engine_error(), _alone_on_gpu(candidate.device):
                return _load(network, replace(candidate, threads=choice.threads), notice)
        except EngineError as error:
            if following is None:
                raise EngineError(f"{candidate.engine} cannot run the {network}: {error}") from error
            notice(f"{candidate.engine} not used for the {network}: {error}; {following.engine} is used")
    raise AssertionError("there is always a last candidate")


def _load(network: NetworkName, choice: EngineChoice, notice: Callable[[str], None]) -> Engine:
    if choice.engine == "openvino":
        return OpenVinoEngine(network, choice.threads)
    if choice.engine == "torch":
        return TorchEngine(network, choice.device) if choice.device == "cpu" else _torch_on_gpu(network, choice.device)
    from unmask.models.engines.prepare import compiler_for, prepare

    return prepare(network, compiler_for(choice.engine, choice.device), notice)


def _torch_on_gpu(network: NetworkName, device: str) -> Engine:
    """PyTorch on a GPU, tried: what it has no kernels for on this GPU, or no memory, shows in the first call only."""
    from unmask.models.engines import parity

    engine = TorchEngine(network, device)
    parity.check(network, engine, 1)
    return engine


@contextmanager
def as_engine_error() -> Iterator[None]:
    """What compilers, drivers and PyTorch raise may be anything; the next engine must get its turn all the same."""
    try:
        yield
    except UnmaskError:
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise EngineError(f"{type(error).__name__}: {reason}") from error


_LOADING_ON_GPU: Final = threading.Lock()
"""Held while a network is loaded on a GPU. The stages open in threads, at the same time, and may not do that at once:
before PyTorch records a CUDA graph it synchronises the whole device, which spoils what another thread is recording, in
every mode of recording; and compilers choose among kernels by timing them.

Stages in processes of their own need no lock: a recording belongs to one process and hears nothing of another's calls.
There two compilers can only disturb each other's timing, which costs speed, and no run that follows `unmask compile`.
"""


def _alone_on_gpu(device: str) -> AbstractContextManager[object]:
    """Let no other thread load a network on a GPU meanwhile; on the processor, any number may be loaded at once."""
    return nullcontext() if device == "cpu" else _LOADING_ON_GPU
