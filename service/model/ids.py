"""Identifiers: a prefix and a UUIDv7 (RFC 9562 section 5.7) in hex, so that they sort by time."""

import os
import struct
import threading

from service.model import clock

_state = {"ms": 0, "counter": 0}
_lock = threading.Lock()  # Units of work draw ids on the database's thread.
_tails: list[int] = []  # Random, drawn ahead: a system call for each id lets other threads in.
_TAILS = 256

os.register_at_fork(after_in_child=_tails.clear)  # Two processes never draw the same ones.


def new_id(prefix: str, now: int | None = None) -> str:
    """`prefix` and 32 hex digits; later calls of one process sort after earlier ones.

    The 12 bits after the version count within a millisecond (RFC 9562 section 6.2, method 1), and
    a clock that steps back is held at the latest millisecond seen.
    """
    moment = clock.now_ms() if now is None else now
    with _lock:
        ms, counter = _advance(moment)
        if not _tails:
            _tails.extend(struct.unpack(f"{_TAILS}Q", os.urandom(8 * _TAILS)))
        tail = (_tails.pop() & 0x3FFFFFFFFFFFFFFF) | 0x8000000000000000
    return f"{prefix}_{ms:012x}7{counter:03x}{tail:016x}"


def first_id(prefix: str, at: int) -> str:
    """Not after any id that was drawn at or after `at`, and after every one drawn before."""
    return f"{prefix}_{max(at, 0):012x}"


def time_of(identifier: str) -> int:
    """Return the milliseconds since the epoch in an id that `new_id` made."""
    return int(identifier[-32:-20], 16)


def _advance(moment: int) -> tuple[int, int]:
    if moment > _state["ms"]:
        _state["ms"], _state["counter"] = moment, 0
    elif _state["counter"] < 0xFFF:
        _state["counter"] += 1
    else:
        _state["ms"], _state["counter"] = _state["ms"] + 1, 0
    return _state["ms"], _state["counter"]
