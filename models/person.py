"""A personal model: views of somebody's bare face, and a small change of the inpainter's weights, made by
`unmask personalize`.

The file is safetensors. `views.N.picture`, uint8, is a canonical crop as WebP, `views.N.points`, (468, 3) float32, its
landmarks in px of that. The rest, in half precision, is missing where too little was given to learn from. For each
convolution NAME of the network as it ships (batch normalisation folded in) it holds NAME.bias, what is added to its
biases, and what is added to its weights: NAME.delta, or the two factors NAME.up (out, rank) and NAME.down (rank, in *
kernel) of low-rank adaptation (Hu et al. 2021, arXiv:2106.09685).
"""

import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from unmask.errors import EngineError, UserError
from unmask.models.engine import (
    Engine,
    EngineChoice,
    OpenVinoEngine,
    TorchEngine,
    compile_network,
    cpu_streams,
    read_network,
    weights_file,
)
from unmask.models.geometry import ANCHOR_POINTS, CROP_SIZE
from unmask.models.seen import Seen, Views
from unmask.models.vino import openvino

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
_VIEWS: Final = "views."
_WEBP_QUALITY: Final = 92
_FARTHEST_PX: Final = 10 * CROP_SIZE
"""From the corner of the crop: no landmark lies there."""
_FLATTEST_PX: Final = 1.0
"""How far landmarks lie from a line, at least: from less it cannot be told where a head looks."""

BASE_KEY: Final = "inpainter"
"""In the file's metadata: `base_hash` of the inpainter that it was made for."""


def base_hash() -> str:
    """SHA-256 of the inpainter that is in use."""
    return hashlib.sha256(weights_file("inpainter.onnx").read_bytes()).hexdigest()


@dataclass(frozen=True)
class Person:
    """What `unmask personalize` wrote.

    Attributes:
        tensors: by name, float32.
        views: of the face, bare; none in older files.
    """

    tensors: dict[str, F32]
    views: Views = field(default_factory=Views)

    @classmethod
    def load(cls, path: Path) -> "Person":
        """Read a personal model.

        Raises:
            UserError: the file cannot be read, is none or damaged, or was made for another inpainter.
        """
        tensors = _read(path)
        changes = {name: x for name, x in tensors.items() if not name.startswith(_VIEWS)}
        if not _fits_inpainter(changes):
            raise _damaged(path)
        return cls({name: x.astype(np.float32) for name, x in changes.items()}, _read_views(tensors, path))

    @cached_property
    def changes(self) -> dict[str, F32]:
        """What is added to each weight and bias of the network, by its name there; weights as (out, in * kernel)."""
        found = {}
        for name, value in self.tensors.items():
            conv, _, part = name.rpartition(".")
            if part == "up":
                found[f"{conv}.weight"] = value @ self.tensors[f"{conv}.down"]
            elif part == "delta":
                found[f"{conv}.weight"] = value.reshape(len(value), -1)
            elif part == "bias":
                found[name] = value
        return found


