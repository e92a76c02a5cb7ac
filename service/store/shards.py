"""Shards: the 64 parts of the work, and how the workers that are alive share them."""

import time
from collections.abc import Callable, Collection, Sequence
from zlib import crc32

SHARDS = 64
ALL, NONE = frozenset(range(SHARDS)), frozenset[int]()


def shard_of(id_: str) -> int:
    """Return the shard of a subscriber or a generation: CRC-32, the same in every release."""
    return crc32(id_.encode()) % SHARDS


def share_of(worker: int, workers: Sequence[int]) -> int:
    """Return how many shards one of these workers holds; the shares of all are SHARDS together."""
    rank = sorted(workers).index(worker)
    return SHARDS // len(workers) + (rank < SHARDS % len(workers))


def choose_surplus(
    held: Collection[int], share: int, leaving: Collection[int], busy: Collection[int]
) -> set[int]:
    """Return the shards to give up, so that no more than the share is left.

    Shards without requests under way come first, as they can be given up at once. Among equal ones,
    those that leave already come first, and shard 0 last: its holder does the work of no shard.
    """
    ordered = sorted(held, key=lambda shard: (shard in busy, shard not in leaving, -shard))
    return set(ordered[: max(0, len(held) - share)])


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
