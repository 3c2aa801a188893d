"""What a client may send: every message that is not allowed is an error, and none of them costs anything."""

import math
import random
import tracemalloc
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.stream.protocol import (
    FORMATS,
    HEADER_BYTES,
    MAX_ID,
    RAW_FORMATS,
    VERSION,
    Bye,
    FrameRequest,
    Hello,
    Limits,
    ProtocolError,
    Share,
    decode_reply,
    decode_request,
    encode,
    raw_bytes,
)
from unmask.stream.wire import coded_size, decode_picture

LIMITS = Limits(max_pixels=640 * 480)
RANDOM_INPUTS = 100_000
SUFFIX = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}

GOOD: dict[str, Any] = {
    "type": "frame",
    "id": 7,
    "session": "s",
    "format": "rgb24",
    "bytes": 4 * 2 * 3,
    "seconds": 0.5,
    "width": 4,
    "height": 2,
}


def pack(**changes: Any) -> bytes:
    header = {name: value for name, value in (GOOD | changes).items() if value is not ...}
    return msgspec.msgpack.encode(header)


def refused(*parts: bytes) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        decode_request(parts, LIMITS)
    return caught.value


def coded(format: str, width: int = 40, height: int = 30) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return bytes(cv2.imencode(SUFFIX[format], noise)[1].tobytes())


# --- what is allowed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", [Hello(VERSION), Share("s", 100), Bye()])
def test_messages_without_payload_arrive_as_they_were_sent(message: Any) -> None:
    assert decode_request([encode(message)], LIMITS) == message


def test_frame_arrives_as_it_was_sent_and_defaults_hold() -> None:
    request = decode_request([pack(), bytes(24)], LIMITS)
    assert request == FrameRequest(7, "s", "rgb24", 24, 0.5, 4, 2, answer=None, reset=False, slot=None)
    assert decode_request([pack(slot=3)], LIMITS).slot == 3  # type: ignore[union-attr]


@pytest.mark.parametrize("format", RAW_FORMATS)
def test_raw_pictures_have_the_size_that_their_format_gives(format: Any) -> None:
    size = raw_bytes(format, 4, 2)
    assert decode_request([pack(format=format, bytes=size), bytes(size)], LIMITS)
    error = refused(pack(format=format, bytes=size + 1), bytes(size + 1))
    assert (error.code, error.id) == ("malformed", 7)


# --- what is not ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "payload", "code"),
    [
        ({"type": "nonsense"}, 24, "malformed"),
        ({"type": ...}, 24, "malformed"),
        ({"unknown": 1}, 24, "malformed"),
        ({"id": -1}, 24, "malformed"),
        ({"id": MAX_ID + 1}, 24, "malformed"),
        ({"id": "7"}, 24, "malformed"),
        ({"session": "x" * 65}, 24, "malformed"),
        ({"format": "rgb48"}, 24, "malformed"),
        ({"answer": "gif"}, 24, "malformed"),
        ({"width": 0}, 24, "malformed"),
        ({"width": -4}, 24, "malformed"),
        ({"width": 8193}, 24, "limit"),
        ({"width": MAX_ID + 1}, 24, "malformed"),
        ({"width": 4.0}, 24, "malformed"),
        ({"width": 8000, "height": 8000, "bytes": 192_000_000}, None, "malformed"),
        ({"width": 8000, "height": 8000, "bytes": 192_000_000, "slot": 0}, None, "limit"),
        ({"width": 8000, "height": 8000}, 24, "limit"),
        ({"bytes": 0}, 0, "malformed"),
        ({"bytes": 23}, 24, "malformed"),
        ({"bytes": 24}, 23, "malformed"),
        ({"bytes": 24}, None, "malformed"),
        ({"slot": 0}, 24, "malformed"),
        ({"slot": -1}, None, "malformed"),
        ({"seconds": math.nan}, 24, "malformed"),
        ({"seconds": math.inf}, 24, "malformed"),
        ({"seconds": 1e10}, 24, "malformed"),
        ({"format": "jpeg"}, 24, "malformed"),  # with a size of its own
        ({"format": "nv12", "width": 3, "height": 2, "bytes": 9}, 9, "format"),
        ({"answer": "nv12", "width": 8, "height": 1}, 24, "format"),
    ],
)
def test_frames_that_are_refused(changes: dict[str, Any], payload: int | None, code: str) -> None:
    parts = [pack(**changes)] + ([] if payload is None else [bytes(payload)])
    error = refused(*parts)
    assert error.code == code
    assert "\n" not in error.text
    assert len(error.text) < 300


def test_a_refused_frame_keeps_its_number_so_that_the_client_knows_which() -> None:
    assert refused(pack(format="rgb48"), bytes(24)).id == 7


def test_other_versions_are_told_which_one_is_spoken() -> None:
    error = refused(msgspec.msgpack.encode({"type": "hello", "version": 99, "fancy": [1, 2]}))
    assert error.code == "version"
    assert f"version {VERSION}" in error.text
    assert "99" in error.text


@pytest.mark.parametrize("count", [0, 3, 4])
def test_number_of_parts(count: int) -> None:
    assert refused(*[encode(Bye())] * count).code == "malformed"


def test_long_deep_and_wide_headers() -> None:
    assert refused(b"\x91" * HEADER_BYTES).code == "malformed"  # lists in lists
    assert refused(b"\x81\xa1x" * 1000).code == "malformed"
    assert refused(encode(Bye()) + bytes(HEADER_BYTES)).code == "malformed"
    assert refused(b"\xdf\xff\xff\xff\xff").code == "malformed"  # a map that claims 4 thousand million entries
    assert refused(b"\xdb\xff\xff\xff\xffx").code == "malformed"  # a string that claims as much


