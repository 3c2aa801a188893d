"""The U-Net that the networks of Din et al. and Cai et al. are built from."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SqueezeExcite(nn.Module):
    """Weighs channels by what the whole picture holds (Hu et al. 2018, arXiv:1709.01507). Keeps (N, width, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        narrow = max(4, width // 16)
        self.net = nn.Sequential(nn.Conv2d(width, narrow, 1), nn.ReLU(), nn.Conv2d(narrow, width, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x * self.net(x.mean((2, 3), keepdim=True))
        return out


def _block(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width_in, width_out, 3, padding=1, bias=False),
        nn.InstanceNorm2d(width_out, affine=True),
        nn.LeakyReLU(0.2),
    )


class UNet(nn.Module):
    """Encoder and decoder with shortcuts (Ronneberger et al. 2015, arXiv:1505.04597).

    (N, channels_in, H, W) to (N, channels_out, H, W), H and W multiples of 16.

    Args:
        channels_in, channels_out: of the pictures.
        width: channels at full size; 2, 4, 8 and 8 times as many below.
        attends: weigh the encoder's channels (squeeze and excitation).
        dilations: of the convolutions at the bottom.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        width: int,
        *,
        attends: bool = False,
        dilations: tuple[int, ...] = (1,),
    ) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width, 8 * width]
        self.first = _block(channels_in, width)
        self.down = nn.ModuleList(_block(a, b) for a, b in pairwise(widths))
        self.weigh = nn.ModuleList(SqueezeExcite(w) if attends else nn.Identity() for w in widths)
        deep = widths[-1]
        self.deep = nn.ModuleList(nn.Conv2d(deep, deep, 3, padding=d, dilation=d) for d in dilations)
        self.up = nn.ModuleList(_block(a + b, b) for a, b in pairwise(widths[::-1]))
        self.last = nn.Conv2d(width, channels_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        skips = []
        for weigh, layer in zip(self.weigh, self.down, strict=False):
            skips.append(weigh(x))
            x = layer(F.avg_pool2d(x, 2))
        for conv in self.deep:
            x = F.leaky_relu(x + conv(x), 0.2)
        for layer, skip in zip(self.up, reversed(skips), strict=True):
            x = layer(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1))
        out: Tensor = self.last(x)
        return out
