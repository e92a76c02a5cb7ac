"""Files that commands create: where there are no links, and where nothing can be created."""

import errno
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from service.cli import calls, environment, main, new_file, saving
from tests.cli.test_environment import options


def refuse(*_: Any, **__: Any) -> None:
    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


@pytest.fixture
def without_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on FAT, exFAT and many network file systems."""
    monkeypatch.setattr(os, "link", refuse)


@pytest.mark.usefixtures("without_links")
def test_a_backup_needs_no_links(database: Path, tmp_path: Path) -> None:
    assert main.main(["migrate"]) == 0
    folder = tmp_path / "usb"
    folder.mkdir()
    assert main.main(["backup", str(folder / "copy.db")]) == 0
    assert (folder / "copy.db").read_bytes()[:6] == database.read_bytes()[:6]
    assert [each.name for each in folder.iterdir()] == ["copy.db"]


@pytest.mark.usefixtures("without_links")
def test_a_result_is_saved_without_links(tmp_path: Path) -> None:
    generation = {"id": "gen_1", "output": {"files": [{"url": "data:image/png,a"}]}}
    assert saving.save(generation, str(tmp_path), lambda _: None)
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"a"]


@pytest.mark.usefixtures("without_links", "bare_environment")
def test_throwaway_keys_are_kept_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert environment.settings_of(options(dev=True)).secret_keys
    assert [each.name for each in tmp_path.iterdir()] == ["genhook-dev.db-keys"]


@pytest.mark.usefixtures("without_links")
def test_without_links_too_nothing_is_replaced_and_nothing_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a"
    with pytest.raises(FileExistsError), new_file.create(target):
        target.write_bytes(b"theirs")  # Meanwhile.
    assert [each.read_bytes() for each in tmp_path.iterdir()] == [b"theirs"]
    target.unlink()
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError), new_file.create(target):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_refused_for_want_of_room_is_not_tried_without_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", fill)
    with pytest.raises(OSError, match="No space left"), new_file.create(tmp_path / "a"):
        pass
    assert list(tmp_path.iterdir()) == []


def deep(folder: Path) -> Path:
    """A folder whose path is so long that no file in it can be named by a whole path."""
    while len(str(folder)) < 4_080:
        folder /= "a" * min(255, 4_085 - len(str(folder)))
    folder.mkdir(parents=True)
    return folder


def test_a_file_that_cannot_even_be_looked_for_is_said(tmp_path: Path) -> None:
    notes: list[str] = []
    generation = {"id": "gen_1", "output": {"files": [{"url": "data:image/png,a"}]}}
    assert not saving.save(generation, str(deep(tmp_path)), notes.append)
    assert notes[0].endswith("is not saved: File name too long.")


@pytest.mark.usefixtures("bare_environment")
def test_a_source_of_a_copy_that_cannot_even_be_looked_for_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / ("a" * 300)
    line = ["copy", "--from", f"sqlite:///{source}", "--to", f"sqlite:///{tmp_path}/b.db"]
    assert main.main(line) == 1
    assert capsys.readouterr().err == f"genhook: cannot open {source}: File name too long.\n"


@pytest.mark.usefixtures("bare_environment")
@pytest.mark.parametrize("line", ["create --model m", "retry gen_1"])
def test_nothing_is_paid_for_whose_files_cannot_be_saved(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def connect(_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(calls, "connect", connect)
    (tmp_path / "file").touch()
    assert main.main(["generations", *line.split(), "--save", str(tmp_path / "file")]) == 1
    assert "file is no folder to save in: File exists" in capsys.readouterr().err
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    assert main.main(["generations", *line.split(), "--save", str(tmp_path)]) == 1
    assert f"{tmp_path} is no folder to save in: Operation not" in capsys.readouterr().err
