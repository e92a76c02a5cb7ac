"""What is looked at before a database is opened, since SQLite itself does not.

To open a file that another process has lost, or the log of one that is gone, may destroy the
database (https://sqlite.org/howtocorrupt.html).
"""

import contextlib
import fcntl
import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from service.store.sqlite.byte_locks import IS_LINUX, list_locks, pack_lock

MAGIC = b"SQLite format 3\0"
# A log of before, beside a file that was restored, would be copied into it and destroy it.
RESTORE = "stop genhook, and put the file back, or remove its -wal and -shm and restore a backup"
_CUT = f"it was cut short or overwritten: {RESTORE}"
_STOP = "stop that process first, and open the database with nothing else until then"
_LOST = "{} was deleted or replaced while {} uses it: {}"
# Bytes that SQLite locks in each file while a process has it open (os_unix.c).
_SHARED_BYTES, _SHARED_COUNT = 0x40000002, 510
_INDEX_BYTE = 128
_DELETED = " (deleted)"  # After the path of a file that has none any more.
_LOOKS, _LOOK_SECONDS = 10, 0.02  # Before a file that a process uses counts as lost.


def problem_before_opening(path: str) -> str | None:
    """Return why nobody may open the database at `path` now, or None. A missing file is no problem.

    Call this only while the process has no connection to it: it closes a descriptor, which drops
    the connections' locks.
    """
    path = os.path.realpath(path)
    return _find_misfit(path) or _find_lasting_loss(path)


def _find_misfit(path: str) -> str | None:
    """Return why the file is none that SQLite may open, whoever uses it; None if it is missing."""
    try:
        status = os.stat(path)  # noqa: PTH116  as in file.py
    except FileNotFoundError:
        return None
    except OSError as error:
        return error.strerror
    if not stat.S_ISREG(status.st_mode):
        return "it is no regular file"  # To open a FIFO would wait for a writer.
    # SQLite names the log after the file. Two processes that use two names would write two logs,
    # and destroy the database (howtocorrupt.html, "Multiple links to the same file").
    if status.st_nlink > 1:
        return f"it has {status.st_nlink} names (hard links); remove all but one"
    return None


def _find_lasting_loss(path: str) -> str | None:
    """Return which file is lost at every look; None as soon as one finds none lost."""
    loss = _find_loss(path)
    for _ in range(_LOOKS):
        if loss is None:
            break
        time.sleep(_LOOK_SECONDS)  # noqa: TID251  a process just opening the files looks the same
        loss = _find_loss(path)
    return loss


def _find_loss(path: str) -> str | None:
    index, log = f"{path}-shm", f"{path}-wal"
    lock = _find_lock(path, _SHARED_BYTES, _SHARED_COUNT)
    is_open, has_index = lock != fcntl.F_UNLCK, _find_lock(index, _INDEX_BYTE, 1) != fcntl.F_UNLCK
    if is_open and has_index and Path(log).exists():
        return None if _has_magic(path) else _CUT
    if not (is_open or has_index) and _size_of(path):
        return None  # No process has it open, nor its index.
    # To list the locks of all processes takes some 10 ms, so only what is odd or new is worth it.
    for deleted, process in _list_deleted(Path(path).parent):
        if deleted in (path, log, index):
            return _describe_loss(path, deleted, f"process {process}")
    # What else the locks tell, also of a process of another user or container:
    if has_index:
        return _describe_loss(path, log if is_open else path)
    is_lost = lock == fcntl.F_RDLCK and Path(log).exists()
    return _describe_loss(path, index) if is_lost else _find_emptiness(path, log)


def _describe_loss(path: str, deleted: str, user: str = "a process") -> str:
    if deleted == path:
        return _LOST.format("it", user, RESTORE)
    return _LOST.format(deleted, user, _STOP)


def _list_deleted(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield deleted files of a folder, and which other process has each open beside a database.

    Of processes whose files this one may list: its own user's, or all for root. In another mount
    namespace, as of a container or a unit of systemd, a path may lead to another folder, and
    another path to this one.
    """
    first = str(_SHARED_BYTES)
    users = {lock.process for lock in list_locks() if (lock.kind, lock.first) == ("POSIX", first)}
    for process in users - {str(os.getpid())}:
        with contextlib.suppress(OSError):  # It has ended, or is another user's.
            for each in Path(f"/proc/{process}/fd").iterdir():  # proc_pid_fd(5)
                with contextlib.suppress(OSError):  # It is closed by now.
                    parent, name = os.path.split(each.readlink())
                    is_deleted = name.endswith(_DELETED)
                    if is_deleted and _is_same(folder, Path(f"/proc/{process}/root{parent}")):
                        yield str(folder / name.removesuffix(_DELETED)), process


def _is_same(folder: Path, other: Path) -> bool:
    """Whether both paths lead to one folder, or would if both were not gone."""
    try:
        return folder.samefile(other)
    except FileNotFoundError:
        if folder.exists() or other.exists() or folder.name != other.name:
            return False
        return _is_same(folder.parent, other.parent)


def _find_emptiness(path: str, log: str) -> str | None:
    """Return a problem if the file is empty or missing, but its log is not.

    SQLite would delete the log. A new file is never empty by the time that it gets one.
    """
    if not _size_of(path) and _size_of(log):
        return f"it is empty or missing, but {log} is not: {RESTORE}; to begin anew, move that away"
    return None


def _size_of(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0


def _has_magic(path: str) -> bool:
    """Whether a file begins as a database. If it cannot be read, SQLite says why."""
    try:
        with Path(path).open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return True


def _find_lock(path: str, first: int, count: int) -> int:
    """Return the kind of another process's lock on these bytes; F_UNLCK if none, or not Linux."""
    if not IS_LINUX:
        return fcntl.F_UNLCK
    lock = pack_lock(fcntl.F_WRLCK, first, count)
    try:
        with Path(path).open("rb") as file:
            other = fcntl.fcntl(file, fcntl.F_GETLK, lock)
    except OSError:
        return fcntl.F_UNLCK
    return int.from_bytes(other[:2], sys.byteorder)
