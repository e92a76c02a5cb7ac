"""Ctrl-C: KeyboardInterrupt while a command works, and a quiet end before and after that."""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any

from service.cli.start import INTERRUPTED

_IMPORT = "<frozen importlib._bootstrap>"


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Let Ctrl-C leave no traceback during the block, nor after it."""
    _set(_end_or_raise)
    try:
        yield
    finally:
        _set(signal.SIG_DFL)  # A second one, while Python ends, would only be printed.


def always_raise() -> None:
    """Let Ctrl-C raise KeyboardInterrupt everywhere; asyncio then cancels what runs instead."""
    _set(signal.default_int_handler)


def _set(handler: Any) -> None:
    # Shells ignore the signal for what they start in the background.
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, handler)


def _end_or_raise(_number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, but end the process at once while it imports a module.

    Nothing is under way then. Python would print the exception and go on if it came in a callback
    that an import calls, and msgspec would crash if it came while a struct is prepared.
    """
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT:
            os._exit(INTERRUPTED)
        frame = frame.f_back
    raise KeyboardInterrupt
