"""Fourier convolutions: from the first layers on, every pixel sees the whole picture."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class FourierConfig:
    """Sizes of the network.

    Attributes:
        width: channels at full size; twice, four and eight times as many at 1/2, 1/4 and 1/8.
        blocks: residual blocks at 1/8.
        share: of the channels that go through the Fourier transform.
    """

    width: int = 24
    blocks: int = 6
    share: float = 0.75


class Spectral(nn.Module):
    """A 1x1 convolution of the real Fourier transform's coefficients. Keeps (N, width, H, W)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = max(1, width // 2)
        self.before = nn.Sequential(nn.Conv2d(width, half, 1, bias=False), nn.BatchNorm2d(half), nn.ReLU())
        self.mix = nn.Sequential(nn.Conv2d(2 * half, 2 * half, 1, bias=False), nn.BatchNorm2d(2 * half), nn.ReLU())
        self.after = nn.Conv2d(half, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        with torch.autocast(x.device.type, enabled=False):  # there is no Fourier transform in bfloat16
            spectrum = torch.fft.rfft2(y.float(), norm="ortho")
            real, imaginary = self.mix(torch.cat([spectrum.real, spectrum.imag], dim=1)).chunk(2, dim=1)
            back = torch.fft.irfft2(torch.complex(real, imaginary), s=y.shape[-2:], norm="ortho")
        out: Tensor = self.after(y + back)
        return out


class FourierConv(nn.Module):
    """Fast Fourier convolution (Chi et al. 2020, NeurIPS): local and global channels, each fed by both."""

    def __init__(self, width: int, share: float) -> None:
        super().__init__()
        self.far = int(share * width)
        self.near = width - self.far
        self.near_to_near = nn.Conv2d(self.near, self.near, 3, padding=1, padding_mode="reflect", bias=False)
        self.far_to_near = nn.Conv2d(self.far, self.near, 3, padding=1, padding_mode="reflect", bias=False)
        self.near_to_far = nn.Conv2d(self.near, self.far, 3, padding=1, padding_mode="reflect", bias=False)
        self.far_to_far = Spectral(self.far)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        near, far = torch.split(x, [self.near, self.far], dim=1)
        both = [self.near_to_near(near) + self.far_to_near(far), self.near_to_far(near) + self.far_to_far(far)]
        return F.relu(self.norm(torch.cat(both, dim=1)))


class FourierInpainter(nn.Module):
    """The generator of LaMa (Suvorov et al. 2022, arXiv:2109.07161): three convolutions down, residual blocks of
    Fourier convolutions, three up.

    Args:
        config: sizes.
    """

    def __init__(self, config: FourierConfig | None = None) -> None:
        super().__init__()
        c = config or FourierConfig()
        w = c.width
        widths = [(4, w, 1), (w, 2 * w, 2), (2 * w, 4 * w, 2), (4 * w, 8 * w, 2)]
        self.down = nn.Sequential(*(self._layer(a, b, stride) for a, b, stride in widths))
        self.blocks = nn.ModuleList(
            nn.Sequential(FourierConv(8 * w, c.share), FourierConv(8 * w, c.share)) for _ in range(c.blocks)
        )
        self.up = nn.Sequential(
            *(
                nn.Sequential(
                    nn.ConvTranspose2d(a, b, 3, 2, 1, output_padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()
                )
                for a, b in ((8 * w, 4 * w), (4 * w, 2 * w), (2 * w, w))
            )
        )
        self.last = nn.Conv2d(w, 3, 7, padding=3, padding_mode="reflect")

    @staticmethod
    def _layer(width_in: int, width_out: int, stride: int) -> nn.Sequential:
        conv = nn.Conv2d(width_in, width_out, 3, stride, 1, padding_mode="reflect", bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(width_out), nn.ReLU())

    def forward(self, rgb: Tensor, mask: Tensor) -> Tensor:
        """Paint a face: (N, 3, H, W) 0..1 and mask (N, 1, H, W) 0..1, multiples of 8, to (N, 3, H, W), painted where
        the mask is, the input elsewhere."""
        seen = rgb * (1.0 - mask)
        x = self.down(torch.cat([seen, mask], dim=1))
        for block in self.blocks:
            x = x + block(x)
        drawn: Tensor = self.last(self.up(x))
        return seen + mask * drawn.float().sigmoid()
