"""What `unmask serve` and its clients say to each other: messages and their checks, without sockets.

docs/protocol.md is the specification. A message is a header in MessagePack, and for some a payload with the pixels.
Whatever a client sends is checked here before memory is taken for it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

VERSION: Final = 1
HEADER_BYTES: Final = 4096
"""Longest header that a client may send."""
MAX_SIDE: Final = 8192
"""Longest side of a picture in px."""
MAX_SECONDS: Final = 1e9
MAX_ID: Final = 2**53 - 1
"""The largest integer that every language has, JavaScript too."""

Format = Literal["rgb24", "bgr24", "gray8", "nv12", "jpeg", "png", "webp"]
RAW_FORMATS: Final[tuple[Format, ...]] = ("rgb24", "bgr24", "gray8", "nv12")
CODED_FORMATS: Final[tuple[Format, ...]] = ("jpeg", "png", "webp")
FORMATS: Final[tuple[Format, ...]] = (*RAW_FORMATS, *CODED_FORMATS)

Code = Literal[
    "malformed", "version", "hello", "busy", "limit", "credits", "format", "picture", "shared", "failed", "ending"
]
"""What can be wrong; docs/protocol.md says what a client does about each."""

NOT_EVIDENCE: Final = "What is painted is a plausible face, never evidence of who someone is."

Count = Annotated[int, Meta(ge=0, le=MAX_ID)]
Session = Annotated[str, Meta(max_length=64)]
Side = Annotated[int, Meta(ge=0, le=MAX_ID)]
"""`check_size` refuses what is too long, as a limit: to a client that is another thing than a malformed message."""


class ProtocolError(Exception):
    """What a client sent cannot be used.

    Args:
        code: for the client's program.
        text: for people: one line that says what to do.
        id: of the frame that it is about; None where it is about no frame, or that could not be read.
    """

    def __init__(self, code: Code, text: str, id: int | None = None) -> None:
        super().__init__(text)
        self.code: Code = code
        self.text = text
        self.id = id


# --- from the client --------------------------------------------------------------------------------------------------


class Request(msgspec.Struct, frozen=True, tag_field="type", forbid_unknown_fields=True):
    """Anything that a client sends."""


class Hello(Request, frozen=True, tag="hello"):
    """The first message, and at any later time a question whether the server still knows the client."""

    version: int


class Share(Request, frozen=True, tag="share"):
    """Asks for shared memory with slots of so many bytes; `session` as in `FrameRequest`."""

    session: Session
    bytes: Annotated[int, Meta(ge=1, le=MAX_ID)]


class FrameRequest(Request, frozen=True, tag="frame", omit_defaults=True):
    """A picture to work on. Its pixels are the payload, or lie in a slot of the shared memory.

    What is as by default is not sent: servers of this version that do not know a field refuse it.

    Args:
        id: chosen by the client, comes back with the answer.
        session: what `Welcome` said. It tells frames meant for a server that has gone from those for its successor.
        format: of the picture.
        bytes: size of the picture in bytes.
        seconds: its time, later than that of the frame before.
        width, height: in px, of raw pictures; 0 for coded ones, which say it themselves.
        answer: format of the answer; None for that of the picture.
        reset: forget everything about earlier frames.
        slot: where the picture lies in shared memory; None where it is the payload.
        memory: number of the memory that the slot belongs to, from `Shared`; None for the newest.
    """

    id: Count
    session: Session
    format: Format
    bytes: Annotated[int, Meta(ge=1, le=MAX_ID)]
    seconds: float
    width: Side = 0
    height: Side = 0
    answer: Format | None = None
    reset: bool = False
    slot: Count | None = None
    memory: Count | None = None


class Bye(Request, frozen=True, tag="bye"):
    """The client is leaving."""


AnyRequest = Hello | Share | FrameRequest | Bye

# --- from the server --------------------------------------------------------------------------------------------------


class Reply(msgspec.Struct, frozen=True, tag_field="type"):
    """Anything that the server sends. Clients pass over fields and types that they do not know."""


class Welcome(Reply, frozen=True, tag="welcome"):
    """The answer to `Hello`.

    Args:
        version: of the protocol.
        server: name and version of the program.
        session: names the client's stream; another one than before means that the server knows of no earlier frame.
        credits: how many frames may be on their way: sent and not yet answered.
        max_pixels, max_bytes: of a picture.
        shared: whether `Share` is allowed.
        notice: what people who see the pictures should know.
    """

    version: int
    server: str
    session: str
    credits: int
    max_pixels: int
    max_bytes: int
    shared: bool
    notice: str = NOT_EVIDENCE


class Shared(Reply, frozen=True, tag="shared"):
    """The answer to `Share`: open `path`, check that it begins with `token`; slot n starts at first + n * stride.

    `memory` is its number, for `FrameRequest`; None from servers that do not number theirs.
    """

    path: str
    token: bytes
    slots: int
    slot_bytes: int
    first: int
    stride: int
    memory: int | None = None


class FoundFace(msgspec.Struct, frozen=True):
    """A face in an answer.

    Attributes:
        box_px: (x0, y0, x1, y1) in px of the picture.
        track: the same for the same person as long as it is followed; never used twice in a stream.
        score: how sure the tracker is of the face, 0..1.
        mask_score: how sure the segmenter is that it wears a mask, 0..1.
        unmasked: True where it was painted.
        looks_masked: True where the tracker is sure that it wears a mask; where it is not unmasked, that stays.
    """

    box_px: tuple[float, float, float, float]
    track: int
    score: float
    mask_score: float
    unmasked: bool
    looks_masked: bool = False


class Result(Reply, frozen=True, tag="result"):
    """The answer to a frame. The picture is the payload, or lies in the slot that the request named.

    Args:
        id: of the request.
        format: of the picture.
        width, height: of the picture in px.
        bytes: its size.
        faces: the largest first, by the distance of the eyes; those shown before count 15 % larger.
        seconds: time that the server worked on the frame; waiting is not in it.
        slot: where the picture lies; None where it is the payload.
    """

    id: int
    format: Format
    width: int
    height: int
    bytes: int
    faces: tuple[FoundFace, ...]
    seconds: float
    slot: int | None = None


class Error(Reply, frozen=True, tag="error"):
    """A request that came to nothing. See `ProtocolError`."""

    code: Code
    text: str
    id: int | None = None


class Ping(Reply, frozen=True, tag="ping"):
    """Says nothing. A server finds out with it who is gone."""


class Goodbye(Reply, frozen=True, tag="goodbye"):
    """The server is ending; it takes no more frames and answers those that it has."""


AnyReply = Welcome | Shared | Result | Error | Ping | Goodbye

# --- coding and checks ------------------------------------------------------------------------------------------------

_encoder: Final = msgspec.msgpack.Encoder()
_requests: Final[msgspec.msgpack.Decoder[AnyRequest]] = msgspec.msgpack.Decoder(AnyRequest)
_replies: Final[msgspec.msgpack.Decoder[AnyReply]] = msgspec.msgpack.Decoder(AnyReply)


class _Part(msgspec.Struct):
    """What can be said of a header that is not valid as a whole."""

    type: str = ""
    version: int = VERSION
    id: Count | None = None


_parts: Final = msgspec.msgpack.Decoder(_Part)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a server accepts.

    Args:
        max_pixels: width times height of a picture.
        credits: frames on their way per client.
    """

    max_pixels: int = 3840 * 2160
    credits: int = 4

    @property
    def max_bytes(self) -> int:
        """Of a picture, raw or coded. The margin is for the headers of a coded one."""
        return 3 * self.max_pixels + 65_536