def _read(path: Path) -> dict[str, npt.NDArray[Any]]:
    """What a file holds, by name. Raises UserError where it is no personal model, or not one for this inpainter."""
    try:
        with safe_open(path, framework="numpy") as file:
            base = (file.metadata() or {}).get(BASE_KEY)
            names = list(file.keys())
            if base is None:
                raise UserError(f"'{path}' is no personal model; make one with: unmask personalize")
            if not all(name.startswith(_VIEWS) for name in names) and base != base_hash():
                raise UserError(f"'{path}' was made for another inpainter than the one in use; make it again")
            return {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read '{path}' as a personal model; make one with: unmask personalize") from error
    except (AttributeError, TypeError, ValueError) as error:  # of a kind of number that NumPy does not have
        raise _damaged(path) from error


def _damaged(path: Path) -> UserError:
    return UserError(f"'{path}' is damaged; make it again with: unmask personalize")


def _fits_inpainter(tensors: Mapping[str, npt.NDArray[Any]]) -> bool:
    """Whether each is what `Person` says of some convolution of the inpainter, and all are numbers."""
    if not tensors:
        return True
    with safe_open(weights_file("inpainter.safetensors"), framework="numpy") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    for name, value in tensors.items():
        conv, _, part = name.rpartition(".")
        weight = shapes.get(f"{conv}.weight", ())
        if len(weight) != 4:
            return False
        out, rank = weight[0], _rank(tensors, conv)
        wanted = {"bias": (out,), "delta": weight, "up": (out, rank), "down": (rank, math.prod(weight[1:]))}
        if value.dtype.kind != "f" or value.shape != wanted.get(part) or not np.isfinite(value).all():
            return False
    return True


def _rank(tensors: Mapping[str, npt.NDArray[Any]], conv: str) -> int | None:
    """Columns of NAME.up where there is a NAME.down to multiply it with."""
    up, down = tensors.get(f"{conv}.up"), tensors.get(f"{conv}.down")
    return None if up is None or down is None or up.ndim != 2 else up.shape[1]


def views_to_tensors(views: Views) -> dict[str, U8 | F32]:
    """What a file holds of views, by name."""
    tensors: dict[str, U8 | F32] = {}
    for number, view in enumerate(views.views.values()):
        _, picture = cv2.imencode(".webp", view.crop[..., ::-1], (cv2.IMWRITE_WEBP_QUALITY, _WEBP_QUALITY))
        tensors[f"{_VIEWS}{number}.picture"] = np.asarray(picture, np.uint8).ravel()
        tensors[f"{_VIEWS}{number}.points"] = np.ascontiguousarray(view.points, np.float32)
    return tensors


def _read_views(tensors: Mapping[str, npt.NDArray[Any]], path: Path) -> Views:
    """The other way round, as seen long ago. Raises UserError where they are none."""
    views, nothing = Views(), np.empty(0)
    for view in sorted({name.rpartition(".")[0] for name in tensors if name.startswith(_VIEWS)}):
        picture, points = _decoded(tensors.get(f"{view}.picture", nothing)), tensors.get(f"{view}.points", nothing)
        if picture is None or not _are_landmarks(points):
            raise _damaged(path)
        views.add(Seen(picture, points.astype(np.float32), -math.inf))
    return views


def _decoded(picture: npt.NDArray[Any]) -> U8 | None:
    """A canonical crop, of its file; None where it is none."""
    if picture.dtype != np.uint8 or not picture.size:
        return None
    try:
        bgr = cv2.imdecode(picture.ravel(), cv2.IMREAD_COLOR)
    except cv2.error:  # what claims to be larger than OpenCV takes
        return None
    if bgr is None or bgr.shape != (CROP_SIZE, CROP_SIZE, 3):
        return None
    return np.ascontiguousarray(bgr[..., ::-1], np.uint8)


def _are_landmarks(points: npt.NDArray[Any]) -> bool:
    """Whether these can be landmarks of a face in its canonical crop."""
    if points.dtype.kind != "f" or points.shape != (468, 3) or not (np.abs(points) <= _FARTHEST_PX).all():
        return False  # NaN is not within, either
    placing = points[ANCHOR_POINTS, :2].astype(np.float64)
    spread = np.linalg.svd(placing - placing.mean(axis=0), compute_uv=False)
    return bool(spread[-1] > _FLATTEST_PX * len(placing) ** 0.5)


class PersonalOpenVinoEngine(OpenVinoEngine):
    """The inpainter with the change of a person, on the processor.

    Args:
        person: the change.
        threads: CPU threads for one face; 0 for as many as `cpu_streams` says.
    """

    def __init__(self, person: Person, threads: int = 0) -> None:
        model = read_network("inpainter.onnx")
        _change(model, person)
        streams, usual = cpu_streams()
        self._use(compile_network(model, threads=threads or usual, streams=streams))
        self.description += ", personal"


def _change(model: openvino.Model, person: Person) -> None:
    """Add a person's change to the constants of the network. Raises EngineError where one of them is not there."""
    left = {f"network.{name}": change for name, change in person.changes.items()}
    for node in model.get_ops():
        change = left.pop(node.get_friendly_name(), None) if node.get_type_name() == "Constant" else None
        if change is not None:
            before = node.data
            value = (before.astype(np.float32) + change.reshape(before.shape)).astype(before.dtype)
            node.output(0).replace(openvino.op.Constant(value).output(0))
    if left:
        raise EngineError(f"the inpainter has no {next(iter(left))}, which the personal model changes")


class PersonalTorchEngine(TorchEngine):
    """The inpainter with the change of a person, under PyTorch.

    Args:
        person: the change.
        device: "cpu" or "cuda:N".
    """

    def __init__(self, person: Person, device: str) -> None:
        super().__init__("inpainter", device)
        from unmask.models.folding import fold_norms

        fold_norms(self._runtime)
        parameters = dict(self._runtime.network.named_parameters())
        with self._torch.no_grad():
            for name, change in person.changes.items():
                parameter = parameters[name]
                parameter.add_(self._torch.from_numpy(change).view(parameter.shape).to(parameter.device))
        self.description += ", personal"


def load_personal(person: Person, choice: EngineChoice, notice: Callable[[str], None]) -> Engine:
    """The inpainter with the change of a person: under OpenVINO on the processor, under PyTorch on a GPU.

    Args:
        person: the change.
        choice: what runs the other networks.
        notice: takes a line for the user where something else runs this one.

    Raises:
        EngineError: the network cannot be loaded.
    """
    engine = "openvino" if choice.device == "cpu" else "torch"
    if choice.engine != engine:
        notice(f"{choice.engine} cannot run a personal model; {engine} is used for the inpainter")
    if engine == "openvino":
        return PersonalOpenVinoEngine(person, choice.threads)
    return PersonalTorchEngine(person, choice.device)
