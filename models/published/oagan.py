"""Cai et al. 2020: a face's features without those of what hides it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unmask.models.published.unet import UNet


@dataclass(frozen=True, slots=True)
class OaGanConfig:
    """Sizes of the network.

    Attributes:
        width: channels of both parts at full size.
    """

    width: int = 24


class OaGan(nn.Module):
    """The generator of OA-GAN, "Semi-Supervised Natural Face De-Occlusion" (Cai et al. 2020,
    doi:10.1109/TIFS.2020.3023793): an occlusion-aware module predicts the mask and features, the features under the
    mask are taken away, and a completion module draws the face from the rest. The result is the picture where there is
    no mask and the drawn face where there is. The discriminator's second task, naming attributes, is left out.

    Args:
        config: sizes.
    """

    def __init__(self, config: OaGanConfig | None = None) -> None:
        super().__init__()
        width = (config or OaGanConfig()).width
        self.aware = UNet(3, 1 + width, width)
        self.complete = UNet(3 + width, 3, width, dilations=(2, 4))

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) 0..1, multiples of 16, to the face without its mask (N, 3, H, W) 0..1 and the logits of the mask
        (N, 1, H, W)."""
        found = self.aware(2.0 * rgb - 1.0).float()
        logits, features = found[:, :1], found[:, 1:]
        mask = logits.sigmoid()
        left = torch.cat([2.0 * rgb - 1.0, features], dim=1) * (1.0 - mask)
        drawn = 0.5 * torch.tanh(self.complete(left).float()) + 0.5
        return rgb * (1.0 - mask) + drawn * mask, logits
