"""What players need of an output, and what is said where one may miss something."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
from test_encode import FAST, Clip, times_in, transcode

from unmask.stream.encoders import Codec, EncodeOptions
from unmask.stream.media import probe
from unmask.stream.remux import output_tags


def clip(path: Path, form: str = "yuv420p") -> Path:
    return Clip(path).video(form=form).write()


def test_hevc_in_mp4_has_the_tag_that_apples_players_ask_for(tmp_path: Path) -> None:
    output = tmp_path / "out.mp4"
    transcode(probe(clip(tmp_path / "in.mp4")), output, EncodeOptions(codec=Codec.HEVC, preset="ultrafast"))
    with av.open(str(output)) as written:
        assert written.streams.video[0].codec_context.codec_tag == "hvc1"


def test_the_index_of_an_mp4_lies_in_front(tmp_path: Path) -> None:
    """A browser plays a file while it arrives."""
    transcode(probe(clip(tmp_path / "in.mp4")), tmp_path / "out.mp4")
    data = (tmp_path / "out.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_a_late_start_is_kept_to_the_tick(tmp_path: Path) -> None:
    """One that no millisecond hits, which sound would be ahead of else."""
    made = Clip(tmp_path / "in.mp4", options={"movie_timescale": "30000"})
    times = tuple(1001 + 1001 * number for number in range(25))
    path = made.video(times, time_base=Fraction(1, 30000)).sound(seconds=1.0).write()
    assert times_in(path)[0][0] == Fraction(1001, 30000)
    transcode(probe(path), tmp_path / "out.mp4")
    assert times_in(tmp_path / "out.mp4")[0][0] == Fraction(1001, 30000)


def test_what_a_track_is_for_stays(tmp_path: Path) -> None:
    made = Clip(tmp_path / "in.mkv").video()
    made.stream.disposition = av.stream.Disposition.original
    path = made.write()
    transcode(probe(path), tmp_path / "out.mkv")
    with av.open(str(path)) as source, av.open(str(tmp_path / "out.mkv")) as written:
        disposition = source.streams.video[0].disposition
        assert av.stream.Disposition.original in disposition
        assert written.streams.video[0].disposition == disposition


def test_tags_that_the_source_has_of_its_own_container_and_encoder_go() -> None:
    tags = output_tags({"title": "a title", "encoder": "an old one", "major_brand": "isom"})
    assert set(tags) == {"title", "comment"}


@pytest.mark.parametrize(
    ("changes", "form", "options", "says"),
    [
        ({"embedded": ("closed captions inside the video",)}, "yuv420p", FAST, "left out: closed captions"),
        ({"interlaced": True}, "yuv420p", FAST, "interlaced"),
        ({}, "yuv420p10le", EncodeOptions(codec=Codec.H264, preset="ultrafast"), "few players"),
    ],
    ids=["closed captions", "interlaced", "10 bits in H.264"],
)
def test_what_a_viewer_may_miss_is_said(
    tmp_path: Path, changes: dict[str, Any], form: str, options: EncodeOptions, says: str
) -> None:
    plain: list[str] = []
    notices: list[str] = []
    info = probe(clip(tmp_path / "in.mp4", form))
    transcode(info, tmp_path / "plain.mp4", notices=plain)
    transcode(replace(info, **changes), tmp_path / "out.mp4", options, notices=notices)
    assert says not in " ".join(plain)
    assert says in " ".join(notices)
