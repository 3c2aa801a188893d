"""Building blocks shared by the networks. Shapes: N batch, C channels, H and W height and width."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNorm(nn.Sequential):
    """Convolution and batch normalisation, folded into one convolution when exported.

    (N, C, H, W) float to (N, width_out, H / stride, W / stride).
    """

    def __init__(self, width_in: int, width_out: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> None:
        padding = dilation * (kernel // 2)
        super().__init__(
            nn.Conv2d(width_in, width_out, kernel, stride, padding, dilation, bias=False), nn.BatchNorm2d(width_out)
        )


class Residual(nn.Module):
    """Two 3x3 convolutions around a shortcut (He et al. 2015, arXiv:1512.03385). Keeps the shape (N, width, H, W)."""

    def __init__(self, width: int, dilation: int = 1) -> None:
        super().__init__()
        self.first = ConvNorm(width, width, dilation=dilation)
        self.second = ConvNorm(width, width)
        norm = self.second[1]
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.zeros_(norm.weight)  # starts as the identity: deep stacks train from the first step

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


def residuals(width: int, count: int) -> nn.Sequential:
    """A number of residual blocks, one after the other."""
    return nn.Sequential(*(Residual(width) for _ in range(count)))


class Attention(nn.Module):
    """Multi-head self-attention over all positions, with a learnt position bias added to the input.

    Lets eyes and forehead speak to the chin in one step. Vaswani et al. 2017, arXiv:1706.03762. Keeps (N, width, S, S);
    another size than `size` resizes the position bias.
    """

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.BatchNorm2d(width)
        self.position = nn.Parameter(torch.zeros(1, width, size, size))
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        position: Tensor = self.position
        if position.shape[-2:] != x.shape[-2:]:
            position = F.interpolate(position, size=(h, w), mode="bilinear", align_corners=False)
        q, k, v = self.qkv(self.norm(x) + position).reshape(n, 3 * self.heads, c // self.heads, h * w).chunk(3, dim=1)
        scores = torch.matmul(q.transpose(-2, -1), k) * (c // self.heads) ** -0.5
        mixed = torch.matmul(v, scores.softmax(dim=-1).transpose(-2, -1))
        return torch.add(x, self.out(mixed.reshape(n, c, h, w)))


class Up(nn.Module):
    """Doubles the size and adds the encoder's features of that size: (N, width_in, H, W) to (N, width_out, 2H, 2W)."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__()
        self.conv = ConvNorm(width_in, width_out, kernel=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return F.relu(F.interpolate(self.conv(x), scale_factor=2.0, mode="nearest") + skip)


def membrane(values: Tensor, trust: Tensor) -> Tensor:
    """Spread values from where they are trusted to everywhere else, as a stretched membrane would.

    An image pyramid averages on the way down and fills on the way up (push-pull, Gortler et al. 1996,
    doi:10.1145/237170.237200).

    Args:
        values: (N, C, H, W), H and W the same power of two times a common factor.
        trust: (N, 1, H, W), 0..1.

    Returns:
        (N, C, H, W): the values where trust is 1, what surrounds them where it is 0.
    """
    levels = []
    weighted = values * trust
    while True:
        levels.append((weighted, trust))
        if min(trust.shape[-2:]) % 2:
            break
        weighted, trust = F.avg_pool2d(weighted, 2), F.avg_pool2d(trust, 2)
        if min(trust.shape[-2:]) == 1:
            levels.append((weighted, trust))
            break
    weighted, trust = levels.pop()
    filled = weighted / (trust + 1e-3)
    for weighted, trust in reversed(levels):
        wider = F.interpolate(filled, scale_factor=2.0, mode="bilinear", align_corners=False)
        # One trusted pixel of four is enough: the values then go on right at the border.
        filled = wider + (4.0 * trust).clamp(max=1.0) * (weighted / (trust + 1e-3) - wider)
    return filled
