"""Remember: ends the first pass through a file, which looks for faces that are bare only after they wore a mask."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from unmask.stream.face_memory import FaceMemory
from unmask.stream.frame import Frame
from unmask.stream.later_views import ViewsWriter
from unmask.stream.stage import Context, Sink


class Remember(Sink):
    """Writes the views of those faces, for `Inpaint` in the second pass.

    Args:
        path: the file.
    """

    name: ClassVar[str] = "remember"

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, context: Context) -> None:
        self._views = ViewsWriter(self._path)
        self._memory = FaceMemory(keep=self._views.add, recalls=False)

    def process(self, frame: Frame) -> Iterable[Frame]:
        if frame.discontinuity:
            self._memory.forget()
        self._memory.look(frame.faces, frame.pts_seconds)
        return (frame,)

    def flush(self) -> Iterable[Frame]:
        self._memory.finish()
        self._views.close()
        return ()

    def close(self) -> None:
        self._views.close()

    def summary(self) -> dict[str, Any]:
        return {"faces": self._views.people}
