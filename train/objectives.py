"""The losses of a recipe, by name, put together: what they look at, VGG, discriminators and their steps."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.errors import UserError
from unmask.models.discriminator import FeatureDiscriminator, PatchDiscriminator
from unmask.train import losses
from unmask.train.ages import MAPS as AGE_MAPS
from unmask.train.ages import AgeHead
from unmask.train.augmentation import Augmenter
from unmask.train.config import Loss, Phase, Recipe, nearest
from unmask.train.efficientnet import EfficientNet
from unmask.train.identity import FaceEmbedding
from unmask.train.loop import Trainer, channels_last, check_finite, share_gradients
from unmask.train.losses import Vgg
from unmask.train.optimizers import make_optimizer

B = TypeVar("B", bound=Any)
Autocast = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True, slots=True)
class View:
    """A part of a scene, as a loss sees it.

    Attributes:
        output: (N, 3, H, W) what the network drew.
        fake: the same, 0..1, with the truth where nothing is judged.
        real: (N, 3, H, W) 0..1, the truth.
        mask: (N, 1, H, W) 0..1, what was hidden from the network.
        weight: (N, 1, H, W) 0..1, what is judged: not what lies beyond the picture's border.
    """

    output: Tensor
    fake: Tensor
    real: Tensor
    mask: Tensor
    weight: Tensor

    def changed(self, change: Callable[[Tensor], Tensor]) -> "View":
        """The view with the same change to each of its pictures."""
        return View(*(change(x) for x in (self.output, self.fake, self.real, self.mask, self.weight)))


@dataclass
class Scene:
    """What the losses of one step are computed from.

    Attributes:
        step: of the phase.
        window: size of the view "window" in px.
        whole: the pictures; None for a network that paints none.
        logits: (N, 1, H, W), where the mask is; None for a network that finds none.
        label: (N, 1, H, W) 0/1, where it really is.
        known: (N, 1, H, W) 0/1, where the label is known.
        moved: runs the network on the same pictures, moved by some pixels; gives what it drew, moved back, and where
            both can be compared (N, 1, H, W); for the temporal loss.
        unpaired: pictures without a truth, which adversarial losses with the view "whole" see too; `real` is other
            people's faces, `weight` is where nothing was to be painted.
        original: (N, 3, H, W) 0..1, the same pictures as they were.
        seen: feature maps of views, by network, view, shrink and which picture; several losses look at the same.
    """

    step: int
    window: int = 64
    whole: View | None = None
    logits: Tensor | None = None
    label: Tensor | None = None
    known: Tensor | None = None
    moved: Callable[[], tuple[Tensor, Tensor]] | None = None
    unpaired: View | None = None
    original: Tensor | None = None
    seen: dict[tuple[str, str, int, str], dict[str, Tensor]] = field(default_factory=dict)
    _views: dict[tuple[str, int], View] = field(default_factory=dict)
    _corners: list[tuple[int, int]] = field(default_factory=list)

    def view(self, loss: Loss) -> View:
        """What a loss sees; computed once a step for all losses that see the same."""
        key = (loss.view, loss.shrink)
        if key not in self._views:
            self._views[key] = self._cut(loss)
        return self._views[key]

    def _cut(self, loss: Loss) -> View:
        assert self.whole is not None
        if loss.view == "lower":
            return self.whole.changed(lambda x: losses.lower_part(x, loss.shrink))
        if loss.view == "window":
            # At full size and, twice as large, at half size in turn: pores, then the corners of the mouth.
            far = 1 + self.step % 2
            if not self._corners:
                self._corners = random_windows(self.whole.weight, self.window * far)
            shrink = far * loss.shrink
            return self.whole.changed(lambda x: windows(x, self._corners, self.window * far, shrink))
        view = self.whole
        if loss.view == "mask":
            hidden = view.mask
            view = View(view.output * hidden, view.fake * hidden, view.real * hidden, hidden, view.weight * hidden)
        return view.changed(lambda x: F.avg_pool2d(x, loss.shrink)) if loss.shrink > 1 else view


def shown(output: Tensor, truth: Tensor, mask: Tensor, weight: Tensor) -> View:
    """The view of a whole crop: what lies beyond the picture's border has no truth, and must not be judged."""
    return View(output, output.clamp(0, 1) * weight + truth * (1 - weight), truth, mask, weight)


