"""The whole program on a masked face that moves: real sockets, real codecs, the shipped weights."""

import json
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest

from unmask.cli import main
from unmask.errors import UnmaskError
from unmask.progress import Quiet
from unmask.stream.jobs import VideoSettings, unmask_video
from unmask.stream.naming import Job
from unmask.stream.supervisor import Cancel
from unmask.train.demo import (
    BARE_FRAMES,
    PUT_ON_FRAMES,
    RATE,
    SECONDS,
    Portrait,
    make_portrait,
    render,
    write_frames,
    write_put_on,
)

U8 = npt.NDArray[np.uint8]
FRAMES = 16
MASKED = 32


def planes(path: Path) -> list[U8]:
    """The decoded samples of each frame, as they are in the file."""
    with av.open(str(path)) as container:
        return [np.asarray(frame.to_ndarray(), np.uint8) for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def scene() -> Portrait:
    return make_portrait()


@pytest.fixture(scope="module")
def clips(scene: Portrait, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A masked clip of 16 frames, coded without loss, and what the program makes of it in threads and in processes."""
    folder = tmp_path_factory.mktemp("clips")
    source = folder / "masked.mp4"
    write_frames(source, [render(scene, index / 100).masked for index in range(FRAMES)], crf=0)
    made = {"source": source}
    for name, extra in (("threads", []), ("processes", ["--processes"])):
        made[name] = folder / f"{name}.mp4"
        report = folder / f"{name}.json"
        arguments = ["video", str(source), "-o", str(made[name]), "--crf", "0", "--quiet", "--report", str(report)]
        assert main([*arguments, *extra]) == 0
    return made


def test_every_mask_is_removed_and_reported(clips: dict[str, Path]) -> None:
    report = json.loads(clips["threads"].with_suffix(".json").read_text())
    assert report["frames"] == report["masks_removed"] == FRAMES
    assert report["details"]["segment"]["people_unmasked"] == 1
    assert report["dropped"] == 0
    assert set(report["stages"]) == {"decode", "track", "segment", "inpaint", "smooth", "encode"}


def test_threads_and_processes_give_the_same_frames_to_the_bit(clips: dict[str, Path]) -> None:
    threads, processes = planes(clips["threads"]), planes(clips["processes"])
    assert len(threads) == len(processes) == FRAMES
    for one, other in zip(threads, processes, strict=True):
        np.testing.assert_array_equal(one, other)


def test_only_the_face_changes(clips: dict[str, Path], scene: Portrait) -> None:
    for index, (before, after) in enumerate(zip(planes(clips["source"]), planes(clips["threads"]), strict=True)):
        mask = render(scene, index / 100).mask > 127
        rows, columns = np.nonzero(mask)
        margin = 40  # the mask's shadow and the soft edge, at this size of the face
        far = np.ones_like(mask)
        far[rows.min() - margin : rows.max() + margin, columns.min() - margin : columns.max() + margin] = False
        luma_before, luma_after = before[: mask.shape[0]], after[: mask.shape[0]]
        np.testing.assert_array_equal(luma_after[far], luma_before[far])
        assert (luma_before != luma_after)[mask].mean() > 0.95


def test_result_is_nearer_to_the_truth_than_the_mask(clips: dict[str, Path], scene: Portrait) -> None:
    with av.open(str(clips["threads"])) as container:
        result = [np.asarray(f.to_ndarray(format="rgb24"), np.float64) for f in container.decode(video=0)]
    for index, rgb in enumerate(result):
        shot = render(scene, index / 100)
        inside = shot.mask > 127
        error, masked = (np.abs(x[inside] - shot.truth[inside]).mean() for x in (rgb, shot.masked.astype(np.float64)))
        assert error < 0.5 * masked, index


@pytest.mark.parametrize("tracker", ["unmask", "mediapipe"])
def test_tracks_are_drawn_and_the_masks_stay(clips: dict[str, Path], scene: Portrait, tracker: str) -> None:
    drawn = clips["source"].with_name(f"drawn-{tracker}.mp4")
    report = drawn.with_suffix(".json")
    command = ["video", str(clips["source"]), "-o", str(drawn), "--crf", "0", "--quiet", "--report", str(report)]
    assert main([*command, "--draw", "tracks", "--tracker", tracker]) == 0
    said = json.loads(report.read_text())
    assert said["masks_removed"] == 0
    assert set(said["stages"]) == {"decode", "track", "draw", "encode"}
    assert said["details"]["track"]["tracker"] == tracker
    assert said["details"]["draw"]["faces"] >= FRAMES
    for index, (before, after) in enumerate(zip(planes(clips["source"]), planes(drawn), strict=True)):
        mask = render(scene, index / 100).mask > 127
        changed = (before != after)[: mask.shape[0]][mask]
        assert 0.01 < changed.mean() < 0.6, "points lie on the mask, which stays"


def test_an_unknown_tracker_is_a_mistake(clips: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["video", str(clips["source"]), "--tracker", "other"]) == 2
    assert "'unmask', 'mediapipe'" in capsys.readouterr().err


def test_a_face_that_was_seen_before_its_mask_is_shown(scene: Portrait, tmp_path: Path) -> None:
    shot, source = render(scene, (PUT_ON_FRAMES - 1) / (RATE * SECONDS)), tmp_path / "put-on.mp4"
    write_put_on(source, scene)
    errors, as_seen = {}, {}
    for option in ("--memory", "--no-memory"):
        out = tmp_path / f"{option}.mp4"
        arguments = ["video", str(source), "-o", str(out), option, "--quiet", "--report", str(out.with_suffix(".json"))]
        assert main(arguments) == 0
        as_seen[option] = json.loads(out.with_suffix(".json").read_text())["as_seen"]
        with av.open(str(out)) as container:
            last = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][-1]
        result, truth = (cv2.GaussianBlur(x.astype(np.float32), (0, 0), 5) for x in (last, shot.truth))
        errors[option] = float(np.square((result - truth)[shot.mask > 127]).mean())
    assert as_seen == {"--memory": PUT_ON_FRAMES - BARE_FRAMES, "--no-memory": 0}
    assert errors["--memory"] < 0.4 * errors["--no-memory"]


@pytest.fixture(scope="module")
def taken_off(scene: Portrait, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip of a face that wears a mask in the first 32 frames and is bare in the 32 after."""
    path = tmp_path_factory.mktemp("taken-off") / "taken-off.mp4"
    shots = (render(scene, index / (RATE * SECONDS)) for index in range(2 * MASKED))
    write_frames(path, (shot.masked if index < MASKED else shot.truth for index, shot in enumerate(shots)))
    return path


def test_a_face_that_is_bare_later_is_shown_on_the_second_pass(
    scene: Portrait, taken_off: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shot = render(scene, 0.0)
    errors, said, reports = {}, {}, {}
    for name, options in (("once", []), ("ahead", ["--look-ahead"]), ("processes", ["--look-ahead", "--processes"])):
        out = tmp_path / f"{name}.mp4"
        command = ["video", str(taken_off), "-o", str(out), "--report", str(out.with_suffix(".json")), *options]
        assert main(command) == 0
        said[name], reports[name] = capsys.readouterr().out, json.loads(out.with_suffix(".json").read_text())
        with av.open(str(out)) as container:
            first = next(container.decode(video=0)).to_ndarray(format="rgb24")
        result, truth = (cv2.GaussianBlur(x.astype(np.float32), (0, 0), 5) for x in (first, shot.truth))
        errors[name] = float(np.square((result - truth)[shot.mask > 127]).mean())
    removed = reports["once"]["masks_removed"]
    assert {name: report["as_seen"] for name, report in reports.items()} == {
        "once": 0,
        "ahead": removed,
        "processes": removed,
    }
    assert MASKED <= removed < MASKED + 4
    assert f"{removed} on faces that are bare later: --look-ahead" in said["once"]
    assert "--look-ahead" not in said["ahead"]
    assert reports["ahead"]["details"]["remember"] == {"faces": 1}
    assert reports["ahead"]["frames"] == 2 * MASKED
    assert errors["ahead"] < 0.4 * errors["once"]
    assert errors["processes"] == errors["ahead"], "threads and processes give the same"


def test_stopped_while_it_looks_ahead_it_leaves_nothing(taken_off: Path, tmp_path: Path) -> None:
    cancel, doing = Cancel(), []

    class Stops(Quiet):
        def started(self, job: Job, expected_frames: int | None, doing_now: str = "") -> None:
            doing.append(doing_now)
            cancel.drain()

    job, settings = Job(taken_off, tmp_path / "out.mp4"), VideoSettings(look_ahead=True)
    with pytest.raises(UnmaskError, match="stopped while looking ahead; nothing was written"):
        unmask_video(job, settings, Stops(), cancel)
    assert doing == ["looking ahead"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["--no-memory", "--draw=tracks"])
def test_looking_ahead_for_nothing_is_a_mistake(
    option: str, clips: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["video", str(clips["source"]), "--look-ahead", option]) == 2
    assert f"--look-ahead has nothing to do with {option.partition('=')[0]}" in capsys.readouterr().err
