"""How like a painted face is to the person's own, as a loss: by a network that embeds faces, given as a file.

What serves as a loss must not judge what it trained: `unmask evaluate run` leaves identity out where both are one file.
The project's own inpainter is judged by MobileFaceNet and learns from dlib's network.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.errors import UserError
from unmask.models.geometry import CROP_SIZE
from unmask.train.dlib_face import INPUT_PX as DLIB_PX
from unmask.train.dlib_face import DlibFace


class Cut(NamedTuple):
    """The part of the canonical crop that a network sees.

    Attributes:
        left, top, side: in px of the canonical crop.
        size: of what the network sees, in px.
    """

    left: int
    top: int
    side: int
    size: int


_ARCFACE: Final = Cut(25, 8, 205, 112)
"""Mean eyes, nose and mouth lie where ArcFace's template has them (Deng et al. 2019, arXiv:1801.07698)."""
_DLIB: Final = Cut(32, 44, 192, DLIB_PX)
"""Mean eyes lie where dlib's mean face with a padding of 0.25 has them."""


class FaceEmbedding(nn.Module):
    """A network that embeds faces: how far apart two embeddings are says how alike they are.

    Args:
        weights: TorchScript, which takes (N, 3, 112, 112) RGB 0..255, aligned as ArcFace aligns, and gives (N, D); or
            the MobileFaceNet that came from MXNet (Chen et al. 2018, arXiv:1804.07573): a dictionary with `ops`, its
            graph as JSON, and `params`; or dlib's, a file that ends in ".dat" (see `train.dlib_face`).

    Raises:
        UserError: the file cannot be read, or is of neither kind.
    """

    def __init__(self, weights: Path) -> None:
        super().__init__()
        try:
            self.network = _load(weights)
        except (OSError, RuntimeError, UnpicklingError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:160]
            raise UserError(f"identity_weights: '{weights}' is no network that embeds faces: {reason}") from error
        self.network.eval()
        for parameter in self.network.parameters():  # TorchScript has no requires_grad_ of the whole
            parameter.requires_grad_(False)

    def forward(self, rgb: Tensor) -> Tensor:
        """(N, 3, S, S) 0..1, canonical crops, to (N, D) float32: of unit length but for dlib's, which are compared as
        they are."""
        if isinstance(self.network, DlibFace):
            out: Tensor = self.network(255.0 * aligned(rgb, _DLIB))
            return out.float()
        return F.normalize(self.network(255.0 * aligned(rgb, _ARCFACE)).float())

    def distance(self, fake: Tensor, real: Tensor) -> Tensor:
        """Half the squared distance of the embeddings of (N, 3, S, S) pictures, averaged. Of unit length that is
        1 - cosine: 0 for the same, about 1 for other people; by dlib's network these are about 0.3."""
        with torch.no_grad():
            wanted = self(real)
        apart: Tensor = (self(fake) - wanted).square().sum(1)
        return 0.5 * apart.mean()


def aligned(rgb: Tensor, cut: Cut) -> Tensor:
    """(N, 3, S, S) canonical crops to (N, 3, size, size) as a network wants faces aligned."""
    left, top, side = (round(x * rgb.shape[-1] / CROP_SIZE) for x in cut[:3])
    part = rgb[..., top : top + side, left : left + side].float()
    return F.interpolate(part, size=(cut.size, cut.size), mode="bilinear", antialias=True)


def _load(weights: Path) -> nn.Module:
    if weights.suffix == ".dat":
        return DlibFace(weights)
    if _is_torchscript(weights):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # still the only format that needs no classes of ours
            module: nn.Module = torch.jit.load(str(weights), map_location="cpu")  # type: ignore[no-untyped-call]
            return module
    state = torch.load(weights, weights_only=True, map_location="cpu")
    return MxnetGraph(json.loads(state["ops"]), state["params"])


def _is_torchscript(weights: Path) -> bool:
    from zipfile import ZipFile, is_zipfile

    if not is_zipfile(weights):
        return False
    with ZipFile(weights) as file:
        return any(name.endswith("/constants.pkl") for name in file.namelist())


class MxnetGraph(nn.Module):
    """A network as the list of its operations, by MXNet's names.

    Args:
        ops: in order; each names itself, its inputs (earlier ones, parameters, or "data") and its arguments.
        params: by name.

    Raises:
        ValueError: an operation is unknown.
    """

    def __init__(self, ops: Sequence[Mapping[str, Any]], params: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.ops = list(ops)
        if unknown := {op["op"] for op in self.ops} - set(_OPS):
            raise ValueError(f"unknown operations {', '.join(sorted(unknown))}")
        for name, value in params.items():
            self.register_buffer(name.replace(".", "_"), value)

    def forward(self, x: Tensor) -> Tensor:
        known = {"data": x} | dict(self.named_buffers())
        for op in self.ops:
            x = known[op["name"]] = _OPS[op["op"]](op, [known[name.replace(".", "_")] for name in op["in"]])
        return x


def _batch_norm(op: Mapping[str, Any], x: list[Tensor]) -> Tensor:
    gamma = None if op["fix"] else x[1]
    return F.batch_norm(x[0], x[3], x[4], gamma, x[2], eps=op["eps"])


_OPS: Final[dict[str, Any]] = {
    "_minus_scalar": lambda op, x: x[0] - op["s"],
    "_mul_scalar": lambda op, x: x[0] * op["s"],
    "Convolution": lambda op, x: F.conv2d(x[0], x[1], stride=op["stride"], padding=op["pad"], groups=op["g"]),
    "BatchNorm": _batch_norm,
    "LeakyReLU": lambda op, x: F.prelu(x[0], x[1].flatten()),
    "elemwise_add": lambda op, x: x[0] + x[1],
    "FullyConnected": lambda op, x: F.linear(x[0].flatten(1), *x[1:]),
}
