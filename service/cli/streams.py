"""Standard input, output and error, any of which may be closed when the process starts."""

import codecs
import contextlib
import io
import os
import sys
from collections.abc import Callable

from service.model.errors import CommandError

Print = Callable[[str], None]  # Prints a line.

STANDARD = (0, 1, 2)
ESCAPE = "genhook.escape"  # The error handler for characters that standard output cannot encode.


def fill_closed() -> None:
    """Open the null device in place of each standard descriptor that is closed.

    Otherwise the next socket takes its number, gets what anybody writes to standard error, and
    libuv, which never closes these three numbers, ends the process with SIGABRT. `sys.stdout` stays
    None where it was closed.
    """
    for descriptor in STANDARD:
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


def echo(line: str) -> None:
    """Print a line on standard output at once; CommandError if that fails, as on a full disk."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        drop_output()
        raise CommandError(f"the output cannot be written: {error.strerror}") from error


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
