"""The output that is a file."""

import threading
from pathlib import Path
from typing import Any, Final

import av
from av.video.frame import VideoFrame

from unmask.errors import StageError, UserError
from unmask.stream.live.feed import FeedInfo
from unmask.stream.live.mailbox import Mailbox, WhenFull
from unmask.stream.live.output import Output, Showing
from unmask.stream.live.state import Sound
from unmask.stream.live.writer import StreamWriter, choose_coding
from unmask.stream.naming import NO_SPACE
from unmask.stream.stage import Context

RECORDED: Final = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".ts": "mpegts", ".flv": "flv"}
"""What a recording can be named, and FFmpeg's format for it."""

_OPTIONS: Final = {"flush_packets": "1"}  # so that the size of a recording under way can be seen
_PLACES: Final = 8


def check_record_name(path: Path) -> None:
    """Raise UserError where a recording cannot have this name."""
    if path.suffix.lower() not in RECORDED:
        raise UserError(f"{path}: a recording must end in {', '.join(RECORDED)}")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent}: no such folder; make it first")


class Record(Output):
    """Writes every frame to a file, in a thread of its own. It never drops one: where the disk or the encoder is
    slower than the run, the run waits, and the source drops.

    Args:
        path: the draft to write; what it is called in the end is for the caller to decide.
        shown_as: its name for the user.
        info: of the source.
        gpu: try NVENC first.
    """

    name = "record"
    wants_sound = True

    def __init__(self, path: Path, shown_as: Path, info: FeedInfo, *, gpu: bool = False) -> None:
        self._path, self._shown_as, self._info, self._gpu = path, shown_as, info, gpu

    def open(self, context: Context) -> None:
        self._frames = 0
        self._error: BaseException | None = None
        self._finishing = False
        self._box: Mailbox[tuple[VideoFrame, list[Sound]]] = Mailbox(_PLACES, WhenFull.BLOCK)
        suffix = self._path.suffix.lower()
        self._coding = choose_coding(self._info, context.layout, suffix, gpu=self._gpu, push=False)
        for reason in self._coding.choice.refused:
            context.notice(f"record: {reason}")
        context.notice(f"recording {self._shown_as}: {self._coding}")
        try:
            self._writer = StreamWriter(f"file:{self._path}", RECORDED[suffix], self._coding, _OPTIONS)
        except (av.FFmpegError, OSError) as error:
            raise UserError(f"{self._shown_as}: cannot be written ({error.strerror}); choose another file") from error
        if RECORDED[suffix] == "mpegts":
            context.notice(f"left out: tags comment: {suffix} cannot hold them")
        self._thread = threading.Thread(target=self._work, name="unmask-record", daemon=True)
        self._thread.start()

    def show(self, showing: Showing) -> None:
        self._box.put((showing.picture(), showing.sounds))
        self._raise_error()

    def finish(self) -> None:
        self._finishing = True
        self._box.close()
        self._thread.join()
        self._raise_error()

    def close(self) -> None:
        if hasattr(self, "_thread"):
            self._box.close()
            self._thread.join(2.0)

    def summary(self) -> dict[str, Any]:
        return {"file": str(self._shown_as), "encoder": self._coding.choice.encoder.name, "frames": self._frames}

    def _work(self) -> None:
        try:
            while not self._box.ended:
                load = self._box.get(1.0)
                if load is not None:
                    self._writer.write(*load)
                    self._frames += 1
            if self._finishing and self._frames:
                self._writer.finish()
            else:
                self._writer.abandon()
        except Exception as error:
            self._error = error
            self._box.close()
            self._writer.abandon()

    def _raise_error(self) -> None:
        error = self._error
        if error is None:
            return
        if getattr(error, "errno", None) in NO_SPACE:
            reason = f"no space left for {self._shown_as}; free some, or choose another folder"
        else:
            reason = f"{self._shown_as} cannot be written ({getattr(error, 'strerror', None) or error})"
        raise StageError("outputs", reason) from error
