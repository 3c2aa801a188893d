"""dlib's network that embeds faces, read from the file that dlib ships, as a PyTorch module with a gradient.

Source of the architecture: `dnn_face_recognition_ex.cpp` of dlib 19.3 (King 2017), a ResNet (He et al. 2016,
arXiv:1512.03385) with 29 convolutions. Its weights are in the public domain and come with the package
`face-recognition-models` on PyPI, as `dlib_face_recognition_resnet_model_v1.dat`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

INPUT_PX: Final = 150
_MEAN_RGB: Final = (122.782, 117.001, 104.298)
_STAGES: Final = ((32, 3), (64, 4), (128, 3), (256, 3), (256, 1))
"""Channels and blocks; the first block of all but the first halves the size."""
_LAYER: Final = re.compile(rb"\x05con_4\x01\x02|\x07affine_\x01\x02|\x04fc_2.{5}\x01\x02", re.DOTALL)
"""Where the numbers of a layer begin: its name, for the last one its size, and the version of what follows."""


class DlibFace(nn.Module):
    """(N, 3, 150, 150) RGB 0..255, aligned as dlib's `get_face_chip` does with a padding of 0.25, to (N, 128) float32.

    Two pictures of one person are mostly less than 0.6 apart (Euclidean).

    Args:
        weights: the file.

    Raises:
        OSError: it cannot be read.
        ValueError: it holds another network.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        layers = _layers(weights.read_bytes())
        self.first = _convolution(layers, 3, 32, 7)
        self.blocks = nn.ModuleList()
        channels = 32
        for number, (width, count) in enumerate(_STAGES):
            for place in range(count):
                halves = number > 0 and place == 0
                self.blocks.append(_Block(layers, channels, width, halves))
                channels = width
        self.last = nn.Linear(channels, 128, bias=False)
        self.last.weight.data = torch.from_numpy(_next(layers, channels * 128).reshape(channels, 128).T.copy())
        self.register_buffer("mean", torch.tensor(_MEAN_RGB).view(1, 3, 1, 1))

    def forward(self, rgb: Tensor) -> Tensor:
        x = (rgb - self.get_buffer("mean")) / 256
        x = F.max_pool2d(F.relu(F.conv2d(x, self.first.weight, self.first.bias, stride=2)), 3, 2)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.last(x.mean((2, 3)))
        return out


class _Block(nn.Module):
    """Two convolutions and a shortcut. Where they halve the size nothing is padded, so that both ends may differ in
    size as in channels; dlib takes what is missing for 0."""

    def __init__(self, layers: Iterator[npt.NDArray[np.float32]], channels: int, width: int, halves: bool) -> None:
        super().__init__()
        self.halves = halves
        self.a, self.b = _convolution(layers, channels, width, 3), _convolution(layers, width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        stride, padding = (2, 0) if self.halves else (1, 1)
        y = F.relu(F.conv2d(x, self.a.weight, self.a.bias, stride=stride, padding=padding))
        y = F.conv2d(y, self.b.weight, self.b.bias, padding=1)
        if self.halves:
            x = F.avg_pool2d(x, 2)
            size, channels = max(x.shape[-1], y.shape[-1]), y.shape[1]
            x, y = _padded(x, channels, size), _padded(y, channels, size)
        return F.relu(x + y)


def _padded(x: Tensor, channels: int, size: int) -> Tensor:
    return F.pad(x, (0, size - x.shape[3], 0, size - x.shape[2], 0, channels - x.shape[1]))


def _convolution(layers: Iterator[npt.NDArray[np.float32]], channels: int, width: int, side: int) -> nn.Conv2d:
    """A convolution with the factors and summands that follow it folded in."""
    numbers = _next(layers, width * channels * side * side + width)
    factor, summand = np.split(_next(layers, 2 * width), 2)
    kernel, bias = numbers[:-width].reshape(width, channels, side, side), numbers[-width:]
    made = nn.Conv2d(channels, width, side)
    made.weight.data = torch.from_numpy(kernel * factor[:, None, None, None])
    made.bias = nn.Parameter(torch.from_numpy(bias * factor + summand))
    return made


def _next(layers: Iterator[npt.NDArray[np.float32]], count: int) -> npt.NDArray[np.float32]:
    numbers = next(layers, None)
    if numbers is None or numbers.size != count:
        raise ValueError("not dlib's face recognition network (dlib_face_recognition_resnet_model_v1.dat)")
    return numbers


def _layers(file: bytes) -> Iterator[npt.NDArray[np.float32]]:
    """The numbers of each layer in the order of computing."""
    found = _LAYER.search(file)
    while found:
        at, count = found.end(), 1
        for _ in range(4):
            length = file[at] & 0x7F  # dlib writes how many bytes a whole number takes, then these
            count *= int.from_bytes(file[at + 1 : at + 1 + length], "little")
            at += 1 + length
        yield np.frombuffer(file, "<f4", count, at)
        found = _LAYER.search(file, at + 4 * count)
