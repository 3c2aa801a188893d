"""Teaches a segmenter more masks without moving the borders of those that it finds."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from unmask.errors import UserError
from unmask.models.geometry import CROP_SIZE
from unmask.models.segmenter import Segmenter
from unmask.train.config import Phase, Recipe
from unmask.train.ear_loops import body_of, grown
from unmask.train.loop import channels_last, load_start
from unmask.train.objectives import Scene
from unmask.train.segmenter import Batch, SegmentTrainer

_BORDER_PX = 4
"""At 256, on both sides."""
_ALIKE = 0.75
"""IoU from which on a teacher's borders are kept."""


def with_borders_of(seen: Tensor, label: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Labels whose borders are another segmenter's, where that one sees about the same mask; soft ones there.

    Where exactly a network lets a mask end is what training on moves first, and the cut through its likelihoods was
    chosen for it (to learn without forgetting: Li and Hoiem 2016, arXiv:1606.09282).

    Args:
        seen: (N, 1, S, S) 0..1, what it sees.
        label: (N, 1, S, S) 0/1.
        known: (N, 1, S, S) 0/1, where that is known.

    Returns:
        Label (N, 1, S, S) 0..1 and where it is known, which these borders are.
    """
    side = 2 * max(1, round(_BORDER_PX * label.shape[-1] / CROP_SIZE)) + 1
    border = grown(label, side) + grown(1.0 - label, side) > 1.5
    found, there = seen > 0.5, label > 0.5
    area = (1, 2, 3)
    alike = (found & there).sum(area, keepdim=True) > _ALIKE * (found | there).sum(area, keepdim=True)
    kept = border & alike
    return torch.where(kept, seen, label), torch.where(kept, torch.ones_like(known), known)


class MoreMasksTrainer(SegmentTrainer):
    """The mask of a segmenter, its ear loops left as they are.

    The borders of masks that it finds already are those of the recipe's `teacher`, and so are the statistics of batch
    normalisation of its `start`.

    Args:
        recipe: what to do.
        build: makes the network.

    Raises:
        UserError: the recipe has no start or no teacher.
    """

    losses: ClassVar[Mapping[str, float]] = {"bce": 1.0}

    def __init__(self, recipe: Recipe, build: Callable[[], nn.Module]) -> None:
        if not (recipe.start and recipe.teacher):
            raise UserError(
                "more-masks goes on with a segmenter: give its weights with start=FILE, and those of the one whose "
                "borders are kept with teacher=FILE"
            )
        super().__init__(recipe, lambda: _without_loops(build()))
        self.teacher = build().to(self.device).eval().requires_grad_(False)
        load_start(self.teacher, Path(recipe.teacher), "teacher")
        channels_last(self.teacher)

    def scene(self, phase: Phase, step: int, batch: Batch) -> Scene:
        assert isinstance(self.model, Segmenter)
        self.model.eval()
        (rgb,), (label, known) = self.augmenter([batch.rgb], [batch.label, batch.weight])
        body = body_of(label)
        label, known = with_borders_of(self.taught(rgb), body, known * (1.0 - (label - body)))
        with self.autocast():
            logits, _ = self.model.parts(rgb)
        return Scene(step, logits=logits.float(), label=label, known=known)

    @torch.no_grad()
    def taught(self, rgb: Tensor) -> Tensor:
        """(N, 1, S, S) 0..1: the mask that the teacher sees in pictures and in their mirror images, which is surer than
        either."""
        assert isinstance(self.teacher, Segmenter)
        with self.autocast():
            seen, mirrored = (self.teacher.parts(x)[0].float().sigmoid() for x in (rgb, rgb.flip(3)))
        return (seen + mirrored.flip(3)) / 2


def _without_loops(model: nn.Module) -> nn.Module:
    assert isinstance(model, Segmenter)
    model.loops.requires_grad_(False)
    return model
