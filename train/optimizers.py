"""Optimizers by name."""

from collections.abc import Callable, Iterable
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim import NAdam, RAdam, RMSprop

from unmask.errors import UserError
from unmask.train.config import Optimizer


def make_optimizer(config: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a recipe for the weights of a model; its learning rate is set before each step.

    Raises:
        UserError: this PyTorch has no such optimizer.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.name == "muon":
        if not hasattr(torch.optim, "Muon"):
            raise UserError("optimizer.name: muon needs PyTorch 2.9 or later")
        optimizer: torch.optim.Optimizer = MuonAdamW(parameters, config)
    else:
        optimizer = _MAKERS[config.name](parameters, config)
    for group in optimizer.param_groups:
        group["speed"] = config.speed
    return optimizer


def _adamw(parameters: Iterable[Tensor], c: Optimizer) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, betas=c.betas, weight_decay=c.weight_decay)


_MAKERS: Final[dict[str, Callable[[Iterable[Tensor], Optimizer], torch.optim.Optimizer]]] = {
    "adamw": _adamw,
    "sgd": lambda p, c: torch.optim.SGD(p, 1e-3, c.momentum, weight_decay=c.weight_decay, nesterov=c.momentum > 0),
    "rmsprop": lambda p, c: RMSprop(p, momentum=c.momentum, weight_decay=c.weight_decay),
    "nadam": lambda p, c: NAdam(p, betas=c.betas, weight_decay=c.weight_decay, decoupled_weight_decay=True),
    "radam": lambda p, c: RAdam(p, betas=c.betas, weight_decay=c.weight_decay, decoupled_weight_decay=True),
    "adafactor": lambda p, c: torch.optim.Adafactor(p, weight_decay=c.weight_decay),
}


class MuonAdamW(torch.optim.Optimizer):
    """Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for matrices and, each filter taken for a row,
    convolutions; AdamW for all else.

    Muon's steps are scaled to the size of AdamW's (Liu et al. 2025, arXiv:2502.16982), so that one learning rate fits
    both.

    Args:
        parameters: of the model.
        config: momentum and weight decay of both, betas of AdamW.
    """

    def __init__(self, parameters: list[nn.Parameter], config: Optimizer) -> None:
        wide = [p for p in parameters if p.ndim in {2, 4} and min(p.shape[0], p[0].numel()) > 1]
        known = {id(p) for p in wide}
        self._pairs = [(p, nn.Parameter(_as_matrix(p.detach()))) for p in wide]
        self._muon = torch.optim.Muon(
            [matrix for _, matrix in self._pairs],
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            adjust_lr_fn="match_rms_adamw",
        )
        self._adamw = _adamw([p for p in parameters if id(p) not in known], config)
        super().__init__(parameters, {})
        self.param_groups = [*self._muon.param_groups, *self._adamw.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for p, matrix in self._pairs:
            p.grad = matrix.grad = None
        self._adamw.zero_grad(set_to_none)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p, matrix in self._pairs:
            matrix.grad = None if p.grad is None else _as_matrix(p.grad)
            matrix.data.copy_(_as_matrix(p.detach()))
        self._muon.step()  # type: ignore[no-untyped-call]
        self._adamw.step()
        with torch.no_grad():
            for p, matrix in self._pairs:
                p.copy_(matrix.view(p.shape))

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self._muon.state_dict(), "adamw": self._adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._muon.load_state_dict(state_dict["muon"])
        self._adamw.load_state_dict(state_dict["adamw"])
        self.param_groups = [*self._muon.param_groups, *self._adamw.param_groups]


def _as_matrix(x: Tensor) -> Tensor:
    """(out, in * kernel) copy, in the order of the elements whatever the memory format."""
    return x.reshape(x.shape[0], -1).clone(memory_format=torch.contiguous_format)
