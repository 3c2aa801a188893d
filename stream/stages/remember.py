"""Remember: ends the first pass through a file, which looks for faces that are bare only after they wore a mask."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from unmask.stream.face_memory import FaceMemory
from unmask.stream.frame import Frame
from unmask.stream.later_views import save_views
from unmask.stream.stage import Context, Sink


class Remember(Sink):
    """Writes the views of those faces, for `Inpaint` in the second pass.

    Args:
        path: the file, .npz.
    """

    name: ClassVar[str] = "remember"

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, context: Context) -> None:
        self._memory = FaceMemory(keeps=True)

    def process(self, frame: Frame) -> Iterable[Frame]:
        if frame.discontinuity:
            self._memory.forget()
        self._memory.look(frame.faces, frame.pts_seconds)
        return (frame,)

    def flush(self) -> Iterable[Frame]:
        self._memory.finish()
        save_views(self._path, self._memory.bare_later)
        return ()

    def summary(self) -> dict[str, Any]:
        return {"faces": len(self._memory.bare_later)}
