"""Jobs on pictures, with a stage that paints a known square; `test_cli.py` runs the real ones."""

import errno
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from unmask.errors import StageError, UserError
from unmask.models.geometry import CROP_SIZE
from unmask.progress import Quiet
from unmask.stream import jobs
from unmask.stream.canvas import Canvas
from unmask.stream.frame import Face, Frame
from unmask.stream.jobs import FaceFound, Failed, PictureDesk, VideoSettings, told_unlike, unmask_video, write_report
from unmask.stream.naming import Job
from unmask.stream.pipeline import Settings, face_stages
from unmask.stream.stage import Context, Stage
from unmask.stream.supervisor import Cancel

RED = (250, 10, 20)
SQUARE = (slice(20, 60), slice(30, 80))
"""Rows and columns of the crop that are painted; the crop lies in the picture's upper left corner."""


class PaintSquare(Stage):
    """Finds one masked face and paints `SQUARE` red."""

    name: ClassVar[str] = "paint"
    opened: ClassVar[int] = 0

    def open(self, context: Context) -> None:
        self._canvas = Canvas(context.layout)
        PaintSquare.opened += 1
        context.notice("painting squares")

    def process(self, frame: Frame) -> Iterable[Frame]:
        pictures = frame.face_pictures(0)
        pictures.mask[:] = 0
        pictures.mask[SQUARE] = 255
        pictures.painted[:] = RED
        identity = np.array([[1.0, 0, 0], [0, 1, 0]])
        points = np.zeros((468, 3), np.float32)
        frame.faces = [Face(1, (1.04, 2, 100, 90), 0.9, points, identity, True, pictures, 0.75, masked=True)]
        self._canvas.paste(frame, identity, pictures.painted, pictures.mask)
        return (frame,)


class PaintAsSeen(PaintSquare):
    """Paints the same, the first two pictures as seen for a personal model."""

    name: ClassVar[str] = "inpaint"

    def open(self, context: Context) -> None:
        super().open(context)
        self._pictures = 0

    def process(self, frame: Frame) -> Iterable[Frame]:
        self._pictures += 1
        return super().process(frame)

    def summary(self) -> dict[str, Any]:
        as_seen = min(self._pictures, 2)
        return {"engine": "none", "as_seen": as_seen, "person": "p.safetensors", "person_shown": as_seen}


class FindNothing(Stage):
    name: ClassVar[str] = "nothing"

    def process(self, frame: Frame) -> Iterable[Frame]:
        return (frame,)


class Lose(FindNothing):
    def process(self, frame: Frame) -> Iterable[Frame]:
        return ()


