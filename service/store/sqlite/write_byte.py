"""The byte that writers lock: who waits for another process's commit goes before its next one.

SQLite's own lock is not fair: a process that waits tries it again after up to 100 ms (busy_timeout,
https://sqlite.org/c3ref/busy_timeout.html), and by then a process that commits without a pause has
it again. So a process takes a second lock, on one byte of the file, before it asks for SQLite's
lock, and releases it once it has that. A process that has just committed then has to wait for this
byte. This costs two system calls a commit. Where the byte cannot be locked, SQLite's lock decides.
"""

import contextlib
import fcntl
import sqlite3
import time
from collections.abc import Iterator

from service.store.sqlite.byte_locks import IS_LINUX, pack_lock

BYTE_SECONDS = 1.0  # How long a stopped process that holds the byte can delay others.
_LOOK_SECONDS = 0.001
_BYTE = 0x3FFFFFFF  # The byte before those that SQLite locks; it may hold data.
_TAKE, _GIVE = (pack_lock(kind, _BYTE, 1) for kind in (fcntl.F_WRLCK, fcntl.F_UNLCK))
# An open file description lock (fcntl(2)): no other descriptor's close ends it. Linux only.
_SET_LOCK = fcntl.F_OFD_SETLK if IS_LINUX else None


class RawConnection(sqlite3.Connection):
    """A connection; `descriptor` is that of its file if it writes, else -1."""

    descriptor = -1


@contextlib.contextmanager
def hold_byte(connection: sqlite3.Connection) -> Iterator[None]:
    """Hold the byte during the block, which takes SQLite's lock; wait for it BYTE_SECONDS."""
    descriptor = connection.descriptor if isinstance(connection, RawConnection) else -1
    is_taken = _take(descriptor)
    try:
        yield
    finally:
        if is_taken and _SET_LOCK is not None:
            fcntl.fcntl(descriptor, _SET_LOCK, _GIVE)


def _take(descriptor: int) -> bool:
    if descriptor < 0 or _SET_LOCK is None:
        return False
    looks = round(BYTE_SECONDS / _LOOK_SECONDS)
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
