"""A segmenter whose encoder was trained on another problem."""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError
from typing import Final
from urllib.error import URLError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.errors import UserError
from unmask.models.blocks import ConvNorm

IMAGENET: Final = "https://download.pytorch.org/models/resnet18-f37072fd.pth"
"""torchvision's weights IMAGENET1K_V1; the last part of the name begins the SHA-256."""


@dataclass(frozen=True, slots=True)
class ResNetSegmenterConfig:
    """Sizes of the network.

    Attributes:
        width: channels of the decoder at half size.
    """

    width: int = 32


class _Block(nn.Module):
    """torchvision's BasicBlock, by the same names."""

    def __init__(self, width_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width_in, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        if stride > 1:
            self.downsample: nn.Module = nn.Sequential(
                nn.Conv2d(width_in, width, 1, stride, bias=False), nn.BatchNorm2d(width)
            )
        else:
            self.downsample = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + self.downsample(x))


class ResNet18(nn.Module):
    """ResNet-18 (He et al. 2015, arXiv:1512.03385) without its classifier; the names are torchvision's.

    (N, 3, H, W) 0..1 to five maps: 64, 64, 128, 256 and 512 channels at 1/2, 1/4, 1/8, 1/16 and 1/32.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.layer1 = nn.Sequential(_Block(64, 64, 1), _Block(64, 64, 1))
        self.layer2 = nn.Sequential(_Block(64, 128, 2), _Block(128, 128, 1))
        self.layer3 = nn.Sequential(_Block(128, 256, 2), _Block(256, 256, 1))
        self.layer4 = nn.Sequential(_Block(256, 512, 2), _Block(512, 512, 1))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False)

    def forward(self, rgb: Tensor) -> list[Tensor]:
        x = F.relu(self.bn1(self.conv1((rgb - self.mean) / self.deviation)))
        maps = [x]
        x = F.max_pool2d(x, 3, 2, 1)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps

    def load_torchvision(self, path: Path) -> None:
        """Load torchvision's state dict of `resnet18` (its .pth file, or the same as safetensors).

        Args:
            path: the file; `imagenet` downloads it as torchvision does, once, with its hash checked.

        Raises:
            UserError: the file cannot be had or read, or is not of a ResNet-18.
        """
        try:
            if path == Path("imagenet"):
                state = _download()
            else:
                state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
            self.load_state_dict({k: v for k, v in state.items() if not k.startswith("fc.")})
        except (OSError, SafetensorError, RuntimeError, AttributeError, UnpicklingError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"encoder: '{path}' is no state dict of torchvision's resnet18: {reason}") from error


def _download() -> dict[str, Tensor]:
    """What torchvision's `ResNet18_Weights.IMAGENET1K_V1.get_state_dict(check_hash=True)` gives, by the same call."""
    try:
        state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(IMAGENET, map_location="cpu", check_hash=True)
        return state
    except (URLError, TimeoutError) as error:
        raise UserError(
            f"encoder: cannot download {IMAGENET}: {getattr(error, 'reason', error)}; fetch it elsewhere and give "
            "encoder=FILE"
        ) from error


class ResNetSegmenter(nn.Module):
    """A U-Net (Ronneberger et al. 2015, arXiv:1505.04597) on a ResNet-18 that can start from ImageNet's weights.

    Args:
        config: sizes.
    """

    def __init__(self, config: ResNetSegmenterConfig | None = None) -> None:
        super().__init__()
        w = (config or ResNetSegmenterConfig()).width
        self.encoder = ResNet18()
        widths = [512, 8 * w, 4 * w, 2 * w, w]
        self.up = nn.ModuleList(
            ConvNorm(a + skip, b) for (a, b), skip in zip(pairwise(widths), (256, 128, 64, 64), strict=True)
        )
        self.head = nn.Conv2d(w, 4, 3, padding=1)

    def forward(self, rgb: Tensor) -> Tensor:
        """(N, 3, H, W) 0..1, multiples of 32, to (N, 1, H, W) logits, above 0 where the mask is."""
        *skips, x = self.encoder(rgb)
        for layer, skip in zip(self.up, reversed(skips), strict=True):
            x = F.relu(layer(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skip], dim=1)))
        return F.pixel_shuffle(self.head(x), 2).float()
