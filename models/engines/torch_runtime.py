"""Runs networks that Torch-TensorRT compiled: one program for each batch size, as the TensorRT engines have it.

What the compiler does not take (the conversion to bytes at the very end) stays in PyTorch.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unmask.models.engine import Engine, NetworkName, weights_file

U8 = npt.NDArray[np.uint8]


class TorchTensorRtEngine(Engine):
    """A network compiled by Torch-TensorRT.

    Args:
        programs: a compiled module for each batch size.
        device: "cuda:N"; "cpu" for programs that are not compiled.
        description: for people.
    """

    def __init__(self, programs: Mapping[int, Any], device: str, description: str) -> None:
        import torch

        self.description = description
        self._torch, self._device = torch, torch.device(device)
        self._programs = dict(sorted(programs.items()))
        self._largest = max(self._programs)

    def __call__(self, *inputs: U8) -> U8:
        starts = range(0, len(inputs[0]), self._largest)
        parts = [self._run([x[i : i + self._largest] for x in inputs]) for i in starts]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _run(self, inputs: list[U8]) -> U8:
        count = len(inputs[0])
        batch = next(batch for batch in self._programs if batch >= count)
        filled = [np.concatenate([x, np.repeat(x[:1], batch - count, axis=0)]) for x in inputs]
        with self._torch.inference_mode():
            tensors = [self._torch.from_numpy(x).to(self._device) for x in filled]
            result: U8 = self._programs[batch](*tensors)[:count].cpu().numpy()
            return result


def build_program(network: NetworkName, batch: int, device: str) -> bytes:
    """Compile a network in half precision for one batch size. Returns the program as `load_program` takes it."""
    import torch
    import torch_tensorrt

    from unmask.models.folding import fold_norms
    from unmask.models.runtime import example_inputs, load_runtime

    runtime = load_runtime(network, weights_file(f"{network}.safetensors"))
    fold_norms(runtime)
    runtime = runtime.half().to(device)
    inputs = tuple(x.to(device) for x in example_inputs(runtime, batch))
    with torch.inference_mode(), tempfile.TemporaryDirectory() as folder:
        exported = torch.export.export(runtime, inputs)
        compiled = torch_tensorrt.dynamo.compile(exported, arg_inputs=inputs, device=torch.device(device))
        path = Path(folder) / "program.ep"
        torch_tensorrt.save(compiled, str(path), output_format="exported_program", arg_inputs=inputs)
        return path.read_bytes()


def load_program(data: bytes) -> Any:
    """The module that `build_program` compiled, on the device that it was compiled for."""
    import torch_tensorrt

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "program.ep"
        path.write_bytes(data)
        return torch_tensorrt.load(str(path)).module()
