"""Standard input, output and error, any of which may be closed when the process starts."""

import contextlib
import os
import sys

from service.model.errors import CommandError

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


def require_output(what: str) -> None:
    """CommandError if standard output is closed, so that nobody would see what is printed."""
    if sys.stdout is None:
        raise CommandError(f"standard output is closed: nobody would see {what}.")


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
