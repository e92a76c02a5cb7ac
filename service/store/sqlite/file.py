"""The file of a database: opened, watched while it is open, and closed.

SQLite goes on with the files that it has opened, though they are deleted, replaced, cut short or
overwritten meanwhile (https://sqlite.org/howtocorrupt.html): commits succeed, and are lost with the
process. So `File.check` refuses them.
"""

import math
import os
import sqlite3

from service.model.errors import StorageError
from service.store.sqlite.opening import MAGIC, RESTORE, problem_before_opening

CHECK_SECONDS = 0.25  # As often as a checkpoint runs, before which the file is looked at as well.
_DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}  # Primary result codes.
_RESTART = "restart genhook"


class LostFileError(sqlite3.OperationalError):
    """A file is not the one that was opened, so a commit would be lost."""

    sqlite_errorcode = sqlite3.SQLITE_IOERR


class File:
    """The file at `path`, with the log and the index of it that stand beside it."""

    def __init__(self, path: str) -> None:
        self.path = path
        # For locks on the file. It is closed after every connection: to close any descriptor of a
        # file drops the POSIX locks that SQLite holds on the file for this process (fcntl(2)).
        self.descriptor = -1
        self._target = ""  # The file that the path, which may be a link, has led to.
        self.is_new = False
        self.damage: str | None = None  # The first damage that SQLite has met.
        # By what follows the file's name: nothing for itself, `-wal` and `-shm`.
        self._identities: dict[str, tuple[int, int] | None] = {}
        self._bytes_seen = 0
        self._is_cut = False
        self._well_at = -math.inf

    def open(self) -> None:
        """Open the file, which is created if there is none. StorageError if that fails."""
        if problem := problem_before_opening(self.path):
            raise StorageError(f"cannot open {self.path}: {problem}")
        try:
            # Only the owner may read it. SQLite gives the files beside it the same mode.
            self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
            status = os.fstat(self.descriptor)
        except OSError as error:
            self.close()
            raise StorageError(f"cannot open {self.path}: {error.strerror}") from error
        self.is_new = status.st_size == 0
        # The file first: if all are gone, a restart would begin with an empty one.
        self._identities = {"": (status.st_dev, status.st_ino)}

    def close(self) -> None:
        """Close the descriptor, which ends the locks on it."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1

    def watch(self) -> None:
        """Watch the files that SQLite has opened now. LostFileError if that cannot be seen.

        Those that it had open before are none of ours any more, even if this fails.
        """
        self._identities = {"": self._identities[""]}
        path = self._target = os.path.realpath(self.path)
        try:
            self._identities |= {suffix: _identify(path + suffix) for suffix in ("-wal", "-shm")}
        except OSError as error:
            raise LostFileError(self._unreadable(error)) from error

    def check(self, now: float) -> None:
        """LostFileError if a commit would be lost. It looks every CHECK_SECONDS."""
        if now - self._well_at >= CHECK_SECONDS:
            self.require_safe()
            self._well_at = now

    def require_safe(self) -> None:
        """LostFileError if a commit would be lost."""
        if problem := self.find_problem():
            raise LostFileError(problem)

    def find_problem(self) -> str | None:
        """Return why no commit is safe any more, or None. The next `check` looks again."""
        self._well_at = -math.inf
        # A link may lead to the file that had this name: a restart would look for the log there.
        path = os.path.realpath(self.path)
        suffix = ""
        try:
            for suffix, identity in self._identities.items():
                if identity and _identify(path + suffix) != identity:
                    advice = _RESTART if suffix and path == self._target else RESTORE
                    return f"the file {self.path}{suffix} was deleted or replaced: {advice}"
            suffix = ""
            self.note_cut()
        except OSError as error:
            return self._unreadable(error, suffix)
        if self._is_cut:
            return f"the file {self.path} was cut short or overwritten: {RESTORE}"
        return None

    def note_cut(self) -> None:
        """Remember whether the file was cut: a checkpoint may bring it back to its size.

        The next `check` looks again. OSError if the file cannot be read.
        """
        self._well_at = -math.inf
        self._is_cut = self._is_cut or self._was_cut()

    def _unreadable(self, error: OSError, suffix: str = "") -> str:
        """Say that a file cannot be looked at: it may still be there, so no backup is restored."""
        return f"the file {self.path}{suffix} cannot be read: {error.strerror}"

    def _was_cut(self) -> bool:
        """Return whether the file is shorter than before, or no SQLite database any more."""
        before, self._bytes_seen = self._bytes_seen, os.fstat(self.descriptor).st_size
        return self._bytes_seen < before or os.pread(self.descriptor, 16, 0) != MAGIC

    def note(self, error: BaseException | None) -> None:
        """Remember damage that SQLite has met."""
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _DAMAGE:
            self.damage = self.damage or f"the file {self.path} is damaged: {error}"


def _identify(path: str) -> tuple[int, int] | None:
    """Return what tells a file from others; None if there is none. OSError if nobody can tell."""
    try:
        status = os.stat(path)  # noqa: PTH116  it runs often
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino
