"""Gated convolutions: each layer learns which of its inputs to believe."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class GatedConfig:
    """Sizes of the network.

    Attributes:
        width: channels at full size; the levels below have twice and four times as many.
    """

    width: int = 24


class GatedConv(nn.Module):
    """Convolution whose output a second one weighs, position by position and channel by channel.

    (N, width_in, H, W) to (N, width_out, H / stride, W / stride).
    """

    def __init__(self, width_in: int, width_out: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(width_in, 2 * width_out, kernel, stride, padding, dilation)
        nn.init.kaiming_normal_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        with torch.no_grad():  # a gate halves what it lets through: without this, nothing reaches the end of the stack
            self.conv.weight[:width_out] *= 2.0

    def forward(self, x: Tensor) -> Tensor:
        features, gate = torch.chunk(self.conv(x), 2, dim=1)
        return F.elu(features) * gate.sigmoid()


class _Stage(nn.Module):
    """Down to a quarter of the size, four dilated layers, and up again: (N, 4, H, W) to (N, 3, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        w = width
        self.down = nn.Sequential(
            GatedConv(4, w, 5),
            GatedConv(w, 2 * w, stride=2),
            GatedConv(2 * w, 2 * w),
            GatedConv(2 * w, 4 * w, stride=2),
            GatedConv(4 * w, 4 * w),
        )
        self.deep = nn.Sequential(*(GatedConv(4 * w, 4 * w, dilation=d) for d in (2, 4, 8, 16)))
        self.up1 = nn.Sequential(GatedConv(4 * w, 4 * w), GatedConv(4 * w, 2 * w))
        self.up0 = nn.Sequential(GatedConv(2 * w, 2 * w), GatedConv(2 * w, w))
        self.last = nn.Conv2d(w, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.deep(self.down(x))
        y = self.up1(F.interpolate(y, scale_factor=2.0, mode="nearest"))
        y = self.up0(F.interpolate(y, scale_factor=2.0, mode="nearest"))
        out: Tensor = 0.5 * torch.tanh(self.last(y).float()) + 0.5
        return out


class GatedInpainter(nn.Module):
    """A coarse network and one that refines its picture, of gated convolutions (Yu et al. 2019, arXiv:1806.03589). The
    branch with contextual attention is left out: a face does not repeat itself.

    Args:
        config: sizes.
    """

    def __init__(self, config: GatedConfig | None = None) -> None:
        super().__init__()
        width = (config or GatedConfig()).width
        self.coarse, self.fine = _Stage(width), _Stage(width)

    def forward(self, rgb: Tensor, mask: Tensor) -> Tensor:
        """Paint a face: (N, 3, H, W) 0..1 and mask (N, 1, H, W) 0..1, multiples of 4, to (N, 3, H, W), painted where
        the mask is, the input elsewhere."""
        seen = rgb * (1.0 - mask)
        first = seen + mask * self.coarse(torch.cat([2.0 * seen - 1.0 + mask, mask], dim=1))
        out: Tensor = seen + mask * self.fine(torch.cat([2.0 * first - 1.0, mask], dim=1))
        return out
