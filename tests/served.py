"""A server as users start it, and clients that behave badly, for the tests of `unmask serve`."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

import msgspec
import zmq


class ServerProgram:
    """`unmask serve --log-json` in a process of its own.

    Attributes:
        address: where it listens.
        events: what it logged so far.
    """

    def __init__(self, *arguments: str, bind: str = "tcp://127.0.0.1:0", ready: bool = True) -> None:
        command = [sys.executable, "-m", "unmask.cli", "serve", "--bind", bind, "--device", "cpu", "--log-json"]
        self.process = subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True)
        self.events: list[dict[str, Any]] = []
        self._reader = Thread(target=self._read)
        self._reader.start()
        self.address = self.wait_for("ready")["address"] if ready else bind

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.events.append(json.loads(line) if line.startswith("{") else {"event": "text", "text": line})

    def wait_for(self, event: str, seconds: float = 60.0, **fields: Any) -> dict[str, Any]:
        """The first such event, with such fields."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for seen in list(self.events):
                if seen["event"] == event and fields.items() <= seen.items():
                    return seen
            assert event == "ended" or self.process.poll() is None, self.events
            time.sleep(0.02)
        raise AssertionError(f"no {event} {fields} in {self.events}")

    def memory_mb(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, wait, and give the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@contextmanager
def server_program(*arguments: str, **options: Any) -> Iterator[ServerProgram]:
    program = ServerProgram(*arguments, **options)
    try:
        yield program
    finally:
        program.end(signal.SIGKILL)


class RawClient:
    """Speaks to a server without any manners."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, 2)
        self.socket.connect(address)
        self.session = ""

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()
        self._context.term()

    def send(self, header: dict[str, Any] | bytes, *payload: bytes) -> None:
        body = header if isinstance(header, bytes) else msgspec.msgpack.encode(header)
        self.socket.send_multipart([body, *payload])

    def receive(self, seconds: float = 60.0) -> tuple[dict[str, Any], list[bytes]]:
        """The next message that is no ping."""
        deadline = time.monotonic() + seconds
        while self.socket.poll(max(0, round(1000 * (deadline - time.monotonic())))):
            first, *rest = self.socket.recv_multipart()
            header = msgspec.msgpack.decode(first)
            if header["type"] != "ping":
                return header, rest
        raise TimeoutError("no answer")

    def rest(self, seconds: float = 1.0) -> list[dict[str, Any]]:
        """Headers of all messages until none comes for so long."""
        headers = []
        with suppress(TimeoutError):
            while True:
                headers.append(self.receive(seconds)[0])
        return headers

    def hello(self) -> dict[str, Any]:
        self.send({"type": "hello", "version": 1})
        header, _ = self.receive()
        self.session = header.get("session", "")
        return header

    def frame(self, id: int, width: int = 64, height: int = 48, **changes: Any) -> None:
        """A grey picture."""
        size = width * height
        header = {"type": "frame", "id": id, "session": self.session, "format": "gray8", "bytes": size}
        header |= {"seconds": id / 25, "width": width, "height": height}
        self.send(header | changes, bytes([id % 256]) * size)
