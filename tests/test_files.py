"""Files of data sets appear whole or not at all, and damage is one line."""

import json
import os
import signal
import stat
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from unmask.errors import UserError
from unmask.train import pins
from unmask.train.files import DRAFT, check_whole, json_lines_of, json_of, reading, whole_files


def names_in(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def write(folder: Path, text: str, *names: str) -> None:
    for name in names:
        (folder / name).write_text(text)


def test_files_take_their_places_together(tmp_path: Path) -> None:
    write(tmp_path, "old", "a", "seal", "other")
    with (tmp_path / "a").open() as reader, whole_files(tmp_path, "seal") as draft:
        assert draft.name.startswith(DRAFT)
        assert draft.parent == tmp_path
        hashed = pins.hash_of(tmp_path)
        write(draft, "new", "seal", "a")
        assert (tmp_path / "a").read_text() == "old", "nothing is there before the end"
        assert pins.hash_of(tmp_path) == hashed, "and a run does not take a draft for other data"
    assert reader.closed
    assert names_in(tmp_path) == ["a", "other", "seal"]
    assert [(tmp_path / name).read_text() for name in ("a", "seal", "other")] == ["new", "new", "old"]
    assert (
        stat.S_IMODE((tmp_path / "a").stat().st_mode) & 0o044
        == stat.S_IMODE((tmp_path / "other").stat().st_mode) & 0o044
    )


@pytest.mark.parametrize("error", [KeyboardInterrupt, UserError])
def test_what_was_there_stays_where_writing_fails(error: type[BaseException], tmp_path: Path) -> None:
    write(tmp_path, "old", "a", "seal")

    def fail(folder: Path) -> None:
        with whole_files(folder, "seal") as draft:
            write(draft, "new", "a")
            raise error

    for folder in (tmp_path, tmp_path / "new"):
        with pytest.raises(error):
            fail(folder)
    assert names_in(tmp_path) == ["a", "seal"], "no draft is left, and no folder that was made for nothing"
    assert (tmp_path / "a").read_text() == "old"


def test_a_mixture_is_not_taken_for_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "old", "a", "b", "seal")
    replace = os.replace

    def ended_on_the_way(source: Path, target: Path) -> None:
        if target.name == "b":
            raise OSError("as if the machine had stopped")
        replace(source, target)

    monkeypatch.setattr(os, "replace", ended_on_the_way)
    with pytest.raises(OSError, match="stopped"), whole_files(tmp_path, "seal") as draft:
        write(draft, "new", "a", "b", "seal")
    assert names_in(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_leave_no_draft(number: signal.Signals, tmp_path: Path) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # the tests may run under nohup
    try:
        with pytest.raises(KeyboardInterrupt), whole_files(tmp_path):
            os.kill(os.getpid(), number)
        assert names_in(tmp_path) == []
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_other_threads_write_too(tmp_path: Path) -> None:
    def work() -> None:
        with whole_files(tmp_path) as draft:
            write(draft, "new", "a")

    thread = Thread(target=work)
    thread.start()
    thread.join()
    assert names_in(tmp_path) == ["a"]


def test_a_folder_that_cannot_be_is_said(tmp_path: Path) -> None:
    write(tmp_path, "", "file")
    with pytest.raises(UserError, match="choose another folder"), whole_files(tmp_path / "file"):
        pass


def test_damage_is_said(tmp_path: Path) -> None:
    write(tmp_path, '{"a": 1}\n{bad', "lines")
    with pytest.raises(UserError, match=r"lines' is damaged .*; put it back"):
        json_of(tmp_path / "lines")
    with pytest.raises(UserError, match=r"lines' is damaged .*; put it back"):
        json_lines_of(tmp_path / "lines")
    for wrong, message in ((json.loads, "things that are damaged"), (Path.read_text, "no things")):
        with pytest.raises(UserError, match=f"holds {message}.*; do this"), reading(tmp_path, "things", "do this"):
            wrong(tmp_path / "none" if wrong is Path.read_text else "{bad")


def test_arrays_must_fit_and_be_drawn_to_the_end() -> None:
    check_whole(np.zeros(3), "abc", drawn=np.array([0, 1]))
    check_whole()
    with pytest.raises(ValueError, match="of 3 to 4 pictures"):
        check_whole(np.zeros(3), "abcd")
    with pytest.raises(ValueError, match="to their end"):
        check_whole(drawn=np.array([1, 0]))
