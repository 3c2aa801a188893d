"""Runs TensorRT engines: fixed shapes, one engine for each batch size, pinned buffers, one CUDA graph per call.

Only calls that TensorRT 8.6, 10 and 11 share are used, and GPU memory is touched by pointers alone.
"""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from unmask.errors import EngineError
from unmask.models.engine import Engine
from unmask.models.engines.device import Buffer, Device

U8 = npt.NDArray[np.uint8]

BATCHES: Final = (1, 2, 4, 8)
"""Sizes that engines are built for. A batch is filled up to the next one; more than the largest go in turns."""


class Program:
    """One engine, with its buffers and its CUDA graph.

    Args:
        tensorrt: the module.
        plan: the serialised engine.
        batch: faces per call, the leading axis of every tensor.
        device: where it runs; must be active in the calling thread.

    Raises:
        EngineError: TensorRT refuses the engine (damaged, another version, another GPU), or it does not take bytes.
    """

    def __init__(self, tensorrt: Any, plan: bytes, batch: int, device: Device) -> None:
        self._device = device
        self._logger = tensorrt.Logger(tensorrt.Logger.ERROR)
        self._runtime = tensorrt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        self._context: Any = self._engine.create_execution_context() if self._engine is not None else None
        if self._context is None:
            raise EngineError("TensorRT cannot load the engine: it is damaged, or was built elsewhere")
        self.inputs: list[U8] = []
        self._uploads: list[Buffer] = []
        for position in range(self._engine.num_io_tensors):
            self._bind(tensorrt, self._engine.get_tensor_name(position), batch)
        self._graph = self._record()

    def _bind(self, tensorrt: Any, name: str, batch: int) -> None:
        """Give a tensor its buffer."""
        if self._engine.get_tensor_dtype(name) != tensorrt.DataType.UINT8:
            raise EngineError(f"the engine's tensor '{name}' does not hold bytes; compile it from the ONNX that ships")
        shape = tuple(batch if size < 0 else int(size) for size in self._engine.get_tensor_shape(name))
        if shape[0] != batch:
            raise EngineError(f"the engine is made for batches of {shape[0]}, not {batch}")
        buffer = self._device.buffer(int(np.prod(shape)))
        if self._engine.get_tensor_mode(name) == tensorrt.TensorIOMode.INPUT:
            self._context.set_input_shape(name, shape)
            self._uploads.append(buffer)
            self.inputs.append(buffer.host.reshape(shape))
        else:
            self._result = buffer
            self.output = buffer.host.reshape(shape)
        self._context.set_tensor_address(name, buffer.pointer)

    def _record(self) -> Any:
        self._queue()  # TensorRT finishes its preparations in the first call, which cannot be recorded
        self._device.wait()
        return self._device.capture(self._queue)

    def _queue(self) -> None:
        for buffer in self._uploads:
            self._device.upload(buffer)
        if not self._context.execute_async_v3(self._device.stream):
            raise EngineError("TensorRT could not run the engine")
        self._device.download(self._result)

    def run(self) -> U8:
        """Compute `output` from what `inputs` hold. It is valid until the next call."""
        self._graph()
        self._device.wait()
        return self.output


class TensorRtEngine(Engine):
    """A network under TensorRT.

    Args:
        tensorrt: the module.
        plans: a serialised engine for each batch size.
        device: where it runs.
        description: for people.

    Raises:
        EngineError: TensorRT refuses an engine.
    """

    def __init__(self, tensorrt: Any, plans: Mapping[int, bytes], device: Device, description: str) -> None:
        self.description = description
        self._device = device
        device.activate()
        self._programs = {batch: Program(tensorrt, plan, batch, device) for batch, plan in sorted(plans.items())}
        self._largest = max(self._programs)

    def __call__(self, *inputs: U8) -> U8:
        self._device.activate()
        count = len(inputs[0])
        if count <= self._largest:
            return self._run(inputs)
        starts = range(0, count, self._largest)
        return np.concatenate([self._run([x[i : i + self._largest] for x in inputs]).copy() for i in starts])

    def _run(self, inputs: tuple[U8, ...] | list[U8]) -> U8:
        count = len(inputs[0])
        program = self._programs[next(batch for batch in self._programs if batch >= count)]
        for target, given in zip(program.inputs, inputs, strict=True):
            target[:count] = given  # what lies behind is from an earlier call; nobody reads what becomes of it
        return program.run()[:count]
