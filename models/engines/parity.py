"""The check of every engine against float32 on real crops: half precision, a driver or a compiler may spoil a network.

The crops are Rear Admiral Grace Hopper's official portrait (public domain), bare and with a drawn mask.
"""

import importlib.util
from functools import cache
from importlib.resources import files
from typing import Final

import cv2
import numpy as np

from unmask.errors import EngineError
from unmask.models.engine import U8, Engine, NetworkName, OpenVinoEngine, TorchEngine
from unmask.models.geometry import CROP_SIZE

MOST_CROPS: Final = 8
LEAST_PSNR_DB: Final = 35.0
"""Half precision against float32 measures 45 and more; a wrong layout, a black or a grey picture below 25."""


@cache
def real_crops() -> tuple[U8, U8]:
    """(N, S, S, 3) uint8 RGB, crops in several lights and turns, and (N, S, S) uint8, 255 where to paint, else 0.

    N is `MOST_CROPS`, S `CROP_SIZE`.
    """
    data = np.frombuffer(files("unmask.models.engines").joinpath("crops.jpg").read_bytes(), np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert picture is not None
    masked, bare, coverage = np.split(np.asarray(picture[..., ::-1], np.uint8), 3, axis=1)
    mask = np.where(coverage[..., 0] > 127, 255, 0).astype(np.uint8)
    crops, masks = [], []
    for light in (1.0, 0.55):
        for degrees, mirrored in ((0.0, False), (12.0, True)):
            for crop in (masked, bare):
                crops.append(_turned((crop * np.float32(light)).astype(np.uint8), degrees, mirrored))
                masks.append(_turned(mask, degrees, mirrored) // 255 * 255)
    return np.stack(crops), np.stack(masks)


def _turned(picture: U8, degrees: float, mirrored: bool) -> U8:
    middle = ((CROP_SIZE - 1) / 2, (CROP_SIZE - 1) / 2)
    matrix = cv2.getRotationMatrix2D(middle, degrees, 1.0)
    size = (CROP_SIZE, CROP_SIZE)
    turned = cv2.warpAffine(picture, matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(turned[:, ::-1] if mirrored else turned, np.uint8)


def inputs_for(network: NetworkName, count: int) -> tuple[U8, ...]:
    """The first `count` (at most `MOST_CROPS`) real inputs of a network."""
    crops, masks = real_crops()
    return (crops[:count],) if network == "segmenter" else (crops[:count], masks[:count])


def reference_engine(network: NetworkName) -> Engine:
    """PyTorch in float32, or where that is not installed OpenVINO in float32, which the tests hold against it."""
    if all(importlib.util.find_spec(name) for name in ("torch", "safetensors")):
        return TorchEngine(network)
    return OpenVinoEngine(network, precision="f32")


@cache
def _expected(network: NetworkName) -> tuple[U8, str]:
    engine = reference_engine(network)
    return engine(*inputs_for(network, MOST_CROPS)).copy(), engine.description


def agreement_db(network: NetworkName, engine: Engine, count: int) -> float:
    """Peak signal-to-noise ratio of an engine's output against the reference, in dB; 99 where they are the same.

    Of the inpainter, only what it paints counts. The worst of the crops decides.

    Args:
        network: which.
        engine: runs it.
        count: crops in one call, at most `MOST_CROPS`.
    """
    inputs = inputs_for(network, count)
    expected = _expected(network)[0][:count].astype(np.float64)
    error = (engine(*inputs).astype(np.float64) - expected) ** 2
    worst = max(
        float(error[i][inputs[1][i] > 0].mean() if network == "inpainter" else error[i].mean()) for i in range(count)
    )
    return min(99.0, 10 * float(np.log10(255.0**2 / max(worst, 1e-12))))


def check(network: NetworkName, engine: Engine, count: int) -> float:
    """The agreement in dB. Raises EngineError where it is too small for the engine to be used."""
    found = agreement_db(network, engine, count)
    if not found >= LEAST_PSNR_DB:
        raise EngineError(
            f"it agrees with {_expected(network)[1]} to {found:.1f} dB only where {LEAST_PSNR_DB:.0f} dB are needed, "
            "so it is not used"
        )
    return found
