"""Writes what ships: safetensors for further training, ONNX for running, both in half precision."""

import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import onnx
import torch
from safetensors.torch import save
from torch import Tensor

from unmask.errors import UserError
from unmask.models.folding import fold_norms
from unmask.models.quantise import note_ranges
from unmask.models.runtime import DetectorRuntime, Runtime, example_inputs, load_runtime

U8 = npt.NDArray[np.uint8]

OPSET = 18
_FIRST = {"segmenter": 4}
"""How many convolutions, from the picture on, are not computed in 8-bit integers, where it is not one: the first ones
of the segmenter bear them worst, and cost next to nothing."""


def save_weights(state: dict[str, Tensor], path: Path) -> None:
    """Write weights as safetensors, floating-point ones in half precision."""
    half = {k: v.detach().half().contiguous() if v.is_floating_point() else v for k, v in state.items()}
    path.write_bytes(save(half))  # `save_file` makes files for their owner alone


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keep the exporter's remarks about itself (torchvision is absent, an axis has two names) from the user."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def export_onnx(runtime: Runtime, path: Path, half: bool = True) -> None:
    """Write a network as ONNX: half precision inside, 8-bit pictures outside, any batch size; the detector also for
    pictures of any size in multiples of 32 px.

    Args:
        runtime: in eval mode and float32; left folded, and in half precision if `half`.
        path: the file to write.
        half: half precision, else float32.
    """
    fold_norms(runtime)
    if half:
        runtime.half()
    inputs = example_inputs(runtime)
    shape: dict[int, object] = {0: torch.export.Dim("batch", min=1, max=64)}
    if isinstance(runtime, DetectorRuntime):
        shape |= {axis: 32 * torch.export.Dim(name, min=2, max=64) for axis, name in ((1, "rows"), (2, "columns"))}
    with _quiet_exporter():
        program = torch.onnx.export(
            runtime,
            inputs,
            input_names=list(runtime.inputs),
            output_names=[runtime.output],
            opset_version=OPSET,
            dynamic_shapes=tuple(shape for _ in inputs),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=False)
    onnx.checker.check_model(str(path), full_check=True)


def mean_of(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of the weights of one network after several runs: a "model soup" (Wortsman et al. 2022,
    arXiv:2203.05482). Counters are the last one's."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[-1].items()
    }


def ship(
    name: str, state: dict[str, Tensor], folder: Path, calibration: Iterable[tuple[U8, ...]] | None = None
) -> tuple[Path, Path]:
    """Write NAME.safetensors and NAME.onnx into a folder, in place of those that are there once both are whole.

    Args:
        name: a key of `unmask.models.runtime.RUNTIMES`.
        state: weights.
        folder: where to.
        calibration: for a network that is to run in 8-bit integers on processors, pictures as for `note_ranges`.

    Returns:
        Both paths.

    Raises:
        UserError: the weights are not of this network.
    """
    with TemporaryDirectory(prefix=".unmask-export-", dir=folder) as draft:
        weights, network = Path(draft) / f"{name}.safetensors", Path(draft) / f"{name}.onnx"
        save_weights(state, weights)
        export_onnx(_with_weights(name, weights), network)
        if calibration is not None:
            note_ranges(network, calibration, _FIRST.get(name, 1))
        for path in (weights, network):
            os.replace(path, folder / path.name)
    return folder / weights.name, folder / network.name


def _with_weights(name: str, weights: Path) -> Runtime:
    try:
        return load_runtime(name, weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"these are no weights of the {name} ({reason}); give those that a run made of it") from error
