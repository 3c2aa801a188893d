"""The commands `serve` and `keys`. Imported by `unmask.cli`, and just as lazily."""

import json
import time
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from unmask.errors import UserError
from unmask.interrupts import STOPPED, interruptible
from unmask.options import DeviceOption, EngineOption, MemoryOption, PersonOption, TrackerOption, personal
from unmask.progress import say
from unmask.stream.trackers import DEFAULT_TRACKER

if TYPE_CHECKING:
    from unmask.stream.server import Curve

keys = typer.Typer(help="Make keys for `unmask serve` on a network.", no_args_is_help=True)

_SIZE_HINT: Final = "3840x2160"
_LIMITS: Final = "Limits"
_ACCESS: Final = "Who may connect"
_OPERATION: Final = "Operation"


# Not a docstring: Typer would break its lines both where they end here and where the terminal does.
SERVE_HELP: Final = "\n\n".join(
    (
        "Take the masks off frames that other programs send, and send them back.",
        "What is painted is a plausible face, never evidence of who someone is. Do not feed it to a program that "
        "recognises or judges people.",
        "Start it with `unmask serve`, and send frames from Python:",
        "  from unmask.stream import Client",
        "  with Client() as unmask: out = unmask(frame)",
        "Other languages speak the protocol in docs/protocol.md; examples/ has a client in JavaScript.",
        "CLIENTS. Each connection is a stream with faces of its own. Streams take turns, frame by frame; crops of "
        "several streams go through the networks together. A client may have --credits frames on their way. One that "
        "has gone is forgotten within seconds; one that does not read waits, and nobody else does.",
        "PERSON. --person FILE paints the faces of all clients with a model of one person, whoever sends them, and "
        "shows that face where eyes and brows are like it.",
        "FORMATS. rgb24, bgr24, gray8, nv12, JPEG, PNG, WebP, in and out. Faces come as data: box, track, scores, "
        "whether painted, whether a mask seems to be worn.",
        "SECURITY. It listens on the loopback address, where every user of this machine can reach it; on ipc://PATH "
        "only you can. Any other address needs keys (see `unmask keys new --help`): --key and an --allow for each "
        "client. --insecure does without, and warns.",
        "OPERATION. The log goes to stderr. SIGTERM or Ctrl-C answers the frames that are here and ends with 0; a "
        "second one stops at once, with 130. A client that does not read is waited for five seconds. /healthz says "
        '"ok", or 503 and why: the server is ending, or a frame hangs.',
    )
)


@keys.command("new")
def keys_new(
    name: Annotated[Path, typer.Argument(metavar="NAME", help="Writes NAME.key and NAME.pub.")],
) -> None:
    """Make a pair of keys: NAME.key to keep, NAME.pub to give to the other side.

    The server needs a pair, and so does each client:

      unmask keys new server        on the server; give server.pub to the clients

      unmask keys new laptop        on a client; give laptop.pub to the server

      unmask serve --bind tcp://0.0.0.0:5555 --key server.key --allow laptop.pub

      Client("tcp://HOST:5555", key="laptop.key", server_key="server.pub")
    """
    from unmask.stream.keys import write_keys

    private, public = write_keys(name)
    print(f"{private}: keep it to yourself")
    print(f"{public}: give it to the other side")


