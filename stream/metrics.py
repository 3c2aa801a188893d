"""Figures of a server for Prometheus, and its health, over HTTP on the loopback address."""

import sys
from collections.abc import Callable, Iterable
from socketserver import ThreadingMixIn
from threading import Thread
from types import TracebackType
from typing import Any, Final, Self
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, make_wsgi_app

from unmask.errors import UserError

_SECONDS: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.2, 0.5, 1.0, 2.0)


class Metrics:
    """What a server counts. Counting is safe from any thread.

    Args:
        engine: what runs the networks.
    """

    def __init__(self, engine: str) -> None:
        self.registry = CollectorRegistry()
        self.frames = Counter("unmask_frames", "Frames answered with a picture.", registry=self.registry)
        self.faces = Counter("unmask_faces_unmasked", "Faces painted, counted in every frame.", registry=self.registry)
        self.left = Counter(
            "unmask_masks_left", "Faces that seem to wear a mask and stayed as they were.", registry=self.registry
        )
        self.refused = Counter("unmask_refused", "Error answers, by code.", ["code"], registry=self.registry)
        self.dropped = Counter(
            "unmask_dropped_frames", "Frames taken and given up: their client had gone.", registry=self.registry
        )
        self.clients = Gauge("unmask_clients", "Clients now.", registry=self.registry)
        self.waiting = Gauge("unmask_waiting_frames", "Frames taken and not yet answered.", registry=self.registry)
        self._stages = Histogram(
            "unmask_stage_seconds", "Time per frame and step.", ["stage"], buckets=_SECONDS, registry=self.registry
        )
        self.latency = Histogram(
            "unmask_latency_seconds", "From a frame's arrival to its answer.", buckets=_SECONDS, registry=self.registry
        )
        Info("unmask_engine", "What runs the networks.", registry=self.registry).info({"engine": engine})

    def timed(self, stage: str, seconds: float) -> None:
        """Note how long a step took."""
        self._stages.labels(stage).observe(seconds)


class _Pages(ThreadingMixIn, WSGIServer):
    """A thread for each request: one that is slow, or says nothing at all, does not hold up the others."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # that is whoever asked: too slow, or gone
            super().handle_error(request, client_address)


class _Quiet(WSGIRequestHandler):
    timeout = 10  # seconds in which a request must come

    def log_message(self, format: str, *args: Any) -> None:
        del format, args


class MetricsPage:
    """Answers /metrics and /healthz (200 "ok", or 503 and why not) until its `with` block ends.

    Args:
        port: on 127.0.0.1; 0 for any, which `port` then names.
        metrics: to show.
        trouble: why the server takes no frames; None where it does.

    Raises:
        UserError: the port cannot be had.
    """

    def __init__(self, port: int, metrics: Metrics, trouble: Callable[[], str | None]) -> None:
        pages = make_wsgi_app(metrics.registry)

        def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            match environ.get("PATH_INFO"):
                case "/metrics":
                    shown: Iterable[bytes] = pages(environ, start_response)
                    return shown
                case "/healthz":
                    reason = trouble()
                    status, body = ("503 Service Unavailable", reason) if reason else ("200 OK", "ok")
                case _:
                    status, body = "404 Not Found", "/metrics or /healthz"
            start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
            return [f"{body}\n".encode()]

        try:
            self._server = make_server("127.0.0.1", port, app, _Pages, _Quiet)
        except OSError as error:
            raise UserError(f"--metrics {port}: {error.strerror}; choose another port") from error
        self.port = int(self._server.server_port)
        self._thread = Thread(target=self._server.serve_forever, name="unmask-metrics", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
