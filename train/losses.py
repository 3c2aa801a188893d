"""Losses, as plain functions of float tensors. N batch, C channels, H and W height and width; colours are 0..1."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.errors import UserError


def masked_mean(x: Tensor, weight: Tensor) -> Tensor:
    """Mean of (N, C, H, W) values where `weight` (N, 1, H, W) is."""
    return (x * weight).sum() / (weight.sum() * x.shape[1] + 1.0)


def masked_l1(output: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Mean absolute difference where `weight` (N, 1, H, W) is; output and truth are (N, C, H, W)."""
    return masked_mean((output - truth).abs(), weight)


def masked_l2(output: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Mean squared difference, arguments as for `masked_l1`."""
    return masked_mean((output - truth).square(), weight)


def masked_huber(output: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Squared below a difference of 0.1, straight above (Huber 1964, doi:10.1214/aoms/1177703732)."""
    return masked_mean(F.huber_loss(output, truth, reduction="none", delta=0.1) / 0.1, weight)


def edge_l1(output: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """The same as `masked_l1` on the differences between neighbouring pixels: keeps edges where they belong."""
    loss = torch.zeros((), device=output.device)
    for dim in (2, 3):
        length = output.shape[dim] - 1
        both = torch.maximum(weight.narrow(dim, 1, length), weight.narrow(dim, 0, length))
        loss = loss + masked_l1(output.diff(dim=dim), truth.diff(dim=dim), both)
    return loss


def seam_l1(output: Tensor, truth: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """`edge_l1` where the painted meets the seen: of the outermost 3 px of `mask` (N, 1, H, W), 0/1, and across its
    border. Detail that is made up there shows as an edge of the mask."""
    inner = 1.0 - F.max_pool2d(1.0 - mask, 7, 1, 3)
    return edge_l1(output, truth, (mask - inner) * weight)


def detail(output: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """How much less or more fine structure there is than in the truth: the difference of the local strength (root mean
    square in windows of 8 px) of the Laplacian. Where pores lie does not matter, that there are some does: L1 alone
    blurs what it cannot foresee. (N, 3, H, W) and (N, 1, H, W)."""
    strength_a, strength_b = _laplacian_strength(output), _laplacian_strength(truth)
    return masked_mean((strength_a - strength_b).abs(), F.avg_pool2d(weight, 8, 4))


def _laplacian_strength(rgb: Tensor) -> Tensor:
    kernel = rgb.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    edges = F.conv2d(F.pad(rgb.mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate"), kernel)
    return (F.avg_pool2d(edges.square(), 8, 4) + 1e-5).sqrt()


def lower_part(x: Tensor, shrink: int = 1) -> Tensor:
    """The part of a canonical crop where masks are: (N, C, S, S) to (N, C, 5S/8, S), both divided by `shrink`."""
    part = x[..., 3 * x.shape[-2] // 8 :, :]
    return F.avg_pool2d(part, shrink) if shrink > 1 else part


def total_variation(output: Tensor, weight: Tensor) -> Tensor:
    """Mean absolute difference of neighbouring pixels (Rudin et al. 1992, doi:10.1016/0167-2789(92)90242-F)."""
    return edge_l1(output, torch.zeros_like(output), weight)


def ssim(output: Tensor, truth: Tensor) -> Tensor:
    """1 - SSIM in windows of 11 px (Wang et al. 2004, doi:10.1109/TIP.2003.819861), of (N, 3, H, W)."""
    from kornia.losses import ssim_loss  # imported here, since it takes seconds

    return 2.0 * ssim_loss(output.float(), truth.float(), 11)


def ms_ssim(output: Tensor, truth: Tensor) -> Tensor:
    """Structure at five scales mixed with L1 (Zhao et al. 2017, arXiv:1511.08861), of (N, 3, H, W)."""
    from kornia.losses import MS_SSIMLoss

    return torch.as_tensor(MS_SSIMLoss(compensation=1.0).to(output.device)(output.float(), truth.float()))


_CONVS: Final = {
    "vgg16": (("1", (0, 2)), ("2", (5, 7)), ("3", (10, 12, 14)), ("4", (17, 19, 21)), ("5", (24, 26, 28))),
    "vgg19": (("1", (0, 2)), ("2", (5, 7)), ("3", (10, 12, 14, 16)), ("4", (19, 21, 23, 25)), ("5", (28, 30, 32, 34))),
}
"""Positions of the convolutions of each block in torchvision's `features`."""


class Vgg(nn.Module):
    """The first layers of VGG-16 or VGG-19 (Simonyan and Zisserman 2014, arXiv:1409.1556), as many as the file has.

    Args:
        weights: file with keys `features.N.weight` and `.bias`, positions as in torchvision.
        network: "vgg16", "vgg19" (colours as torchvision has them) or "vgg16-caffe" (BGR 0..255, mean subtracted).

    Raises:
        UserError: the file cannot be read, or holds no such layers.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, weights: Path, network: Literal["vgg16-caffe", "vgg16", "vgg19"] = "vgg16-caffe") -> None:
        super().__init__()
        try:
            state = torch.load(weights, weights_only=True, map_location="cpu")
        except (OSError, RuntimeError, UnpicklingError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"cannot read the VGG weights '{weights}': {reason}") from error
        self.caffe = network.endswith("caffe")
        self.convs = nn.ModuleDict()
        self.layers: list[str] = []
        for block, positions in _CONVS[network.partition("-")[0]]:
            for number, position in enumerate(positions, 1):
                if f"features.{position}.weight" in state:
                    self._add(f"relu{block}_{number}", state, position)
        if not self.layers:
            raise UserError(f"'{weights}' holds no convolutions named features.N.weight, as torchvision writes them")
        if self.caffe:
            mean, deviation = [103.939 / 255, 116.779 / 255, 123.68 / 255], [1 / 255] * 3
        else:
            mean, deviation = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def channels(self, maps: tuple[str, ...]) -> dict[str, int]:
        """How many channels the named maps have. Raises UserError where the file has no such."""
        self._check(maps)
        return {name: self.convs[name].get_parameter("bias").numel() for name in maps}

    def _check(self, maps: tuple[str, ...]) -> None:
        if missing := [name for name in maps if name not in self.layers]:
            raise UserError(f"the VGG weights hold no {', '.join(missing)}; they end with {self.layers[-1]}")

    def _add(self, name: str, state: dict[str, Tensor], position: int) -> None:
        weight, bias = state[f"features.{position}.weight"], state[f"features.{position}.bias"]
        conv = nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        conv.load_state_dict({"weight": weight, "bias": bias})
        self.convs[name] = conv
        self.layers.append(name)

    def features(self, rgb: Tensor, maps: tuple[str, ...]) -> dict[str, Tensor]:
        """The named maps, and all before them, of (N, 3, H, W) colours. Raises UserError where the file has no such."""
        self._check(maps)
        x = ((rgb.flip(1) if self.caffe else rgb) - self.mean) / self.deviation
        found: dict[str, Tensor] = {}
        for name in self.layers[: 1 + max(self.layers.index(n) for n in maps)]:
            if name.endswith("_1") and name != "relu1_1":
                x = F.max_pool2d(x, 2)
            x = found[name] = F.relu(self.convs[name](x))
        return found


def feature_distance(got: Tensor, wanted: Tensor) -> Tensor:
    """L1 distance of feature maps, over the mean size of the wanted ones (Johnson et al. 2016, arXiv:1603.08155)."""
    a, b = got.float(), wanted.float()
    return F.l1_loss(a, b) / (b.abs().mean() + 1e-3)


def style_distance(got: Tensor, wanted: Tensor) -> Tensor:
    """The same of their Gram matrices (Gatys et al. 2016, doi:10.1109/CVPR.2016.265)."""
    a, b = gram(got.float()), gram(wanted.float())
    return F.l1_loss(a, b) / (b.abs().mean() + 1e-3)


def gram(x: Tensor) -> Tensor:
    """(N, C, H, W) to (N, C, C), averaged over the positions."""
    flat = x.flatten(2)
    return flat @ flat.transpose(1, 2) / flat.shape[2]


def adversarial_generator(fake: Tensor, form: str) -> Tensor:
    """What the painting network minimises, from the discriminator's scores of its pictures.

    Args:
        fake: scores, any shape, above 0 for real (above one half with LSGAN).
        form: hinge (Lim and Ye 2017, arXiv:1705.02894), lsgan (Mao et al. 2017, arXiv:1611.04076), wgan-gp (Gulrajani
            et al. 2017, arXiv:1704.00028), non-saturating (Goodfellow et al. 2014, arXiv:1406.2661).
    """
    if form == "lsgan":
        return (fake - 1.0).square().mean()
    return F.softplus(-fake).mean() if form == "non-saturating" else -fake.mean()


def adversarial_discriminator(real: Tensor, fake: Tensor, form: str) -> Tensor:
    """What the discriminator minimises; arguments as for `adversarial_generator`."""
    if form == "hinge":
        return F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean()
    if form == "lsgan":
        return (real - 1.0).square().mean() + fake.square().mean()
    if form == "wgan-gp":
        return fake.mean() - real.mean()
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def feature_matching(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Distance between what the discriminator sees in a real picture and in the painted one (Wang et al. 2018,
    arXiv:1711.11585), averaged over its layers."""
    distances = [F.l1_loss(b.float(), a.detach().float()) for a, b in zip(real, fake, strict=True)]
    return torch.stack(distances).mean()


def gradient_norms(scores: Tensor, rgb: Tensor) -> Tensor:
    """(N,) squared norms of the gradient of a discriminator's scores by its (N, 3, H, W) pictures."""
    (slope,) = torch.autograd.grad(scores.sum(), rgb, create_graph=True)
    return slope.float().square().sum((1, 2, 3))


def binary_cross_entropy(logits: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Of (N, 1, H, W) logits with 0/1 labels, times `weight`, over all pixels."""
    return F.binary_cross_entropy_with_logits(logits, truth, weight)


def border_cross_entropy(logits: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy near the borders of the mask, where few pixels are and thin things lie: rims of glasses, loops
    (after the weight map of U-Net, Ronneberger et al. 2015, arXiv:1505.04597). (N, 1, H, W), 0/1 labels."""
    share = F.avg_pool2d(truth, 7, 1, 3)
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return masked_mean(entropy, 4.0 * share * (1.0 - share) * weight)


def focal(logits: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Cross-entropy that leaves out what is known well (Lin et al. 2017, arXiv:1708.02002), gamma 2."""
    entropy = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return ((1.0 - (-entropy).exp()).square() * entropy * weight).mean()


def smoothness(logits: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Total variation of the probabilities: no specks, no ragged edges. The truth is not looked at."""
    return total_variation(logits.sigmoid(), weight)


def dice(logits: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """1 - Dice coefficient of (N, 1, H, W) logits with 0/1 labels where `weight` is 1, per picture, averaged (Milletari
    2016, arXiv:1606.04797)."""
    p, truth = logits.sigmoid() * weight, truth * weight
    both = (p * truth).sum((1, 2, 3))
    return (1.0 - (2.0 * both + 1.0) / (p.sum((1, 2, 3)) + truth.sum((1, 2, 3)) + 1.0)).mean()
