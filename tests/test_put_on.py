"""Real clips in which people put on masks: each comes off whole, at once, and who is behind it is shown as before."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from unmask.stream.frame import U8, Frame, Layout
from unmask.stream.pipeline import Settings, face_stages
from unmask.stream.stage import Context

FRAMES = range(8, 58)
NODS = range(308, 352)
WOMEN = {"with short hair": np.s_[230:500, 330:500], "with long hair": np.s_[150:480, 660:860]}


def through_the_stages(clip: Path, frames: range) -> Iterator[tuple[int, U8, U8]]:
    """Frames of a video, as they were and with the masks off."""
    stages = face_stages(Settings(max_faces=8))
    with av.open(str(clip)) as video:
        for index, picture in enumerate(video.decode(video=0)):
            if index not in frames:
                continue
            rgb = np.asarray(picture.to_ndarray(format="rgb24"), np.uint8)
            layout = Layout(rgb.shape[1], rgb.shape[0], "rgb24")
            if index == frames.start:
                for stage in stages:
                    stage.open(Context(layout))
            frame = Frame(index, index, Fraction(1, 25), layout, np.zeros(layout.slot_bytes(8), np.uint8), 0)
            frame.planes[0][:] = rgb
            for stage in stages:
                (frame,) = stage.process(frame)
            yield index, rgb, np.asarray(frame.planes[0], np.uint8)
            if index == frames.stop - 1:
                break
    for stage in stages:
        stage.close()


def blue(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Where a picture has the colour of these masks."""
    red, blues = rgb[..., 0].astype(int), rgb[..., 2].astype(int)
    return np.asarray((blues - red > 25) & (blues > 150))


def test_masks_that_are_put_on_come_off_whole_and_what_was_there_is_shown(shared: Path) -> None:
    left: dict[str, list[float]] = {name: [] for name in WOMEN}
    bare: dict[str, U8] = {}
    strange: dict[str, list[float]] = {name: [] for name in WOMEN}
    for index, before, after in through_the_stages(shared / "data/videos/masked/four-people-506p.mp4", FRAMES):
        for name, part in WOMEN.items():
            if index == FRAMES.start:
                bare[name] = before[part]
            mask = blue(before[part])
            if mask.sum() < 1000:
                continue
            left[name].append(float(blue(after[part])[mask].mean()))
            if left[name][-1] < 0.05:
                gone = np.abs(after[part][mask].astype(int) - bare[name][mask]).mean()
                strange[name].append(float(gone))
    for name, shares in left.items():
        first = next(i for i, share in enumerate(shares) if share < 0.05)
        assert first >= 2, name
        assert min(shares[:first]) > 0.9, f"{name}: half of a mask"
        assert max(shares[first:]) < 0.05, f"{name}: flickers"
        assert np.mean(strange[name]) < 40, name


def test_a_face_that_nods_under_a_mask_at_its_eyes_is_not_shown_where_it_was(shared: Path) -> None:
    """What is seen of the forehead moves otherwise than the face: landmarks that follow it would be off, and with them
    what is blended from frame to frame. What is shown changes little more than what was filmed."""
    part, before, jumps = np.s_[100:600, 420:920], None, []
    for _, filmed, shown in through_the_stages(shared / "data/videos/masked/glasses-vfr-audio-720p.mp4", NODS):
        now = filmed[part].astype(np.float32), shown[part].astype(np.float32)
        if before is not None:
            filmed_change, shown_change = (float(np.abs(a - b).mean()) for a, b in zip(now, before, strict=True))
            jumps.append(shown_change / filmed_change)
        before = now
    assert max(jumps) < 1.5