def random_windows(weight: Tensor, size: int) -> list[tuple[int, int]]:
    """Corners (y, x), one per picture, of windows around a random pixel of (N, 1, S, S) `weight` that is not 0."""
    limit = weight.shape[-1] - size
    corners = []
    for picture in weight[:, 0]:
        pixels = picture.nonzero()
        y, x = pixels[torch.randint(len(pixels), ())].tolist() if len(pixels) else (limit, limit // 2)
        corners.append((min(max(y - size // 2, 0), limit), min(max(x - size // 2, 0), limit)))
    return corners


def windows(x: Tensor, corners: list[tuple[int, int]], size: int, shrink: int = 1) -> Tensor:
    """Cut (N, C, size, size) out of (N, C, S, S), one window per picture, and divide its size by `shrink`."""
    cut = [picture[:, i : i + size, j : j + size] for picture, (i, j) in zip(x, corners, strict=True)]
    return F.avg_pool2d(torch.stack(cut), shrink)


_PICTURES: Final[Mapping[str, Callable[[View], Tensor]]] = {
    "l1": lambda v: losses.masked_l1(v.output, v.real, v.weight),
    "l2": lambda v: losses.masked_l2(v.output, v.real, v.weight),
    "huber": lambda v: losses.masked_huber(v.output, v.real, v.weight),
    "edge": lambda v: losses.edge_l1(v.output, v.real, v.weight),
    "seam": lambda v: losses.seam_l1(v.output * v.mask + v.real * (1.0 - v.mask), v.real, v.mask, v.weight),
    "detail": lambda v: losses.detail(v.output.float(), v.real, v.weight),
    "total-variation": lambda v: losses.total_variation(v.output, v.weight),
    "ssim": lambda v: losses.ssim(v.fake, v.real),
    "ms-ssim": lambda v: losses.ms_ssim(v.fake, v.real),
}
_MASKS: Final[Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]]] = {
    "bce": losses.binary_cross_entropy,
    "border": losses.border_cross_entropy,
    "dice": losses.dice,
    "focal": losses.focal,
    "smooth": losses.smoothness,
}
_FEATURES: Final = {"perceptual": losses.feature_distance, "style": losses.style_distance}
KINDS: Final = (*_PICTURES, *_FEATURES, "identity", "age", "temporal", "kept", "adversarial", *_MASKS)
"""Names of losses."""


def kind_of(label: str, loss: Loss) -> str:
    """Which loss stands under a label."""
    return loss.kind or label


class Objectives:
    """The losses of a recipe.

    Args:
        recipe: names them, phase by phase.
        defaults: where the recipe names none.
        autocast: gives the precision of VGG and discriminators.
        draws, segments: whether the network paints pictures, and whether it finds masks.

    Raises:
        UserError: a loss is unknown, or not one of this network, or its weights are missing.
    """

    def __init__(
        self, recipe: Recipe, defaults: Mapping[str, float], autocast: Autocast, *, draws: bool, segments: bool
    ) -> None:
        self._recipe, self._autocast = recipe, autocast
        self._defaults: Mapping[str, float | Loss] = defaults
        self._device = torch.device(recipe.device)
        named = [pair for phase in recipe.phases for pair in self.of(phase).items()]
        _check(named, draws=draws, segments=segments)
        kinds = {kind_of(label, loss) for label, loss in named}
        judged = {label: loss for label, loss in named if kind_of(label, loss) == "adversarial"}
        self._feature_networks = {name: self._load(name) for name in dict.fromkeys(_networks(named))}
        self._embedding = self._load_embedding() if "identity" in kinds else None
        self._age_head = self._load_age_head() if "age" in kinds else None
        judges = {label: channels_last(self._new_judge(loss)) for label, loss in judged.items()}
        self.judges = nn.ModuleDict(judges).to(self._device)
        self.optimizers = [make_optimizer(recipe.discriminator_optimizer, self.judges)] if judged else []

    @property
    def parts(self) -> dict[str, nn.Module | torch.optim.Optimizer]:
        """What a checkpoint must hold."""
        optimizers = {f"judge_opt{i}": optimizer for i, optimizer in enumerate(self.optimizers)}
        return {"judges": self.judges, **optimizers}

    def of(self, phase: Phase) -> dict[str, Loss]:
        """The losses of a phase that have a weight."""
        chosen = phase.losses or self._recipe.losses or self._defaults
        every = {label: x if isinstance(x, Loss) else Loss(weight=x) for label, x in chosen.items()}
        return {label: loss for label, loss in every.items() if loss.weight}

    def losses(self, phase: Phase, scene: Scene) -> dict[str, Tensor]:
        """What the network minimises: each loss, weighted, by its label."""
        found: dict[str, Tensor] = {}
        for label, loss in self._due(phase, scene).items():
            kind = kind_of(label, loss)
            if kind == "adversarial":
                found |= self._fool(label, loss, scene)
                if scene.unpaired is not None and loss.view == "whole":
                    alone = Scene(scene.step, whole=scene.unpaired)
                    unpaired = self._fool(label, msgspec.structs.replace(loss, matching=0.0), alone)
                    found[f"{label}_unpaired"] = unpaired[label]
            else:
                found[label] = loss.weight * self._plain(kind, loss, scene)
        return found

    def _due(self, phase: Phase, scene: Scene) -> dict[str, Loss]:
        return {label: loss for label, loss in self.of(phase).items() if scene.step % loss.every == 0}

    def _plain(self, kind: str, loss: Loss, scene: Scene) -> Tensor:
        if kind in _MASKS:
            assert scene.logits is not None
            assert scene.label is not None
            assert scene.known is not None
            return _MASKS[kind](scene.logits, scene.label, scene.known)
        if kind in _FEATURES:
            return self._features(kind, loss, scene)
        if kind == "identity":
            assert self._embedding is not None
            view = scene.view(loss)
            with self._autocast():
                return self._embedding.distance(view.fake, view.real)
        if kind == "age":
            assert self._age_head is not None
            return self._age_head.distance(*(self._seen(loss, scene, which) for which in ("fake", "real")))
        if kind == "temporal":
            # Short-term consistency under a known motion (Lai et al. 2018, arXiv:1808.00449).
            assert scene.moved is not None
            assert scene.whole is not None
            again, both = scene.moved()
            return losses.masked_l1(scene.whole.output, again, both * scene.whole.weight)
        if kind == "kept":
            if scene.unpaired is None or scene.original is None:
                raise UserError("losses: 'kept' is about real masked faces: give them with real=DIR")
            return losses.masked_l1(scene.unpaired.output, scene.original, scene.unpaired.weight)
        return _PICTURES[kind](scene.view(loss))

    def _features(self, kind: str, loss: Loss, scene: Scene) -> Tensor:
        got, wanted = (self._seen(loss, scene, which) for which in ("fake", "real"))
        return torch.stack([_FEATURES[kind](got[name], wanted[name]) for name in loss.maps]).sum()

    def _seen(self, loss: Loss, scene: Scene, which: str) -> dict[str, Tensor]:
        """The feature maps of the painted picture of a view, or of the real one."""
        network = _network_of(loss.maps)
        key = (network, loss.view, loss.shrink, which)
        if any(name not in scene.seen.get(key, {}) for name in loss.maps):
            with self._autocast(), torch.set_grad_enabled(which == "fake"):
                picture = getattr(scene.view(loss), which)
                scene.seen[key] = self._feature_networks[network].features(picture, loss.maps)
        return scene.seen[key]

    def _new_judge(self, loss: Loss) -> nn.Module:
        if loss.judge == "patches":
            return PatchDiscriminator()
        return FeatureDiscriminator(self._feature_networks[_network_of(loss.maps)].channels(loss.maps))

    def _judged(self, label: str, loss: Loss, scene: Scene, which: str, *, learns: bool) -> tuple[Tensor, list[Tensor]]:
        """What a discriminator says of the painted picture, or of the real one, and its features."""
        judge = self.judges[label].requires_grad_(learns)
        view = scene.view(loss)
        x = self._seen(loss, scene, which) if loss.judge == "features" else getattr(view, which)
        if learns:
            x = {k: v.detach() for k, v in x.items()} if isinstance(x, dict) else x.detach()
        with self._autocast():
            score, features = judge(x, view.mask)
        return score, features

    def _fool(self, label: str, loss: Loss, scene: Scene) -> dict[str, Tensor]:
        """What a discriminator says against the painted picture, and feature matching with it, weighted."""
        score, fake = self._judged(label, loss, scene, "fake", learns=False)
        found = {label: loss.weight * losses.adversarial_generator(score, loss.form)}
        if loss.matching:
            with torch.no_grad():
                _, real = self._judged(label, loss, scene, "real", learns=False)
            found[f"{label}_matching"] = loss.matching * losses.feature_matching(real, fake)
        return found

    def judge(self, phase: Phase, scene: Scene, share: float) -> Tensor | None:
        """Add the gradient of `share` times the mean loss of the discriminators. Returns that loss; None without any.

        Raises:
            UnmaskError: it is broken.
        """
        due = {label: loss for label, loss in self._due(phase, scene).items() if kind_of(label, loss) == "adversarial"}
        if not due:
            return None
        value = torch.stack([self._judge(label, loss, scene) for label, loss in due.items()])
        if scene.unpaired is not None:
            alone = Scene(scene.step, whole=scene.unpaired)
            of_it = [self._judge(label, loss, alone) for label, loss in due.items() if loss.view == "whole"]
            value = torch.stack([*value, *of_it])
        mean = value.mean()
        check_finite(mean, scene.step)
        (share * mean).backward()  # type: ignore[no-untyped-call]
        return mean

    def _judge(self, label: str, loss: Loss, scene: Scene) -> Tensor:
        real, fake = (self._judged(label, loss, scene, which, learns=True)[0] for which in ("real", "fake"))
        value = losses.adversarial_discriminator(real, fake, loss.form)
        view, judge = scene.view(loss), self.judges[label]
        if not loss.penalty:
            return value
        if loss.form == "wgan-gp":
            share = torch.rand(len(view.real), 1, 1, 1, device=self._device)
            between = torch.lerp(view.fake.detach().float(), view.real.float(), share).requires_grad_()
            norms = losses.gradient_norms(judge(between, view.mask)[0], between)
            return value + loss.penalty * ((norms + 1e-12).sqrt() - 1.0).square().mean()
        real_rgb = view.real.detach().float().clone().requires_grad_()  # R1 (Mescheder et al. 2018, arXiv:1801.04406)
        return value + 0.5 * loss.penalty * losses.gradient_norms(judge(real_rgb, view.mask)[0], real_rgb).mean()

    def update(self) -> None:
        """Step the discriminators by the gradients of all processes."""
        share_gradients(self.judges)
        for optimizer in self.optimizers:
            optimizer.step()

    def _load(self, network: str) -> Vgg | EfficientNet:
        if network == "efficientnet":
            if not self._recipe.efficientnet_weights:
                raise UserError("the maps 'stage1' to 'stage7' need efficientnet_weights=FILE")
            return channels_last(EfficientNet(Path(self._recipe.efficientnet_weights))).to(self._device)
        if not self._recipe.perceptual_weights:
            raise UserError(
                "perceptual, style and judges of features need a VGG: give its file with perceptual_weights=FILE"
            )
        return Vgg(Path(self._recipe.perceptual_weights), self._recipe.perceptual_network).to(self._device)

    def _load_embedding(self) -> FaceEmbedding:
        if not self._recipe.identity_weights:
            raise UserError("identity needs a network that embeds faces: give its file with identity_weights=FILE")
        return FaceEmbedding(Path(self._recipe.identity_weights)).to(self._device)

    def _load_age_head(self) -> AgeHead:
        if not self._recipe.age_weights:
            raise UserError("age needs what unmask data ages writes: give it with age_weights=FILE")
        return AgeHead.load(Path(self._recipe.age_weights)).to(self._device)


def _check(named: list[tuple[str, Loss]], *, draws: bool, segments: bool) -> None:
    own = [*(k for k in KINDS if draws and k not in _MASKS), *(k for k in _MASKS if segments)]
    other = {"temporal"} if segments else {"kept"}  # a network that also finds masks is not run twice
    own = [k for k in own if k not in other]
    problems = []
    for label, loss in named:
        kind = kind_of(label, loss)
        if kind not in KINDS:
            problems.append(f"losses: unknown loss '{kind}'{nearest(kind, own)} (one of {', '.join(own)})")
        elif kind not in own:
            problems.append(f"losses: '{kind}' is not for this model (one of {', '.join(own)})")
        elif kind == "adversarial" and any(
            one == label and _judge_of(other) != _judge_of(loss) for one, other in named
        ):
            problems.append(f"losses: '{label}' has one judge in all phases; give another one another key")
        elif loss.judge == "features" and (loss.matching or loss.penalty):
            problems.append(f"losses: '{label}' is judged by features: it has no matching and no penalty")
        elif len({_network_of((name,)) for name in loss.maps}) > 1:
            problems.append(f"losses: '{label}' has maps of two networks; give each its own loss")
        elif kind == "age" and (loss.view, loss.shrink, loss.maps) != ("lower", 1, AGE_MAPS):
            problems.append(f"losses: '{label}' looks at the lower face: view: lower, maps: [{', '.join(AGE_MAPS)}]")
        elif kind == "identity" and loss.view != "whole":
            problems.append(f"losses: '{label}' looks at the whole face, not at view: {loss.view}")
    if problems:
        raise UserError("; ".join(dict.fromkeys(problems)))


def _networks(named: list[tuple[str, Loss]]) -> Iterator[str]:
    """The networks whose feature maps the losses look at."""
    for label, loss in named:
        kind = kind_of(label, loss)
        if kind in {*_FEATURES, "age"} or (kind == "adversarial" and loss.judge == "features"):
            yield _network_of(loss.maps)


def _network_of(maps: tuple[str, ...]) -> str:
    return "efficientnet" if maps and maps[0].startswith("stage") else "vgg"


def _judge_of(loss: Loss) -> tuple[str, ...]:
    return ("features", *loss.maps) if loss.judge == "features" else ("patches",)


def on_device(batch: B, device: torch.device) -> B:
    """A batch (a dataclass of tensors) on a device."""
    return next(split_batch(batch, 1, device))


def split_batch(batch: B, count: int, device: torch.device) -> Iterator[B]:
    """A batch (a dataclass of tensors) on a device, in `count` parts of about the same size."""
    pieces = [getattr(batch, f.name).to(device).tensor_split(count) for f in fields(batch)]
    for part in zip(*pieces, strict=True):
        yield type(batch)(*part)


class ObjectiveTrainer(Trainer[B]):
    """A network trained by the losses that its recipe names.

    Args:
        recipe: what to do.
        build: makes the network, with random weights.
        defaults: weights of losses, where the recipe names none.
        draws, segments: whether the network paints pictures, and whether it finds masks.
    """

    def __init__(
        self,
        recipe: Recipe,
        build: Callable[[], nn.Module],
        defaults: Mapping[str, float],
        *,
        draws: bool,
        segments: bool,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.device = torch.device(recipe.device)
        self.recipe = recipe
        model = channels_last(build()).to(self.device)
        self.objectives = Objectives(recipe, defaults, self.autocast, draws=draws, segments=segments)
        self.augmenter = Augmenter(recipe.augmentation)
        super().__init__(recipe.model, recipe, model, make_optimizer(recipe.optimizer, model), **self.objectives.parts)

    @abstractmethod
    def scene(self, phase: Phase, step: int, batch: B) -> Scene:
        """Run the network on a part of a batch."""

    def step(self, phase: Phase, step: int, batch: B) -> dict[str, float]:
        self.begin(phase, step, *self.objectives.optimizers)
        share = 1.0 / self.recipe.accumulate
        figures: dict[str, float] = {}
        for part in split_batch(batch, self.recipe.accumulate, self.device):
            scene = self.scene(phase, step, part)
            found = self.objectives.losses(phase, scene)
            self.backward(share * torch.stack(list(found.values())).sum())
            if (judged := self.objectives.judge(phase, scene, share)) is not None:
                found["judges"] = judged
            for name, value in found.items():
                figures[name] = figures.get(name, 0.0) + share * value.item()
        self.update()
        self.objectives.update()
        return figures
