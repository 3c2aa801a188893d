"""Convolutions in 8-bit integers on a processor, put in when a network is loaded: one file does for all engines."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from unmask.models.vino import openvino

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
Ranges = Mapping[str, tuple[float, float]]

KEY: Final = "int8_ranges"
"""Names the metadata of an ONNX file that says within which range the inputs of its convolutions lie."""
_LEVELS: Final = 256
_OF_WEIGHTS: Final = 2.0
"""Weights are given a range so many times their own, of which they use a half: processors without VNNI add products of
two pairs of bytes in 16 bits, where larger ones would be cut off, and all processors give the same."""


def known_ranges(model: openvino.Model) -> Ranges:
    """The range of what goes into each convolution that may be computed in integers, by the convolution's name; none
    for a network that was not calibrated."""
    place = ["framework", KEY]
    return json.loads(model.get_rt_info(place).astype(str)) if model.has_rt_info(place) else {}


def use_integers(model: openvino.Model, ranges: Ranges) -> None:
    """Have convolutions computed in 8-bit integers, in place: a scale for each channel of their weights, and for what
    goes into them the range that was measured (Jacob et al. 2017, arXiv:1712.05877).

    Args:
        model: as read from its file.
        ranges: as `known_ranges` gives them; all other convolutions stay as they are.
    """
    for node in _convolutions(model):
        if (limits := ranges.get(node.get_friendly_name())) is None:
            continue
        weights = _constant(node)
        most = np.float32(_OF_WEIGHTS) * np.abs(weights).max(axis=(1, 2, 3), keepdims=True) + np.float32(1e-12)
        _round(node.input(0), node.input_value(0), _with_zero(*limits), _LEVELS)
        _round(node.input(1), openvino.opset13.constant(weights).output(0), (-most, most), _LEVELS - 1)
    model.validate_nodes_and_infer_types()


def measure_ranges(
    core: openvino.Core, model: openvino.Model, pictures: Iterable[tuple[U8, ...]], first: int = 1
) -> dict[str, tuple[float, float]]:
    """The range of what goes into each convolution: that of a picture on average, and a standard deviation beyond. One
    that goes far beyond makes all steps coarser (Jacob et al. 2017 average, too).

    Left out are those that see the picture (the first ones), write the result (as many channels as the last one has) or
    enlarge it (a single channel), which stay as they are.

    Args:
        core: what compiles the network.
        model: as read from its file.
        pictures: what it is to be shown, one array for each of its inputs, without the batch axis.
        first: how many see the picture.
    """
    later = list(_convolutions(model))[first:]
    written = len(_constant(later[-1]))
    nodes = [node for node in later if len(weights := _constant(node)) != written and weights.shape[1] > 1]
    inputs = [openvino.opset13.convert(node.input_value(0), "f32") for node in nodes]
    extended = openvino.Model([openvino.opset13.result(x) for x in inputs], model.get_parameters())
    compiled = core.compile_model(extended, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    extremes: list[tuple[list[float], list[float]]] = []
    for arrays in pictures:
        found = compiled([x[None] for x in arrays]).values()
        extremes.append(([min(0.0, float(x.min())) for x in found], [max(0.0, float(x.max())) for x in found]))
    seen = np.array(extremes)
    low, high = seen.mean(0) + np.array([[-1.0], [1.0]]) * seen.std(0)
    names = [node.get_friendly_name() for node in nodes]
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}


def _convolutions(model: openvino.Model) -> Iterator[openvino.Node]:
    return (node for node in model.get_ordered_ops() if node.get_type_name() == "Convolution")


def _constant(node: openvino.Node) -> F32:
    """The weights of a convolution, whatever they are converted from."""
    node = node.input_value(1).get_node()
    while node.get_type_name() != "Constant":
        node = node.input_value(0).get_node()
    return np.asarray(node.data, np.float32)


def _with_zero(low: float, high: float) -> tuple[float, float]:
    """The range moved by less than a step, for 0 to be one of its levels: what surrounds a picture is 0."""
    step = max(high - low, 1e-6) / (_LEVELS - 1)
    below = round(-low / step)
    return -below * step, (_LEVELS - 1 - below) * step


def _round(
    at: openvino.Input, value: openvino.Output, limits: tuple[npt.ArrayLike, npt.ArrayLike], levels: int
) -> None:
    """Let a value go in at a place, rounded to so many levels; OpenVINO makes integers of that."""
    kind, ops = at.get_element_type(), openvino.opset13
    low_high = [ops.constant(np.asarray(x, np.float32)) for x in limits]
    rounded = ops.fake_quantize(ops.convert(value, "f32"), *low_high, *low_high, levels)
    at.replace_source_output(ops.convert(rounded, kind).output(0))
