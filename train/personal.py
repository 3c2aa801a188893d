"""Makes the inpainter a person's own: views of their bare face, and a small change of its weights."""

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.errors import UserError
from unmask.models.engine import cpu_precision, weights_file
from unmask.models.folding import fold_norms
from unmask.models.inpainter import Inpainter
from unmask.models.mediapipe import FaceDetector, FaceMesh
from unmask.models.person import BASE_KEY, base_hash, views_to_tensors
from unmask.models.seen import Seen, Views
from unmask.train.config import Phase, Recipe, Split
from unmask.train.data import PICTURE_SUFFIXES, CropWriter, FaceCrops, largest_face, read_rgb, writing_crops
from unmask.train.files import ended_like_ctrl_c
from unmask.train.inpainter import PaintTrainer
from unmask.train.mask_judge import MaskJudge
from unmask.train.video import VIDEO_SUFFIXES, spread_frames

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]
Notice = Callable[[str], None]

MOST_BYTES: Final = 2_000_000
"""Of the file."""
MOST_FACES: Final = 240
"""From one video: more of the same minute teach nothing new."""
FEWEST_FACES: Final = 8
"""From fewer nothing is learnt; their views are kept."""
_RANK: Final = 16
_HELD_OUT: Final = 8
"""One face in so many at the end of each source is kept to measure on."""


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
        while rank > 1 and 2 * sum(_adapter_sizes(self.network, rank)) > 0.95 * MOST_BYTES:
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

    def change(self) -> dict[str, Tensor]:
        """What the adapters learnt, as `unmask.models.person` describes it."""
        adapters = [(name, m) for name, m in self.network.named_modules() if isinstance(m, Adapted)]
        return {
            f"{name}.{part}": value.detach().half().contiguous()
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


@dataclass(frozen=True, slots=True)
class Personalized:
    """What came of it.

    Attributes:
        faces: learnt from, or, where they are too few for that, only looked at.
        views: of these that the file holds.
        held_out: measured on.
        masked: left out, as they wear a mask.
        psnr: in the mask, in dB, on the faces that were held out, before and after; None where nothing was learnt.
        size: of the file in bytes.
    """

    faces: int
    views: int
    held_out: int
    masked: int
    psnr: tuple[float, float] | None
    size: int


def personalize(
    sources: Sequence[Path], out: Path, steps: int, progress: Progress, notice: Notice = print
) -> Personalized:
    """Keep views of one person's face, and fine-tune the inpainter to it where there are enough.

    Args:
        sources: videos and pictures of their bare face, or folders of them; the largest face of each is taken.
        out: file to write.
        steps: optimizer steps of four faces.
        progress: is told how many of how many steps are done.
        notice: takes a line for each file that cannot be read.

    Raises:
        UserError: no bare face is found.
        KeyboardInterrupt: after Ctrl-C or SIGTERM; nothing is written.
    """
    with ended_like_ctrl_c(), tempfile.TemporaryDirectory(prefix="unmask-person-") as name:
        folder = Path(name)
        crops, masked = collect_faces(sources, folder, notice)
        views, learnt = views_of(crops), _Learnt({}, 0, None)
        if len(crops.names) >= FEWEST_FACES:
            learnt = _learn(folder, steps, progress)
        tensors = learnt.change | {n: torch.from_numpy(x) for n, x in views_to_tensors(views).items()}
        out.write_bytes(save(tensors, {BASE_KEY: base_hash()}))  # `save_file` makes files for their owner alone
    faces, size = len(crops.names) - learnt.held_out, out.stat().st_size
    return Personalized(faces, len(views.views), learnt.held_out, masked, learnt.psnr, size)


def views_of(crops: FaceCrops) -> Views:
    """One view of a face for each direction in which it looks."""
    views = Views()
    for crop, points in zip(crops.crops[: len(crops.names)], crops.points, strict=True):
        views.add(Seen(np.ascontiguousarray(crop), points.astype(np.float32), -math.inf))
    return views


class _Learnt(NamedTuple):
    """The change of the weights, how many faces it was measured on, and PSNR before and after."""

    change: dict[str, Tensor]
    held_out: int
    psnr: tuple[float, float] | None


def _learn(folder: Path, steps: int, progress: Progress) -> _Learnt:
    """Fine-tune the inpainter to the crops of a folder."""
    trainer = PaintTrainer(_recipe(folder, steps), PersonalInpainter)
    trainer.on_step, trainer.stopping = progress, ""  # the folder goes: no run could go on from there
    before = trainer.validate(256)["validation_psnr"]
    after = trainer.fit()["validation_psnr"]
    model = trainer.averaged()
    assert isinstance(model, PersonalInpainter)
    return _Learnt(model.change(), len(trainer.validation), (before, after))


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


@dataclass
class _Collector:
    """Writes the largest face of each picture that it is given, if it is bare.

    Attributes:
        writer: takes the crops.
        held_out: names of those to measure on.
        masked: how many wore a mask.
    """

    writer: CropWriter
    held_out: list[str] = field(default_factory=list)
    masked: int = 0

    def __post_init__(self) -> None:
        self._detector, self._mesh, self._judge = FaceDetector(), FaceMesh(), MaskJudge()

    def add(self, source: Iterable[U8]) -> None:
        """Add the pictures of a source; the last are held out."""
        before = len(self.writer.names)
        for rgb in source:
            landmarks = largest_face(rgb, self._detector, self._mesh)
            if landmarks is None:
                continue
            if self._judge.wears_mask(rgb, landmarks):
                self.masked += 1
            else:
                self.writer.add(rgb, landmarks, f"{len(self.writer.names):06}")
        found = self.writer.names[before:]
        self.held_out.extend(found[len(found) - len(found) // _HELD_OUT :])


def collect_faces(sources: Sequence[Path], folder: Path, notice: Notice) -> tuple[FaceCrops, int]:
    """Write the crops of one person, and in `held-out.txt` the names of those to measure on: the last of each source.

    Args:
        sources: as for `personalize`.
        folder: to write to.
        notice: takes a line for each file that cannot be read.

    Returns:
        The crops, and how many faces were left out because they wear a mask.

    Raises:
        UserError: there is none, or the only file cannot be read.
    """
    files = [f for source in sources for f in (sorted(source.iterdir()) if source.is_dir() else [source])]
    videos = [f for f in files if f.suffix.lower() in VIDEO_SUFFIXES]
    pictures = [f for f in files if f.suffix.lower() in PICTURE_SUFFIXES]
    if not videos and not pictures:
        raise UserError(f"no video and no picture in {', '.join(map(str, sources))}")
    alone = len(videos) + len(pictures) == 1
    with writing_crops(folder, MOST_FACES * len(videos) + len(pictures)) as writer:
        collector = _Collector(writer)
        for source in (*([video] for video in videos), pictures):
            collector.add(_pictures(source, None if alone else notice))
    if not writer.names:
        masked = f" ({collector.masked} that wear a mask were left out)" if collector.masked else ""
        raise UserError(f"no bare face was found{masked}; give photos or a video of the person's bare face")
    held_out = collector.held_out or writer.names[-1:]  # each source may have too few to hold one out
    (folder / "held-out.txt").write_text("".join(f"{name}\n" for name in held_out))
    return FaceCrops.open(folder), collector.masked


def _pictures(files: Sequence[Path], notice: Notice | None) -> Iterator[U8]:
    """The pictures that some files hold. Of one that cannot be read `notice` is told; it is raised if there is none."""
    for file in files:
        try:
            if file.suffix.lower() in VIDEO_SUFFIXES:
                yield from (rgb for _, rgb in spread_frames(file, MOST_FACES))
            else:
                yield read_rgb(file)
        except UserError as error:
            if notice is None:
                raise
            notice(f"{error}; what cannot be read is left out")
