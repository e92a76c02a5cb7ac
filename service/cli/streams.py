"""Standard input, output and error, any of which may be closed when the process starts."""

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

from service.model.errors import CommandError

Print = Callable[[str], None]  # Prints a line.

ESCAPE = "genhook.escape"  # The error handler for characters that standard output cannot encode.


def fill_closed() -> None:
    """Open the null device in place of each standard descriptor that is closed.

    Otherwise the next socket takes its number, gets what anybody writes to standard error, and
    libuv, which never closes these three numbers, ends the process with SIGABRT. `sys.stdout` stays
    None where it was closed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # The lowest number that is free.
            assert opened == descriptor


def escape_output() -> None:
    """Let characters that standard output cannot encode be escaped."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        codecs.register_error(ESCAPE, _escape)
        sys.stdout.reconfigure(errors=ESCAPE)


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Write characters as JSON escapes: Python's own would not be valid in `--json`."""
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass")
    escapes = (f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2))
    return "".join(escapes), error.end


def require_output(what: str) -> None:
    """CommandError if standard output is closed, so that nobody would see what is printed."""
    if sys.stdout is None:
        raise CommandError(f"standard output is closed: nobody would see {what}.")


class OutputError(CommandError):
    """Standard output cannot be written, as on a full disk."""


class Output:
    """Standard output as a file, also for libraries that print: OutputError if a write fails.

    Where standard output is closed, nothing is written. A pipe that nobody reads any more is a
    BrokenPipeError.
    """

    is_begun = False  # Whether something was written since the command began, into any of these.

    def __init__(self) -> None:
        self._file = sys.stdout  # rich puts a file of its own in its place, which writes to this.

    def write(self, text: str) -> int:
        """Write a text."""
        with self._writing():
            return self._file.write(text) if self._file else len(text)

    def flush(self) -> None:
        """Hand over what was written."""
        with self._writing():
            if self._file:
                self._file.flush()
        Output.is_begun = True

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            drop_output()
            raise OutputError(f"the output cannot be written: {error.strerror}") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def echo(line: str) -> None:
    """Print a line on standard output at once; OutputError if that fails."""
    print(line, file=Output(), flush=True)


def drop_output() -> None:
    """Point stdout to the null device, so that what is still buffered fails no exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def progress(text: str) -> None:
    """Show progress on standard error, over the progress before; only at a terminal."""
    if sys.stderr is not None and sys.stderr.isatty():
        with contextlib.suppress(OSError):
            sys.stderr.write(f"\r\x1b[K{text}")
            sys.stderr.flush()


def note(line: str) -> None:
    """Print a line to standard error, unless it was closed at the start (None)."""
    if sys.stderr is not None:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
