"""The source that is the camera of whoever opens the page: its pictures come by WebRTC."""

import threading
import time
from collections.abc import Iterator

import numpy as np
from av.video.frame import VideoFrame

from unmask.stream.frame import Layout
from unmask.stream.live.feed import Connection, Feed, FeedInfo, FeedLost, Shot
from unmask.stream.live.mailbox import Mailbox, WhenFull
from unmask.stream.live.state import Sound
from unmask.stream.stages.decode import plane_views

_FIRST_WAIT_SECONDS = 0.5


class PageFeed(Feed):
    """Waits until a page sends its camera, and takes the newest one that does.

    Args:
        size: width and height of the run's pictures in px; others are fitted into it, with black bars.
    """

    name = "the page's camera"

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = (size[0] & ~1, size[1] & ~1)
        self._box: Mailbox[VideoFrame] | None = None
        self._lock = threading.Lock()
        self._arrived = threading.Event()
        self._first = True

    def connect(self) -> Connection:
        if self._first:
            self._first = False
        elif not self._arrived.wait(_FIRST_WAIT_SECONDS):
            raise FeedLost("no page sends its camera")
        return _PageConnection(self)

    def begin(self) -> "Mailbox[VideoFrame]":
        """A page begins to send: it puts its pictures here, and closes it at the end. The page before it is let go."""
        with self._lock:
            if self._box is not None:
                self._box.close()
            self._box = Mailbox(1, WhenFull.DROP_OLDEST)
            self._arrived.set()
            return self._box

    def current(self) -> "Mailbox[VideoFrame] | None":
        """What the newest page sends; None before the first one, and once it has ended."""
        with self._lock:
            if self._box is not None and self._box.ended:
                self._box = None
                self._arrived.clear()
            return self._box


class _PageConnection(Connection):
    def __init__(self, feed: PageFeed) -> None:
        self._feed = feed
        self._closed = False
        self.info = FeedInfo(Layout(*feed.size), coded_as="WebRTC; open the page and allow the camera")

    def items(self) -> Iterator[Shot | Sound]:
        box = None
        while not self._closed:
            box = self._feed.current() or box
            if box is None:
                time.sleep(0.05)
            elif (picture := box.get(0.1)) is not None:
                yield Shot(letterboxed(picture, *self._feed.size), None, time.monotonic())
            elif box.ended:
                self._feed.current()
                raise FeedLost("the page has gone")

    def close(self) -> None:
        self._closed = True


def letterboxed(picture: VideoFrame, width: int, height: int) -> VideoFrame:
    """The picture as yuv420p in the middle of one of this even size, with black bars where the shapes differ."""
    if (picture.width, picture.height, picture.format.name) == (width, height, "yuv420p"):
        return picture
    scale = min(width / picture.width, height / picture.height)
    inner = (max(2, round(picture.width * scale) & ~1), max(2, round(picture.height * scale) & ~1))
    small = picture.reformat(*inner, "yuv420p")
    whole, part = Layout(width, height), Layout(*inner)
    target = VideoFrame(width, height, "yuv420p")
    left, top = (width - inner[0]) // 4 * 2, (height - inner[1]) // 4 * 2
    views = zip(plane_views(target, whole), plane_views(small, part), (16, 128, 128), (1, 2, 2), strict=True)
    for view, source, black, step in views:
        view[:] = black
        y, x = top // step, left // step
        np.copyto(view[y : y + source.shape[0], x : x + source.shape[1]], source)
    return target
