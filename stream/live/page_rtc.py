"""Calls from pages by WebRTC: the page's camera comes in, the result goes back."""

import asyncio
from typing import Any, Final

from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av.video.frame import VideoFrame

from unmask.stream.live.mailbox import Mailbox
from unmask.stream.live.page_camera import PageFeed

_OVER: Final = frozenset({"failed", "closed"})
"""States of a connection from which no picture comes any more."""

_CONNECT_SECONDS: Final = 90.0
"""For a connection to come to be. Most fail after 60 s by themselves; a call without an address to try never does."""


class _Result(MediaStreamTrack):  # type: ignore[misc,unused-ignore]
    """The newest result, for one call."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self._newest: asyncio.Queue[VideoFrame] = asyncio.Queue(1)

    def show(self, picture: VideoFrame) -> None:
        if self._newest.full():
            self._newest.get_nowait()
        self._newest.put_nowait(picture)

    async def recv(self) -> VideoFrame:
        return await self._newest.get()


class PageCalls:
    """All calls; the newest one that has given a picture is the source. Used in the event loop of the page's server.

    Args:
        feed: takes the pictures.
    """

    def __init__(self, feed: PageFeed) -> None:
        self._feed = feed
        self._result: _Result | None = None
        self._source: asyncio.Task[None] | None = None
        self._peers: set[RTCPeerConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def wanted(self) -> bool:
        """True while somebody looks at the result."""
        return self._result is not None

    def show(self, picture: VideoFrame) -> None:
        """Send a result, with its time."""
        if self._result is not None:
            self._result.show(picture)

    async def answer(self, offer: dict[str, str]) -> dict[str, str]:
        """Take a call.

        Args:
            offer: `sdp` and `type` of the page's session description.

        Returns:
            The same of ours.

        Raises:
            ValueError: it offers no video.
            Exception: whatever aiortc raises where it is no session description.
        """
        peer = RTCPeerConnection()
        self._peers.add(peer)
        try:
            return await self._connect(peer, offer)
        except BaseException:
            self._peers.discard(peer)
            await peer.close()
            raise

    async def _connect(self, peer: RTCPeerConnection, offer: dict[str, str]) -> dict[str, str]:
        result, taken = _Result(), False
        peer.addTrack(result)

        @peer.on("track")
        def on_track(track: MediaStreamTrack) -> None:
            nonlocal taken
            if track.kind == "video" and not taken:
                taken = True
                self._keep(self._take(track, peer, result))

        await peer.setRemoteDescription(RTCSessionDescription(sdp=offer["sdp"], type=offer["type"]))
        if not taken:
            raise ValueError("it offers no video")
        await peer.setLocalDescription(await peer.createAnswer())
        return {"sdp": peer.localDescription.sdp, "type": peer.localDescription.type}

    async def end(self) -> None:
        """Hang up."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for peer in list(self._peers):
            await peer.close()

    def _keep(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, track: MediaStreamTrack, peer: RTCPeerConnection, result: _Result) -> None:
        """Hand the page's pictures on until it hangs up, or the call fails.

        A track whose call never came to be neither gives a picture nor ends: the state of the connection tells.
        """
        passing = asyncio.get_running_loop().create_task(self._pass_on(track, result))

        @peer.on("connectionstatechange")
        def on_change() -> None:
            if peer.connectionState in _OVER:
                passing.cancel()

        on_change()  # it may have been closed before this task began
        try:
            await asyncio.wait([passing], timeout=_CONNECT_SECONDS)
            if peer.connectionState == "connected":
                await asyncio.wait([passing])
        finally:
            passing.cancel()
            self._peers.discard(peer)
            await peer.close()

    async def _pass_on(self, track: MediaStreamTrack, result: _Result) -> None:
        """Hand the pictures on. Until the first one is there, the page before this one stays the source; then that
        is hung up, so that it gives its camera back and offers it again."""
        box: Mailbox[VideoFrame] | None = None
        try:
            while True:
                picture = await track.recv()
                if isinstance(picture, VideoFrame):
                    if box is None:
                        if self._source is not None:
                            self._source.cancel()
                        box, self._result, self._source = self._feed.begin(), result, asyncio.current_task()
                    box.put(picture)
        except MediaStreamError:
            pass
        finally:
            if box is not None:
                box.close()
            if self._result is result:
                self._result = self._source = None
