"""Which files a job reads and writes."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from unmask.errors import UserError
from unmask.stream import naming
from unmask.stream.naming import (
    PICTURES,
    VIDEO_SUFFIXES,
    VIDEOS,
    WRITTEN_SUFFIXES,
    Unusable,
    assign_targets,
    check_report,
    find_inputs,
    mask_targets,
    partial_name,
    shown,
    whole_file,
)
from unmask.stream.stages.encode import container_format


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
    return [str(job.target) for job in assign_targets(find_inputs(arguments, VIDEOS), output)]


def test_output_lies_beside_its_input_under_a_name_of_its_own(touch: Callable[..., None]) -> None:
    touch("in/a.b.mp4")
    assert targets("in/a.b.mp4") == ["in/a.b.unmasked.mp4"]


def test_name_stays_in_another_folder_and_changes_in_its_own(touch: Callable[..., None]) -> None:
    touch("in/a.mp4", "out/x")
    assert targets("in/a.mp4", output="out") == ["out/a.mp4"]
    assert targets("in/a.mp4", output="out/../in/") == ["out/../in/a.unmasked.mp4"]


def test_partial_name_follows_the_output_and_fits() -> None:
    assert partial_name(Path("in/a.unmasked.mp4")) == Path("in/a.unmasked.partial.mp4")
    assert partial_name(Path("a.unmasked.mp4"), 2) == Path("a.unmasked.partial-2.mp4")
    longest = partial_name(Path("é" * 125 + ".mp4"), 3)
    assert longest.name.endswith("é.partial-3.mp4")
    assert len(longest.name.encode()) <= 255


def test_part_replaces_nothing(touch: Callable[..., None]) -> None:
    touch("a.partial.mp4", "a.partial-2.mp4")
    with whole_file(Path("a.mp4"), overwrite=True) as draft:
        draft.path.write_text("part")
        assert draft.keep_as_part() == Path("a.partial-3.mp4")
    assert Path("a.partial.mp4").read_text() == "a.partial.mp4"
    assert Path("a.partial-3.mp4").read_text() == "part"
    assert sorted(os.listdir()) == ["a.partial-2.mp4", "a.partial-3.mp4", "a.partial.mp4"]


@pytest.mark.parametrize("suffix", sorted(VIDEO_SUFFIXES | WRITTEN_SUFFIXES | {".gif", ".png", ""}))
def test_suffixes_that_are_written_are_those_of_the_encoder(suffix: str) -> None:
    try:
        container_format(suffix)
    except UserError:
        assert suffix not in WRITTEN_SUFFIXES
    else:
        assert suffix in WRITTEN_SUFFIXES


def test_what_cannot_be_written_as_it_is_becomes_something_else(touch: Callable[..., None]) -> None:
    touch("in/a.mpg", "in/b.mp4", "in/b.wmv", "in/b.ogv", "in/c.MOV", "out/x", "noext", "p.jfif")
    jobs = assign_targets(find_inputs(["in", "noext"], VIDEOS), "out")
    assert {str(job.target): job.converted for job in jobs} == {
        "out/a.mp4": True,
        "out/b.mp4": False,
        "out/b.ogv.mp4": True,
        "out/b.wmv.mp4": True,
        "out/c.MOV": False,
        "out/noext.mp4": True,
    }
    assert targets("in/a.mpg") == ["in/a.unmasked.mp4"]
    assert targets("in/a.mpg", output="a.mkv") == ["a.mkv"]
    assert [job.target.name for job in assign_targets(find_inputs(["p.jfif"], PICTURES), None)] == ["p.unmasked.png"]


def test_arguments_that_lead_nowhere_keep_no_other_from_its_turn(touch: Callable[..., None]) -> None:
    touch("a.mp4", "b.txt")
    os.mkfifo("pipe.mp4")
    found = find_inputs(["no.mp4", "a.mp4", "no*.mp4", "", "pipe.mp4"], VIDEOS)
    assert found.files == (Path("a.mp4"),)
    assert [one.argument for one in found.unusable] == ["no.mp4", "no*.mp4", "", "pipe.mp4"]
    assert found.unusable[0] == Unusable("no.mp4", "no.mp4: no such file or folder")
    with pytest.raises(UserError, match=r"no\.mp4: no such file or folder; pipe\.mp4: is a pipe or a device"):
        find_inputs(["no.mp4", "pipe.mp4"], VIDEOS)


def test_file_named_by_two_ways_is_one(touch: Callable[..., None]) -> None:
    touch("in/a.mp4", "in/b.mp4")
    Path("in/link.mp4").symlink_to("a.mp4")
    found = find_inputs(
        ["in/b.mp4", "in/../in/a.mp4", "in/a.mp4", str(Path("in/b.mp4").absolute()), "in/link.mp4"], VIDEOS
    )
    assert found.files == (Path("in/b.mp4"), Path("in/../in/a.mp4"), Path("in/link.mp4"))


def test_names_that_are_not_utf8_are_spelt_out() -> None:
    assert shown("caf\udce9 é \\.mp4") == "caf\\xe9 é \\.mp4"
    assert shown("\ud83d") == "\\ud83d"
    shown(os.fsdecode(bytes(range(1, 256)))).encode()


def test_folders_and_patterns_give_their_videos_sorted_without_our_outputs(touch: Callable[..., None]) -> None:
    touch("in/b.MP4", "in/a.mkv", "in/note.txt", "in/.hidden.mp4", "in/sub/c.mp4")
    ours = ("in/a.unmasked.mkv", "in/a.unmasked.partial-2.mkv", "in/a.unmasked.partial.mkv")
    touch(*ours)
    found = find_inputs(["in", "in/*.MP4"], VIDEOS)
    assert found.files == (Path("in/a.mkv"), Path("in/b.MP4"))
    assert found.passed_over == tuple(map(Path, ours))


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
        ([""], None, "'': an empty name"),
        ([os.devnull], None, "is a pipe or a device"),
        (["a.mp4"], "", "-o '': an empty name"),
        (["a.mp4"], "x" * 300 + ".mp4", "cannot be used (File name too long)"),
        (["a.mp4"], "x" * 300 + "/a.mp4", "cannot be used (File name too long)"),
        (["a.mp4"], "no/", "no/: no such folder"),
        (["a.mp4"], "no", "no: no such folder"),
        (["a.mp4"], "no/a.mp4", "no: no such folder"),
        (["a.mp4", "b.mp4"], "c.mp4", "for several inputs, -o must name a folder"),
        (["in"], "c.mp4", "for several inputs, -o must name a folder"),
        (["a.mp4", "in/a.mp4"], "out", "would both be written to"),
        (["a.mp4"], "a.mp4", "would overwrite the input"),
        (["a.mp4"], "symbolic.mp4", "would overwrite the input"),
        (["a.mp4"], "hard.mp4", "would overwrite the input"),
        (["a.mkv", "a.unmasked.mp4/"], None, "no such file"),
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
    a = assign_targets(find_inputs(["in/a.png"], PICTURES), "out")
    assert mask_targets(a, "masks") == (Path("masks/a.png"),)
    both = assign_targets(find_inputs(["in/b.jpg", "in/b.webp"], PICTURES), "out")
    for jobs, folder, says in [
        (a, "no", "no such folder"),
        (a, "in", "input"),
        (a, "out", "mask and output"),
        (a, "", "an empty name"),
        (a, "x" * 300, "too long"),
    ]:
        with pytest.raises(UserError, match=says):
            mask_targets(jobs, folder)
    with pytest.raises(UserError, match="would both be written"):
        mask_targets(both, "masks")


def test_report_replaces_nothing_unless_told_to(touch: Callable[..., None]) -> None:
    touch("a.mp4", "report.json", "odd.json")
    jobs = assign_targets(find_inputs(["a.mp4"], VIDEOS), None)
    check_report(Path("report.json"), jobs, overwrite=True)
    check_report(Path("new.json"), jobs, overwrite=False)
    with pytest.raises(UserError, match=r"report\.json: exists and is kept"):
        check_report(Path("report.json"), jobs, overwrite=False)
    assert Path("report.json").read_text() == "report.json"
    assert not Path("new.json").exists()
    odd = assign_targets(find_inputs(["odd.json"], VIDEOS), None)
    for path, about, says in [
        ("a.mp4", jobs, "must be named"),
        ("no/r.json", jobs, "no such"),
        ("odd.json", odd, "input"),
    ]:
        with pytest.raises(UserError, match=says):
            check_report(Path(path), about, overwrite=True)


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


def test_closed_folder_is_one_line(touch: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    touch("a.mp4")

    def refuse(path: Path) -> bool:  # root, as whom tests may run, is refused nothing
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    inputs = find_inputs(["a.mp4"], VIDEOS)
    monkeypatch.setattr(Path, "is_dir", refuse)
    for output in ("closed", "closed/a.mp4"):
        with pytest.raises(UserError, match=r"cannot be used \(Permission denied\); check its name and rights"):
            assign_targets(inputs, output)
    with pytest.raises(UserError, match="Permission denied"):
        check_report(Path("closed/r.json"), [], overwrite=False)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_refused_writing_names_the_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    monkeypatch.setattr(naming.os, "link", refuse)
    target = tmp_path / "a.png"
    says = "no space left for .*/a.png; free some" if number == errno.ENOSPC else "a.png: cannot be written"
    with whole_file(target, overwrite=False) as draft:
        with pytest.raises(UserError, match=says):
            draft.write(b"x")
        with pytest.raises(UserError, match=says):
            draft.keep_as(target, overwrite=False)
    assert list(tmp_path.iterdir()) == []


def test_folder_without_room_for_us_is_named(tmp_path: Path) -> None:
    target = Path("/proc/a.txt")  # closed even to root
    if not target.parent.is_dir():
        pytest.skip("there is no /proc")
    with pytest.raises(UserError, match="/proc: cannot be written to"), whole_file(target, overwrite=False):
        pass
