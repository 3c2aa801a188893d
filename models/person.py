"""A personal model: a small change of the inpainter's weights, made by `unmask personalize`.

The file is safetensors in half precision. For each convolution NAME of the network as it ships (batch normalisation
folded in) it holds NAME.bias, what is added to its biases, and what is added to its weights: NAME.delta, or the two
factors NAME.up (out, rank) and NAME.down (rank, in * kernel) of low-rank adaptation (Hu et al. 2021, arXiv:2106.09685).
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

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
from unmask.models.vino import openvino

F32 = npt.NDArray[np.float32]

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
    """

    tensors: dict[str, F32]

    @classmethod
    def load(cls, path: Path) -> "Person":
        """Read a personal model.

        Raises:
            UserError: the file cannot be read, is none, or was made for another inpainter.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                base = (file.metadata() or {}).get(BASE_KEY)
                tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise UserError(f"cannot read '{path}' as a personal model; make one with: unmask personalize") from error
        if base is None:
            raise UserError(f"'{path}' is no personal model; make one with: unmask personalize")
        if base != base_hash():
            raise UserError(f"'{path}' was made for another inpainter than the one in use; make it again")
        return cls(tensors)

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


def load_personal(path: Path, choice: EngineChoice, notice: Callable[[str], None]) -> Engine:
    """The inpainter with a personal model: under OpenVINO on the processor, under PyTorch on a GPU.

    Args:
        path: of the personal model.
        choice: what runs the other networks.
        notice: takes a line for the user where something else runs this one.

    Raises:
        UserError: the file is no personal model for this inpainter.
        EngineError: the network cannot be loaded.
    """
    person = Person.load(path)
    engine = "openvino" if choice.device == "cpu" else "torch"
    if choice.engine != engine:
        notice(f"{choice.engine} cannot run a personal model; {engine} is used for the inpainter")
    if engine == "openvino":
        return PersonalOpenVinoEngine(person, choice.threads)
    return PersonalTorchEngine(person, choice.device)
