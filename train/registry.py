"""The models that recipes name, and what trains each."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from unmask.errors import UserError
from unmask.models.detector import Detector, DetectorConfig
from unmask.models.inpainter import Inpainter, InpainterConfig
from unmask.models.landmarker import Landmarker, LandmarkerConfig
from unmask.models.published.attention import AttentionConfig, AttentionInpainter
from unmask.models.published.context_encoder import ContextEncoder, ContextEncoderConfig
from unmask.models.published.din2020 import Din2020, Din2020Config
from unmask.models.published.fourier import FourierConfig, FourierInpainter
from unmask.models.published.gated import GatedConfig, GatedInpainter
from unmask.models.published.oagan import OaGan, OaGanConfig
from unmask.models.published.resnet_segmenter import ResNetSegmenter, ResNetSegmenterConfig
from unmask.models.segmenter import Segmenter, SegmenterConfig
from unmask.train import processes
from unmask.train.config import Recipe, as_struct, nearest
from unmask.train.detector import DetectorTrainer
from unmask.train.ear_loops import EarLoopsTrainer
from unmask.train.inpainter import PaintTrainer
from unmask.train.landmarker import LandmarkerTrainer
from unmask.train.loop import Trainer, load_encoder
from unmask.train.more_masks import MoreMasksTrainer
from unmask.train.segmenter import SegmentTrainer
from unmask.train.unmasker import UnmaskTrainer

Build = Callable[[], nn.Module]


@dataclass(frozen=True, slots=True)
class Model:
    """A model that recipes may name.

    Attributes:
        network: its class, which takes a configuration.
        config: the class of that, whose fields are the recipe's `sizes`.
        trainer: takes the recipe and what builds the network.
    """

    network: Callable[[Any], nn.Module]
    config: type
    trainer: Callable[[Recipe, Build], Trainer[Any]]


MODELS: Final[dict[str, Model]] = {
    "inpainter": Model(Inpainter, InpainterConfig, PaintTrainer),
    "segmenter": Model(Segmenter, SegmenterConfig, SegmentTrainer),
    "ear-loops": Model(Segmenter, SegmenterConfig, EarLoopsTrainer),
    "more-masks": Model(Segmenter, SegmenterConfig, MoreMasksTrainer),
    "detector": Model(Detector, DetectorConfig, DetectorTrainer),
    "landmarker": Model(Landmarker, LandmarkerConfig, LandmarkerTrainer),
    "context-encoder": Model(ContextEncoder, ContextEncoderConfig, PaintTrainer),
    "gated": Model(GatedInpainter, GatedConfig, PaintTrainer),
    "fourier": Model(FourierInpainter, FourierConfig, PaintTrainer),
    "attention": Model(AttentionInpainter, AttentionConfig, PaintTrainer),
    "din2020": Model(Din2020, Din2020Config, UnmaskTrainer),
    "oagan": Model(OaGan, OaGanConfig, UnmaskTrainer),
    "segmenter-imagenet": Model(ResNetSegmenter, ResNetSegmenterConfig, SegmentTrainer),
}


def model_of(recipe: Recipe) -> Model:
    """What a recipe trains. Raises UserError where it names none that there is."""
    if recipe.model not in MODELS:
        names = list(MODELS)
        raise UserError(f"model: unknown '{recipe.model}'{nearest(recipe.model, names)} (one of {', '.join(names)})")
    return MODELS[recipe.model]


def build(recipe: Recipe) -> nn.Module:
    """The network of a recipe, with the weights that training begins with. Raises UserError where `sizes` or `encoder`
    do not fit it."""
    model = model_of(recipe)
    network = model.network(as_struct(recipe.sizes, model.config, f"sizes of {recipe.model}"))
    if recipe.encoder:
        if isinstance(network, ResNetSegmenter):
            network.encoder.load_torchvision(Path(recipe.encoder))
        elif isinstance(network, Landmarker):
            load_encoder(network, Path(recipe.encoder))
        else:
            raise UserError(f"encoder: {recipe.model} has none to load; it is for segmenter-imagenet and landmarker")
    return network


def trainer_of(recipe: Recipe) -> Trainer[Any]:
    """What runs a recipe. Raises UserError where it cannot be run here."""
    parts = recipe.accumulate * processes.count()
    if any(phase.batch % parts for phase in recipe.phases):
        raise UserError(f"batch must be a multiple of {parts}: accumulate, times the processes of torchrun")
    if recipe.optimizer.name == "muon" and recipe.precision == "fp16":
        raise UserError("precision: muon does not scale its gradients; use bf16 or fp32 with it")
    _check_device(recipe.device)
    return model_of(recipe).trainer(recipe, lambda: build(recipe))


def _check_device(device: str) -> None:
    kind, _, number = device.partition(":")
    if kind not in {"cpu", "cuda"} or (number and not number.isdecimal()):
        raise UserError(f"device: '{device}' is none of cpu, cuda, cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device: '{device}': PyTorch finds no NVIDIA GPU here; use device=cpu")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UserError(f"device: '{device}': this machine has {torch.cuda.device_count()} GPU(s), counted from 0")
