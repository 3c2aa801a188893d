"""Codes the pictures and the sound of a live run into a container: a file or a network address."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

import av
from av.audio.stream import AudioStream
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from unmask.stream.encoders import Choice, Codec, EncodeOptions, VideoSettings, choose_encoder, configure
from unmask.stream.frame import Layout
from unmask.stream.live.feed import FeedInfo
from unmask.stream.live.sound_track import SoundTrack
from unmask.stream.live.state import SOUND_RATE, TIME_BASE, Sound
from unmask.stream.media import FULL_RANGE
from unmask.stream.remux import output_tags

_HELD: Final = frozenset({Codec.H264})
_SOUND_BITS: Final = 128_000


@dataclass(frozen=True, slots=True)
class Coding:
    """How a live picture is coded: H.264 without B-frames, and AAC.

    Args:
        choice: the encoder.
        settings: what it is told.
        sound: True where there is a track of sound.
    """

    choice: Choice
    settings: VideoSettings
    sound: bool

    def __str__(self) -> str:
        return self.choice.encoder.name + (", sound as AAC" if self.sound else ", no sound")


def choose_coding(info: FeedInfo, layout: Layout, container: str, *, gpu: bool, push: bool) -> Coding:
    """Find an encoder that keeps up, by opening it.

    Args:
        info: of the source.
        layout: of the run.
        container: for messages.
        gpu: try NVENC first.
        push: for the network: a key picture every second, and no picture held back.

    Raises:
        UserError: none opens.
    """
    color = info.color if info.layout.pixel_format.planar else info.color._replace(matrix=1)
    settings = VideoSettings(
        width=layout.width,
        height=layout.height,
        time_base=TIME_BASE,
        fps=info.fps,
        sample_aspect_ratio=info.sample_aspect_ratio,
        color=color._replace(range=FULL_RANGE if layout.full_range else 1),
        b_frames=False,
    )
    preset = None if gpu else "ultrafast" if push else "superfast"
    crf = None if gpu else 23 if push else 20
    options = EncodeOptions(Codec.H264, crf=crf, preset=preset, gpu=gpu)
    choice = choose_encoder(options, settings, layout, _HELD, container)
    added = {"g": str(max(1, round((1 if push else 2) * info.fps)))}
    if choice.encoder.name == "libx264":
        # Threads that each hold a picture back would delay it; and two cores have other things to do.
        added |= {"tune": "zerolatency"} if push else {"thread_type": "slice"}
    choice = replace(choice, options=choice.options | added)
    return Coding(choice, settings, info.sound)


class StreamWriter:
    """An open container. Used by one thread.

    Args:
        address: a path behind "file:", or a URL.
        container: FFmpeg's name of the format.
        coding: how.
        options: for the container.

    Raises:
        av.FFmpegError, OSError: it cannot be opened.
    """

    def __init__(self, address: str, container: str, coding: Coding, options: dict[str, str] | None = None) -> None:
        self._coding = coding
        self._start: int | None = None
        self._last = 0
        self._waiting: list[Sound] = []
        self._track: SoundTrack | None = None
        self._container = av.open(address, "w", format=container, container_options=options or {})
        self._video = self._add_video()
        self._audio = self._add_audio() if coding.sound else None
        self._container.metadata.update(output_tags({}))
        self._container.start_encoding()

    def write(self, picture: VideoFrame, sounds: Iterable[Sound]) -> None:
        """Add a picture, with `pts` in 1/90000 s, and the sound up to it. The picture is the writer's now.

        Raises:
            av.FFmpegError: it cannot be coded or written.
        """
        assert picture.pts is not None
        if self._start is None:
            self._start = picture.pts
            self._track = SoundTrack(float(self._start * TIME_BASE))
        self._last = picture.pts
        own = picture.reformat(format=self._coding.choice.pixel_format)  # the picture itself where nothing changes
        own.pts, own.time_base = self._last - self._start, TIME_BASE
        self._container.mux(self._video.encode(own))
        self._waiting += sounds
        self._write_sound(float(self._last * TIME_BASE))

    def finish(self) -> None:
        """Write what is left, and the end. Raises av.FFmpegError."""
        end = float(self._last * TIME_BASE + 1 / self._coding.settings.fps)
        self._write_sound(end, end)
        self._container.mux(self._video.encode(None))
        if self._audio is not None:
            self._container.mux(self._audio.encode(None))
        self._container.close()

    def abandon(self) -> None:
        """Let go of it as it is."""
        with suppress(av.FFmpegError, OSError):  # it is being thrown away, or its receiver has gone
            self._container.close()

    def _write_sound(self, until: float, end: float = float("inf")) -> None:
        """Write the pieces that begin before `until`; the others wait for their picture."""
        ready = [sound for sound in self._waiting if sound.seconds < until]
        self._waiting = [sound for sound in self._waiting if sound.seconds >= until]
        if self._audio is None or self._track is None:
            return
        for sound in ready:
            for frame in self._track.add(sound, end):
                self._container.mux(self._audio.encode(frame))

    def _add_video(self) -> VideoStream:
        choice, settings = self._coding.choice, self._coding.settings
        stream = self._container.add_stream(choice.encoder.name, rate=settings.fps, options=choice.options)
        assert isinstance(stream, VideoStream)
        assert isinstance(stream.codec_context, VideoCodecContext)
        configure(stream.codec_context, choice, settings)
        stream.time_base = settings.time_base
        return stream

    def _add_audio(self) -> AudioStream:
        stream = self._container.add_stream("aac", rate=SOUND_RATE, layout="stereo")
        assert isinstance(stream, AudioStream)
        stream.bit_rate = _SOUND_BITS
        return stream
