"""The discriminator: tells painted faces from real ones, patch by patch; used in training only."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

_GAIN = 8.0
"""Of fine detail, and of the scores: with spectral normalisation, detail of a few hundredths could not move them."""


class PatchDiscriminator(nn.Module):
    """Judges overlapping patches (Isola et al. 2017, arXiv:1611.07004) with spectral normalisation (Miyato et al. 2018,
    arXiv:1802.05957). It sees the mask, so that it need not guess where to look.

    Args:
        width: channels of the first layer.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = [7, width, 2 * width, 4 * width, 4 * width]
        self.layers = nn.ModuleList(spectral_norm(nn.Conv2d(a, b, 4, 2, 1)) for a, b in pairwise(widths))
        self.score = spectral_norm(nn.Conv2d(widths[-1], 1, 3, 1, 1))

    def forward(self, rgb: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Judge pictures.

        Args:
            rgb: (N, 3, H, W), 0..1.
            mask: (N, 1, H, W), 0..1, where the picture may be painted.

        Returns:
            (N, 1, H / 16, W / 16) scores, above 0 for real; and the features of each layer, for feature matching.
        """
        detail = rgb - F.avg_pool2d(rgb, 3, 1, 1, count_include_pad=False)
        x = torch.cat([2.0 * rgb - 1.0, _GAIN * detail, mask], dim=1)
        features = []
        for layer in self.layers:
            x = F.leaky_relu(layer(x), 0.2)
            features.append(x)
        return _GAIN * self.score(x).float(), features
