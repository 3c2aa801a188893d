"""Attention that knows what is hidden: at the bottleneck, only what was seen is looked at."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.models.blocks import ConvNorm, Up


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """Sizes of the network.

    Attributes:
        width: channels at half size; 2, 4 and 6 times as many at 1/4, 1/8 and 1/16.
        blocks: attention blocks at 1/16.
        heads: of each.
    """

    width: int = 24
    blocks: int = 4
    heads: int = 4


class MaskedAttention(nn.Module):
    """Attention and a network of two layers, each followed by concatenation instead of addition where MAT has it, on
    (N, L, width) tokens; only valid ones are looked at."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(2 * width, width)
        self.net = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """`valid` is (N, L) bool."""
        n, length, width = x.shape
        q, k, v = self.qkv(x).reshape(n, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, valid[:, None, None])
        x = self.merge(torch.cat([x, mixed.transpose(1, 2).reshape(n, length, width)], dim=2))
        out: Tensor = self.norm(x + self.net(x))
        return out


class AttentionInpainter(nn.Module):
    """A convolutional head and tail around a transformer, after MAT (Li et al. 2022, arXiv:2203.15270): attention is
    paid to valid tokens alone, and each block makes those beside them valid. MAT's style code, its windows and its
    second network are left out: at 1/16 of a face everything fits into one window.

    Args:
        config: sizes.
    """

    def __init__(self, config: AttentionConfig | None = None) -> None:
        super().__init__()
        c = config or AttentionConfig()
        w = c.width
        self.stem = ConvNorm(16, w)
        self.down1 = ConvNorm(w, 2 * w, stride=2)
        self.down2 = ConvNorm(2 * w, 4 * w, stride=2)
        self.down3 = ConvNorm(4 * w, 6 * w, stride=2)
        self.place = nn.Conv2d(6 * w, 6 * w, 3, padding=1, groups=6 * w)
        self.blocks = nn.ModuleList(MaskedAttention(6 * w, c.heads) for _ in range(c.blocks))
        self.up2, self.dec2 = Up(6 * w, 4 * w), ConvNorm(4 * w, 4 * w)
        self.up1, self.dec1 = Up(4 * w, 2 * w), ConvNorm(2 * w, 2 * w)
        self.up0, self.dec0 = Up(2 * w, w), ConvNorm(w, w)
        self.last = nn.Conv2d(w, 12, 3, padding=1)

    def forward(self, rgb: Tensor, mask: Tensor) -> Tensor:
        """Paint a face: (N, 3, H, W) 0..1 and mask (N, 1, H, W) 0..1, multiples of 16, to (N, 3, H, W), painted where
        the mask is, the input elsewhere."""
        seen = rgb * (1.0 - mask)
        x0 = F.relu(self.stem(F.pixel_unshuffle(torch.cat([2.0 * seen - 1.0 + mask, mask], dim=1), 2)))
        x1 = F.relu(self.down1(x0))
        x2 = F.relu(self.down2(x1))
        x3 = F.relu(self.down3(x2))
        x3 = x3 + self.place(x3)
        n, c, h, w = x3.shape
        tokens = x3.flatten(2).transpose(1, 2)
        valid = F.max_pool2d(1.0 - mask, 16)
        for block in self.blocks:
            # A picture with nothing to look at would give no numbers at all.
            usable = (valid > 0.5) | (valid.amax((2, 3), keepdim=True) < 0.5)
            tokens = block(tokens, usable.flatten(1))
            valid = F.max_pool2d(valid, 3, stride=1, padding=1)
        y = tokens.transpose(1, 2).reshape(n, c, h, w)
        y = F.relu(self.dec2(self.up2(y, x2)))
        y = F.relu(self.dec1(self.up1(y, x1)))
        y = F.relu(self.dec0(self.up0(y, x0)))
        return seen + mask * F.pixel_shuffle(self.last(y).float(), 2).sigmoid()
