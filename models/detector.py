"""The detector: finds faces in a picture, masked ones too, and says how they wear a mask."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.models.blocks import ConvNorm, Residual, Up
from unmask.models.rows import CHANNELS, KINDS, POINTS, STRIDES


@dataclass(frozen=True, slots=True)
class DetectorConfig:
    """Sizes of the network.

    Attributes:
        widths: channels at 1/4, 1/8, 1/16 and 1/32 resolution.
        neck: channels of the pyramid and the head.
    """

    widths: tuple[int, int, int, int] = (24, 40, 64, 88)
    neck: int = 48


class FaceEncoder(nn.Module):
    """The residual network that detector and landmarker begin with.

    Args:
        widths: as `DetectorConfig.widths`.
    """

    def __init__(self, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        w0, w1, w2, w3 = widths
        self.stem = ConvNorm(12, w0, stride=2)
        self.enc0 = Residual(w0)
        self.down1 = ConvNorm(w0, w1, stride=2)
        self.enc1 = nn.Sequential(Residual(w1), Residual(w1))
        self.down2 = ConvNorm(w1, w2, stride=2)
        self.enc2 = nn.Sequential(Residual(w2), Residual(w2))
        self.down3 = ConvNorm(w2, w3, stride=2)
        self.enc3 = Residual(w3, 2)

    def features(self, rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, 3, H, W) 0..1 to the features at 1/8, 1/16 and 1/32 resolution."""
        x0 = self.enc0(F.relu(self.stem(F.pixel_unshuffle(2.0 * rgb - 1.0, 2))))
        x1 = self.enc1(F.relu(self.down1(x0)))
        x2 = self.enc2(F.relu(self.down2(x1)))
        return x1, x2, self.enc3(F.relu(self.down3(x2)))


class Detector(FaceEncoder):
    """A small residual network with a feature pyramid (Lin et al. 2017, arXiv:1612.03144) and one head for all levels,
    without anchors: each cell near the middle of a face gives its box (FCOS, Tian et al. 2019, arXiv:1904.01355).

    Args:
        config: sizes.
    """

    def __init__(self, config: DetectorConfig | None = None) -> None:
        config = config or DetectorConfig()
        super().__init__(config.widths)
        _, w1, w2, w3 = config.widths
        self.top = ConvNorm(w3, config.neck, kernel=1)
        self.side2, self.side1 = ConvNorm(w2, config.neck, kernel=1), ConvNorm(w1, config.neck, kernel=1)
        self.up2, self.up1 = Up(config.neck, config.neck), Up(config.neck, config.neck)
        self.tower = nn.Sequential(
            ConvNorm(config.neck, config.neck), nn.ReLU(), ConvNorm(config.neck, config.neck), nn.ReLU()
        )
        self.head = nn.Conv2d(config.neck, CHANNELS, 1)
        nn.init.constant_(self.head.bias[:1], -4.0)  # type: ignore[index] # few cells hold a face
        self.scales = nn.Parameter(torch.zeros(len(STRIDES)))

    def forward(self, rgb: Tensor) -> Tensor:
        """Find faces.

        Args:
            rgb: (N, 3, H, W), 0..1; H and W are multiples of 32.

        Returns:
            (N, P, CHANNELS), a row for each cell, level by level, row by row: logit of a face; distances from the
            middle of the cell to the left, upper, right and lower side of its box, px; logits of `KINDS`; x, y of the
            points from the middle of the cell, in px.
        """
        x1, x2, x3 = self.features(rgb)
        y3 = F.relu(self.top(x3))
        y2 = self.up2(y3, self.side2(x2))
        y1 = self.up1(y2, self.side1(x1))
        rows = [self._rows(y, level) for level, y in enumerate((y1, y2, y3))]
        return torch.cat(rows, dim=1)

    def _rows(self, features: Tensor, level: int) -> Tensor:
        out = self.head(self.tower(features))
        if self.training:  # sizes want more digits than bfloat16 has
            out = out.float()
        out = out.flatten(2).transpose(1, 2)
        face, sides, kinds, points = out.split([1, 4, len(KINDS), 2 * POINTS], dim=2)
        unit = STRIDES[level] * self.scales[level].exp()
        sides = (sides.clamp(-4.0, 4.0) + 0.7).exp() * unit
        return torch.cat([face, sides, kinds, points * (4.0 * unit)], dim=2)
