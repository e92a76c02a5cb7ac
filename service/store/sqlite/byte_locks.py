"""Locks on bytes of a file (fcntl(2)), as SQLite uses them. Only Linux lays them out like this."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

IS_LINUX = os.uname().sysname == "Linux"


def pack_lock(kind: int, first: int, count: int) -> bytes:
    """Return the `struct flock` of a lock on `count` bytes of a file, from byte `first` on."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, first, count, 0)


LOCKS = Path("/proc/locks")  # proc_locks(5); a process of another container is not in it.


class Lock(NamedTuple):
    """A lock that a process holds: its kind, as POSIX or FLOCK, and its first byte."""

    kind: str
    process: str
    inode: str
    first: str


def list_locks() -> Iterator[Lock]:
    """Yield the locks of all processes that can be seen from here."""
    try:
        lines = LOCKS.read_text().splitlines()
    except OSError:
        return
    for _, kind, _, _, process, file, first, *_ in map(str.split, lines):
        yield Lock(kind, process, file.rpartition(":")[2], first)