def test_only_frames_have_a_payload_and_slots_have_a_limit() -> None:
    assert refused(encode(Bye()), b"x").code == "malformed"
    assert refused(encode(Share("s", LIMITS.max_bytes + 1))).code == "limit"


def test_a_claim_of_much_memory_takes_none() -> None:
    header = pack(width=8000, height=8000, bytes=192_000_000, slot=0)
    tracemalloc.start()
    for _ in range(100):
        refused(header)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


# --- coded pictures ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", list(SUFFIX))
def test_size_is_read_before_anything_is_decoded(format: Any) -> None:
    assert coded_size(format, coded(format)) == (40, 30)
    with pytest.raises(ProtocolError) as caught:
        decode_picture(format, coded(format), Limits(max_pixels=40 * 30 - 1))
    assert caught.value.code == "limit"


def test_size_of_every_kind_of_webp() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 4), np.uint8)
    lossless = bytes(cv2.imencode(".webp", noise[..., :3], [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes())
    with_alpha = bytes(cv2.imencode(".webp", noise, [cv2.IMWRITE_WEBP_QUALITY, 90])[1].tobytes())
    assert {lossless[12:16], with_alpha[12:16]} == {b"VP8L", b"VP8X"}
    assert coded_size("webp", lossless) == coded_size("webp", with_alpha) == (40, 30)


@pytest.mark.parametrize("format", list(SUFFIX))
def test_cut_damaged_and_mistaken_pictures_are_refused(format: Any) -> None:
    data = coded(format)
    others = [coded(name) for name in SUFFIX if name != format]
    for bad in (b"", b"x", data[: len(data) // 2], data[:-20], data[: len(data) // 4], *others):
        with pytest.raises(ProtocolError) as caught:
            decode_picture(format, bad, LIMITS)
        assert caught.value.code == "picture", bad[:20]


@pytest.mark.parametrize("format", list(SUFFIX))
def test_what_lies_behind_the_end_of_a_picture_does_not_matter(format: Any) -> None:
    assert decode_picture(format, coded(format) + bytes(10_000), LIMITS).shape == (30, 40, 3)


def test_picture_bomb_is_refused_by_its_header() -> None:
    bomb = bytearray(coded("png"))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(ProtocolError) as caught:
        decode_picture("png", bytes(bomb), LIMITS)
    assert caught.value.code == "limit"


# --- fuzzing ----------------------------------------------------------------------------------------------------------

_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=40)
    | st.sampled_from(FORMATS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_headers = st.fixed_dictionaries(
    {"type": st.sampled_from(["hello", "share", "frame", "bye", "welcome"])},
    optional={name: _values | st.just(value) for name, value in (GOOD | {"version": 1}).items() if name != "type"},
)


def survives(parts: list[bytes]) -> None:
    """Either a message within its limits, or an error of one line."""
    text, request = "", None
    try:
        request = decode_request(parts, LIMITS)
    except ProtocolError as error:
        text = error.text
    assert "\n" not in text
    assert len(text) < 400
    if isinstance(request, FrameRequest):
        assert 0 < request.bytes <= LIMITS.max_bytes
        assert request.width * request.height <= LIMITS.max_pixels
        assert len(parts) == 1 or len(parts[1]) == request.bytes


@settings(max_examples=1000, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=4))
def test_any_bytes(parts: list[bytes]) -> None:
    survives(parts)


@settings(max_examples=2000, deadline=None)
@given(_headers, st.none() | st.binary(max_size=64))
def test_any_header(header: dict[str, Any], payload: bytes | None) -> None:
    survives([msgspec.msgpack.encode(header)] + ([] if payload is None else [payload]))


def _mutated(data: bytes, rng: random.Random) -> bytes:
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(4):
            case 0:
                out[at : at + 1] = rng.randbytes(1)
            case 1:
                del out[at : at + rng.randint(1, 8)]
            case 2:
                out[at:at] = rng.randbytes(rng.randint(1, 8))
            case 3:
                out[at:at] = out[: rng.randint(0, 16)]
    return bytes(out)


def test_a_hundred_thousand_damaged_messages() -> None:
    rng = random.Random(5)
    seeds = [encode(Hello(VERSION)), encode(Share("s", 100)), encode(Bye()), pack(), pack(slot=1), pack(answer="png")]
    for _ in range(RANDOM_INPUTS):
        header = _mutated(rng.choice(seeds), rng)
        survives([header, bytes(24)] if rng.random() < 0.5 else [header])


def test_thousands_of_damaged_pictures() -> None:
    rng = random.Random(6)
    seeds = {format: coded(format) for format in SUFFIX}
    for number in range(3000):
        format: Any = list(SUFFIX)[number % 3]
        data = _mutated(seeds[format], rng)
        code, pixels = "picture", 0
        try:
            picture = decode_picture(format, data, LIMITS)
            pixels = picture.shape[0] * picture.shape[1]
        except ProtocolError as error:
            code = error.code
        assert code in {"picture", "limit"}
        assert pixels <= LIMITS.max_pixels


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=200))
def test_client_takes_no_harm_from_a_strange_server(data: bytes) -> None:
    text = "not a message"
    try:
        decode_reply(data)
    except ValueError as error:
        text = str(error)
    assert "not a message" in text
