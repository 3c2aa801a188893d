"""THE tuple of stages that every frame passes through, built from one set of settings."""

from dataclasses import dataclass
from pathlib import Path

from unmask.stream.encoders import EncodeOptions
from unmask.stream.media import MediaInfo
from unmask.stream.stage import Stage
from unmask.stream.stages.decode import Decode
from unmask.stream.stages.draw import DrawTracks
from unmask.stream.stages.encode import Encode
from unmask.stream.stages.inpaint import Inpaint
from unmask.stream.stages.segment import Segment
from unmask.stream.stages.smooth import Smooth
from unmask.stream.stages.track import Track
from unmask.stream.trackers import DEFAULT_TRACKER, Tracker


@dataclass(frozen=True, slots=True)
class Settings:
    """What the user can set about how faces are found and painted.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        max_faces: how many faces of a frame are processed at most, the largest first.
        tracker: whose detector finds the faces.
    """

    device: str = "auto"
    max_faces: int = 8
    tracker: Tracker = DEFAULT_TRACKER


def face_stages(settings: Settings) -> tuple[Stage, ...]:
    """The stages that look at faces: all but the ends. Videos and pictures pass through the same ones."""
    return (
        Track(max_faces=settings.max_faces, tracker=settings.tracker),
        Segment(settings.device),
        Inpaint(settings.device),
        Smooth(),
    )


def build(
    source: MediaInfo, output: Path, settings: Settings, options: EncodeOptions, *, draw_tracks: bool = False
) -> tuple[Stage, ...]:
    """The pipeline from one video file to another; nothing is opened yet. With `draw_tracks` faces are only followed,
    and what was found is drawn."""
    track, *others = face_stages(settings)
    faces = (track, DrawTracks()) if draw_tracks else (track, *others)
    return (Decode(source), *faces, Encode(output, source, options))
