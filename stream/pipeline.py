"""THE tuple of stages that every frame passes through, built from one set of settings."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Final

from unmask.models.processors import usable_processors
from unmask.stream.encoders import EncodeOptions
from unmask.stream.media import MediaInfo
from unmask.stream.stage import Stage
from unmask.stream.stages.decode import Decode
from unmask.stream.stages.draw import DrawTracks
from unmask.stream.stages.encode import Encode
from unmask.stream.stages.inpaint import Inpaint
from unmask.stream.stages.remember import Remember
from unmask.stream.stages.segment import Segment
from unmask.stream.stages.smooth import Smooth
from unmask.stream.stages.track import Track
from unmask.stream.trackers import DEFAULT_TRACKER, Tracker

_MOST_LIVE_FRAMES: Final = 3
"""The slowest stage takes about half of the time of all: more frames than this would only wait for it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user can set about how faces are found and painted.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        max_faces: how many faces of a frame are processed at most, the largest first.
        engine: "auto" for the fastest that can run, or the name of one; see `unmask.models.engine`.
        person: file with a personal model; empty for the general one.
        tracker: whose networks find the faces and their points.
        memory: whether a face that was seen without a mask before is shown as it was.
        later: file with faces that are bare only later, written by a first pass; empty for none.
    """

    device: str = "auto"
    _: KW_ONLY
    max_faces: int = 8
    engine: str = "auto"
    person: str = ""
    tracker: Tracker = DEFAULT_TRACKER
    memory: bool = True
    later: str = ""


def live_frames() -> int:
    """How many frames of a live run are under way at most: one for each processor that this process has, up to three.

    Where the machine is too slow, frames wait for each other: more of them make the picture later, not more frequent.
    """
    return min(usable_processors(), _MOST_LIVE_FRAMES)


def face_stages(settings: Settings, *, live: bool = False) -> tuple[Stage, ...]:
    """The stages that look at faces: all but the ends. Videos and pictures pass through the same ones.

    Args:
        settings: about the faces.
        live: no frame may take much longer than others, as the next one does not wait. Work that can wait is spread
            over frames, and the frames under way share the processors instead of each taking all of them.
    """
    processors, frames = usable_processors(), live_frames()
    # Whoever has another frame needs a processor too; the inpainter, the slowest by far, has all that are left.
    segmenting, inpainting = (processors // frames, processors - frames + 1) if live else (0, 0)
    return (
        Track(max_faces=settings.max_faces, spread=live, tracker=settings.tracker),
        Segment(settings.device, settings.engine, segmenting, spread=live),
        Inpaint(
            settings.device,
            settings.engine,
            settings.person,
            inpainting,
            memory=settings.memory,
            later=settings.later,
        ),
        Smooth(),
    )


def build(
    source: MediaInfo, output: Path, settings: Settings, options: EncodeOptions, *, draw_tracks: bool = False
) -> tuple[Stage, ...]:
    """The pipeline from one video file to another; nothing is opened yet. With `draw_tracks` faces are only followed,
    and what was found is drawn."""
    track, *others = face_stages(settings)
    faces = (track, DrawTracks()) if draw_tracks else (track, *others)
    return (Decode(source, _gpu(settings, options)), *faces, Encode(output, source, options))


def build_first_pass(source: MediaInfo, later: Path, settings: Settings, options: EncodeOptions) -> tuple[Stage, ...]:
    """The pipeline that only looks, and writes which faces are bare later: `Settings.later` of the second pass."""
    track, segment, *_ = face_stages(settings)
    return (Decode(source, _gpu(settings, options)), track, segment, Remember(later))


def _gpu(settings: Settings, options: EncodeOptions) -> int | None:
    return int(settings.device.partition(":")[2] or 0) if options.gpu else None
