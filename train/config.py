"""Recipes: what a training run does, read from YAML. An unknown key or a wrong type is an error that names it."""

from pathlib import Path
from typing import TypeVar

import msgspec

from unmask.errors import UserError


class Phase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a run at one picture size.

    Attributes:
        steps: optimizer steps.
        size: width and height of the crops in px.
        batch: pictures a step.
        lr: peak learning rate; it rises over the first 3 % of the steps and falls to a twentieth along a cosine.
        perceptual: weight of the perceptual loss (inpainter), 0 leaves it out.
        adversarial: weight of the adversarial loss (inpainter), 0 leaves it out.
        matching: weight of the feature matching that goes with it.
        judge_shrink: how many times smaller the discriminator sees the pictures: 2 teaches shapes at a quarter of the
            cost, 1 texture.
        perceptual_shrink: the same for the perceptual loss.
        texture: weight of the perceptual loss on small windows at full size (inpainter), 0 leaves it out.
        fine: weight of a second discriminator on the same windows, 0 leaves it out.
        window: width and height of the windows in px.
    """

    steps: int
    size: int
    batch: int = 16
    lr: float = 1e-3
    perceptual: float = 0.0
    adversarial: float = 0.0
    matching: float = 0.0
    judge_shrink: int = 1
    perceptual_shrink: int = 1
    texture: float = 0.0
    fine: float = 0.0
    window: int = 64


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A training run.

    Attributes:
        crops: folder written by `unmask data crops`.
        out: folder for checkpoints and logs.
        phases: in order.
        textures: folder of mask pictures with `masks.cfg`; empty for drawn masks only.
        real: folder written by `unmask data label`, of which a quarter of each batch is drawn (segmenter); empty for
            none.
        tracker: folder written by `unmask data tracker` (detector, landmarker).
        perceptual_weights: file with VGG-16 weights up to relu3_3 (keys `features.N.weight`), for the perceptual loss.
        start: safetensors file to start from; empty for random weights.
        encoder: safetensors file of a segmenter whose first layers are to start from (landmarker); empty for none.
        seed: of weights and data.
        ema: decay of the averaged weights, which are what is validated and exported.
        checkpoint_minutes: how often the state is saved.
    """

    crops: str
    out: str
    phases: tuple[Phase, ...]
    textures: str = ""
    real: str = ""
    tracker: str = ""
    perceptual_weights: str = ""
    start: str = ""
    encoder: str = ""
    seed: int = 0
    ema: float = 0.999
    checkpoint_minutes: float = 4.0


T = TypeVar("T")


def load_yaml(path: Path, kind: type[T]) -> T:
    """Read a YAML file into `kind`. Raises UserError with the place of the first problem."""
    try:
        return msgspec.yaml.decode(path.read_bytes(), type=kind)
    except OSError as error:
        raise UserError(f"cannot read the recipe '{path}': {error.strerror}") from error
    except msgspec.ValidationError as error:
        raise UserError(f"recipe '{path}': {error}") from error
    except msgspec.DecodeError as error:
        raise UserError(f"recipe '{path}' is not valid YAML: {error}") from error
