"""Networks in 8-bit integers: which convolutions, how far results stray, and how files get there."""

import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from faces import Portrait
from safetensors.torch import load_file
from tolerances import ENGINE_PSNR_DB
from training_faces import write_crops

from unmask.errors import UserError
from unmask.models import engine
from unmask.models.engine import (
    OpenVinoEngine,
    TorchEngine,
    compile_network,
    openvino_core,
    read_network,
    weights_file,
)
from unmask.models.export import ship
from unmask.models.integers import known_ranges, measure_ranges, use_integers
from unmask.models.vino import openvino
from unmask.train.calibration import calibration_pictures
from unmask.train.evaluate import psnr

U8 = npt.NDArray[np.uint8]

needs_integers = pytest.mark.skipif(not engine.cpu_has_integers(), reason="this processor is no x86")


def kinds(model: openvino.Model) -> dict[str, str]:
    """The number that each convolution of a compiled network reads, by its name before."""
    found = {}
    for node in model.get_ops():
        info = node.get_rt_info()
        if info["layerType"].astype(str) == "Convolution":
            found[node.get_friendly_name()] = info["runtimePrecision"].astype(str)
    return found


@pytest.mark.parametrize(("network", "fewest"), [("inpainter", 30), ("segmenter", 20), ("detector", 20)])
def test_what_ships_knows_its_ranges(network: str, fewest: int) -> None:
    model = read_network(f"{network}.onnx")
    names = [node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() == "Convolution"]
    ranges = known_ranges(model)
    assert fewest <= len(ranges) < len(names)
    assert set(ranges) <= set(names[1:-1]), "the first one sees the picture, the last one writes the result"
    assert all(low <= 0 < high for low, high in ranges.values())


@needs_integers
@pytest.mark.parametrize("network", ["inpainter", "segmenter", "detector"])
def test_convolutions_are_computed_in_integers(network: str) -> None:
    size = (160, 160) if network == "detector" else None
    compiled = compile_network(read_network(f"{network}.onnx"), size=size)
    assert compiled.numbers == "int8 and f32"
    found = kinds(compiled.model.get_runtime_model())
    integers = {name for name, kind in found.items() if kind in {"u8", "i8"}}
    assert len(integers) == len(known_ranges(read_network(f"{network}.onnx")))


def test_a_network_that_knows_no_ranges_runs_as_it_is(tmp_path: Path) -> None:
    _, network = ship("segmenter", load_file(weights_file("segmenter.safetensors")), tmp_path)
    model = openvino_core().read_model(network)
    assert known_ranges(model) == {}
    assert compile_network(model).numbers == engine.cpu_precision()


def test_who_names_a_precision_gets_it_for_everything(portrait: Portrait) -> None:
    exact = OpenVinoEngine("segmenter", precision="f32")
    assert exact.description.endswith("on CPU, f32")
    crop = portrait.crop(masked=True)[None]
    difference = exact(crop).astype(np.float64) - TorchEngine("segmenter")(crop)
    assert np.abs(difference).max() <= 2


