"""A small change of the inpainter's weights by which it knows one person's face, and how it is learnt."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.errors import UserError
from unmask.models.engine import cpu_precision, weights_file
from unmask.models.folding import fold_norms
from unmask.models.inpainter import Inpainter
from unmask.train.config import Phase, Recipe, Split
from unmask.train.inpainter import PaintTrainer

F16 = npt.NDArray[np.float16]

_RANK: Final = 16
_MOST_BYTES: Final = 1_500_000
"""Of the change; a personal model holds views, too."""


class Adapted(nn.Module):
    """A convolution whose weights change by the product of two narrow matrices, or, where that would be larger, freely
    (low-rank adaptation, Hu et al. 2021, arXiv:2106.09685). It starts as the convolution that it is given.

    Args:
        conv: with a bias; is not trained.
        rank: of the product.
    """

    def __init__(self, conv: nn.Conv2d, rank: int) -> None:
        super().__init__()
        assert conv.bias is not None
        self.conv = conv.requires_grad_(False)
        out, inner = conv.weight.shape[0], conv.weight[0].numel()
        self.bias = nn.Parameter(torch.zeros(out))
        self.low_rank = rank * (out + inner) < out * inner
        if self.low_rank:
            self.down, self.up = (
                nn.Parameter(torch.randn(rank, inner) / inner**0.5),
                nn.Parameter(torch.zeros(out, rank)),
            )
        else:
            self.delta = nn.Parameter(torch.zeros_like(conv.weight))

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        assert conv.bias is not None
        delta = (self.up @ self.down).view(conv.weight.shape) if self.low_rank else self.delta
        weight, bias = conv.weight + delta, conv.bias + self.bias
        padding = tuple(int(p) for p in conv.padding)
        return F.conv2d(x, weight, bias, conv.stride, padding, conv.dilation)


class PersonalInpainter(nn.Module):
    """The inpainter that is in use, with an adapter at each convolution. Takes and gives what `Inpainter` does.

    Args:
        rank: of the adapters; the largest that keeps the file small, if it is not given.
    """

    def __init__(self, rank: int = _RANK) -> None:
        super().__init__()
        self.network = shipped_inpainter().requires_grad_(False)
        while rank > 1 and 2 * sum(_adapter_sizes(self.network, rank)) > _MOST_BYTES:
            rank -= 1
        _adapt(self.network, rank)

    def train(self, mode: bool = True) -> "PersonalInpainter":
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()  # its statistics are part of what ships
        return self

    def forward(self, rgb: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = self.network(rgb, mask)
        return out

    def change(self) -> dict[str, F16]:
        """What the adapters learnt, as `unmask.models.person` describes it."""
        adapters = [(name, m) for name, m in self.network.named_modules() if isinstance(m, Adapted)]
        return {
            f"{name}.{part}": value.detach().half().numpy()
            for name, adapter in adapters
            for part, value in adapter.named_parameters()
            if not part.startswith("conv.")
        }


def shipped_inpainter() -> Inpainter:
    """The inpainter that is in use, batch normalisation folded in, with the weights of its ONNX file in float32."""
    network = Inpainter().eval()
    fold_norms(network)
    model = onnx.load(str(weights_file("inpainter.onnx")))
    known = {w.name.removeprefix("network."): numpy_helper.to_array(w) for w in model.graph.initializer}
    wanted = network.state_dict()
    missing = [name for name in wanted if name not in known and not name.endswith("num_batches_tracked")]
    if missing:
        raise UserError(f"the inpainter in use is of another make: it has no {missing[0]}")
    state = {name: torch.from_numpy(known[name].astype(np.float32)) for name in wanted if name in known}
    network.load_state_dict(wanted | state)
    return network


def _convs(network: nn.Module) -> list[tuple[nn.Module, str, nn.Conv2d]]:
    pairs = [(parent, name, child) for parent in network.modules() for name, child in parent.named_children()]
    return [(parent, name, child) for parent, name, child in pairs if isinstance(child, nn.Conv2d)]


def _adapter_sizes(network: nn.Module, rank: int) -> list[int]:
    """Numbers that each adapter holds."""
    shapes = [(c.weight.shape[0], c.weight[0].numel()) for _, _, c in _convs(network)]
    return [min(rank * (out + inner), out * inner) + out for out, inner in shapes]


def _adapt(network: nn.Module, rank: int) -> None:
    for parent, name, conv in _convs(network):
        setattr(parent, name, Adapted(conv, rank))


class Learnt(NamedTuple):
    """What came of it.

    Attributes:
        change: of the weights, by name, float16.
        held_out: how many faces it was measured on.
        psnr: in the mask, in dB, on these, before and after.
    """

    change: dict[str, F16]
    held_out: int
    psnr: tuple[float, float]


def learn(folder: Path, steps: int, progress: Callable[[int, int], None]) -> Learnt:
    """Fine-tune the inpainter to one person.

    Args:
        folder: with crops and, in `held-out.txt`, the names of those to measure on; a run is left there.
        steps: optimizer steps of four faces.
        progress: is told how many of how many steps are done.
    """
    trainer = PaintTrainer(_recipe(folder, steps), PersonalInpainter)
    trainer.on_step, trainer.stopping = progress, ""  # the folder goes: no run could go on from there
    before = trainer.validate(256)["validation_psnr"]
    after = trainer.fit()["validation_psnr"]
    model = trainer.averaged()
    assert isinstance(model, PersonalInpainter)
    return Learnt(model.change(), len(trainer.validation), (before, after))


def _recipe(folder: Path, steps: int) -> Recipe:
    # L1 alone would blur the face: without "detail" its fine structure was a fortieth of the truth's, with it a third.
    phase = Phase(steps=steps, size=256, batch=4, lr=2e-3, warm_up=0.05, losses={"l1": 1.0, "edge": 0.5, "detail": 0.5})
    split = Split(by="file", file=str(folder / "held-out.txt"))
    out = str(folder / "run")
    return Recipe(
        model="personal",
        crops=str(folder),
        out=out,
        phases=(phase,),
        split=split,
        ema=0.95,
        epoch=steps,
        precision="bf16" if cpu_precision() == "bf16" else "fp32",
    )
