"""`genhook backup`: a complete copy, made beside a service that goes on writing."""

import json
import os
import signal
import sqlite3
import stat
import threading
from contextlib import closing
from pathlib import Path

import pytest

from service.cli import backup, main
from service.store.sqlite import schema
from tests.cli import test_start


@pytest.fixture(autouse=True)
def path(database: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The path of a new database."""
    assert main.main(["migrate"]) == 0
    capsys.readouterr()
    return database


def fill(path: Path, count: int) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE numbers (n INTEGER, half TEXT)")
        rows = [(n, "x" * 500) for n in range(count)]
        connection.executemany("INSERT INTO numbers VALUES (?, ?)", rows)


def test_a_backup_ends_and_is_complete_while_others_commit(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, ended = tmp_path / "copy.db", threading.Event()
    has_committed = threading.Event()
    fill(path, 20_000)

    def write_pairs() -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            while not ended.is_set():
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany("INSERT INTO numbers VALUES (-1, ?)", [("a",), ("b",)])
                connection.execute("COMMIT")
                has_committed.set()

    writer = threading.Thread(target=write_pairs)
    writer.start()
    try:
        assert has_committed.wait(60)
        assert main.main(["backup", str(copy)]) == 0
    finally:
        ended.set()
        writer.join()
    assert f"{copy} is a complete copy of {path}" in capsys.readouterr().out
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        counts = connection.execute("SELECT n < 0, count(*) FROM numbers GROUP BY 1").fetchall()
    assert dict(counts)[0] == 20_000
    assert dict(counts).get(1, 0) % 2 == 0, "half a transaction was copied"
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600


def test_with_json_a_backup_and_a_migration_print_one_object(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.db"
    assert main.main(["backup", str(copy), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"database": str(path), "file": str(copy), "size_bytes": copy.stat().st_size}
    assert main.main(["migrate", "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["database"], again["applied"]) == (str(path), [])
    path.unlink()
    assert main.main(["migrate", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["applied"][0].startswith("0001_")
    assert first["schema_version"] == again["schema_version"] > 0


def test_a_backup_is_a_database_of_this_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.db"
    assert main.main(["backup", str(copy)]) == 0
    monkeypatch.setenv("GENHOOK_DATABASE_URL", f"sqlite:///{copy}")
    capsys.readouterr()
    assert main.main(["migrate"]) == 0
    assert "applied" not in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"precious"])
def test_a_backup_overwrites_nothing(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.db"
    copy.write_bytes(content)
    assert main.main(["backup", str(copy)]) == 1
    assert "exists already" in capsys.readouterr().err
    assert copy.read_bytes() == content
    assert sorted(tmp_path.glob(".*partial")) == []


def test_two_backups_to_one_file_share_none_before_it_is_complete(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy, copy_whole = tmp_path / "copy.db", backup._copy
    fill(path, 1_000)

    def copy_beside_another(source: Path, target: Path) -> None:
        monkeypatch.setattr(backup, "_copy", copy_whole)
        target.write_bytes(b"")  # This one has begun.
        assert main.main(["backup", str(copy)]) == 0
        assert target.read_bytes() == b""
        copy_whole(source, target)

    monkeypatch.setattr(backup, "_copy", copy_beside_another)
    assert main.main(["backup", str(copy)]) == 1
    assert "exists already" in capsys.readouterr().err
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT count(*) FROM numbers").fetchone() == (1_000,)
    assert sorted(tmp_path.glob(".*partial")) == []


def test_a_backup_that_was_ended_halfway_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".copy.db.partial").write_bytes(b"half")
    assert main.main(["backup", str(tmp_path / "copy.db")]) == 0


def test_a_folder_that_does_not_exist_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["backup", "/nowhere/copy.db"]) == 1
    expected = "genhook: the backup to /nowhere/copy.db failed: No such file or directory.\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a" * 256, "File name too long"),
        ("genhook.db/copy.db", "Not a directory"),
        ("endless/copy.db", "Too many levels of symbolic links"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_in_a_sentence(
    tmp_path: Path, name: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "endless").symlink_to(tmp_path / "endless")
    assert main.main(["backup", str(tmp_path / name)]) == 1
    expected = f"genhook: the backup to {tmp_path / name} failed: {reason}.\n"
    assert capsys.readouterr().err == expected


def test_the_name_of_a_backup_may_be_as_long_as_names_can_be(tmp_path: Path) -> None:
    assert main.main(["backup", str(tmp_path / ("a" * 255))]) == 0


def test_a_database_that_cannot_be_read_is_not_blamed_on_the_target(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(f"{path}-wal").mkdir()
    assert main.main(["backup", str(tmp_path / "copy.db")]) == 1
    reason = f"the backup failed: {path} cannot be read: unable to open database file"
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "copy.db").exists()


def test_without_a_database_there_is_nothing_to_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GENHOOK_DATABASE_URL", f"sqlite:///{tmp_path}/none.db")
    assert main.main(["backup", str(tmp_path / "copy.db")]) == 1
    assert "there is no database" in capsys.readouterr().err
    assert not (tmp_path / "none.db").exists()


def test_ctrl_c_ends_a_statement_that_would_not_end(path: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    with closing(backup._open(path)) as connection:
        timer = threading.Timer(0.3, signal.pthread_kill, (threading.get_ident(), signal.SIGINT))
        connection.set_trace_callback(lambda _: timer.start())  # Once the statement has begun.
        with pytest.raises(KeyboardInterrupt):
            backup._execute(connection, endless)
        connection.set_trace_callback(None)
        assert backup._execute(connection, "SELECT 1") == [(1,)]
        timer.join()


def test_a_signal_ends_a_backup_that_leaves_no_part_behind(tmp_path: Path) -> None:
    interrupted = """
import signal
from service.cli import backup
def copy(_, target):
    assert target.exists()
    signal.raise_signal(signal.SIGTERM)
backup._copy = copy
"""
    sqlite3.connect(tmp_path / "genhook.db").close()
    (tmp_path / "genhook.db").touch()
    process = test_start.ended(tmp_path, interrupted, "backup copy.db")
    assert (process.returncode, process.stderr) == (-signal.SIGTERM, "")
    assert [each.name for each in tmp_path.iterdir()] == ["genhook.db"]


def test_a_backup_of_a_damaged_database_names_the_damage(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray(path.read_bytes())
    content[8_192:] = bytes(byte ^ 0x5A for byte in content[8_192:])
    path.write_bytes(content)
    assert main.main(["backup", str(tmp_path / "copy.db")]) == 1
    assert "the database is damaged: genhook doctor" in capsys.readouterr().err
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_a_backup_gets_no_name_beside_which_a_log_of_another_database_is_left(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    left = tmp_path / f"copy.db{suffix}"
    left.write_bytes(b"")
    assert main.main(["backup", str(tmp_path / "copy.db")]) == 1
    assert f"{left} is left of another database" in capsys.readouterr().err
    assert not (tmp_path / "copy.db").exists()


def test_a_backup_and_a_migration_need_no_setting_but_the_databases(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GENHOOK_SECRET_KEYS")
    monkeypatch.setenv("GENHOOK_RETENTION_DAYS", "wrong")
    assert main.main(["backup", str(tmp_path / "copy.db")]) == 0
    path.unlink()
    assert main.main(["migrate"]) == 0
    monkeypatch.setenv("GENHOOK_DATABASE_CONNECTIONS", "wrong")
    assert main.main(["migrate"]) == 2


def test_a_backup_that_fails_leaves_no_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: sqlite3.Connection, __: str, target: str) -> None:
        Path(f"{target}-journal").touch()
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(backup, "_execute", fail)
    before = sorted(tmp_path.iterdir())
    assert main.main(["backup", str(tmp_path / "copy.db")]) == 1
    assert sorted(tmp_path.iterdir()) == before


def test_of_a_full_disk_a_backup_says_so_though_sqlite_only_names_an_io_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_SHMSIZE
        raise error

    full = os.statvfs_result((4_096, 4_096, 100, 0, 0, 100, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    monkeypatch.setattr(schema, "problem", fail)
    assert main.main(["backup", str(tmp_path / "copy.db")]) == 1
    assert "cannot be read: the disk is full" in capsys.readouterr().err
