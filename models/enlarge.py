"""Enlarging by two as a convolution."""

import torch
from torch import Tensor
from torch.nn import functional as F


def doubled_apart(x: Tensor) -> Tensor:
    """(N, 1, H, W) enlarged by two, bilinear, as (N, 4, H, W) for `F.pixel_shuffle`: several can be put together before
    that, which is done once then.

    The same as `F.interpolate` with `mode="bilinear"`. On a single channel OpenVINO's own takes several times as long:
    1.9 of 4.2 ms of a whole segmenter, against 0.3 ms.
    """
    near, far = x.new_tensor([0.25, 0.75, 0.0]), x.new_tensor([0.0, 0.75, 0.25])
    kernel = torch.stack([torch.outer(rows, columns) for rows in (near, far) for columns in (near, far)])
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel[:, None])
