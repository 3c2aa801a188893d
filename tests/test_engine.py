"""The engines agree with each other on a real crop, and the choice between them is said."""

import importlib
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from faces import Portrait
from tolerances import ENGINE_PSNR_DB, MASK_IOU

from unmask.errors import EngineError, UserError
from unmask.models import engine, inpainter
from unmask.models.engine import NETWORKS, NetworkName, OpenVinoEngine, TorchEngine, choose, weights_file
from unmask.models.enlarge import doubled_apart
from unmask.models.geometry import CROP_SIZE
from unmask.models.runtime import load_runtime
from unmask.train.evaluate import psnr

U8 = npt.NDArray[np.uint8]


def inputs_for(network: NetworkName, portrait: Portrait) -> tuple[U8, ...]:
    crops = np.stack([portrait.crop(masked=True), portrait.crop(masked=False)])
    mask = np.repeat(portrait.crop_coverage().astype(np.uint8)[None] * np.uint8(255), 2, axis=0)
    return (crops,) if network == "segmenter" else (crops, mask)


@pytest.fixture(scope="module")
def references(portrait: Portrait) -> dict[NetworkName, U8]:
    return {network: TorchEngine(network)(*inputs_for(network, portrait)) for network in NETWORKS}


def test_one_face_and_several_in_turn_give_the_same_and_leave_their_inputs_alone(portrait: Portrait) -> None:
    """OpenVINO copies what it is given into the arrays that were shared with it before, if it may."""
    loaded = OpenVinoEngine("inpainter")
    crops = np.stack([portrait.crop(masked=True), portrait.crop(masked=False), portrait.crop(masked=True)[:, ::-1]])
    masks = np.repeat(np.uint8(255) * portrait.crop_coverage()[None], 3, axis=0)
    before = crops.copy(), masks.copy()
    alone = np.concatenate([loaded(crops[i : i + 1], masks[i : i + 1]).copy() for i in range(3)])
    together = loaded(crops[::-1], masks[::-1])[::-1].copy()
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(loaded(crops[2:], masks[2:]), alone[2:])
    np.testing.assert_array_equal(crops, before[0])
    np.testing.assert_array_equal(masks, before[1])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("precision", ["f32", "bf16", None])
def test_openvino_agrees_with_pytorch(
    network: NetworkName, precision: engine.Precision | None, portrait: Portrait, references: dict[NetworkName, U8]
) -> None:
    if precision == "bf16" and engine.cpu_precision() != "bf16":
        pytest.skip("this processor does not compute in bfloat16")
    result = OpenVinoEngine(network, precision=precision)(*inputs_for(network, portrait))
    assert result.shape == references[network].shape
    assert psnr(result.astype(np.float64) - references[network]) > ENGINE_PSNR_DB


@pytest.mark.parametrize("network", NETWORKS)
def test_onnx_runtime_agrees_with_pytorch(
    network: NetworkName, portrait: Portrait, references: dict[NetworkName, U8]
) -> None:
    onnxruntime = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(weights_file(f"{network}.onnx"), providers=["CPUExecutionProvider"])
    names = [x.name for x in session.get_inputs()]
    (result,) = session.run(None, dict(zip(names, inputs_for(network, portrait), strict=True)))
    assert psnr(result.astype(np.float64) - references[network]) > ENGINE_PSNR_DB


@pytest.mark.parametrize(("network", "megabytes"), [("segmenter", 2.0), ("inpainter", 16.0)])
def test_what_ships_is_small_and_in_half_precision(network: str, megabytes: float) -> None:
    path = weights_file(f"{network}.onnx")
    assert path.stat().st_size < megabytes * 1e6
    weights = [x for x in onnx.load(path).graph.initializer if len(x.dims) == 4]
    assert {x.data_type for x in weights} == {onnx.TensorProto.FLOAT16}
    assert path.with_suffix(".md").is_file(), "no model card"


def test_shipped_segmenter_finds_the_drawn_mask_and_nothing_on_the_bare_face(
    portrait: Portrait, references: dict[NetworkName, U8]
) -> None:
    masked, bare = references["segmenter"] > 127
    truth = portrait.crop_coverage()
    assert (masked & truth).sum() / (masked | truth).sum() > MASK_IOU
    assert bare.mean() < 0.005


def test_shipped_inpainter_paints_what_is_hidden_better_than_grey(
    portrait: Portrait, references: dict[NetworkName, U8]
) -> None:
    _, mask = inputs_for("inpainter", portrait)
    painted, truth = references["inpainter"][0].astype(np.float64), portrait.crop(masked=False)
    inside = mask[0] > 0
    mean = truth[inside].mean(axis=0)
    assert psnr((painted - truth)[inside]) > psnr(mean - truth[inside]) + 1


