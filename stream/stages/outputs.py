"""The last stage of a live run: each frame goes to every output, and its latency is read."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, ClassVar

import numpy as np

from unmask.stream.frame import Frame
from unmask.stream.live import time_code
from unmask.stream.live.output import Output, Showing
from unmask.stream.live.state import LiveState
from unmask.stream.stage import Context, Sink


class Outputs(Sink):
    """Fans frames out. Latency is read when every output has taken the frame.

    Args:
        outputs: in the order in which they are served.
        state: of the run.
    """

    name: ClassVar[str] = "outputs"

    def __init__(self, outputs: Sequence[Output], state: LiveState) -> None:
        self._outputs = outputs
        self._state = state
        self._opened = ExitStack()

    def open(self, context: Context) -> None:
        with ExitStack() as opened:
            for output in self._outputs:
                opened.callback(output.close)
                output.open(context)
            self._opened = opened.pop_all()

    def process(self, frame: Frame) -> Iterable[Frame]:
        # Before any output draws on it, and from the pixels that they get.
        code = time_code.read(np.asarray(frame.planes[0], np.uint8)) if self._state.coded else None
        showing = Showing(frame, self._state.take_sounds())
        for output in self._outputs:
            self._state.serving = output.name
            output.show(showing)
        self._state.serving = None
        masks = sum(face.masked for face in frame.faces)
        self._state.shown(frame.index, code, len(frame.faces), masks)
        return (frame,)

    def flush(self) -> Iterable[Frame]:
        for output in self._outputs:
            output.finish()
        return ()

    def close(self) -> None:
        self._opened.close()

    def summary(self) -> dict[str, Any]:
        return {output.name: output.summary() for output in self._outputs}
