"""Frames of videos, spread over their length."""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import av
import numpy as np
import numpy.typing as npt

from unmask.errors import UserError

U8 = npt.NDArray[np.uint8]

VIDEO_SUFFIXES: Final = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"})


def spread_frames(video: Path, most: int) -> Iterator[tuple[float, U8]]:
    """At most about `most` frames, evenly spread: their times in seconds, and (H, W, 3) uint8 RGB.

    Raises:
        UserError: the file cannot be read as a video.
    """
    try:
        with av.open(str(video)) as container:
            if not container.streams.video:
                raise UserError(f"'{video}' holds no video; name a file with pictures")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            length = float(container.duration or 0) / av.time_base
            apart = length / most
            due = 0.0
            for frame in container.decode(stream):
                time = frame.time or 0.0
                if time >= due:
                    due = max(due, time) + apart
                    turns = round(frame.rotation / 90)  # as phones ask for; counter-clockwise
                    yield time, np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns), np.uint8)
    except av.FFmpegError as error:
        raise UserError(f"cannot read '{video}' as a video: {error}") from error
