"""Prepares networks for 8-bit integers, which processors multiply faster than floating-point numbers."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from unmask.models.engine import openvino_core
from unmask.models.integers import KEY, measure_ranges

U8 = npt.NDArray[np.uint8]


def note_ranges(network: Path, pictures: Iterable[tuple[U8, ...]], first: int = 1) -> None:
    """Write into the metadata of a network, in place, within which ranges it computes: `unmask.models.integers` needs
    no more, and the file stays one for all engines.

    Args:
        network: its ONNX file.
        pictures: such as it will see, an array for each of its inputs, without the batch axis.
        first: how many convolutions, from the picture on, stay as they are.
    """
    core = openvino_core()
    ranges = measure_ranges(core, core.read_model(str(network)), pictures, first)
    model = onnx.load(network)
    rounded = {name: [round(x, 4) for x in limits] for name, limits in ranges.items()}
    onnx.helper.set_model_props(model, {KEY: json.dumps(rounded, separators=(",", ":"))})
    onnx.save(model, network)
