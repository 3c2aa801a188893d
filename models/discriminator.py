"""The discriminators: tell painted faces from real ones, patch by patch; used in training only."""

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

_GAIN = 8.0
"""Of fine detail, and of the scores: with spectral normalisation, detail of a few hundredths could not move them."""
_LEAST = 4
"""Height and width that a judge of features sees at least; smaller maps are padded with zeros."""


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


class FeatureDiscriminator(nn.Module):
    """Judges what a network that was trained on other pictures makes of a face, instead of its pixels (Projected GANs,
    Sauer et al. 2021, arXiv:2111.01007): it need not learn from these few faces what a mouth is. Each map has a judge
    of its own, behind a mixture of its channels that is drawn once and never learnt, so that no few channels decide.

    Args:
        channels: of each map, by its name.
        width: channels of each judge.
    """

    def __init__(self, channels: Mapping[str, int], width: int = 64) -> None:
        super().__init__()
        self.judges = nn.ModuleDict({name: _judge(width) for name in channels})
        for name, count in channels.items():
            mixture = nn.init.orthogonal_(torch.empty(width, count), 2.0)
            self.register_buffer(f"mixture_{name}", mixture[..., None, None])
            self.register_buffer(f"size_{name}", torch.zeros(1, count, 1, 1))

    def forward(self, maps: Mapping[str, Tensor], mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Judge pictures.

        Args:
            maps: (N, C, h, w) each, by name; the first call sets what size of their values is usual.
            mask: (N, 1, H, W), 0..1, where the picture may be painted.

        Returns:
            (M,) scores of the patches that are painted in part, above 0 for real; and nothing, for feature matching.
        """
        scores = []
        for name, judge in self.judges.items():
            x = F.conv2d(maps[name] / self._size(name, maps[name]), getattr(self, f"mixture_{name}"))
            x = torch.cat([x, F.adaptive_max_pool2d(mask, x.shape[2:]).to(x)], dim=1)
            missing = [max(0, _LEAST - length) for length in x.shape[2:]]
            score = judge(F.pad(x, (0, missing[1], 0, missing[0]))).float()
            painted = F.adaptive_max_pool2d(mask, score.shape[2:]) > 0
            scores.append(score[painted] if painted.any() else score.flatten())
        return torch.cat(scores), []

    def _size(self, name: str, x: Tensor) -> Tensor:
        size: Tensor = getattr(self, f"size_{name}")
        if not size.any():
            mean = x.detach().float().abs().mean((0, 2, 3), keepdim=True)
            size.copy_(mean.clamp(min=0.1 * mean.mean().item()))
        return size


def _judge(width: int) -> nn.Sequential:
    """(N, width + 1, h, w) to (N, 1, h / 4, w / 4)."""
    return nn.Sequential(
        spectral_norm(nn.Conv2d(width + 1, width, 4, 2, 1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(width, width, 4, 2, 1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(width, 1, 3, 1, 1)),
    )
