"""The file of an open database: what is stored is refused once it would be lost."""

import asyncio
import errno
import os
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from service.model.errors import StorageError
from service.store import subscribers, writes
from service.store.sqlite import file as file_module
from service.store.sqlite import opening
from service.store.sqlite.database import Database
from service.store.sqlite.file import CHECK_SECONDS, File, LostFileError
from service.store.sqlite.group import Transaction


@pytest.fixture
async def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Database]:
    """An open database of which a copy was made, and whose file is looked at for each commit."""
    monkeypatch.setattr(file_module, "CHECK_SECONDS", 0)
    monkeypatch.setattr(writes, "RETRY_SECONDS", 0)
    opened = Database(str(tmp_path / "test.db"))
    await opened.open()
    await opened.apply(lambda c: c.execute("VACUUM INTO ?", (str(tmp_path / "copy.db"),)) and None)
    await opened.migrate()
    await opened.apply(lambda c: c.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall())
    await opened.write(bump)
    assert opened._checkpoint_timer
    opened._checkpoint_timer.cancel()  # A checkpoint would find what a test does to the file.
    yield opened
    await opened.close()


async def bump(tx: Transaction) -> None:
    await subscribers.bump_revision(tx)


def delete(path: Path) -> None:
    path.unlink()


def replace(path: Path) -> None:
    shutil.copy(path, f"{path}-new")
    Path(f"{path}-new").rename(path)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def cut_in_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def put_second_name(path: Path) -> None:
    path.touch()
    path.with_name("other.db").hardlink_to(path)


def overwrite(path: Path) -> None:
    path.write_bytes(path.with_name("copy.db").read_bytes())


def scribble(path: Path) -> None:
    with path.open("rb+") as file:
        file.write(b"a diary, no database")


@pytest.mark.parametrize("do", [delete, replace, empty, cut_in_half, overwrite, scribble])
async def test_nothing_is_stored_in_a_file_that_is_not_the_one_that_was_opened(
    database: Database, do: Callable[[Path], None]
) -> None:
    do(Path(database.path))
    reason = "deleted or replaced" if do in (delete, replace) else "cut short or overwritten"
    with pytest.raises(StorageError, match=f"{reason}: stop genhook"):
        await database.write(bump)
    assert reason in (await database.schema_problem() or "")
    assert reason in (await database.write_problem() or "")


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
@pytest.mark.parametrize("do", [delete, replace])
async def test_nothing_is_stored_without_the_log_and_its_index(
    database: Database, suffix: str, do: Callable[[Path], None]
) -> None:
    do(Path(f"{database.path}{suffix}"))
    with pytest.raises(StorageError, match=f"{suffix} was deleted or replaced: restart genhook"):
        await database.write(bump)


async def test_nothing_is_stored_if_the_path_leads_to_another_name_beside_which_no_log_is(
    database: Database,
) -> None:
    """A restart would look for the log beside the new name, and lose what the old one holds."""
    path = Path(database.path)
    path.rename(f"{path}.moved")  # noqa: ASYNC240
    path.symlink_to(f"{path}.moved")  # noqa: ASYNC240
    with pytest.raises(StorageError, match="-wal was deleted or replaced: stop genhook"):
        await database.write(bump)


async def test_where_every_file_is_gone_no_restart_is_advised(database: Database) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{database.path}{suffix}").unlink()  # noqa: ASYNC240
    with pytest.raises(StorageError, match=f"{database.path} was deleted or replaced: stop"):
        await database.write(bump)


async def test_a_folder_that_a_file_replaced_has_lost_the_database(database: Database) -> None:
    folder = Path(database.path).parent
    folder.rename(f"{folder}-moved")
    folder.touch()
    with pytest.raises(StorageError, match=f"{database.path} was deleted or replaced: stop"):
        await database.write(bump)


async def test_what_the_log_held_is_stored_though_it_was_deleted(database: Database) -> None:
    before = await database.read(subscribers.get_revision)
    Path(f"{database.path}-wal").unlink()  # noqa: ASYNC240
    await database.close()
    await database.open()
    assert await database.read(subscribers.get_revision) == before


async def test_once_the_file_is_back_all_is_stored_also_what_waited(database: Database) -> None:
    before = await database.read(subscribers.get_revision)
    path, moved = database.path, f"{database.path}-moved"
    os.rename(path, moved)  # noqa: PTH104
    always = asyncio.ensure_future(database.write_always(bump))
    with pytest.raises(StorageError, match="deleted or replaced"):
        await database.write(bump)
    assert not always.done()
    os.rename(moved, path)  # noqa: PTH104
    async with asyncio.timeout(60):
        await asyncio.gather(always, database.write(bump))
    assert await database.read(subscribers.get_revision) == before + 2
    assert await database.schema_problem() is None


async def test_no_reader_is_opened_on_another_file(database: Database) -> None:
    replace(Path(database.path))
    with pytest.raises(StorageError, match="deleted or replaced"):
        await database.read(subscribers.get_revision)


