"""Din et al. 2020: find the mask, clean it, then edit the face."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.models.published.unet import UNet


@dataclass(frozen=True, slots=True)
class Din2020Config:
    """Sizes of the network.

    Attributes:
        width: channels of both U-Nets at full size.
        smallest: width in px of the specks and holes that the noise removal takes away.
    """

    width: int = 24
    smallest: int = 5


class Din2020(nn.Module):
    """A Novel GAN-Based Network for Unmasking of Masked Face (Din et al. 2020, doi:10.1109/ACCESS.2020.2977386): a
    segmentation U-Net, noise removal on its mask, and an editing U-Net with squeeze and excitation and atrous
    convolutions, which is given the picture and the mask. The paper trains one after the other; here the mask that the
    editing network is given passes no gradient back, so both train at once as they would apart.

    Args:
        config: sizes.
    """

    def __init__(self, config: Din2020Config | None = None) -> None:
        super().__init__()
        c = config or Din2020Config()
        self.smallest = c.smallest
        self.segment = UNet(3, 1, c.width)
        self.edit = UNet(4, 3, c.width, attends=True, dilations=(2, 4, 8))

    def forward(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) 0..1, multiples of 16, to the face without its mask (N, 3, H, W) 0..1 and the logits of the mask
        (N, 1, H, W)."""
        logits = self.segment(2.0 * rgb - 1.0).float()
        mask = self.without_noise(logits.detach().sigmoid()).to(rgb.dtype)
        drawn = self.edit(torch.cat([2.0 * rgb * (1.0 - mask) - 1.0, mask], dim=1)).float()
        return 0.5 * torch.tanh(drawn) + 0.5, logits

    def without_noise(self, mask: Tensor) -> Tensor:
        """Morphological opening, then closing, of (N, 1, H, W) masks 0..1."""
        padding, size = self.smallest // 2, self.smallest

        def dilate(x: Tensor) -> Tensor:
            return F.max_pool2d(x, size, 1, padding)

        def erode(x: Tensor) -> Tensor:
            return -dilate(-x)

        return erode(dilate(dilate(erode(mask))))
