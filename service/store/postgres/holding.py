"""The shards that this process holds, for the parts of it that work on them."""

import time
from collections.abc import Callable

from service.store.shards import NONE, shard_of


class Holding:
    """The shards that a process holds, until a time after which others may hold them.

    A process that was stopped for a while so finds them gone as soon as it goes on.
    """

    def __init__(self) -> None:
        self._shards = NONE
        self._until = 0.0
        self._clock: Callable[[], float] = time.monotonic

    def put(
        self, shards: frozenset[int], until: float, clock: Callable[[], float]
    ) -> frozenset[int]:
        """Hold these shards until `until`, in seconds of the clock; the next call may extend it.

        Return those of the last call that are not held any more.
        """
        lost = self._shards - shards
        self._shards, self._until, self._clock = shards, until, clock
        return lost

    @property
    def shards(self) -> frozenset[int]:
        """The shards on which this process may start work now."""
        is_valid = bool(self._shards) and self._clock() < self._until
        return self._shards if is_valid else NONE

    def has(self, id_: str) -> bool:
        """Whether this process may work on a subscriber or a generation now."""
        return shard_of(id_) in self.shards
