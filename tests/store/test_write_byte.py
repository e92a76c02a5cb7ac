"""The byte that writers lock: who commits without a pause keeps no other process waiting."""

import fcntl
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from service.store.sqlite import write_byte
from service.store.sqlite.connection import _open, transaction
from service.store.sqlite.file import File

Writers = tuple[sqlite3.Connection, sqlite3.Connection]

pytestmark = pytest.mark.skipif(
    write_byte._SET_LOCK is None, reason="this system has no locks of open files"
)


@pytest.fixture
def writers(tmp_path: Path) -> Iterator[Writers]:
    """Two connections, each with a descriptor of its own, as of two processes."""
    with ExitStack() as stack:
        files = [File(str(tmp_path / "test.db")) for _ in range(2)]
        for file in files:
            file.open()
            stack.callback(file.close)
        first, second = (
            stack.enter_context(closing(_open(file.path, descriptor=file.descriptor)))
            for file in files
        )
        yield first, second


@pytest.mark.parametrize("is_early", [True, False])  # Whether it asks SQLite before the other.
def test_who_waits_goes_before_the_next_commit_of_the_other(
    writers: Writers, monkeypatch: pytest.MonkeyPatch, *, is_early: bool
) -> None:
    first, second = writers
    order: list[str] = []
    waits, tries, began = threading.Event(), threading.Event(), threading.Event()

    def wait_and_commit() -> None:
        with write_byte.hold_byte(second):
            waits.set()
            assert is_early or tries.wait(60)
            second.execute("BEGIN IMMEDIATE")
        began.set()
        order.append("second")
        second.execute("COMMIT")

    def sleep(_seconds: float) -> None:
        tries.set()
        assert began.wait(60)

    monkeypatch.setattr(write_byte, "time", SimpleNamespace(sleep=sleep))
    with transaction(first):
        waiting = threading.Thread(target=wait_and_commit)
        waiting.start()
        assert waits.wait(60)
    with transaction(first):
        order.append("first again")
    tries.set()
    waiting.join()
    assert order == ["second", "first again"]


def test_a_process_that_is_stopped_while_it_waits_keeps_no_turn_for_ever(
    writers: Writers, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = writers
    monkeypatch.setattr(write_byte, "BYTE_SECONDS", 0.01)
    with write_byte.hold_byte(second), transaction(first):
        pass


def test_where_there_are_no_such_locks_commits_succeed(
    writers: Writers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(fcntl, "fcntl", fails)
    with transaction(writers[0]):
        pass
    monkeypatch.setattr(write_byte, "_SET_LOCK", None)
    with transaction(writers[0]):
        pass
