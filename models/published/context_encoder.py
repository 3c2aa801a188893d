"""The context encoder: one bottleneck that every part of the picture passes through."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.errors import UserError


@dataclass(frozen=True, slots=True)
class ContextEncoderConfig:
    """Sizes of the network.

    Attributes:
        width: channels after the first convolution; the levels below have 1, 2, 4 and 8 times as many.
        bottleneck: numbers that a whole picture is put into.
        size: width and height of the pictures, a multiple of 32: the bottleneck has a fixed one.
    """

    width: int = 64
    bottleneck: int = 2000
    size: int = 128


class ContextEncoder(nn.Module):
    """An autoencoder with convolutions of stride 2 and no shortcuts (Pathak et al. 2016, arXiv:1604.07379). It is given
    the mask as a fourth channel, and paints any region, not only the middle.

    Args:
        config: sizes.
    """

    def __init__(self, config: ContextEncoderConfig | None = None) -> None:
        super().__init__()
        c = config or ContextEncoderConfig()
        self.size = c.size
        w = c.width
        widths = [w, w, 2 * w, 4 * w, 8 * w]
        self.first = nn.Conv2d(4, w, 4, 2, 1)
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 4, 2, 1, bias=False), nn.BatchNorm2d(b)) for a, b in pairwise(widths)
        )
        side = c.size // 32
        self.squeeze = nn.Sequential(nn.Conv2d(8 * w, c.bottleneck, side), nn.BatchNorm2d(c.bottleneck))
        self.spread = nn.Sequential(nn.ConvTranspose2d(c.bottleneck, 8 * w, side), nn.BatchNorm2d(8 * w))
        self.up = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(b, a, 4, 2, 1, bias=False), nn.BatchNorm2d(a))
            for b, a in pairwise(widths[::-1])
        )
        self.last = nn.ConvTranspose2d(w, 3, 4, 2, 1)

    def forward(self, rgb: Tensor, mask: Tensor) -> Tensor:
        """Paint a face.

        Args:
            rgb: (N, 3, S, S), 0..1, S as configured. What lies under the mask is not seen.
            mask: (N, 1, S, S), 0..1, 1 where the picture is to be painted.

        Returns:
            (N, 3, S, S): painted where the mask is, the input elsewhere.

        Raises:
            UserError: the pictures have another size.
        """
        if rgb.shape[-2:] != (self.size, self.size):
            raise UserError(f"context-encoder: built for {self.size} px, not {rgb.shape[-1]}; set sizes.size")
        seen = rgb * (1.0 - mask)
        x = F.leaky_relu(self.first(torch.cat([2.0 * seen - 1.0 + mask, mask], dim=1)), 0.2)
        for layer in self.down:
            x = F.leaky_relu(layer(x), 0.2)
        x = F.relu(self.spread(F.leaky_relu(self.squeeze(x), 0.2)))
        for layer in self.up:
            x = F.relu(layer(x))
        return seen + mask * (0.5 * torch.tanh(self.last(x).float()) + 0.5)
