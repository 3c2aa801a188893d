"""Losses, as plain functions of float tensors. N batch, C channels, H and W height and width; colours are 0..1."""

from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.errors import UserError


def masked_l1(output: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Mean absolute difference where `weight` (N, 1, H, W) is; output and truth are (N, C, H, W)."""
    return ((output - truth).abs() * weight).sum() / (weight.sum() * output.shape[1] + 1.0)


def edge_l1(output: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """The same on the differences between neighbouring pixels: keeps edges where they belong."""
    loss = torch.zeros((), device=output.device)
    for dim in (2, 3):
        length = output.shape[dim] - 1
        both = torch.maximum(weight.narrow(dim, 1, length), weight.narrow(dim, 0, length))
        loss = loss + masked_l1(output.diff(dim=dim), truth.diff(dim=dim), both)
    return loss


_VGG: Final = (0, 2, "pool", 5, 7, "pool", 10, 12, 14)
_STYLE_MAPS: Final = (1, 3, 6)
"""relu1_2, relu2_2 and relu3_3."""
_TEXTURE_MAPS: Final = (1, 3)
_DEPTH: Final = {3: 5, 6: 9}
"""How many entries of `_VGG` it takes to reach a map."""


class Perceptual(nn.Module):
    """Distance between feature maps of VGG-16, and between their Gram matrices.

    Simonyan and Zisserman 2014, arXiv:1409.1556; Johnson et al. 2016, arXiv:1603.08155.

    Args:
        weights: file with the convolutions up to relu3_3, in Caffe's convention (BGR 0..255, mean subtracted).

    Raises:
        UserError: the file cannot be read.
    """

    mean: Tensor

    def __init__(self, weights: Path) -> None:
        super().__init__()
        try:
            state = torch.load(weights, weights_only=True, map_location="cpu")
        except OSError as error:
            raise UserError(f"cannot read the VGG-16 weights '{weights}': {error.strerror}") from error
        self.convs = nn.ModuleDict()
        for name in (n for n in _VGG if n != "pool"):
            weight, bias = state[f"features.{name}.weight"], state[f"features.{name}.bias"]
            conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
            conv.load_state_dict({"weight": weight, "bias": bias})
            self.convs[str(name)] = conv
        self.register_buffer("mean", torch.tensor([103.939, 116.779, 123.68]).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def features(self, rgb: Tensor, depth: int = len(_VGG)) -> list[Tensor]:
        """The maps after each ReLU of the first `depth` layers, of (N, 3, H, W) colours."""
        x = rgb.flip(1) * 255.0 - self.mean
        maps = []
        for name in _VGG[:depth]:
            if name == "pool":
                x = F.max_pool2d(x, 2)
            else:
                x = F.relu(self.convs[str(name)](x))
                maps.append(x)
        return maps

    def forward(self, output: Tensor, truth: Tensor) -> Tensor:
        """Feature distance plus style distance, each map scaled by the size of the truth's features."""
        return self._distance(output, truth, _STYLE_MAPS)

    def texture(self, output: Tensor, truth: Tensor) -> Tensor:
        """The same of the two finest maps alone: for small windows at full size."""
        return self._distance(output, truth, _TEXTURE_MAPS)

    def _distance(self, output: Tensor, truth: Tensor, maps: tuple[int, ...]) -> Tensor:
        depth = _DEPTH[maps[-1]]
        with torch.no_grad():
            wanted = self.features(truth, depth)
        got = self.features(output, depth)
        loss = torch.zeros((), device=output.device)
        for i in maps:
            a, b = got[i].float(), wanted[i].float()
            loss = loss + F.l1_loss(a, b) / (b.abs().mean() + 1e-3)
            gram_a, gram_b = _gram(a), _gram(b)
            loss = loss + 0.5 * F.l1_loss(gram_a, gram_b) / (gram_b.abs().mean() + 1e-3)
        return loss


def _gram(x: Tensor) -> Tensor:
    flat = x.flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator minimises (Lim and Ye 2017, arXiv:1705.02894)."""
    return F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """What the painting network minimises against the same discriminator."""
    return -fake.mean()


def feature_matching(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Distance between what the discriminator sees in a real picture and in the painted one (Wang et al. 2018,
    arXiv:1711.11585), averaged over its layers."""
    distances = [F.l1_loss(b.float(), a.detach().float()) for a, b in zip(real, fake, strict=True)]
    return torch.stack(distances).mean()


def dice(logits: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """1 - Dice coefficient of (N, 1, H, W) logits with 0/1 labels where `weight` is 1, per picture, averaged (Milletari
    2016, arXiv:1606.04797)."""
    p, truth = logits.sigmoid() * weight, truth * weight
    both = (p * truth).sum((1, 2, 3))
    return (1.0 - (2.0 * both + 1.0) / (p.sum((1, 2, 3)) + truth.sum((1, 2, 3)) + 1.0)).mean()
