"""Locks on bytes of a file (fcntl(2)), as SQLite uses them. Only Linux lays them out like this."""

import os
import struct

IS_LINUX = os.uname().sysname == "Linux"


def pack_lock(kind: int, first: int, count: int) -> bytes:
    """Return the `struct flock` of a lock on `count` bytes of a file, from byte `first` on."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, first, count, 0)