def test_beside_the_hidden_part_skin_comes_back_as_it_is(portrait: Portrait) -> None:
    hidden = cv2.dilate(portrait.crop_coverage().astype(np.uint8), np.ones((3, 3), np.uint8))
    beside = (cv2.dilate(hidden, np.ones((7, 7), np.uint8)) > 0) & (hidden == 0)
    truth = portrait.crop(masked=False)
    painted = TorchEngine("inpainter")(truth[None], 255 * hidden[None])[0]
    error = np.abs(painted.astype(np.float32) - truth)
    assert error[beside].mean() < 0.4 * error[hidden > 0].mean()


def test_lines_are_crisper_within_and_softer_at_the_edge(monkeypatch: pytest.MonkeyPatch, portrait: Portrait) -> None:
    network = load_runtime("inpainter", weights_file("inpainter.safetensors")).network
    rgb = torch.from_numpy(portrait.crop(masked=False)).permute(2, 0, 1)[None] / 255
    hidden = np.zeros((CROP_SIZE, CROP_SIZE), np.uint8)
    hidden[140:220, 80:180] = 1
    with torch.inference_mode():
        mask = torch.from_numpy(hidden)[None, None].float()
        crisp = network(rgb, mask)
        monkeypatch.setattr(inpainter, "_CRISPER", 0.0)
        monkeypatch.setattr(inpainter, "_RELAXED", 0)
        plain = network(rgb, mask)
    outside = torch.from_numpy(hidden == 0)
    torch.testing.assert_close(crisp[..., outside], plain[..., outside])
    lines, faint = (x[..., 143:217, 83:177].diff().abs().mean() for x in (crisp, plain))
    assert lines > 1.1 * faint
    soft, hard = (x[..., 139:143, 83:177].diff(n=2, dim=-2).abs().mean() for x in (crisp, plain))
    assert soft < 0.8 * hard, "detail does not add up where the painted meets the seen"


def test_light_goes_on_across_the_edge_of_the_mask(portrait: Portrait) -> None:
    """A face lit from one side, and in a colour that no training face has, is painted in the same light."""
    _, mask = inputs_for("inpainter", portrait)
    truth = portrait.crop(masked=False).astype(np.float32)
    x = np.linspace(0.4, 1.1, truth.shape[1], dtype=np.float32)[None, :, None]
    lit = np.clip(truth * x * np.array([0.8, 0.9, 1.0], np.float32), 0, 255).astype(np.uint8)
    painted = TorchEngine("inpainter")(lit[None], mask[:1])[0].astype(np.float32)
    hidden = mask[0] > 0
    difference = cv2.GaussianBlur(painted - lit, (0, 0), 8)[hidden]
    assert np.abs(difference).mean() < 12
    assert np.abs(difference.mean(axis=0)).max() < 8


def test_importing_openvino_reports_to_nobody() -> None:
    code = "import sys, unmask.models.engine; print(sys.modules['openvino_telemetry'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "None\n"


def test_choice_is_explained() -> None:
    assert choose("cpu").why_not_better == ()
    assert choose("auto").engine == "openvino"
    with pytest.raises(UserError, match="unknown device 'tpu'"):
        choose("tpu")


@pytest.mark.parametrize("there", [True, False])
def test_a_gpu_that_is_left_idle_is_said(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "has_nvidia_gpu", lambda: there)
    left_idle = there and engine.cuda_problem() is not None
    assert [" not used: " in line for line in choose("auto").why_not_better] == [True] * 3 * left_idle


def test_missing_gpu_is_an_error_not_a_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "cuda_problem", lambda: "no driver")
    with pytest.raises(UserError, match="no driver; use --device cpu"):
        choose("cuda")


def test_missing_and_broken_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match=r"'nothing\.onnx' are missing"):
        weights_file("nothing.onnx")
    broken = tmp_path / "segmenter.onnx"
    broken.write_bytes(b"not a network")
    monkeypatch.setattr(engine, "weights_file", lambda name: broken)
    with pytest.raises(EngineError, match=r"OpenVINO cannot load 'broken'"):
        engine.compile_for_cpu("broken", "f32", 1)


@pytest.mark.gpu
def test_pytorch_on_the_gpu_agrees_with_the_processor(portrait: Portrait, references: dict[NetworkName, U8]) -> None:
    if problem := engine.cuda_problem():
        pytest.skip(problem)
    for network in NETWORKS:
        result = TorchEngine(network, "cuda:0")(*inputs_for(network, portrait))
        assert psnr(result.astype(np.float64) - references[network]) > ENGINE_PSNR_DB


def test_enlarging_by_a_convolution_is_bilinear() -> None:
    x = torch.randn(2, 1, 9, 12)
    expected = torch.nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear")
    assert torch.allclose(torch.nn.functional.pixel_shuffle(doubled_apart(x), 2), expected, atol=1e-6)
