"""The shards that a process holds, as all its parts see them."""

import time
from collections.abc import Callable

from service.store.shards import NONE, shard_of


class Holding:
    """Shards with the time until which they are valid; then others may have them.

    A process that was stopped finds them gone when it goes on, before it hears of it.
    """

    def __init__(self) -> None:
        self._shards = NONE
        self._until = 0.0
        self._clock: Callable[[], float] = time.monotonic

    def put(self, shards: frozenset[int], until: float, clock: Callable[[], float]) -> None:
        """Hold these shards until a time of the clock, unless that is prolonged."""
        self._shards, self._until, self._clock = shards, until, clock

    @property
    def shards(self) -> frozenset[int]:
        """The shards on which this process may start something now."""
        is_valid = bool(self._shards) and self._clock() < self._until
        return self._shards if is_valid else NONE

    def has(self, id_: str) -> bool:
        """Whether this process may work on a subscriber or a generation now."""
        return shard_of(id_) in self.shards
