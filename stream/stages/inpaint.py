"""Inpaint: paints the hidden part of each masked face, in its canonical crop."""

from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from unmask.models.engine import Engine, choose
from unmask.stream.frame import Frame
from unmask.stream.stage import Context, Stage


class Inpaint(Stage):
    """Writes `painted` of each masked face.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
    """

    name: ClassVar[str] = "inpaint"

    def __init__(self, device: str = "auto") -> None:
        self._device = device

    def open(self, context: Context) -> None:
        self._engine: Engine = context.load("inpainter", choose(self._device))

    def process(self, frame: Frame) -> Iterable[Frame]:
        for face in frame.faces:
            if face.masked:
                # All that may be replaced is hidden from the network, the soft edge too: it still shows the mask.
                hidden = np.asarray(face.pictures.mask > 0, np.uint8) * np.uint8(255)
                face.pictures.painted[:] = self._engine(face.pictures.crop[None], hidden[None])[0]
        return (frame,)

    def summary(self) -> dict[str, Any]:
        return {"engine": self._engine.description}
