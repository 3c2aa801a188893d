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
        engine: "auto" or the name of one.
        person: file with a personal model; empty for the general one.
        threads: CPU threads of the network; 0 leaves it to the engine.
    """

    name: ClassVar[str] = "inpaint"

    def __init__(self, device: str = "auto", engine: str = "auto", person: str = "", threads: int = 0) -> None:
        self._device, self._engine_name, self._person, self._threads = device, engine, person, threads

    def open(self, context: Context) -> None:
        choice = choose(self._device, self._engine_name, threads=self._threads, person=self._person)
        self._engine: Engine = context.load("inpainter", choice, context.notice)

    def process(self, frame: Frame) -> Iterable[Frame]:
        masked = [face.pictures for face in frame.faces if face.masked]
        if masked:
            # All that may be replaced is hidden from the network, the soft edge too: it still shows the mask.
            hidden = [np.asarray(pictures.mask > 0, np.uint8) * np.uint8(255) for pictures in masked]
            painted = self._engine(np.stack([pictures.crop for pictures in masked]), np.stack(hidden))
            for pictures, picture in zip(masked, painted, strict=True):
                pictures.painted[:] = picture
        return (frame,)

    def summary(self) -> dict[str, Any]:
        return {"engine": self._engine.description}
