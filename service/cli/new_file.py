"""Files that a command creates: whole or not at all, and in place of no other.

Without hard links, a process that is killed at the wrong moment leaves an empty file.
"""

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

# What FAT, exFAT and many network file systems say of links, and any of a file with too many.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@contextlib.contextmanager
def create(target: Path, mode: int = 0o600) -> Iterator[Path]:
    """Yield the path of an empty file, which gets the name of the target at the end of the block.

    FileExistsError, or another OSError, if it cannot have that name. Another process may create
    the target meanwhile.
    """
    # Short, since the name of the target may be as long as names can be.
    partial = target.parent / f".genhook-{secrets.token_hex(4)}.partial"
    _create_empty(partial, mode)
    try:
        yield partial
        _name(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _name(partial: Path, target: Path) -> None:
    """Give a file its name. Unlike a rename, this replaces nothing."""
    try:
        os.link(partial, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _create_empty(target, 0o600)
        try:
            partial.replace(target)  # Of our own empty file.
        except BaseException:
            target.unlink()
            raise


def _create_empty(path: Path, mode: int) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