async def test_a_file_that_a_checkpoint_filled_up_again_is_still_a_damaged_one(
    database: Database,
) -> None:
    size = os.fstat(database.file.descriptor).st_size
    cut_in_half(Path(database.path))
    await database._run_checkpoint()
    os.truncate(database.path, size)
    with pytest.raises(StorageError, match="cut short"):
        await database.write(bump)


@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("fstat", errno.EIO),
        ("pread", errno.EIO),
        ("stat", errno.EIO),
        ("stat", errno.EACCES),
        ("stat", errno.ESTALE),
    ],
)
async def test_a_file_that_cannot_be_looked_at_for_a_while_is_a_failing_disk(
    database: Database, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    """It is not lost: to restore a backup, as is advised then, would lose what it holds."""

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    before = await database.read(subscribers.get_revision)
    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        always = asyncio.ensure_future(database.write_always(bump))
        with pytest.raises(StorageError, match=f"cannot be read: {os.strerror(number)}"):
            await database.write(bump)
        assert "cannot be read" in (await database.schema_problem() or "")
        await database._run_checkpoint()
    assert database._checkpoint_timer is None, "no checkpoint is planned any more"
    async with asyncio.timeout(60):
        await always
    assert await database.read(subscribers.get_revision) == before + 1


def unidentified(path: str) -> tuple[int, int] | None:
    if path.endswith(("-wal", "-shm")):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return (0, 0)


async def test_an_opening_that_cannot_look_at_its_files_leaves_nothing_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(str(tmp_path / "test.db"))
    threads = {*threading.enumerate()}
    with monkeypatch.context() as patched:
        patched.setattr(file_module, "_identify", unidentified)
        with pytest.raises(StorageError, match="cannot be read: Permission denied"):
            await database.open()
    for thread in {*threading.enumerate()} - threads:
        thread.join(10)  # It ends just after its connection.
        assert not thread.is_alive()
    assert database.file.descriptor < 0
    await database.open()
    await database.close()


async def test_connections_that_are_opened_anew_are_well_once_their_files_can_be_looked_at(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their log is another one by then."""
    watch = File.watch

    def fail_once(file: File) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(file_module, "_identify", unidentified)
            monkeypatch.setattr(File, "watch", watch)
            file.watch()

    database._must_reopen = True
    # So that the next log does not get its number.
    Path(f"{database.path}-kept").hardlink_to(f"{database.path}-wal")  # noqa: ASYNC240
    monkeypatch.setattr(File, "watch", fail_once)
    with pytest.raises(StorageError, match="cannot be read: Permission denied"):
        await database.write(bump)
    await database.write(bump)
    Path(f"{database.path}-wal").unlink()  # noqa: ASYNC240
    with pytest.raises(StorageError, match="-wal was deleted"):
        await database.write(bump)


async def test_damage_that_a_reader_meets_is_told_and_others_are_still_stored(
    database: Database,
) -> None:
    async def meet(_tx: Transaction) -> None:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT_INDEX
        raise error

    with pytest.raises(StorageError, match="malformed"):
        await database.read(meet)
    await database.write(bump)
    assert "is damaged" in (await database.schema_problem() or "")


async def test_damage_that_a_checkpoint_meets_is_told(database: Database) -> None:
    def meet(_connection: sqlite3.Connection) -> None:
        error = sqlite3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error

    with pytest.raises(StorageError, match="malformed"):
        await database.apply(meet)
    assert "is damaged" in (await database.schema_problem() or "")


def test_while_all_is_well_the_files_are_looked_at_now_and_then(tmp_path: Path) -> None:
    file = File(str(tmp_path / "test.db"))
    file.open()
    os.pwrite(file.descriptor, b"SQLite format 3\0", 0)
    file.watch()
    file.check(100.0)
    Path(file.path).unlink()
    file.check(100.0 + CHECK_SECONDS / 2)
    for _ in range(2):  # And then at once.
        with pytest.raises(LostFileError):
            file.check(100.0 + CHECK_SECONDS)
    file.close()


async def test_a_folder_is_no_database(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=f"cannot open {tmp_path}: it is no regular file"):
        await Database(str(tmp_path)).open()


def test_files_that_are_opened_or_closed_at_the_moment_are_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    seen = ["it was deleted", "it was deleted", None]
    monkeypatch.setattr(opening, "_find_loss", lambda _: seen.pop(0))
    assert opening.problem_before_opening("test.db") is None
    assert not seen
    assert len(slept) == 2, "it waited although nothing was lost any more"
    monkeypatch.setattr(opening, "_find_loss", lambda _: "it was deleted")
    assert opening.problem_before_opening("test.db") == "it was deleted"
    assert len(slept) == 2 + opening._LOOKS


@pytest.mark.parametrize("spoil", [os.mkfifo, put_second_name])
def test_what_no_process_changes_by_opening_a_file_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    spoil(tmp_path / "test.db")
    monkeypatch.setattr("time.sleep", lambda _seconds: pytest.fail("it waited"))
    assert opening.problem_before_opening(str(tmp_path / "test.db"))
