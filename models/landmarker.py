"""The landmarker: the dense points of one face, masked or not, and whether it is one."""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.models.blocks import ConvNorm
from unmask.models.detector import FaceEncoder
from unmask.models.rows import LANDMARKER_SIZE, LANDMARKS

_UNIT: Final = 0.05
"""Of what the last layer says about a point, in widths of the picture. In a larger unit it would throw the points about
at the learning rate of the other layers."""


@dataclass(frozen=True, slots=True)
class LandmarkerConfig:
    """Sizes of the network.

    Attributes:
        widths: channels at 1/4, 1/8, 1/16 and 1/32 resolution; the detector's, whose encoder this one starts from.
        coarse, fine: channels of what is read at 1/32 and 1/16.
        hidden: numbers that a face is described with before its points are.
    """

    widths: tuple[int, int, int, int] = (24, 40, 64, 88)
    coarse: int = 64
    fine: int = 24
    hidden: int = 160


class Landmarker(FaceEncoder):
    """The detector's encoder with a head that regresses all points at once, hidden ones too.

    Args:
        config: sizes.
    """

    def __init__(self, config: LandmarkerConfig | None = None) -> None:
        config = config or LandmarkerConfig()
        super().__init__(config.widths)
        self.coarse = ConvNorm(config.widths[3], config.coarse, kernel=1)
        self.fine = ConvNorm(config.widths[2], config.fine, kernel=1)
        cells = LANDMARKER_SIZE // 32
        self.describe = nn.Linear(cells * cells * (config.coarse + 4 * config.fine), config.hidden)
        self.usual = nn.Parameter(torch.zeros(3 * LANDMARKS))
        self.points = nn.Linear(config.hidden, 3 * LANDMARKS, bias=False)
        self.sure = nn.Linear(config.hidden, 1)

    def forward(self, rgb: Tensor) -> Tensor:
        """Find the points of a face.

        Args:
            rgb: (N, 3, S, S), 0..1, S = `LANDMARKER_SIZE`; the face upright, filling about two thirds.

        Returns:
            (N, 3 * 468 + 1): x, y, z of each point, in widths of the picture, x and y from its middle, z towards the
            camera negative; then the logit of a face being there, and not far off.
        """
        _, x2, x3 = self.features(rgb)
        seen = [F.relu(self.coarse(x3)).flatten(1), F.relu(self.fine(x2)).flatten(1)]
        face = F.relu(self.describe(torch.cat(seen, dim=1)))
        if self.training:  # places want more digits than bfloat16 has
            with torch.autocast(face.device.type, enabled=False):
                return self._read(face.float())
        return self._read(face)

    def _read(self, face: Tensor) -> Tensor:
        return torch.cat([self.usual + _UNIT * self.points(face), self.sure(face)], dim=1)
