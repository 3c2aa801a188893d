"""One call, several engines: OpenVINO on a processor, PyTorch as the reference and on an NVIDIA GPU.

An engine takes and gives the 8-bit arrays described in `unmask.models.runtime`.
"""

import importlib.util
import os
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from unmask.errors import EngineError, UserError
from unmask.models.vino import openvino

U8 = npt.NDArray[np.uint8]
EngineName = Literal["openvino", "torch"]
NetworkName = Literal["segmenter", "inpainter"]
NETWORKS: Final[tuple[NetworkName, ...]] = ("segmenter", "inpainter")


def weights_file(name: str) -> Path:
    """Path of a file that ships. Raises EngineError where it is missing."""
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
        """Run the network on arrays with a leading batch axis. The result is valid until the next call."""


@cache
def openvino_core() -> openvino.Core:
    """The one OpenVINO core of this process, with the cache of compiled networks if it can be written."""
    core = openvino.Core()
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            core.set_property({"CACHE_DIR": str(folder)})
    except OSError:
        pass  # without a cache the networks are compiled at each start, which takes a second longer
    return core


def cpu_precision() -> Literal["bf16", "f32"]:
    """bfloat16 where the processor computes in it (twice as fast), else float32."""
    return "bf16" if "BF16" in openvino_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"


@cache
def compile_for_cpu(
    file: str, precision: Literal["bf16", "f32"], threads: int, size: tuple[int, int] | None = None
) -> openvino.CompiledModel:
    """A network that ships, compiled for this processor; the second call with the same arguments costs nothing.

    Args:
        file: its name.
        precision: of the arithmetic.
        threads: CPU threads; 0 leaves it to OpenVINO.
        size: height and width in px of the pictures, where the network leaves them open.

    Raises:
        EngineError: it cannot be read or compiled.
    """
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    try:
        model = openvino_core().read_model(str(weights_file(file)))
        # One face at a time: a fixed shape runs faster, and on a processor a batch would gain nothing.
        shapes = {port: [1, *list(port.partial_shape)[1:]] for port in model.inputs}
        if size is not None:
            shapes = {port: [1, *size, 3] for port in shapes}
        model.reshape(shapes)
        return openvino_core().compile_model(model, "CPU", options)
    except RuntimeError as error:
        raise EngineError(f"OpenVINO cannot load '{file}': {str(error).splitlines()[0]}") from error


class OpenVinoEngine(Engine):
    """A network on the processor.

    Args:
        network: which.
        threads: CPU threads; 0 leaves it to OpenVINO.
        precision: of the arithmetic; None for the fastest that the processor has.
    """

    def __init__(self, network: NetworkName, threads: int = 0, precision: Literal["bf16", "f32"] | None = None) -> None:
        precision = precision or cpu_precision()
        self._request = compile_for_cpu(f"{network}.onnx", precision, threads).create_infer_request()
        self.description = f"OpenVINO {openvino.__version__.split('-')[0]} on CPU, {precision}"

    def __call__(self, *inputs: U8) -> U8:
        if len(inputs[0]) != 1:
            return np.concatenate([self(*(x[i : i + 1] for x in inputs)).copy() for i in range(len(inputs[0]))])
        self._request.infer([np.ascontiguousarray(x) for x in inputs], share_inputs=True)
        return np.asarray(self._request.get_output_tensor(0).data)


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
    """

    engine: EngineName
    device: str
    why_not_better: tuple[str, ...]


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


def choose(device: str = "auto") -> EngineChoice:
    """Pick the engine for a device.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".

    Raises:
        UserError: another value, or a GPU was asked for and there is none.
    """
    if device == "cpu":
        return EngineChoice("openvino", "cpu", ())
    if device == "auto":
        # Frames are decoded, warped and encoded on the processor in this version, and the GPU engine is not measured.
        reason = "GPU not used: this version has no TensorRT engine; --device cuda runs the networks under PyTorch"
        return EngineChoice("openvino", "cpu", (reason,) if has_nvidia_gpu() else ())
    kind, _, number = device.partition(":")
    if kind != "cuda" or (number and not number.isdigit()):
        raise UserError(f"unknown device '{device}': use auto, cpu, cuda or cuda:N")
    if problem := cuda_problem():
        raise UserError(f"--device {device}: {problem}; use --device cpu")
    import torch

    if int(number or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {device}: this machine has {torch.cuda.device_count()} GPU(s), counted from 0")
    return EngineChoice("torch", f"cuda:{number or 0}", ("TensorRT engines are not part of this version",))


def load(network: NetworkName, choice: EngineChoice, threads: int = 0) -> Engine:
    """Load a network on the chosen engine. Raises EngineError where it cannot be loaded."""
    if choice.engine == "openvino":
        return OpenVinoEngine(network, threads)
    return TorchEngine(network, choice.device)
