"""Writes a detector in 8-bit integers, which processors multiply faster than floating-point numbers."""

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from unmask.models.rows import CHANNELS

U8 = npt.NDArray[np.uint8]


class _Shown(CalibrationDataReader):  # type: ignore[misc]
    """Shows a network one picture after the other, (H, W, 3) uint8 RGB."""

    def __init__(self, name: str, pictures: Iterable[U8]) -> None:
        self._name = name
        self._pictures: Iterator[U8] = iter(pictures)

    def get_next(self) -> dict[str, U8] | None:
        picture = next(self._pictures, None)
        return None if picture is None else {self._name: picture[None]}


def quantise_detector(network: Path, pictures: Iterable[U8]) -> None:
    """Make a detector's convolutions ones of 8-bit integers, in place: a scale for each of their channels, and for what
    goes through them the range that it has on some pictures (Jacob et al. 2017, arXiv:1712.05877).

    The first convolution and those that write the rows stay as they are: they are a tenth of the work, and OpenVINO
    (2026.4) computes the first one wrongly when it is quantised.

    Args:
        network: its ONNX file in float32.
        pictures: (H, W, 3) uint8 RGB, H and W multiples of 32, such as it will see.
    """
    model = onnx.load(network)
    outputs = {tensor.name: tensor.dims[0] for tensor in model.graph.initializer if len(tensor.dims) == 4}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    kept = [node.name for i, node in enumerate(convolutions) if i == 0 or outputs[node.input[1]] == CHANNELS]
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder, network.name)
        logging.disable(logging.WARNING)  # onnxruntime would advise on what these networks do not need
        try:
            quantize_static(
                network,
                written,
                _Shown(model.graph.input[0].name, pictures),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=kept,
            )
        finally:
            logging.disable(logging.NOTSET)
        network.write_bytes(written.read_bytes())
    onnx.checker.check_model(str(network), full_check=True)
