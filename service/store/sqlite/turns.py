"""Turns to write: who waits for the commit of another process goes before its next one.

SQLite's own lock is not fair: who waits looks again after up to 100 ms, and by then a process that
commits without a pause has the lock once more. So a process holds a second lock from before it asks
for SQLite's until it has it, and whoever has just committed waits for that one. This is two system
calls for a commit. It is a courtesy: where it cannot be had, SQLite's lock alone decides.
"""

import contextlib
import fcntl
import sqlite3
import time
from collections.abc import Iterator

from service.store.sqlite.byte_locks import IS_LINUX, pack_lock

TURN_SECONDS = 1.0  # A process that is stopped while it waits delays the others for no longer.
_LOOK_SECONDS = 0.001
_BYTE = 0x3FFFFFFF  # The byte before those that SQLite locks; it may hold data.
_TAKE, _GIVE = (pack_lock(kind, _BYTE, 1) for kind in (fcntl.F_WRLCK, fcntl.F_UNLCK))
# A lock of the open file: unlike one of the process, it ends with no other descriptor. Linux only.
_SET_LOCK = fcntl.F_OFD_SETLK if IS_LINUX else None


class Writer(sqlite3.Connection):
    """A connection that writes, with a descriptor of its file."""

    descriptor = -1


@contextlib.contextmanager
def turn(connection: sqlite3.Connection) -> Iterator[None]:
    """Wait for the turn to write, and hold it during the block, which takes SQLite's lock."""
    descriptor = connection.descriptor if isinstance(connection, Writer) else -1
    is_taken = _take(descriptor)
    try:
        yield
    finally:
        if is_taken and _SET_LOCK is not None:
            fcntl.fcntl(descriptor, _SET_LOCK, _GIVE)


def _take(descriptor: int) -> bool:
    if descriptor < 0 or _SET_LOCK is None:
        return False
    looks = round(TURN_SECONDS / _LOOK_SECONDS)
    for _ in range(looks):
        try:
            fcntl.fcntl(descriptor, _SET_LOCK, _TAKE)
        except BlockingIOError:
            time.sleep(_LOOK_SECONDS)  # noqa: TID251  as SQLite does, on the writer's own thread
        except OSError:
            return False
        else:
            return True
    return False