class Break(FindNothing):
    def process(self, frame: Frame) -> Iterable[Frame]:
        raise IndexError("out of range")


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A (120, 200) PNG of noise."""
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (120, 200, 3), np.uint8))
    return path


def use(monkeypatch: pytest.MonkeyPatch, stage: type[Stage]) -> None:
    monkeypatch.setattr(jobs, "face_stages", lambda settings: (stage(),))


def read(path: Path) -> npt.NDArray[np.uint8]:
    bgr = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert bgr is not None
    return np.asarray(bgr, np.uint8)


def test_only_the_mask_changes_and_the_picture_says_so(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, PaintSquare)
    job, mask = Job(picture, tmp_path / "b.png"), tmp_path / "mask.png"
    with PictureDesk(Settings()) as desk:
        done = desk.unmask(job, mask)
    before, after = read(picture), read(job.target)
    changed = (before != after).any(axis=2)
    expected = np.zeros((CROP_SIZE, CROP_SIZE), np.uint8)
    expected[SQUARE] = 255
    np.testing.assert_array_equal(read(mask), expected[:120, :200])
    assert not changed[expected[:120, :200] == 0].any()
    assert (after[SQUARE] == RED[::-1]).all()
    assert b"Face regions in this picture are synthetic" in job.target.read_bytes()
    assert (done.width, done.height, done.masks_removed, done.mask) == (200, 120, 1, str(mask))
    assert done.faces == (FaceFound((1.0, 2.0, 100.0, 90.0), 0.75, unmasked=True, looks_masked=False),)
    assert " left" not in done.summary()


def test_a_mask_that_is_not_found_is_told(picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FindFaceOnly(FindNothing):
        def process(self, frame: Frame) -> Iterable[Frame]:
            points, box = np.zeros((468, 3), np.float32), (1.0, 2.0, 100.0, 90.0)
            frame.faces = [Face(1, box, 0.9, points, np.eye(2, 3), True, frame.face_pictures(0), wears=0.97)]
            return (frame,)

    use(monkeypatch, FindFaceOnly)
    job = Job(picture, tmp_path / "b.png")
    with PictureDesk(Settings()) as desk:
        done = desk.unmask(job)
    assert job.target.read_bytes() == picture.read_bytes()
    assert (done.masks_removed, done.masks_left, done.faces[0].looks_masked) == (0, 1, True)
    assert "1 face, 0 masks removed, 1 left (" in done.summary()


def test_picture_without_a_mask_is_the_same_file(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, FindNothing)
    job = Job(picture, tmp_path / "b.png")
    with PictureDesk(Settings()) as desk:
        done = desk.unmask(job)
    assert job.target.read_bytes() == picture.read_bytes()
    assert (done.faces, done.masks_removed, done.notices) == ((), 0, ())


def test_stages_are_opened_once_per_size_and_speak_once(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, PaintSquare)
    cv2.imwrite(str(tmp_path / "wide.png"), np.zeros((90, 300, 3), np.uint8))
    PaintSquare.opened = 0
    lines: list[str] = []
    with PictureDesk(Settings(), notice=lines.append) as desk:
        for number, name in enumerate(["a.png", "a.png", "wide.png"]):
            desk.unmask(Job(tmp_path / name, tmp_path / f"out{number}.png"))
    assert PaintSquare.opened == 2
    assert lines == ["painting squares"]


def test_each_picture_is_told_what_the_personal_model_did_for_it(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, PaintAsSeen)
    with PictureDesk(Settings()) as desk:
        done = [desk.unmask(Job(picture, tmp_path / f"{number}.png")) for number in range(3)]
    assert [one.as_seen for one in done] == [1, 1, 0]
    assert [one.notices for one in done] == [(), (), ("no face was like that of p.safetensors",)]
    assert done[0].summary().endswith("1 face, 1 mask removed (1 as the face was seen)")
    assert done[2].summary().endswith("1 face, 1 mask removed; no face was like that of p.safetensors")


@pytest.mark.parametrize(
    ("inpaint", "masks_removed"),
    [
        ({}, 3),
        ({"as_seen": 0}, 3),
        ({"as_seen": 0, "person": "p", "person_shown": 0}, 0),
        ({"as_seen": 0, "person": "p", "person_shown": 2}, 3),
        ({"as_seen": 2, "person": "p", "person_shown": 0}, 3),
    ],
    ids=["no painting", "no views", "no mask", "shown", "seen bare in the video"],
)
def test_nothing_is_said_of_a_personal_model_that_was_of_use_or_not_needed(
    inpaint: dict[str, Any], masks_removed: int
) -> None:
    assert told_unlike(inpaint, masks_removed) == ""


@pytest.mark.parametrize(
    ("stage", "says"),
    [(Lose, "gave back 0 frames for one"), (Break, "stage 'nothing' failed: IndexError: out of range")],
)
def test_failing_stage_leaves_nothing(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: type[Stage], says: str
) -> None:
    use(monkeypatch, stage)
    with PictureDesk(Settings()) as desk, pytest.raises(StageError, match=says):
        desk.unmask(Job(picture, tmp_path / "b.png"), tmp_path / "mask.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_existing_mask_is_kept_and_then_no_picture_is_written(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, PaintSquare)
    mask = tmp_path / "mask.png"
    mask.write_text("mine")
    with PictureDesk(Settings()) as desk, pytest.raises(UserError, match=r"mask\.png: exists and is kept"):
        desk.unmask(Job(picture, tmp_path / "b.png"), mask)
    assert mask.read_text() == "mine"
    assert not (tmp_path / "b.png").exists()


def test_report_is_an_object_or_a_list_and_replaces_only_when_told_to(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    failed = Failed("a.mp4", "a.mp4: is empty", 2)
    write_report(path, [failed], as_list=False, overwrite=False)
    assert msgspec.json.decode(path.read_bytes()) == {"input": "a.mp4", "error": "a.mp4: is empty", "exit_code": 2}
    with pytest.raises(UserError, match="exists and is kept"):
        write_report(path, [failed, failed], as_list=True, overwrite=False)
    write_report(path, [failed, failed], as_list=True, overwrite=True)
    assert len(msgspec.json.decode(path.read_bytes())) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["r.json"]


def test_report_holds_names_that_are_not_utf8(tmp_path: Path) -> None:
    failed = Failed("caf\udce9.mp4", "caf\udce9.mp4: is empty", 2)
    write_report(tmp_path / "r.json", [failed], as_list=True, overwrite=False)
    [entry] = msgspec.json.decode((tmp_path / "r.json").read_bytes())
    assert entry["input"] == "caf\\xe9.mp4"
    assert entry["error"].startswith("caf\\xe9.mp4: ")


@pytest.mark.parametrize("painted", [True, False])
def test_full_disk_names_the_output_and_leaves_nothing(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, painted: bool
) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    use(monkeypatch, PaintSquare if painted else FindNothing)
    monkeypatch.setattr(Path, "write_bytes", fail)
    with PictureDesk(Settings()) as desk, pytest.raises(UserError, match=r"no space left for .*b\.png; free some"):
        desk.unmask(Job(picture, tmp_path / "b.png"))
    with pytest.raises(UserError, match=r"no space left for .*r\.json; free some"):
        write_report(tmp_path / "r.json", [], as_list=True, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


ANIMATED_WEBP = b"RIFF\x30\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0\x07\0\0\x07\0\0ANIM"


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.webp", ANIMATED_WEBP, r"is an animated WebP, .*\(magick a.webp a.gif\) and use `unmask video`"),
        ("a.png", b"\x89PNG\r\n\x1a\n\0\0\0\x08acTL", "is animated; .* use `unmask video`"),
        ("a.gif", b"GIF89a", "is neither PNG nor JPEG nor WebP; for videos and animations use `unmask video`"),
        ("a.mp4", b"\0\0\0\x18ftypisom", "for videos and animations use `unmask video`"),
        ("a.bmp", b"BM" + bytes(60), "is neither PNG nor JPEG nor WebP; convert it to PNG first"),
        ("a.png", b"", "is empty"),
    ],
)
def test_what_is_no_still_picture_is_told_what_to_do(tmp_path: Path, name: str, data: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with PictureDesk(Settings()) as desk, pytest.raises(UserError, match=says):
        desk.unmask(Job(path, tmp_path / "out.png"))
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_animated_webp_is_no_picture_for_the_other_command(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    path.write_bytes(ANIMATED_WEBP)
    with pytest.raises(UserError, match="is an animated WebP"):
        unmask_video(Job(path, tmp_path / "out.mp4"), VideoSettings(), Quiet(), Cancel())


def test_the_pipeline_is_the_one_of_the_architecture() -> None:
    assert [stage.name for stage in face_stages(Settings())] == ["track", "segment", "inpaint", "smooth"]
