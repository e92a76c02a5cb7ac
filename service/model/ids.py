"""Ids: a prefix, `_` and a UUIDv7 (RFC 9562 section 5.7) in hex, which sorts by time."""

import os
import struct
import threading

from service.model import clock

_state = {"ms": 0, "counter": 0}
_lock = threading.Lock()  # Units of work make ids on the database's thread.
# Random numbers for the next ids, read 256 at a time: a system call for each id would let other
# threads run.
_random: list[int] = []
_RANDOM_COUNT = 256

os.register_at_fork(after_in_child=_random.clear)  # Two processes must not use the same numbers.


def new_id(prefix: str, now: int | None = None, *, after: str | None = None) -> str:
    """Return a new id with the time `now`. Ids of one process sort in the order of the calls.

    It also sorts behind `after`, an id of any process, even one whose clock is ahead; later ids of
    this process may then sort before it.

    The 12 bits after the version count within a millisecond (RFC 9562 section 6.2, method 1). If
    the clock steps back, or the count overflows, the id's time is later than `now`.
    """
    moment = clock.now_ms() if now is None else now
    with _lock:
        ms, counter = _state["ms"], _state["counter"]
        if moment > ms:
            ms, counter = moment, 0
        elif counter < 0xFFF:
            counter += 1
        else:
            ms, counter = ms + 1, 0
        _state["ms"], _state["counter"] = ms, counter
        if after is not None:
            # Not stored: one clock that is ahead must not move the ids of every process.
            behind = (time_of(after) << 12 | int(after[-19:-16], 16)) + 1
            ms, counter = max((ms, counter), divmod(behind, 1 << 12))
        if not _random:
            _random.extend(struct.unpack(f"{_RANDOM_COUNT}Q", os.urandom(8 * _RANDOM_COUNT)))
        tail = (_random.pop() & 0x3FFFFFFFFFFFFFFF) | 0x8000000000000000
        return f"{prefix}_{ms:012x}7{counter:03x}{tail:016x}"


def first_id(prefix: str, at: int) -> str:
    """Return the lower bound of ids with the time `at` or later; earlier ids sort before it."""
    return f"{prefix}_{max(at, 0):012x}"


def time_of(identifier: str) -> int:
    """Return the time in an id, in milliseconds since the epoch."""
    return int(identifier[-32:-20], 16)