def serve(
    bind: Annotated[
        str, typer.Option(metavar="ENDPOINT", help="Where to listen: tcp://ADDRESS:PORT or ipc://PATH.")
    ] = "tcp://127.0.0.1:5555",
    device: DeviceOption = "auto",
    engine: EngineOption = "auto",
    max_faces: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=64, help="Faces processed per frame, the largest first.", rich_help_panel=_LIMITS
        ),
    ] = 8,
    person: PersonOption = None,
    memory: MemoryOption = True,
    tracker: TrackerOption = DEFAULT_TRACKER,
    max_clients: Annotated[
        int, typer.Option(metavar="N", min=1, max=1000, help="Clients at once.", rich_help_panel=_LIMITS)
    ] = 32,
    max_size: Annotated[
        str,
        typer.Option(metavar="WxH", help="Largest picture; any shape with as many pixels.", rich_help_panel=_LIMITS),
    ] = _SIZE_HINT,
    credits: Annotated[
        int,
        typer.Option(
            metavar="N", min=1, max=64, help="Frames per client that may be on their way.", rich_help_panel=_LIMITS
        ),
    ] = 4,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=64,
            help="Frames worked on at once. Default: as many as CPU cores, 2 to 8.",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    shared_memory: Annotated[
        bool,
        typer.Option(
            "--shared-memory/--no-shared-memory",
            help="Let clients of this user on this host hand frames over in memory.",
            rich_help_panel=_ACCESS,
        ),
    ] = True,
    key: Annotated[
        Path | None, typer.Option(metavar="NAME.key", help="The server's own keys.", rich_help_panel=_ACCESS)
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", help="A client's public key or its NAME.pub. Can be given again.", rich_help_panel=_ACCESS
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Listen on a network without keys: anybody there can send and read.",
            rich_help_panel=_ACCESS,
        ),
    ] = False,
    metrics: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            min=0,
            max=65535,
            help="Answer /metrics (Prometheus) and /healthz on 127.0.0.1:PORT.",
            rich_help_panel=_OPERATION,
        ),
    ] = None,
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Log one JSON object per line.", rich_help_panel=_OPERATION)
    ] = False,
) -> None:
    """Carry out `unmask serve`; `SERVE_HELP` is what users read."""
    from unmask.stream.face_stream import SharedEngines
    from unmask.stream.metrics import Metrics, MetricsPage
    from unmask.stream.pipeline import Settings
    from unmask.stream.protocol import Limits
    from unmask.stream.server import ServeOptions, Server

    log = _Log(as_json=log_json)
    curve = _curve(bind, key, allow or [], insecure, log)
    known = personal(person, lambda line: log("notice", text=line))
    options = ServeOptions(
        bind=bind,
        settings=Settings(device, max_faces=max_faces, engine=engine, person=known, tracker=tracker, memory=memory),
        limits=Limits(_pixels(max_size), credits),
        max_clients=max_clients,
        shared_memory=shared_memory,
        curve=curve,
        **({} if workers is None else {"workers": workers}),
    )
    engines = SharedEngines(options.settings, lambda line: log("notice", text=line))
    counted = Metrics(engines.description)
    with ExitStack() as stack:
        server = Server(options, engines, counted, log)
        stack.callback(server.close)
        if metrics is not None:
            page = stack.enter_context(MetricsPage(metrics, counted, server.trouble))
            log("metrics", address=f"http://127.0.0.1:{page.port}/metrics")
        interrupted = stack.enter_context(interruptible(server))
        log("ready", address=server.endpoint, engine=engines.description, keys=curve is not None)
        server.run()
    log("ended")
    raise typer.Exit(STOPPED if len(interrupted) > 1 else 0)


class _Log:
    """Writes what happens to stderr: plain lines, or JSON objects with time and event."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._lock = Lock()

    def __call__(self, event: str, **fields: Any) -> None:
        if self._as_json:
            line = json.dumps({"time": round(time.time(), 3), "event": event, **fields})
        else:
            line = f"{event}: " + ", ".join(f"{name} {value}" for name, value in fields.items())
        with self._lock:
            say(line.removesuffix(": "))


def _pixels(size: str) -> int:
    width, _, height = size.partition("x")
    if not (width.isdecimal() and height.isdecimal() and 0 < int(width) * int(height) <= 8192 * 8192):
        raise UserError(f"--max-size {size}: use WIDTHxHEIGHT such as {_SIZE_HINT}, at most 8192x8192")
    return int(width) * int(height)


def _curve(bind: str, key: Path | None, allow: list[str], insecure: bool, log: _Log) -> "Curve | None":
    """Who may connect. Raises UserError where that would be anybody on a network, and nobody said so."""
    from unmask.stream.keys import read_pair, read_public
    from unmask.stream.server import Curve, is_abstract, is_local

    local = is_local(bind)
    if insecure and (key or allow):
        raise UserError("--insecure and keys exclude each other; leave --insecure out")
    if key is not None and allow:
        return Curve(read_pair(key), frozenset(read_public(value) for value in allow))
    if key is not None or allow:
        missing = "an --allow with the public key of each client" if key else "--key NAME.key of the server"
        raise UserError(f"keys need {missing} too; make keys with: unmask keys new NAME")
    keys = "give --key NAME.key and --allow CLIENT.pub (see unmask keys new --help), or --insecure to let anybody in"
    if is_abstract(bind) and not insecure:
        raise UserError(f"--bind {bind}: every user of this machine can reach it; use ipc:// with a path, or {keys}")
    if not local and not insecure:
        raise UserError(f"--bind {bind} can be reached from other machines: {keys}")
    if not local or is_abstract(bind):
        log("warning", text=f"--insecure: whoever reaches {bind} can send frames, unencrypted and unchecked")
    return None
