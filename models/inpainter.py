"""The inpainter: paints the part of a face that a mask hides."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.models.blocks import Attention, ConvNorm, Residual, Up, membrane, residuals

_CRISPER: Final = 0.45
"""Lines are drawn in their place and too faint: what a pixel differs from the mean of its 3x3 px by is made larger by
this share, which costs a hundredth of LPIPS (docs/experiments.md)."""

_RIM_PX: Final = 3
_RELAXED: Final = 4
"""The outermost hidden pixels are drawn towards the mean of those around them so many times: a membrane between what is
seen and what is painted further in. Fine detail of both would add up there, and show as an edge."""


@dataclass(frozen=True, slots=True)
class InpainterConfig:
    """Sizes of the network.

    Attributes:
        widths: channels at 1/2, 1/4, 1/8, 1/16 and 1/32 resolution.
        encoder: residual blocks on the way down at 1/8 and 1/16 resolution.
        decoder: residual blocks on the way up at 1/16, 1/8, 1/4 and 1/2 resolution.
        heads: attention heads at 1/32 resolution.
    """

    widths: tuple[int, int, int, int, int] = (24, 32, 48, 96, 192)
    encoder: tuple[int, int] = (1, 1)
    decoder: tuple[int, int, int, int] = (2, 2, 1, 1)
    heads: int = 4


class Inpainter(nn.Module):
    """An encoder-decoder in the manner of U-Net (Ronneberger et al. 2015, arXiv:1505.04597) whose full-resolution work
    is done at half resolution (pixel unshuffle and shuffle), with dilated blocks and attention at 1/32.

    It draws the whole crop, also what can be seen. Where its drawing differs from what is seen, the difference is
    carried into the hidden part, as in Poisson image editing (Perez et al. 2003, doi:10.1145/882262.882269), so that
    colour and light go on across the edge. How far each seen pixel is to be trusted is drawn too: the rest of a mask
    beside the hidden part must not colour the face, and is toned down.

    Args:
        config: sizes.
    """

    def __init__(self, config: InpainterConfig | None = None) -> None:
        super().__init__()
        config = config or InpainterConfig()
        w0, w1, w2, w3, w4 = config.widths
        self.stem = ConvNorm(16, w0)
        self.down1 = ConvNorm(w0, w1, stride=2)
        self.down2 = ConvNorm(w1, w2, stride=2)
        self.enc2 = residuals(w2, config.encoder[0])
        self.down3 = ConvNorm(w2, w3, stride=2)
        self.enc3 = residuals(w3, config.encoder[1])
        self.down4 = ConvNorm(w3, w4, stride=2)
        attention = Attention(w4, config.heads, size=8)
        self.deep = nn.Sequential(Residual(w4, 1), Residual(w4, 2), attention, Residual(w4, 4), Residual(w4, 1))
        self.up3 = Up(w4, w3)
        self.dec3 = residuals(w3, config.decoder[0])
        self.up2 = Up(w3, w2)
        self.dec2 = residuals(w2, config.decoder[1])
        self.up1 = Up(w2, w1)
        self.dec1 = residuals(w1, config.decoder[2])
        self.up0 = Up(w1, w0)
        self.dec0 = residuals(w0, config.decoder[3])
        self.head = nn.Conv2d(w0, 16, 3, padding=1)

    def forward(self, rgb: Tensor, mask: Tensor) -> Tensor:
        """Paint a face.

        Args:
            rgb: (N, 3, H, W), 0..1, canonical crops; H and W are multiples of 32. What lies under the mask is not seen.
            mask: (N, 1, H, W), 0..1, 1 where the picture is to be painted.

        Returns:
            (N, 3, H, W), 0..1: the bare face, painted where the mask is. Beside that nearly what can be seen; of a mask
            that was left there, faint edges are toned down and solid parts stay. Further away it means nothing.
        """
        seen = rgb * (1.0 - mask)
        x = torch.cat([2.0 * seen - 1.0 + mask, mask], dim=1)
        x0 = F.relu(self.stem(F.pixel_unshuffle(x, 2)))
        x1 = F.relu(self.down1(x0))
        x2 = self.enc2(F.relu(self.down2(x1)))
        x3 = self.enc3(F.relu(self.down3(x2)))
        x4 = self.deep(F.relu(self.down4(x3)))
        y3 = self.dec3(self.up3(x4, x3))
        y2 = self.dec2(self.up2(y3, x2))
        y1 = self.dec1(self.up1(y2, x1))
        y0 = self.dec0(self.up0(y1, x0))
        drawn = F.pixel_shuffle(self.head(y0), 2)
        if self.training:  # the sums over the whole picture want more digits than bfloat16 has
            drawn = drawn.float()
        colours, trust = drawn[:, :3] * 0.5 + 0.5, drawn[:, 3:].sigmoid() * (1.0 - mask)
        painted: Tensor = colours + membrane(seen - colours * (1.0 - mask), trust)
        if self.training:
            return painted
        return _finished(painted, mask).clamp(0.0, 1.0)


def _finished(painted: Tensor, mask: Tensor) -> Tensor:
    """The last step, which is not trained: lines made crisper, the rim of what is hidden made smoother."""
    inner = 1.0 - mask
    for side in ((2 * _RIM_PX + 1, 1), (1, 2 * _RIM_PX + 1)):  # one after the other, a third of the time
        inner = F.max_pool2d(inner, side, stride=1, padding=(side[0] // 2, side[1] // 2))
    inner = 1.0 - inner
    painted = painted + _CRISPER * inner * (painted - _around(painted))
    for _ in range(_RELAXED):
        painted = painted + (mask - inner) * (_around(painted) - painted)
    return painted


def _around(rgb: Tensor) -> Tensor:
    """The mean of the 3x3 px around each pixel, those beyond the border left out."""
    return F.avg_pool2d(rgb, 3, stride=1, padding=1, count_include_pad=False)
