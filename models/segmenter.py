"""The segmenter: finds the worn mask in a canonical crop."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.models.blocks import ConvNorm, Residual, Up
from unmask.models.enlarge import doubled_apart

_NONE = -7.0
"""Logit of what has not been learnt."""


@dataclass(frozen=True, slots=True)
class SegmenterConfig:
    """Sizes of the network.

    Attributes:
        width: channels at 1/4 resolution; the levels below have 2, 4 and 6 times as many, the one above half as many.
        loops: channels of the part that finds ear loops.
    """

    width: int = 16
    loops: int = 32


class EarLoops(nn.Module):
    """Finds the ear loops of a mask, at 1/4 resolution, from the picture and from what the segmenter made of it.

    Apart from the mask, because they are another thing to learn: thin lines, of which few pixels tell what they are. A
    network that was taught both found loops, and masks less well.

    Args:
        width: channels.
        mask: channels of the segmenter's features at 1/4 resolution; those at 1/8 have twice as many.
    """

    def __init__(self, width: int, mask: int) -> None:
        super().__init__()
        self.stem = ConvNorm(12, width, stride=2)
        self.near = ConvNorm(mask, width, kernel=1)
        self.far = Up(2 * mask, width)
        self.body = nn.Sequential(Residual(width), Residual(width, 2))
        self.head = nn.Conv2d(width, 4, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.constant_(self.head.bias, _NONE)

    def forward(self, x: Tensor, near: Tensor, far: Tensor) -> Tensor:
        """(N, 3, H, W) -1..1 and the features to logits, (N, 4, H / 2, W / 2) for `F.pixel_shuffle`."""
        seen = self.far(far, self.stem(F.pixel_unshuffle(x, 2)) + self.near(near))
        return doubled_apart(F.pixel_shuffle(self.head(self.body(seen)), 2))


class Segmenter(nn.Module):
    """A small U-Net (Ronneberger et al. 2015, arXiv:1505.04597) that works at 1/4 resolution and below, with dilated
    blocks at 1/32, so that it sees the whole face before it decides about a pixel; then a few channels at half
    resolution move the edges to where they are in the full picture (in the manner of PointRend and of refinement heads:
    Kirillov et al. 2019, arXiv:1912.08193).

    Args:
        config: sizes.
    """

    def __init__(self, config: SegmenterConfig | None = None) -> None:
        super().__init__()
        config = config or SegmenterConfig()
        w = config.width
        self.stem = ConvNorm(12, w)
        self.down1 = ConvNorm(w, 2 * w, stride=2)
        self.enc1 = Residual(2 * w)
        self.down2 = ConvNorm(2 * w, 4 * w, stride=2)
        self.enc2 = Residual(4 * w)
        self.down3 = ConvNorm(4 * w, 6 * w, stride=2)
        self.deep = nn.Sequential(Residual(6 * w), Residual(6 * w, 2))
        self.up2 = Up(6 * w, 4 * w)
        self.dec2 = Residual(4 * w)
        self.up1 = Up(4 * w, 2 * w)
        self.dec1 = Residual(2 * w)
        self.up0 = Up(2 * w, w)
        self.dec0 = ConvNorm(w, w)
        self.head = nn.Conv2d(w, 4, 3, padding=1)
        self.fine_stem = ConvNorm(12, w // 2)
        self.fine_up = Up(w, w // 2)
        self.fine = Residual(w // 2)
        self.fine_head = nn.Conv2d(w // 2, 4, 3, padding=1)
        nn.init.zeros_(self.fine_head.weight)  # starts as the coarse result, enlarged
        self.loops = EarLoops(config.loops, w)

    def forward(self, rgb: Tensor) -> Tensor:
        """Find the mask.

        Args:
            rgb: (N, 3, H, W), 0..1, canonical crops; H and W are multiples of 32.

        Returns:
            (N, 1, H, W) logits; above 0 where the mask is.
        """
        return F.pixel_shuffle(torch.maximum(*self._apart(rgb)), 2).float()

    def likelihood(self, rgb: Tensor) -> Tensor:
        """The same as likelihoods, 0..1, in the precision of the weights. Where the larger of two logits is taken first
        and made a likelihood then, OpenVINO takes 0.2 of 2.7 ms longer."""
        mask, loops = self._apart(rgb)
        return F.pixel_shuffle(torch.maximum(mask.sigmoid(), loops.sigmoid()), 2)

    def parts(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """The same for the mask and for its ear loops, each (N, 1, H, W)."""
        mask, loops = self._apart(rgb)
        return F.pixel_shuffle(mask, 2), F.pixel_shuffle(loops, 2)

    def _apart(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the mask and of its ear loops, each (N, 4, H / 2, W / 2) for `F.pixel_shuffle`."""
        x = 2.0 * rgb - 1.0
        x0 = F.relu(self.stem(F.pixel_unshuffle(F.avg_pool2d(x, 2), 2)))
        x1 = self.enc1(F.relu(self.down1(x0)))
        x2 = self.enc2(F.relu(self.down2(x1)))
        x3 = self.deep(F.relu(self.down3(x2)))
        y2 = self.dec2(self.up2(x3, x2))
        y1 = self.dec1(self.up1(y2, x1))
        y0 = F.relu(self.dec0(self.up0(y1, x0)))
        coarse = doubled_apart(F.pixel_shuffle(self.head(y0), 2))
        near = self.fine(self.fine_up(y0, self.fine_stem(F.pixel_unshuffle(x, 2))))
        return coarse + self.fine_head(near), self.loops(x, y0, y1)
