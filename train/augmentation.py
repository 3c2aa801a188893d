"""Augmentation by kornia, as a recipe lists it: on whole batches, pictures and masks alike."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from unmask.errors import UserError
from unmask.train.config import Augmentation, nearest


class Augmenter:
    """The augmentations of a recipe; changes nothing where there are none.

    What moves pixels moves those of the masks too. Chance comes from PyTorch's own generator, which checkpoints hold.

    Args:
        augmentations: in order.

    Raises:
        UserError: one is unknown to kornia, or does not take these arguments.
    """

    def __init__(self, augmentations: Sequence[Augmentation]) -> None:
        self._steps = [_make(a) for a in augmentations]

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Tensor], masks: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Change a batch.

        Args:
            pictures: (N, 3, H, W) 0..1 each; all get the same change.
            masks: (N, 1, H, W) 0/1 each.
        """
        if not self._steps:
            return list(pictures), list(masks)
        from kornia.augmentation import AugmentationSequential

        keys: list[Any] = ["input"] * len(pictures) + ["mask"] * len(masks)
        both = AugmentationSequential(*self._steps, data_keys=keys)(*pictures, *masks)
        changed = [x.clamp(0, 1) for x in both]
        cut = len(pictures)
        return changed[:cut], [(x > 0.5).float() for x in changed[cut:]]


def _make(augmentation: Augmentation) -> Any:
    from kornia import augmentation as known

    names = [n for n in dir(known) if isinstance(getattr(known, n), type) and n.startswith(("Random", "Color"))]
    if augmentation.name not in names:
        raise UserError(
            f"augmentation: kornia.augmentation has no '{augmentation.name}'{nearest(augmentation.name, names)}"
        )
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in augmentation.args.items()}
    try:
        return getattr(known, augmentation.name)(p=augmentation.p, **arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"augmentation: {augmentation.name}: {' '.join(str(error).split())}") from error
