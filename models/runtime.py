"""The networks as they run: 8-bit pictures in, 8-bit pictures out, so that every engine does the same arithmetic.

N faces, S = `CROP_SIZE`. Colours and masks are (N, S, S, 3) and (N, S, S) uint8, the layout of the pipeline. The first
operation makes numbers of bytes, the last one bytes of numbers: TensorRT knows bytes at the edges of a network only.
Detector and landmarker, which run on the processor alone, give float32 numbers instead of pictures.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unmask.models.detector import Detector
from unmask.models.geometry import CROP_SIZE
from unmask.models.inpainter import Inpainter
from unmask.models.landmarker import Landmarker
from unmask.models.rows import KINDS, LANDMARKER_SIZE, POINTS
from unmask.models.segmenter import Segmenter


def _to_planes(rgb: Tensor, dtype: torch.dtype) -> Tensor:
    return rgb.to(dtype).permute(0, 3, 1, 2) * (1.0 / 255.0)


def _to_bytes(x: Tensor) -> Tensor:
    return (x.clamp(0.0, 1.0) * 255.0 + 0.5).to(torch.uint8)


class SegmenterRuntime(nn.Module):
    """(N, S, S, 3) uint8 RGB to (N, S, S) uint8: how likely each pixel is mask, 255 for certain."""

    inputs: Final = ("rgb",)
    output: Final = "probability"
    picture: Final = (CROP_SIZE, CROP_SIZE)

    def __init__(self, network: Segmenter) -> None:
        super().__init__()
        self.network = network

    def forward(self, rgb: Tensor) -> Tensor:
        planes = _to_planes(rgb, next(self.network.parameters()).dtype)
        return _to_bytes(self.network.likelihood(planes)[:, 0])


class InpainterRuntime(nn.Module):
    """(N, S, S, 3) uint8 RGB and (N, S, S) uint8 mask, 255 where to paint, to (N, S, S, 3) uint8 RGB, which is of use
    where to paint and a few px around, see `Inpainter.forward`."""

    inputs: Final = ("rgb", "mask")
    output: Final = "painted"
    picture: Final = (CROP_SIZE, CROP_SIZE)

    def __init__(self, network: Inpainter) -> None:
        super().__init__()
        self.network = network

    def forward(self, rgb: Tensor, mask: Tensor) -> Tensor:
        dtype = next(self.network.parameters()).dtype
        hidden = mask.to(dtype)[:, None] * (1.0 / 255.0)
        return _to_bytes(self.network(_to_planes(rgb, dtype), hidden).permute(0, 2, 3, 1))


class DetectorRuntime(nn.Module):
    """(N, H, W, 3) uint8 RGB, H and W multiples of 32, to (N, P, CHANNELS) float32: a row for each cell, as
    `Detector.forward`, with probabilities in place of logits."""

    inputs: Final = ("rgb",)
    output: Final = "rows"
    picture: Final = (384, 640)

    def __init__(self, network: Detector) -> None:
        super().__init__()
        self.network = network

    def forward(self, rgb: Tensor) -> Tensor:
        rows = self.network(_to_planes(rgb, next(self.network.parameters()).dtype)).float()
        face, sides, kinds, points = rows.split([1, 4, len(KINDS), 2 * POINTS], dim=2)
        return torch.cat([face.sigmoid(), sides, kinds.softmax(dim=2), points], dim=2)


class LandmarkerRuntime(nn.Module):
    """(N, S, S, 3) uint8 RGB, S = `LANDMARKER_SIZE`, to (N, 3 * 468 + 1) float32: x, y, z of each point in px of the
    picture, and how likely a face is, 0..1."""

    inputs: Final = ("rgb",)
    output: Final = "points"
    picture: Final = (LANDMARKER_SIZE, LANDMARKER_SIZE)

    def __init__(self, network: Landmarker) -> None:
        super().__init__()
        self.network = network

    def forward(self, rgb: Tensor) -> Tensor:
        out = self.network(_to_planes(rgb, next(self.network.parameters()).dtype)).float()
        points = out[:, :-1].unflatten(1, (-1, 3)) + torch.tensor([0.5, 0.5, 0.0], device=out.device)
        return torch.cat([LANDMARKER_SIZE * points.flatten(1), out[:, -1:].sigmoid()], dim=1)


Runtime = SegmenterRuntime | InpainterRuntime | DetectorRuntime | LandmarkerRuntime
RUNTIMES: Final[dict[str, Callable[[], Runtime]]] = {
    "segmenter": lambda: SegmenterRuntime(Segmenter()),
    "inpainter": lambda: InpainterRuntime(Inpainter()),
    "detector": lambda: DetectorRuntime(Detector()),
    "landmarker": lambda: LandmarkerRuntime(Landmarker()),
}


def load_runtime(name: str, weights: Path) -> Runtime:
    """A network with its weights (safetensors), in float32, ready to run.

    Args:
        name: a key of `RUNTIMES`.
        weights: file written by training.
    """
    runtime = RUNTIMES[name]()
    state = {k: v.float() if v.is_floating_point() else v for k, v in load_file(weights).items()}
    runtime.network.load_state_dict(state)
    return runtime.eval()


def example_inputs(runtime: Runtime, batch: int = 2) -> tuple[Tensor, ...]:
    """Random inputs of the right shapes and types."""
    rgb = torch.randint(0, 256, (batch, *runtime.picture, 3), dtype=torch.uint8)
    mask = (torch.rand(batch, *runtime.picture) > 0.5).to(torch.uint8) * 255
    return (rgb, mask)[: len(runtime.inputs)]
