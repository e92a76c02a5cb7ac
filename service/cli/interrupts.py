"""Ctrl-C: KeyboardInterrupt while a command works, and a quiet end before and after that.

SIGTERM and SIGHUP end a command at once, except in a block that has to clean up (`cleaned_up`),
and while a service runs (stopping.py).
The kernel does that by itself, but not to process 1, which genhook is in most containers.
"""

import contextlib
import os
import signal
from collections.abc import Coroutine, Iterator
from types import FrameType
from typing import Any, TypeVar

from service.cli.start import INTERRUPTED

T = TypeVar("T")
ENDING = (signal.SIGTERM, signal.SIGHUP)
_IMPORT = "<frozen importlib._bootstrap>"


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Let Ctrl-C print no traceback during the block, nor after it; let signals end process 1."""
    _set(_end_or_raise)
    if os.getpid() == 1:
        for number in ENDING:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, end_by)
    try:
        yield
    finally:
        _set(signal.SIG_DFL)  # A second one, while Python ends, would only be printed.


def always_raise() -> None:
    """Let Ctrl-C raise KeyboardInterrupt everywhere; asyncio then cancels what runs instead."""
    _set(signal.default_int_handler)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a loop of its own; Ctrl-C cancels it unless it handles signals."""
    import asyncio  # Help needs none of it.

    handler = signal.getsignal(signal.SIGINT)
    always_raise()
    try:
        return asyncio.run(main)
    finally:
        _set(handler)


@contextlib.contextmanager
def cleaned_up() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the block as Ctrl-C does, and then the process as usual.

    For a block that would leave files or processes behind. Only the main thread may call it.
    """
    came: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        came.append(number)
        handler = signal.getsignal(signal.SIGINT)  # asyncio's cancels the main task.
        if not callable(handler):
            raise KeyboardInterrupt
        handler(number, frame)

    before = {number: signal.getsignal(number) for number in ENDING}
    taken = {n: handler for n, handler in before.items() if handler in (signal.SIG_DFL, end_by)}
    for number in taken:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
        if came:
            end_by(came[0])


def end_by(number: int, _frame: FrameType | None = None) -> None:
    """End the process at once by the signal; process 1 with the status that shells make of it."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def _set(handler: Any) -> None:
    # Shells let commands in the background ignore the signal.
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
