"""Senders for the tests of live runs, in threads of their own, and what they send."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import BinaryIO

import av
import numpy as np

from unmask.stream.live import time_code

WIDTH, HEIGHT, RATE = 160, 120, 25
SOUND_RATE = 48_000


def free_port() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Sender(threading.Thread):
    """Sends a grey picture and a tone at their own pace until it is stopped, as a camera on the network does."""

    def __init__(self, target: str | BinaryIO, container: str = "mpegts") -> None:
        super().__init__(daemon=True)
        self._target, self._container = target, container
        self._stop_now = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            with av.open(self._target, "w", format=self._container) as container:
                self._send(container)
        except OSError as error:
            self.error = error

    def _send(self, container: "av.container.OutputContainer") -> None:
        video = container.add_stream("libx264", rate=RATE, options={"tune": "zerolatency", "g": "12"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=SOUND_RATE, layout="mono")
        began, index = time.monotonic(), 0
        while not self._stop_now.wait(max(0.0, began + index / RATE - time.monotonic())):
            picture = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH), index % 200, np.uint8), format="gray")
            picture.pts, picture.time_base = index, Fraction(1, RATE)
            container.mux(video.encode(picture.reformat(format="yuv420p")))
            length = SOUND_RATE // RATE
            tone = 0.2 * np.sin(np.arange(index * length, (index + 1) * length) / 20).astype(np.float32)
            samples = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = SOUND_RATE, index * length, Fraction(1, SOUND_RATE)
            container.mux(audio.encode(samples))
            index += 1

    def stop(self) -> None:
        self._stop_now.set()
        if self.is_alive():
            self.join(10)


@contextmanager
def sending(url: str, container: str = "mpegts") -> Iterator[Sender]:
    sender = Sender(url, container)
    sender.start()
    try:
        yield sender
    finally:
        sender.stop()


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files."""

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving_http(port: int) -> Iterator[None]:
    """A web server that sends such a stream to whoever asks, without end; at the exit all is cut."""
    senders: list[Sender] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.end_headers()
            senders.append(Sender(self.wfile))
            senders[-1].run()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            for sender in senders:
                sender.stop()


def receive(url: str, out: Path, options: dict[str, str]) -> None:
    """Write what is sent to a URL to a file, packet by packet, until it ends. For a process of its own."""
    with av.open(url, options=options, timeout=(60, 5)) as source, av.open(str(out), "w") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        try:
            for packet in source.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream_index]
                    target.mux(packet)
        except av.FFmpegError:
            pass  # nothing more comes


def wait_for_listener(port: int, protocol: str = "tcp") -> None:
    """Wait until somebody listens on a TCP or UDP port, without connecting to it."""
    deadline = time.monotonic() + 60
    listening = f":{port:04X} 00000000:0000 " + ("0A" if protocol == "tcp" else "07")
    while listening not in Path(f"/proc/net/{protocol}").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class Relay:
    """Stands before a server that takes one connection only, and can cut it. Connections without a byte are let go.

    Args:
        port: of the server behind it.
    """

    def __init__(self, port: int) -> None:
        self._behind = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._open: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def cut(self) -> None:
        """End every connection, and take no more."""
        self._listener.close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._relay, args=(client,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client:
            first = client.recv(65536)
            if not first:
                return
            with socket.create_connection(("127.0.0.1", self._behind)) as server:
                self._open += [client, server]
                server.sendall(first)
                back = threading.Thread(target=_pump, args=(server, client), daemon=True)
                back.start()
                _pump(client, server)
                back.join(10)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def flash_clip(path: Path, seconds: int = 3) -> Path:
    """A clip in which each second begins with five white pictures and a beep of the same length."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=SOUND_RATE, layout="mono")
        for index in range(seconds * RATE):
            level = 230 if index % RATE < 5 else 20
            picture = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH), level, np.uint8), format="gray")
            container.mux(video.encode(picture.reformat(format="yuv420p")))
        container.mux(video.encode())
        times = np.arange(seconds * SOUND_RATE) / SOUND_RATE
        tone = np.where(times % 1 < 0.2, 0.5 * np.sin(6000 * times), 0).astype(np.float32)
        samples = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
        samples.sample_rate, samples.pts, samples.time_base = SOUND_RATE, 0, Fraction(1, SOUND_RATE)
        container.mux(audio.encode(samples))
        container.mux(audio.encode())
    return path


def flashes_and_beeps(path: Path) -> tuple[list[float], list[float]]:
    """When each flash and each beep begins in a file, in seconds."""
    with av.open(str(path)) as container:
        levels = [(float(f.time or 0), f.to_ndarray(format="gray")[-20:].mean()) for f in container.decode(video=0)]
    with av.open(str(path)) as container:
        loud = [
            (float(frame.time or 0) + place / frame.sample_rate, bool(abs(value) > 0.1))
            for frame in container.decode(audio=0)
            for place, value in enumerate(frame.to_ndarray()[0])
        ]
    flashes = [at for (at, level), (_, before) in zip(levels[1:], levels, strict=False) if level > 128 >= before]
    beeps: list[float] = []
    for at, is_loud in loud:
        if is_loud and at > (beeps[-1] if beeps else -1) + 0.5:
            beeps.append(at)
    return flashes, beeps


def codes_in(path: Path) -> list[float]:
    """The time codes in the pictures of a file, all of which must be readable."""
    with av.open(str(path)) as container:
        found = [time_code.read(frame.to_ndarray(format="gray")) for frame in container.decode(video=0)]
    assert None not in found
    return [code for code in found if code is not None]
