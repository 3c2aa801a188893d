"""Trains the part of the segmenter that finds ear loops; what finds the mask stays as it is."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.models.geometry import CROP_SIZE
from unmask.models.segmenter import Segmenter
from unmask.train.config import Phase, Recipe
from unmask.train.data import draws
from unmask.train.objectives import Scene, on_device
from unmask.train.segmenter import Batch, SegmentTrainer, make_batch

_NARROW_PX = 11
_WEIGHT = 5.0
"""How much pixels of ear loops count: they are few, and without that none are found."""


def grown(x: Tensor, side: int) -> Tensor:
    """(N, 1, S, S): the largest value in the square of `side` px, an odd number, around each pixel."""
    return F.max_pool2d(x, side, 1, side // 2)


def body_of(label: Tensor) -> Tensor:
    """(N, 1, S, S) 0/1: what of a mask (N, 1, S, S) 0/1 is not narrow."""
    side = max(3, round(_NARROW_PX * label.shape[-1] / CROP_SIZE) | 1)
    return grown(-grown(-label, side), side)


def loop_labels(mask: Tensor, label: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """What of a mask is ear loop: where it is narrow.

    Args:
        mask: (N, 1, S, S) 0..1, what the segmenter finds without them.
        label: (N, 1, S, S) 0/1, the mask with its loops.
        known: (N, 1, S, S) 0/1, where the label is known.

    Returns:
        (N, 1, S, S) each: 1 where loop is; and how much that counts: not on the mask, where either will do.
    """
    body = body_of(label)
    loops = label - body
    elsewhere = 1.0 - torch.maximum(body, (mask > 0.5).float())
    return loops, known * elsewhere * (1.0 + (_WEIGHT - 1.0) * loops)


class EarLoopsTrainer(SegmentTrainer):
    """The ear loops of a segmenter, from labels that know them.

    Args:
        recipe: what to do; its `start` is the segmenter, its `real` was written by `unmask data loops`.
        build: makes the network.
    """

    losses: ClassVar[Mapping[str, float]] = {"bce": 1.0}

    def __init__(self, recipe: Recipe, build: Callable[[], nn.Module]) -> None:
        super().__init__(recipe, lambda: _only_loops(build()))
        self.sources = dataclasses.replace(self.sources, loops_known=True)

    def scene(self, phase: Phase, step: int, batch: Batch) -> Scene:
        assert isinstance(self.model, Segmenter)
        self.model.eval()
        self.model.loops.train()
        (rgb,), (label, known) = self.augmenter([batch.rgb], [batch.label, batch.weight])
        with self.autocast():
            mask, logits = self.model.parts(rgb)
        label, weight = loop_labels(mask.sigmoid().float(), label, known)
        # What counts more is found too often, which the network must not learn (Menon et al. 2021, arXiv:2007.07314).
        return Scene(step, logits=logits.float() + math.log(_WEIGHT), label=label, known=weight)

    @torch.no_grad()
    def validate(self, size: int) -> dict[str, float]:
        """IoU of the ear loops alone, over all pixels away from masks, on fixed validation faces."""
        model = self.averaged()
        assert isinstance(model, Segmenter)
        both = either = 0.0
        for seed, indices in self.validation_groups():
            batch = on_device(make_batch(self.sources, draws(indices, seed), size), self.device)
            with self.autocast():
                mask, logits = model.parts(batch.rgb)
            label, weight = loop_labels(mask.sigmoid().float(), batch.label, batch.weight)
            found, wanted, counts = logits > 0, label > 0, weight > 0
            both += (found & wanted & counts).sum().item()
            either += ((found | wanted) & counts).sum().item()
        return {"validation_iou": both / max(either, 1.0)}


def _only_loops(model: nn.Module) -> nn.Module:
    assert isinstance(model, Segmenter)
    model.requires_grad_(False)
    model.loops.requires_grad_(True)
    return model
