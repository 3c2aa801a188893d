"""The output that is a web page, for machines without a screen; and the way in for the camera of whoever opens it.

A server of its own thread and event loop. Nothing is served without the token that the printed address holds. A viewer
asks for each picture when it has drawn the one before, so a slow one sees fewer pictures and holds up nobody.
"""

import asyncio
import hmac
import ipaddress
import json
import secrets
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.resources import files
from typing import Any, Final
from urllib.parse import quote

import cv2
import numpy as np
from aiohttp import WSMsgType, web

from unmask.errors import UserError
from unmask.stream.frame import U8, Layout
from unmask.stream.live.certificate import self_signed
from unmask.stream.live.output import Output, Showing, rgb_of
from unmask.stream.live.page_camera import PageFeed
from unmask.stream.live.page_rtc import PageCalls
from unmask.stream.live.state import LiveState
from unmask.stream.stage import Context

_WIDEST: Final = 960
"""Pictures are shown no wider than this, px: larger ones would cost the networks their processors."""

_JPEG_QUALITY: Final = 80
_FIGURES_SECONDS: Final = 0.5
_START_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class Address:
    """Where the page is served.

    Args:
        port: 0 takes any that is free.
        host: an address of this machine; anything but loopback is served with TLS.
        token: what the address must hold; empty for a new random one.
    """

    port: int
    host: str = "127.0.0.1"
    token: str = ""

    @property
    def loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class WebPage(Output):
    """Serves the page.

    Args:
        address: where.
        state: of the run: its figures are shown, and the page can stop and start it.
        feed: takes the page's camera; None where the source is another.
    """

    name = "page"
    wants_source = True

    def __init__(self, address: Address, state: LiveState, feed: PageFeed | None = None) -> None:
        self._address = address
        self._token = address.token or secrets.token_urlsafe(16)
        self._state = state
        self._feed = feed

    def open(self, context: Context) -> None:
        self._layout = context.layout
        self._views = 0
        self._viewers: set[web.WebSocketResponse] = set()
        self._asking = 0
        self._pair: tuple[U8, U8] | None = None
        self._newest: tuple[tuple[U8, U8], asyncio.Future[bytes]] | None = None
        self._coder = ThreadPoolExecutor(1, "unmask-jpeg")
        self._loop = asyncio.new_event_loop()
        self._fresh = asyncio.Condition()
        self._calls = PageCalls(self._feed) if self._feed is not None else None
        self._thread = threading.Thread(target=self._serve, name="unmask-page", daemon=True)
        self._thread.start()
        self._runner, port = self._ask(self._start())
        scheme = "http" if self._address.loopback else "https"
        host = f"[{self._address.host}]" if ":" in self._address.host else self._address.host
        context.notice(f"page: {scheme}://{host}:{port}/?token={quote(self._token, safe='')}")
        if not self._address.loopback:
            context.notice("page: the certificate is signed by this program only; browsers ask once whether to go on")

    def show(self, showing: Showing) -> None:
        if self._asking:
            self._pair = showing.i420(source=True), showing.i420()
            self._loop.call_soon_threadsafe(self._wake)
        if self._calls is not None and self._calls.wanted:
            self._loop.call_soon_threadsafe(self._calls.show, showing.picture())

    def close(self) -> None:
        if not hasattr(self, "_thread"):
            return
        if hasattr(self, "_runner"):
            with suppress(TimeoutError):  # a browser that does not answer is no reason to lose a recording
                self._ask(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_SECONDS)
        self._coder.shutdown(wait=False)

    def summary(self) -> dict[str, Any]:
        return {"pictures_sent": self._views}

    # --- the server's thread ------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def _ask(self, task: Coroutine[Any, Any, Any]) -> Any:
        """Run something in the server's thread and wait for it."""
        return asyncio.run_coroutine_threadsafe(task, self._loop).result(_START_SECONDS)

    async def _start(self) -> tuple[web.AppRunner, int]:
        app = web.Application(middlewares=[self._guard])
        app.router.add_get("/", self._page)
        app.router.add_get("/live", self._live)
        app.router.add_post("/offer", self._offer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        tls: ssl.SSLContext | None = None if self._address.loopback else self_signed(self._address.host)
        site = web.TCPSite(runner, self._address.host, self._address.port, ssl_context=tls)
        try:
            await site.start()
        except OSError as error:
            await runner.cleanup()
            where = f"{self._address.host}:{self._address.port}"
            raise UserError(f"--http: {where} cannot be used ({error.strerror}); choose another port") from error
        return runner, int(runner.addresses[0][1])

    async def _end(self) -> None:
        for viewer in list(self._viewers):
            await viewer.close()
        if self._calls is not None:
            await self._calls.end()
        await self._runner.cleanup()

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        given = request.query.get("token", "")
        if not hmac.compare_digest(given.encode(), self._token.encode()):
            return web.Response(status=403, text="Open the whole address that unmask printed, with its token.\n")
        return await handler(request)

    async def _page(self, request: web.Request) -> web.Response:
        del request
        body = (files("unmask.stream.live") / "page.html").read_text(encoding="utf-8")
        camera = "null" if self._feed is None else json.dumps(self._feed.size)
        headers = {
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
            "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
            "img-src blob:; media-src blob: mediastream:; connect-src 'self' ws: wss:",
        }
        return web.Response(text=body.replace("__CAMERA__", camera), content_type="text/html", headers=headers)

    async def _live(self, request: web.Request) -> web.WebSocketResponse:
        """Figures come by themselves; a picture comes for each "next". "stop" and "start" are orders."""
        socket = web.WebSocketResponse(heartbeat=20, max_msg_size=1024)
        await socket.prepare(request)
        self._viewers.add(socket)
        figures = asyncio.create_task(self._send_figures(socket))
        pictures: set[asyncio.Task[None]] = set()
        try:
            async for message in socket:
                if message.type is WSMsgType.TEXT and message.data in {"stop", "start"}:
                    self._state.paused = message.data == "stop"
                elif message.type is WSMsgType.TEXT and message.data == "next" and not pictures:
                    task = asyncio.create_task(self._send_picture(socket))
                    pictures.add(task)
                    task.add_done_callback(pictures.discard)
        finally:
            self._viewers.discard(socket)
            for task in (figures, *pictures):
                task.cancel()
        return socket

    async def _send_figures(self, socket: web.WebSocketResponse) -> None:
        with suppress(ConnectionError):  # the viewer has left
            while not socket.closed:
                await socket.send_json(asdict(self._state.figures()))
                await asyncio.sleep(_FIGURES_SECONDS)

    async def _send_picture(self, socket: web.WebSocketResponse) -> None:
        """Wait for the next frame and send it: a JPEG with the source above and the result below."""
        self._asking += 1
        try:
            async with self._fresh:
                await self._fresh.wait()
        finally:
            self._asking -= 1
        pair = self._pair
        if pair is not None and not socket.closed:
            jpeg = await self._coded(pair)
            with suppress(ConnectionError):
                await socket.send_bytes(jpeg)
                self._views += 1

    async def _coded(self, pair: tuple[U8, U8]) -> bytes:
        """A picture as JPEG, coded once for all who asked for it, in one thread: the stages need the processors."""
        if self._newest is None or self._newest[0] is not pair:
            self._newest = pair, self._loop.run_in_executor(self._coder, _jpeg, pair, self._layout)
        return await asyncio.shield(self._newest[1])  # who leaves takes it from nobody else

    def _wake(self) -> None:
        async def wake() -> None:
            async with self._fresh:
                self._fresh.notify_all()

        self._waking = self._loop.create_task(wake())

    async def _offer(self, request: web.Request) -> web.Response:
        if self._calls is None:
            return web.Response(status=404, text="This run has another source; start it with --page-camera.\n")
        try:
            return web.json_response(await self._calls.answer(await request.json()))
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            return web.Response(status=400, text=f"This is no call: {type(error).__name__}.\n")


def _jpeg(pair: tuple[U8, U8], layout: Layout) -> bytes:
    both = np.vstack([rgb_of(i420, layout, _WIDEST) for i420 in pair])
    coded = cv2.imencode(".jpg", both[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])[1]
    return bytes(coded.tobytes())
