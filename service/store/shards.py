"""Shards: the 64 parts of the work, and how the workers that are alive share them."""

from collections.abc import Collection, Sequence
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

    Shards without requests under way come first, as they can be given up at once. Shard 0 comes
    last: its holder does the work that belongs to no shard.
    """
    ordered = sorted(held, key=lambda shard: (shard in busy, shard not in leaving, -shard))
    return set(ordered[: max(0, len(held) - share)])
