"""Memory, streams and graphs of an NVIDIA GPU, by pointers: from PyTorch or from NVIDIA's cuda-bindings.

TensorRT needs nothing else of CUDA, so `unmask.models.engines.runtime` works with either, and its tests with neither.
"""

import ctypes
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unmask.errors import EngineError

U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Buffer:
    """A piece of GPU memory and its page-locked twin on the host.

    Attributes:
        pointer: address on the GPU.
        host: (N,) uint8, page-locked, so that copies run beside the processor's work.
        owner: keeps both alive.
    """

    pointer: int
    host: U8
    owner: object


class Device(ABC):
    """One GPU, with a stream of its own.

    Attributes:
        name: such as "NVIDIA H200".
        capability: compute capability, such as "9.0".
        stream: handle of the stream, for TensorRT.
    """

    name: str
    capability: str
    stream: int

    @abstractmethod
    def activate(self) -> None:
        """Make this GPU the current one of the calling thread; to be called before anything else in a thread."""

    @abstractmethod
    def buffer(self, size: int) -> Buffer:
        """Make a buffer of `size` bytes. Raises EngineError where memory is short."""

    @abstractmethod
    def upload(self, buffer: Buffer) -> None:
        """Queue the copy of a buffer from the host to the GPU."""

    @abstractmethod
    def download(self, buffer: Buffer) -> None:
        """Queue the copy of a buffer from the GPU to the host."""

    @abstractmethod
    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` queues as a CUDA graph, without running it. The result queues all of it at once."""

    @abstractmethod
    def wait(self) -> None:
        """Wait until everything queued is done."""


class TorchDevice(Device):
    """A GPU by PyTorch.

    Args:
        number: of the GPU, counted from 0.
    """

    def __init__(self, number: int) -> None:
        import torch

        self._torch, self._device = torch, torch.device("cuda", number)
        self.name = torch.cuda.get_device_name(self._device)
        self.capability = ".".join(str(part) for part in torch.cuda.get_device_capability(self._device))
        self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        self.stream = int(self._stream.cuda_stream)

    def activate(self) -> None:
        self._torch.cuda.set_device(self._device)

    def buffer(self, size: int) -> Buffer:
        try:
            there = self._torch.empty(size, dtype=self._torch.uint8, device=self._device)
            here = self._torch.empty(size, dtype=self._torch.uint8, pin_memory=True)
        except RuntimeError as error:
            raise EngineError(f"{self.name}: no memory for {size} bytes ({_first_line(error)})") from error
        return Buffer(there.data_ptr(), here.numpy(), (there, here))

    def upload(self, buffer: Buffer) -> None:
        there, here = self._tensors(buffer)
        with self._torch.cuda.stream(self._stream):
            there.copy_(here, non_blocking=True)

    def download(self, buffer: Buffer) -> None:
        there, here = self._tensors(buffer)
        with self._torch.cuda.stream(self._stream):
            here.copy_(there, non_blocking=True)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        graph = self._torch.cuda.CUDAGraph()
        # Other threads (another network, PyAV) may use the GPU meanwhile.
        with self._torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()

        def launch() -> None:
            with self._torch.cuda.stream(self._stream):
                graph.replay()

        return launch

    def wait(self) -> None:
        self._stream.synchronize()

    @staticmethod
    def _tensors(buffer: Buffer) -> Any:
        return buffer.owner


class CudaBindingsDevice(Device):
    """A GPU by NVIDIA's cuda-bindings, for machines without PyTorch.

    Args:
        number: of the GPU, counted from 0.

    Raises:
        EngineError: there is no such GPU, or no driver for it.
    """

    def __init__(self, number: int) -> None:
        self._cuda, self._number = _cuda_runtime(), number
        self.activate()
        properties = self._call("cudaGetDeviceProperties", number)
        self.name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
        self.capability = f"{properties.major}.{properties.minor}"
        self.stream = int(self._call("cudaStreamCreateWithFlags", self._cuda.cudaStreamNonBlocking))

    def activate(self) -> None:
        self._call("cudaSetDevice", self._number)

    def buffer(self, size: int) -> Buffer:
        there = int(self._call("cudaMalloc", size))
        here = int(self._call("cudaMallocHost", size))
        host = np.frombuffer(memoryview((ctypes.c_uint8 * size).from_address(here)).cast("B"), np.uint8)
        return Buffer(there, host, _Memory(self._cuda, there, here))

    def upload(self, buffer: Buffer) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        host = buffer.host
        self._call("cudaMemcpyAsync", buffer.pointer, host.ctypes.data, host.size, kind, self.stream)

    def download(self, buffer: Buffer) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        host = buffer.host
        self._call("cudaMemcpyAsync", host.ctypes.data, buffer.pointer, host.size, kind, self.stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        mode = self._cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self.stream, mode)
        try:
            work()
        finally:
            graph = self._call("cudaStreamEndCapture", self.stream)
        launchable = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)
        return lambda: self._call("cudaGraphLaunch", launchable, self.stream)

    def wait(self) -> None:
        self._call("cudaStreamSynchronize", self.stream)

    def _call(self, name: str, *arguments: Any) -> Any:
        """Call the CUDA runtime; its functions give an error code and then the result, if any."""
        code, *result = getattr(self._cuda, name)(*arguments)
        if int(code) != 0:
            text = self._cuda.cudaGetErrorString(code)[1]
            raise EngineError(f"CUDA: {text.decode() if isinstance(text, bytes) else text} ({name})")
        return result[0] if result else None


class _Memory:
    """Frees a buffer when nobody uses it any more."""

    def __init__(self, cuda: Any, there: int, here: int) -> None:
        self._free = (cuda.cudaFree, there, cuda.cudaFreeHost, here)

    def __del__(self) -> None:
        free, there, free_host, here = self._free
        free(there)
        free_host(here)


def _cuda_runtime() -> Any:
    """The runtime module of cuda-bindings, under its present or its older name."""
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError:
        return importlib.import_module("cuda.cudart")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def device_problem(number: int) -> str | None:
    """Why GPU `number` cannot be used, by PyTorch or else by cuda-bindings; None where it can."""
    if importlib.util.find_spec("torch") is not None:
        import torch

        if not torch.cuda.is_available():
            return "PyTorch finds no NVIDIA GPU or no driver for it"
        count = torch.cuda.device_count()
        return None if number < count else f"this machine has {count} GPU(s), counted from 0"
    try:
        CudaBindingsDevice(number)
    except ImportError:
        return "neither PyTorch nor cuda-bindings is installed (pip install 'unmask[gpu]')"
    except EngineError as error:
        return str(error)
    return None


def open_device(number: int) -> Device:
    """GPU `number`, by PyTorch where that is installed, else by cuda-bindings. Raises EngineError."""
    if importlib.util.find_spec("torch") is not None:
        return TorchDevice(number)
    return CudaBindingsDevice(number)
