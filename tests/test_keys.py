"""Files with keys for `unmask serve`."""

import os
from pathlib import Path

import pytest

from unmask.errors import UserError
from unmask.stream import keys
from unmask.stream.keys import read_pair, read_public, write_keys


def test_pair_is_written_and_read(tmp_path: Path) -> None:
    private, public = write_keys(tmp_path / "srv")
    assert read_public(str(public)) == read_pair(private).public
    assert private.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("full", [".key", ".pub"])
def test_full_disk_leaves_no_half_a_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: str) -> None:
    def open_file(path: Path, flags: int, mode: int) -> int:
        number = os.open(path, flags, mode)
        if path.suffix == full:
            os.close(number)
            number = os.open("/dev/full", os.O_WRONLY)
        return number

    monkeypatch.setattr(keys, "os", _Os(open_file))
    with pytest.raises(UserError, match=rf"srv{full}: cannot be written .*No space left"):
        write_keys(tmp_path / "srv")
    assert list(tmp_path.iterdir()) == []


class _Os:
    """`os`, but for the way files are opened."""

    def __init__(self, open_file: object) -> None:
        self.open = open_file

    def __getattr__(self, name: str) -> object:
        return getattr(os, name)


def test_public_key_that_is_there_stays_and_no_private_one_joins_it(tmp_path: Path) -> None:
    (tmp_path / "srv.pub").write_text("mine")
    with pytest.raises(UserError, match="exists; choose another name"):
        write_keys(tmp_path / "srv")
    assert [path.name for path in tmp_path.iterdir()] == ["srv.pub"]


@pytest.mark.parametrize(
    ("name", "says"), [("", "is no name"), ("missing/srv", r"missing/srv\.key: cannot be written")]
)
def test_names_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says):
        write_keys(Path(name))
