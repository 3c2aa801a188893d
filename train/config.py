"""Recipes: what a training run does, read from YAML, with overrides from the command line.

Everything that is wrong with a recipe is said at once, each problem with the place of its key.
"""

import dataclasses
import difflib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import msgspec

from unmask.errors import UserError

View = Literal["whole", "lower", "window", "mask"]
ScheduleName = Literal["cosine", "linear", "constant"]
OptimizerName = Literal["adamw", "sgd", "rmsprop", "nadam", "radam", "adafactor", "muon"]
JudgeName = Literal["patches", "features"]
AdversarialForm = Literal["hinge", "lsgan", "wgan-gp", "non-saturating"]
MapName = Literal[
    "relu1_1",
    "relu1_2",
    "relu2_1",
    "relu2_2",
    "relu3_1",
    "relu3_2",
    "relu3_3",
    "relu3_4",
    "relu4_1",
    "relu5_1",
    "stage1",
    "stage2",
    "stage3",
    "stage4",
    "stage5",
    "stage6",
    "stage7",
]


class Loss(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A loss of a recipe; a bare number stands for one with that weight and nothing else.

    Attributes:
        weight: what it is multiplied with.
        kind: a name in `train.objectives.KINDS`; empty where the key that it stands under is one.
        view: what it looks at: the whole crop, its lower part (where masks are), a random window in the hidden part (in
            turn at full size and, twice as large, at half size), or the hidden part alone.
        shrink: how many times smaller it sees that.
        every: on every so many-th step only.
        maps: feature maps of VGG ("relu1_2") or of EfficientNet-Lite ("stage2"), not of both (perceptual, style, age,
            and adversarial with the judge "features").
        matching: weight of feature matching (adversarial).
        form: of the adversarial game.
        judge: what the discriminator looks at: patches of the picture, or feature maps of it (adversarial).
        penalty: weight of the gradient penalty: WGAN-GP's, or R1 with any other form (adversarial).
    """

    weight: float
    kind: str = ""
    view: View = "whole"
    shrink: int = 1
    every: int = 1
    maps: tuple[MapName, ...] = ("relu1_2", "relu2_2", "relu3_3")
    matching: float = 0.0
    form: AdversarialForm = "hinge"
    judge: JudgeName = "patches"
    penalty: float = 0.0


class Optimizer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An optimizer by name.

    Attributes:
        name: of the optimizer.
        betas: of the Adam family.
        momentum: of SGD, RMSprop and Muon.
        weight_decay: share of the weights that a step takes away, times the learning rate.
        speed: times the phase's learning rate; a discriminator may learn faster than what it judges (Heusel et al.
            2017, arXiv:1706.08500).
    """

    name: OptimizerName = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    momentum: float = 0.9
    weight_decay: float = 1e-4
    speed: float = 1.0


class Augmentation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of the transforms of `kornia.augmentation`.

    Attributes:
        name: of its class, such as RandomGaussianBlur.
        p: how often it is applied.
        args: the rest of its arguments.
    """

    name: str
    p: float = 0.5
    args: dict[str, Any] = {}


class Split(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which pictures are kept for validation.

    Attributes:
        by: hash: every `folds`-th by the SHA-256 of the file name; identity: the same with whole people, by `file` or,
            without one, by the folder of each picture, as in LFW; file: those that `file` names; partition: those that
            `file` marks with 1 (those with 2 are for testing, and are left out of both).
        file: lines "NAME", "NAME PERSON" or "NAME 0|1|2", as CelebA writes them.
        folds: how many parts there are (hash, identity).
        fold: which part is for validation.
    """

    by: Literal["hash", "identity", "file", "partition"] = "hash"
    file: str = ""
    folds: int = 20
    fold: int = 0


class Range(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What `unmask tune` may try for a key: one of `choices`, or a number between `low` and `high`."""

    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[str | int | float | bool, ...] = ()


class Phase(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a run at one picture size.

    Attributes:
        steps: optimizer steps.
        size: width and height of the crops in px.
        batch: pictures a step, of all processes together.
        lr: peak learning rate.
        schedule: how it falls after the warm-up: along a cosine or a line to a twentieth, or not at all.
        warm_up: share of the steps over which it rises.
        losses: by name; empty for those of the recipe.
        window: width and height in px of what the view "window" shows.
    """

    steps: int
    size: int
    batch: int = 16
    lr: float = 1e-3
    schedule: ScheduleName = "cosine"
    warm_up: float = 0.03
    losses: dict[str, float | Loss] = {}
    window: int = 64


class Recipe(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A training run.

    Attributes:
        model: a name in `train.registry`.
        crops: folder written by `unmask data crops`.
        out: folder for checkpoints, samples and logs.
        phases: in order.
        sizes: fields of the model's configuration, where they are not the usual ones.
        losses: by name, of the phases that name none; empty for the model's own.
        optimizer: of the network.
        discriminator_optimizer: of the discriminators.
        textures: folder of mask pictures with `masks.cfg`; empty for drawn masks only.
        real: folder written by `unmask data label`: real masked faces, with labels that are sure in most places
            (segmenters) or without (oagan); empty for none.
        real_share: of a batch of a segmenter, where there are such faces.
        tracker: folder written by `unmask data tracker` (detector, landmarker).
        perceptual_weights: file with the convolutions of a VGG (keys `features.N.weight`), for perceptual and style.
        perceptual_network: which VGG, and its convention of colours: Caffe's (BGR, 0..255) or torchvision's.
        efficientnet_weights: file with an EfficientNet-Lite, for losses with its maps; see `train.efficientnet`.
        identity_weights: file with a network that embeds faces, for identity; see `train.identity`.
        ages: file with lines "picture,years": some faces are drawn evenly over the decades (inpainters); empty for
            none.
        age_weights: file written by `unmask data ages`, for the loss age.
        start: weights to start from, safetensors of the whole network; empty for random ones.
        teacher: of more-masks: weights of a segmenter, safetensors, whose borders of masks are kept.
        encoder: what the encoder starts from. segmenter-imagenet: a file with torchvision's state dict of a ResNet-18,
            or "imagenet" to download it from where torchvision does; landmarker: a detector's safetensors.
        seed: of weights and data.
        ema: decay of the averaged weights, which are what is validated and exported.
        clip: largest norm of the gradient.
        precision: of the arithmetic.
        accumulate: into how many parts a batch is split, whose gradients are added up.
        device: "cpu" or "cuda".
        augmentation: in order, applied to the pictures of a batch and to their masks alike.
        split: what is kept for validation.
        repeat: draw so many different batches only, over and over; 0 for ever new ones.
        epoch: steps between two validations, each with a sheet of samples; 0 for one pass over the pictures.
        checkpoint_minutes: how often the state is saved.
        tracking_uri: of an MLflow server; empty for a folder beside the run.
        tune: what `unmask tune` may try, by the place of the key, such as phases.0.lr.
    """

    model: str
    crops: str
    out: str
    phases: tuple[Phase, ...]
    sizes: dict[str, Any] = {}
    losses: dict[str, float | Loss] = {}
    optimizer: Optimizer = Optimizer()
    discriminator_optimizer: Optimizer = Optimizer(betas=(0.5, 0.98), weight_decay=0.01)
    textures: str = ""
    real: str = ""
    real_share: float = 0.25
    tracker: str = ""
    perceptual_weights: str = ""
    perceptual_network: Literal["vgg16-caffe", "vgg16", "vgg19"] = "vgg16-caffe"
    efficientnet_weights: str = ""
    identity_weights: str = ""
    ages: str = ""
    age_weights: str = ""
    start: str = ""
    teacher: str = ""
    encoder: str = ""
    seed: int = 0
    ema: float = 0.999
    clip: float = 1.0
    precision: Literal["fp32", "bf16", "fp16"] = "bf16"
    accumulate: int = 1
    device: str = "cpu"
    augmentation: tuple[Augmentation, ...] = ()
    split: Split = Split()
    repeat: int = 0
    epoch: int = 0
    checkpoint_minutes: float = 4.0
    tracking_uri: str = ""
    tune: dict[str, Range] = {}


T = TypeVar("T")

RECIPES = Path(__file__).parent / "recipes"


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and check all of it.

    Args:
        name: a YAML file, or the name of one that ships.
        overrides: "key=value", with dots for what lies deeper: "phases.0.lr=1e-4", "optimizer.name=nadam".

    Raises:
        UserError: with every problem, one after the other.
    """
    path = Path(name)
    if not path.suffix and not path.exists():
        path = RECIPES / f"{name}.yaml"
        if not path.is_file():
            shipped = sorted(p.stem for p in RECIPES.glob("*.yaml"))
            raise UserError(f"no recipe '{name}'{nearest(name, shipped)}; give a YAML file, or {', '.join(shipped)}")
    raw = _read(path)
    for override in overrides:
        _override(raw, override)
    return as_struct(raw, Recipe, f"recipe '{path}'")


def as_struct(raw: Any, kind: type[T], what: str) -> T:
    """Builtins as a struct or dataclass. Raises UserError with every problem, each with the place of its key."""
    if problems := _problems(raw, kind, ""):
        raise UserError(f"{what}: {'; '.join(problems)}")
    return msgspec.convert(raw, kind, strict=False)


def with_value(recipe: Recipe, key: str, value: Any) -> Recipe:
    """The recipe with another value at a place such as phases.0.lr. Raises UserError where it does not fit."""
    raw = msgspec.json.decode(msgspec.json.encode(recipe))
    _put(raw, key, value)
    return as_struct(raw, Recipe, f"'{key}'")


def nearest(name: str, known: Sequence[str]) -> str:
    """ ", did you mean 'x'?" where a known name is like this one."""
    like = sorted(difflib.get_close_matches(name, known, cutoff=0.5), key=lambda known_name: known_name[:1] != name[:1])
    return f", did you mean '{like[0]}'?" if like else ""


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = msgspec.yaml.decode(path.read_bytes())
    except OSError as error:
        raise UserError(f"cannot read the recipe '{path}': {error.strerror}") from error
    except msgspec.DecodeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"recipe '{path}' is not valid YAML: {reason}") from error
    if not isinstance(raw, dict):
        raise UserError(f"recipe '{path}' is not a list of keys with values")
    return raw


def _override(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"'{override}' is no override; write key=value, such as phases.0.lr=1e-4")
    try:
        value = msgspec.yaml.decode(text.encode()) if text else ""
    except msgspec.DecodeError as error:
        raise UserError(f"the value in '{override}' is not valid YAML") from error
    _put(raw, key, value)


def _put(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set what lies at a dotted place, making the mappings on the way."""
    *way, last = key.split(".")
    place: Any = raw
    for name in way:
        if isinstance(place, list):
            place = place[_position(place, name, key)]
            continue
        if not isinstance(place.get(name), dict | list):
            place[name] = {}
        place = place[name]
    if isinstance(place, list):
        place[_position(place, last, key)] = value
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise UserError(f"'{key}': nothing lies below '{'.'.join(way)}'")


def _position(items: list[Any], name: str, key: str) -> int:
    if not name.isdecimal() or int(name) >= len(items):
        raise UserError(f"'{key}': '{name}' is not a position in a list of {len(items)}, counted from 0")
    return int(name)


def _fields(kind: Any) -> dict[str, tuple[Any, bool]] | None:
    """Type and whether it is required, by field; None for what is no struct."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return {f.name: (f.type, f.required) for f in msgspec.structs.fields(kind)}
    if dataclasses.is_dataclass(kind):
        hints = get_type_hints(kind)
        plain = dataclasses.MISSING
        return {
            f.name: (hints[f.name], f.default is plain and f.default_factory is plain) for f in dataclasses.fields(kind)
        }
    return None


def _problems(raw: Any, kind: Any, place: str) -> list[str]:
    """What is wrong with a value and everything in it."""
    fields = _fields(kind)
    if fields is not None and isinstance(raw, Mapping):
        return _struct_problems(raw, fields, place)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is dict and isinstance(raw, Mapping):
        return [p for name, value in raw.items() for p in _problems(value, arguments[1], _join(place, name))]
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis and isinstance(raw, list | tuple):
        return [p for i, value in enumerate(raw) for p in _problems(value, arguments[0], _join(place, i))]
    if origin in {Union, types.UnionType} and isinstance(raw, Mapping):
        structs = [a for a in arguments if _fields(a) is not None]
        if structs:
            return _problems(raw, structs[0], place)
    if origin is Literal and isinstance(raw, str) and raw not in arguments:
        return [f"{place}: unknown '{raw}'{nearest(raw, arguments)} (one of {', '.join(map(str, arguments))})"]
    try:
        msgspec.convert(raw, kind, strict=False)
    except msgspec.ValidationError as error:
        return [f"{place}: {_plainly(str(error))}, not {raw!r}" if place else _plainly(str(error))]
    return []


def _struct_problems(raw: Mapping[str, Any], fields: dict[str, tuple[Any, bool]], place: str) -> list[str]:
    problems = []
    for name, value in raw.items():
        if name not in fields:
            problems.append(f"unknown key '{_join(place, name)}'{nearest(str(name), list(fields))}")
        else:
            problems += _problems(value, fields[name][0], _join(place, name))
    missing = [name for name, (_, required) in fields.items() if required and name not in raw]
    return problems + [f"'{_join(place, name)}' is missing" for name in missing]


def _plainly(message: str) -> str:
    """msgspec's message without its own way of naming the place."""
    text = message.partition(" - at ")[0]
    return text[0].lower() + text[1:].partition(", got")[0].replace("`", "")


def _join(place: str, name: object) -> str:
    return f"{place}.{name}" if place else str(name)