def encode(message: Request | Reply) -> bytes:
    """The header of a message."""
    return _encoder.encode(message)


def decode_reply(header: bytes) -> AnyReply:
    """What a server sent. Raises ValueError where it is no message of this version."""
    try:
        return _replies.decode(header)
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ValueError(f"not a message of unmask serve: {error}") from error


def decode_request(parts: Sequence[memoryview | bytes], limits: Limits) -> AnyRequest:
    """What a client sent: one header, and for a frame outside shared memory one payload.

    Nothing is copied from the payload, and no memory is taken that grows with what the message claims.

    Raises:
        ProtocolError: the message, or what it asks for, is not allowed.
    """
    if not 1 <= len(parts) <= 2:
        raise ProtocolError("malformed", f"a message has 1 or 2 parts, this one has {len(parts)}; use a DEALER socket")
    if len(parts[0]) > HEADER_BYTES:
        raise ProtocolError("malformed", f"the header has {len(parts[0])} bytes; {HEADER_BYTES} is the most")
    try:
        request = _requests.decode(parts[0])
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise _undecodable(parts[0], error) from error
    payload = len(parts[1]) if len(parts) == 2 else None
    match request:
        case FrameRequest():
            _check_frame(request, payload, limits)
        case _ if payload is not None:
            raise ProtocolError("malformed", "only a frame has a second part")
        case Hello(version=version) if version != VERSION:
            raise _other_version(version)
        case Share(bytes=size) if size > limits.max_bytes:
            raise ProtocolError("limit", f"slots of {size} bytes; {limits.max_bytes} is the most")
    return request


