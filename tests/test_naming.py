"""Which files a job reads and writes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from unmask.errors import UserError
from unmask.stream.naming import (
    PICTURE_SUFFIXES,
    VIDEO_SUFFIXES,
    assign_targets,
    check_report,
    find_inputs,
    mask_targets,
    whole_file,
)


@pytest.fixture
def touch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes files in the test's folder, which is the current one."""
    monkeypatch.chdir(tmp_path)

    def make(*names: str) -> None:
        for name in names:
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_bytes(name.encode())

    return make


def targets(*arguments: str, output: str | None = None) -> list[str]:
    return [str(job.target) for job in assign_targets(find_inputs(arguments, VIDEO_SUFFIXES), output)]


def test_output_lies_beside_its_input_under_a_name_of_its_own(touch: Callable[..., None]) -> None:
    touch("in/a.b.mp4")
    assert targets("in/a.b.mp4") == ["in/a.b.unmasked.mp4"]


def test_name_stays_in_another_folder_and_changes_in_its_own(touch: Callable[..., None]) -> None:
    touch("in/a.mp4", "out/x")
    assert targets("in/a.mp4", output="out") == ["out/a.mp4"]
    assert targets("in/a.mp4", output="out/../in/") == ["out/../in/a.unmasked.mp4"]


def test_partial_name_follows_the_output(touch: Callable[..., None]) -> None:
    touch("a.mp4")
    [job] = assign_targets(find_inputs(["a.mp4"], VIDEO_SUFFIXES), None)
    assert job.partial == Path("a.unmasked.partial.mp4")


def test_folders_and_patterns_give_their_videos_sorted_without_our_outputs(touch: Callable[..., None]) -> None:
    touch("in/b.MP4", "in/a.mkv", "in/note.txt", "in/.hidden.mp4", "in/sub/c.mp4")
    touch("in/a.unmasked.mkv", "in/a.unmasked.partial.mkv")
    found = find_inputs(["in", "in/*.MP4"], VIDEO_SUFFIXES)
    assert found.files == (Path("in/a.mkv"), Path("in/b.MP4"))
    assert found.passed_over == (Path("in/a.unmasked.mkv"), Path("in/a.unmasked.partial.mkv"))


def test_output_of_an_earlier_run_can_be_named_alone(touch: Callable[..., None]) -> None:
    touch("a.unmasked.mp4", "b.mp4")
    assert targets("a.unmasked.mp4") == ["a.unmasked.unmasked.mp4"]
    assert targets("a.unmasked.mp4", "b.mp4") == ["b.unmasked.mp4"]


def test_file_whose_name_looks_like_a_pattern_is_a_file(touch: Callable[..., None]) -> None:
    touch("a[1].mp4", "a1.mp4")
    assert targets("a[1].mp4") == ["a[1].unmasked.mp4"]


@pytest.mark.parametrize(
    ("arguments", "output", "says"),
    [
        (["no.mp4"], None, "no.mp4: no such file"),
        (["no*.mp4"], None, "no*.mp4: no file ending in"),
        (["x" * 300], None, "cannot be read"),
        (["empty"], None, "empty: no file ending in"),
        (["a.mp4"], "no/", "no/: no such folder"),
        (["a.mp4"], "no", "no: no such folder"),
        (["a.mp4"], "no/a.mp4", "no: no such folder"),
        (["a.mp4", "b.mp4"], "c.mp4", "for several inputs, -o must name a folder"),
        (["in"], "c.mp4", "for several inputs, -o must name a folder"),
        (["a.mp4", "in/a.mp4"], "out", "would both be written to"),
        (["a.mp4"], "a.mp4", "would overwrite the input"),
        (["a.mp4"], "symbolic.mp4", "would overwrite the input"),
        (["a.mp4"], "hard.mp4", "would overwrite the input"),
        (["a.mp4", "a.mkv", "a.unmasked.mp4/"], None, "no such file"),
        (["old.unmasked.mp4", "old.unmasked.partial.mp4"], None, "only outputs of unmask"),
    ],
)
def test_refusals(touch: Callable[..., None], arguments: list[str], output: str | None, says: str) -> None:
    touch("a.mp4", "b.mp4", "in/a.mp4", "out/x", "old.unmasked.mp4", "old.unmasked.partial.mp4")
    Path("empty").mkdir()
    Path("symbolic.mp4").symlink_to("a.mp4")
    Path("hard.mp4").hardlink_to("a.mp4")
    with pytest.raises(UserError) as caught:
        targets(*arguments, output=output)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_masks_replace_neither_inputs_nor_outputs(touch: Callable[..., None]) -> None:
    touch("in/a.png", "in/b.jpg", "in/b.webp", "out/x", "masks/x")
    a = assign_targets(find_inputs(["in/a.png"], PICTURE_SUFFIXES), "out")
    assert mask_targets(a, "masks") == (Path("masks/a.png"),)
    both = assign_targets(find_inputs(["in/b.jpg", "in/b.webp"], PICTURE_SUFFIXES), "out")
    for jobs, folder, says in [(a, "no", "no such folder"), (a, "in", "input"), (a, "out", "mask and output")]:
        with pytest.raises(UserError, match=says):
            mask_targets(jobs, folder)
    with pytest.raises(UserError, match="would both be written"):
        mask_targets(both, "masks")


def test_report_replaces_only_an_earlier_report(touch: Callable[..., None]) -> None:
    touch("a.mp4", "report.json", "odd.json")
    jobs = assign_targets(find_inputs(["a.mp4"], VIDEO_SUFFIXES), None)
    check_report(Path("report.json"), jobs)
    assert Path("report.json").read_text() == "report.json"
    odd = assign_targets(find_inputs(["odd.json"], VIDEO_SUFFIXES), None)
    for path, about, says in [
        ("a.mp4", jobs, "must be named"),
        ("no/r.json", jobs, "no such"),
        ("odd.json", odd, "input"),
    ]:
        with pytest.raises(UserError, match=says):
            check_report(Path(path), about)


def test_file_appears_when_it_is_kept_and_not_before(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with whole_file(target, overwrite=False) as draft:
        draft.path.write_text("whole")
        assert not target.exists()
        assert draft.path.parent == tmp_path
        draft.keep_as(target, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert target.read_text() == "whole"
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_fault_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with whole_file(tmp_path / "a.txt", overwrite=False) as draft:
            draft.path.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_name_taken_in_the_meantime_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with whole_file(target, overwrite=False) as draft:
        target.write_text("theirs")
        with pytest.raises(UserError, match="exists and is kept"):
            draft.keep_as(target, overwrite=False)
    assert target.read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_existing_file_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(UserError, match="exists and is kept"), whole_file(target, overwrite=False):
        pass
    with whole_file(target, overwrite=True) as draft:
        draft.path.write_text("new")
        assert target.read_text() == "old"
        draft.keep_as(target, overwrite=True)
    assert target.read_text() == "new"


def test_devices_folders_and_endless_names_are_no_targets(tmp_path: Path) -> None:
    for target, says in [
        (tmp_path, "not a regular file"),
        (Path(os.devnull), "not a regular file"),
        (tmp_path / ("x" * 252 + ".mp4"), "too long"),
    ]:
        with pytest.raises(UserError, match=says), whole_file(target, overwrite=True):
            pass


def test_folder_without_room_for_us_is_named(tmp_path: Path) -> None:
    target = Path("/proc/a.txt")  # closed even to root
    if not target.parent.is_dir():
        pytest.skip("there is no /proc")
    with pytest.raises(UserError, match="/proc: cannot be written to"), whole_file(target, overwrite=False):
        pass
