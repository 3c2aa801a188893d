"""The landmarker: gives the points of a face from a rough crop of it, also of what a mask hides."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.models.blocks import ConvNorm, Residual
from unmask.models.rows import LANDMARKER_SIZE, MESH_POINTS

ROW: Final = 1 + 3 * MESH_POINTS
"""Numbers that the network gives of a face."""


@dataclass(frozen=True, slots=True)
class LandmarkerConfig:
    """Sizes of the network.

    Attributes:
        widths: channels at 1/2, 1/4, 1/8, 1/16 and 1/32 resolution; the first four are the segmenter's.
        features: what the points are made from.
    """

    widths: tuple[int, int, int, int, int] = (16, 32, 64, 96, 64)
    features: int = 80


class Landmarker(nn.Module):
    """Convolutions down to 4x4 cells, then the points all at once: a hidden point is told by the others.

    The first layers are those of `unmask.models.segmenter.Segmenter`, so that training can start from its weights: it
    sees faces in the same way, and knows masks.

    Args:
        config: sizes.
    """

    def __init__(self, config: LandmarkerConfig | None = None) -> None:
        super().__init__()
        config = config or LandmarkerConfig()
        w0, w1, w2, w3, w4 = config.widths
        self.stem = ConvNorm(12, w0)
        self.down1 = ConvNorm(w0, w1, stride=2)
        self.enc1 = Residual(w1)
        self.down2 = ConvNorm(w1, w2, stride=2)
        self.enc2 = Residual(w2)
        self.down3 = ConvNorm(w2, w3, stride=2)
        self.down4 = ConvNorm(w3, w4, stride=2)
        cells = (LANDMARKER_SIZE // 32) ** 2
        self.gather = nn.Sequential(
            nn.Linear(w4 * cells, config.features, bias=False), nn.BatchNorm1d(config.features), nn.ReLU()
        )
        self.face = nn.Linear(config.features, 1)
        self.shape = nn.Linear(config.features, 3 * MESH_POINTS)

    def forward(self, rgb: Tensor) -> Tensor:
        """Find the points.

        Args:
            rgb: (N, 3, S, S), 0..1, S = `LANDMARKER_SIZE`; a face about upright, filling about two thirds of it.

        Returns:
            (N, ROW): the logit of a face, then x, y, z of each point of MediaPipe's mesh, from the middle of the
            picture, in sizes of the picture.
        """
        x = F.relu(self.stem(F.pixel_unshuffle(2.0 * rgb - 1.0, 2)))
        x = self.enc1(F.relu(self.down1(x)))
        x = self.enc2(F.relu(self.down2(x)))
        x = F.relu(self.down4(F.relu(self.down3(x)))).flatten(1)
        if not self.training:
            return self._row(x)
        with torch.autocast("cpu", enabled=False):  # the last digits of a point are below what bfloat16 holds
            return self._row(x.float())

    def _row(self, x: Tensor) -> Tensor:
        x = self.gather(x)
        return torch.cat([self.face(x), self.shape(x)], dim=1)