@pytest.mark.parametrize("network", ["inpainter", "segmenter"])
def test_calibrated_anew_a_network_stays_true(
    network: str, portrait: Portrait, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_crops(tmp_path / "crops", 24)
    pictures = list(itertools.islice(calibration_pictures(network, tmp_path / "crops"), 12))
    _, written = ship(network, load_file(weights_file(f"{network}.safetensors")), tmp_path, pictures)
    ranges = known_ranges(openvino_core().read_model(written))
    shipped = known_ranges(read_network(f"{network}.onnx"))
    assert set(ranges) == set(shipped)
    assert np.median([ranges[name][1] / shipped[name][1] for name in ranges]) == pytest.approx(1.0, abs=0.5)
    again = measure_ranges(openvino_core(), openvino_core().read_model(written), pictures)
    for name, limits in ranges.items():
        assert again[name] == pytest.approx(limits, abs=1e-3)


def test_calibration_shows_the_same_pictures_each_time(tmp_path: Path) -> None:
    write_crops(tmp_path, 24)
    first, second = (list(itertools.islice(calibration_pictures("inpainter", tmp_path), 3)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        rgb, mask = one
        assert (rgb.shape, mask.shape, rgb.dtype, mask.dtype) == ((256, 256, 3), (256, 256), np.uint8, np.uint8)
        assert set(np.unique(mask)) == {0, 255}
        np.testing.assert_array_equal(rgb, other[0])
        np.testing.assert_array_equal(mask, other[1])
    with pytest.raises(UserError, match="the landmarker does not run in 8-bit integers"):
        calibration_pictures("landmarker", tmp_path)


@pytest.mark.parametrize("network", ["inpainter", "segmenter", "detector"])
def test_a_folder_that_holds_no_pictures_is_said_before_anything_is_written(network: str, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        calibration_pictures(network, tmp_path / "nothing")


def test_zero_stays_zero_and_the_rest_strays_by_half_a_level() -> None:
    """What surrounds a picture is 0: were it another number, every border would show."""
    torch.manual_seed(0)
    ops = openvino.opset13
    x = ops.parameter([1, 2, 8, 8], np.float32, name="x")
    weights = torch.randn(3, 2, 3, 3).numpy()
    node = ops.convolution(x, ops.constant(weights), [1, 1], [1, 1], [1, 1], [1, 1], name="c")
    model = openvino.Model([ops.result(node)], [x])
    exact = openvino_core().compile_model(model.clone(), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    use_integers(model, {"c": (-1.0, 3.0)})
    rounded = openvino_core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    nothing = np.zeros((1, 2, 8, 8), np.float32)
    np.testing.assert_array_equal(rounded([nothing])[0], exact([nothing])[0])
    picture = np.random.default_rng(0).uniform(-1, 3, nothing.shape).astype(np.float32)
    wanted = exact([picture])[0]
    assert psnr(255 / np.ptp(wanted) * (rounded([picture])[0] - wanted)) > ENGINE_PSNR_DB


_AT_ONCE = """
import sys
import threading
import traceback
from unmask.models.engine import compile_network, read_network

start, errors = threading.Barrier(3), []

def load(name, size):
    try:
        start.wait()
        compile_network(read_network(name), size=size)
    except BaseException as error:
        traceback.print_exc()
        errors.append(error)

networks = (("detector.onnx", (160, 160)), ("segmenter.onnx", None), ("inpainter.onnx", None))
threads = [threading.Thread(target=load, args=network) for network in networks]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
sys.exit(bool(errors))
"""


@pytest.mark.parametrize("attempt", range(4))
def test_stages_that_load_their_networks_at_once_do_not_wait_for_each_other(attempt: int) -> None:
    """Every third process hung before `unmask.models.vino` asked for OpenVINO's tables of types."""
    subprocess.run([sys.executable, "-c", _AT_ONCE], check=True, timeout=60)


_ON_A_PICTURE = """
import sys
import numpy as np
from unmask.models.engine import OpenVinoEngine

np.save(sys.argv[2], OpenVinoEngine("segmenter")(np.load(sys.argv[1])))
"""


@needs_integers
def test_processors_without_vnni_give_the_same(portrait: Portrait, tmp_path: Path) -> None:
    """They add pairs of products in 16 bits: weights of all 8 bits would be cut off there."""
    np.save(tmp_path / "crop.npy", portrait.crop(masked=True)[None])
    command = [sys.executable, "-c", _ON_A_PICTURE, str(tmp_path / "crop.npy"), str(tmp_path / "found.npy")]
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2", "UNMASK_CACHE": str(tmp_path / "cache")}
    subprocess.run(command, env=environment, check=True, timeout=60)
    here = OpenVinoEngine("segmenter")(portrait.crop(masked=True)[None])
    assert psnr(np.load(tmp_path / "found.npy").astype(np.float64) - here) > 50