def _undecodable(header: memoryview | bytes, error: Exception) -> ProtocolError:
    try:
        part = _parts.decode(header)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        part = _Part()
    if part.type == "hello" and part.version != VERSION:
        return _other_version(part.version)
    reason = " ".join(str(error).split())[:200]
    return ProtocolError("malformed", f"the header is not one of this protocol: {reason}", part.id)


def _other_version(version: int) -> ProtocolError:
    return ProtocolError("version", f"this server speaks version {VERSION}, the client {version}; install the same")


def _check_frame(request: FrameRequest, payload: int | None, limits: Limits) -> None:
    def refuse(code: Code, text: str) -> ProtocolError:
        return ProtocolError(code, text, request.id)

    if (payload is None) == (request.slot is None):
        raise refuse("malformed", "a frame has either a payload or a slot")
    if request.slot is None and request.memory is not None:
        raise refuse("malformed", "memory goes with a slot: leave it out of a frame with a payload")
    if payload is not None and payload != request.bytes:
        raise refuse("malformed", f"the payload has {payload} bytes, the header says {request.bytes}")
    if not math.isfinite(request.seconds) or abs(request.seconds) > MAX_SECONDS:
        raise refuse("malformed", f"seconds must be a number between -{MAX_SECONDS:.0e} and {MAX_SECONDS:.0e}")
    if reason := too_large(0, 0, request.bytes, limits):
        raise refuse("limit", reason)
    if request.format in CODED_FORMATS:
        if request.width or request.height:
            raise refuse("malformed", f"leave width and height out: a {request.format} picture has its own")
        return
    check_size(request.width, request.height, request.format, limits, request.id)
    if (request.answer or "") == "nv12":
        check_size(request.width, request.height, "nv12", limits, request.id)
    expected = raw_bytes(request.format, request.width, request.height)
    if request.bytes != expected:
        size = f"{request.width}x{request.height}"
        raise refuse("malformed", f"{request.format} of {size} px has {expected} bytes, not {request.bytes}")


def check_size(width: int, height: int, format: Format, limits: Limits, id: int | None = None) -> None:
    """Raise ProtocolError where a picture of this size is not accepted in this format."""
    if width < 1 or height < 1:
        raise ProtocolError("malformed", "give the width and height of a raw picture, at least 1 px each", id)
    if reason := too_large(width, height, 0, limits):
        raise ProtocolError("limit", reason, id)
    if format == "nv12" and (width % 2 or height % 2):
        raise ProtocolError("format", f"nv12 needs even sizes, not {width}x{height} px", id)


def too_large(width: int, height: int, size: int, limits: Limits | Welcome) -> str | None:
    """Why a picture of so many px and bytes is larger than a server accepts; None where it is not."""
    if size > limits.max_bytes:
        return f"a picture of {size} bytes; {limits.max_bytes} is the most (`unmask serve --max-size`)"
    if max(width, height) > MAX_SIDE or width * height > limits.max_pixels:
        most = f"{limits.max_pixels} px in all and {MAX_SIDE} px a side are the most"
        return f"a picture of {width}x{height} px; {most}: scale it down"
    return None


def raw_bytes(format: Format, width: int, height: int) -> int:
    """Size of a raw picture in bytes."""
    return {"rgb24": 3 * width * height, "bgr24": 3 * width * height, "gray8": width * height}.get(
        format, width * height * 3 // 2
    )


def shape_of(format: Format, width: int, height: int) -> tuple[int, ...]:
    """The shape in which NumPy users hold a raw picture."""
    return {"gray8": (height, width), "nv12": (height * 3 // 2, width)}.get(format, (height, width, 3))
