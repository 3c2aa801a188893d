"""TensorRT and a GPU as far as unmask uses them, for machines without either: they record what is asked of them.

`FakeDevice` is memory with addresses, a queue that runs when it is waited for, and graphs that hold a queue. An engine
inverts its first input where the second one (if any) is set.
"""

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from unmask.models.engines.device import Buffer, Device


class FakeDevice(Device):
    """A GPU that writes down every call.

    Attributes:
        calls: what was asked, in order.
    """

    def __init__(self) -> None:
        self.name, self.capability, self.stream = "Fake GPU", "9.0", 77
        self.calls: list[str] = []
        self.memory: dict[int, np.ndarray] = {}
        self._queue: list[Callable[[], None]] = []

    def activate(self) -> None:
        self.calls.append("activate")

    def buffer(self, size: int) -> Buffer:
        pointer = 0x1000 * (len(self.memory) + 1)
        self.memory[pointer] = np.zeros(size, np.uint8)
        return Buffer(pointer, np.zeros(size, np.uint8), None)

    def queue(self, call: str, work: Callable[[], None]) -> None:
        self.calls.append(call)
        self._queue.append(work)

    def upload(self, buffer: Buffer) -> None:
        self.queue("upload", lambda: np.copyto(self.memory[buffer.pointer], buffer.host))

    def download(self, buffer: Buffer) -> None:
        self.queue("download", lambda: np.copyto(buffer.host, self.memory[buffer.pointer]))

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        assert not self._queue, "recorded while work is under way"
        self.calls.append("capture")
        work()
        graph, self._queue = self._queue, []
        self.calls.append("captured")
        return lambda: self.queue("launch", lambda: [step() for step in graph] and None)

    def wait(self) -> None:
        self.calls.append("wait")
        queue, self._queue = self._queue, []
        for step in queue:
            step()


class _Context:
    def __init__(self, engine: "_Engine") -> None:
        self._engine, self._device = engine, engine.device
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        assert isinstance(pointer, int)
        self._addresses[name] = pointer
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == self._device.stream
        assert set(self._shapes) == set(self._engine.inputs)
        memory = [self._device.memory[self._addresses[name]] for name in (*self._engine.inputs, "out")]
        self._device.queue("execute", lambda: self._invert(memory))
        return not self._engine.broken

    @staticmethod
    def _invert(memory: list[np.ndarray]) -> None:
        first, out = memory[0], memory[-1]
        keep = np.repeat(memory[1] == 0, 3) if len(memory) == 3 else np.zeros(first.shape, bool)
        out[:] = np.where(keep, first, 255 - first)


class _Engine:
    def __init__(self, device: FakeDevice, plan: dict[str, Any]) -> None:
        self.device, self._plan, self.broken = device, plan, plan.get("broken", False)
        self.inputs = tuple(plan["inputs"])
        self.num_io_tensors = len(self.inputs) + 1

    def get_tensor_name(self, position: int) -> str:
        return (*self.inputs, "out")[position]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_dtype(self, name: str) -> str:
        return str(self._plan.get("dtype", "uint8"))

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        rest = (4, 4) if name == "mask" else (4, 4, 3)
        return (self._plan.get("shape", -1), *rest)

    def create_execution_context(self) -> _Context:
        return _Context(self)


class _Builder:
    def __init__(self, module: SimpleNamespace, logger: Any) -> None:
        self._module, self._logger = module, logger

    def create_network(self, flags: int) -> SimpleNamespace:
        self._module.seen["network flags"] = flags
        inputs = [SimpleNamespace(name=name, shape=(-1, 4, 4, 3)) for name in ("rgb", "mask")]
        return SimpleNamespace(num_inputs=2, get_input=lambda i: inputs[i])

    def create_builder_config(self) -> SimpleNamespace:
        seen = self._module.seen
        return SimpleNamespace(
            set_flag=lambda flag: seen.setdefault("flags", []).append(flag),
            set_tactic_sources=lambda sources: seen.update({"tactic sources": sources}),
            set_memory_pool_limit=lambda pool, size: seen.update({pool: size}),
            add_optimization_profile=lambda profile: seen.update({"profiles": seen.get("profiles", 0) + 1}),
        )

    def create_optimization_profile(self) -> SimpleNamespace:
        return SimpleNamespace(
            set_shape=lambda name, low, usual, high: self._module.seen.update({name: (low, usual, high)})
        )

    def build_serialized_network(self, network: Any, config: Any) -> bytearray | None:
        if self._module.fails:
            self._logger.log("warning", "this is slow")
            self._logger.log("error", "no kernel for\n this layer")
            return None
        return bytearray(b"a plan")


class _Parser:
    num_errors = 1

    def __init__(self, network: Any, logger: Any) -> None:
        pass

    def parse(self, onnx: bytes) -> bool:
        return onnx == b"onnx"

    def get_error(self, position: int) -> SimpleNamespace:
        return SimpleNamespace(desc=lambda: "unknown operator")


def fake_tensorrt(major: int, device: FakeDevice | None = None, *, fails: bool = False) -> Any:
    """TensorRT 8, 10 or 11; `seen` holds what its builder was told."""
    severity = SimpleNamespace(ERROR="error", INTERNAL_ERROR="internal error")

    class Logger:
        ERROR, Severity = "error", severity

        def __init__(self, *_: Any) -> None:
            pass

    def deserialize(plan: bytes) -> _Engine | None:
        assert device is not None
        return None if plan == b"damaged" else _Engine(device, json.loads(plan))

    module = SimpleNamespace(
        __version__=f"{major}.0.0",
        seen={},
        fails=fails,
        Logger=Logger,
        ILogger=Logger,
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=deserialize),
        DataType=SimpleNamespace(UINT8="uint8"),
        TensorIOMode=SimpleNamespace(INPUT="input", OUTPUT="output"),
        MemoryPoolType=SimpleNamespace(WORKSPACE="workspace"),
        # TensorRT 10 still has the name; TensorRT 11 has neither of the two.
        NetworkDefinitionCreationFlag=SimpleNamespace(**({"EXPLICIT_BATCH": 0} if major < 11 else {})),
        BuilderFlag=SimpleNamespace(**({"FP16": "fp16"} if major < 11 else {})),
        TacticSource=SimpleNamespace(
            **({"CUDNN": 2, "EDGE_MASK_CONVOLUTIONS": 3, "JIT_CONVOLUTIONS": 4} if major < 11 else {})
        ),
        OnnxParser=_Parser,
    )
    module.Builder = lambda logger: _Builder(module, logger)
    return module
