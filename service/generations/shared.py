"""Shared polls: of the generations that share a task, one is polled (the leader), others follow.

They are only in memory: a follower of a poll whose answer is never recorded is still due.
"""

import msgspec
from msgspec.structs import replace

from service.generations.ingest import Reply
from service.model.generation import OPEN, Generation
from service.store.generations import SHARERS_READ_MAX

Key = tuple[str, str]  # The status path and the task. Without a task it is the generation's id.


class SharedPoll(msgspec.Struct, eq=False):
    """A poll under way: the generation that is polled, and those that share its task."""

    key: Key
    leader: Generation
    is_due: bool  # Else it is a client's refresh, which any process may make.
    followers: list[Generation] = []

    def reply_for(self, follower: Generation, reply: Reply, now: int) -> Reply:
        """Return the answer to the leader's poll as the answer to a poll of a follower.

        A planned poll moves the plans of all open followers, so that the next one is for all, too.
        """
        is_planned = self.leader.is_poll_due(reply.exchange.at) and follower.status in OPEN
        exchange = replace(reply.exchange, generation_id=follower.id)
        is_planned = is_planned or follower.is_poll_due(now)
        return replace(reply, exchange=exchange, is_planned=is_planned)


class SharedPolls:
    """The polls that wait for their answers."""

    def __init__(self) -> None:
        self._by_key: dict[Key, SharedPoll] = {}

    def missing(self, keys: set[Key]) -> int:
        """Return for how many of these keys no poll is under way that others may still follow."""
        return len({key for key in keys if not self._may_join(key)})

    def _may_join(self, key: Key) -> bool:
        poll = self._by_key.get(key)
        return poll is not None and len(poll.followers) < SHARERS_READ_MAX

    def open(self, key: Key, leader: Generation, *, is_due: bool) -> SharedPoll:
        """Begin a poll that other generations may follow."""
        poll = self._by_key[key] = SharedPoll(key, leader, is_due)
        return poll

    def join(self, key: Key, generation: Generation) -> SharedPoll | None:
        """Let a generation follow the poll that is under way about its task, if there is one.

        Its input equals the leader's, which it shares: that is in memory once.
        """
        if not self._may_join(key):
            return None
        poll = self._by_key[key]
        poll.followers.append(replace(generation, input=poll.leader.input))
        return poll

    def close(self, poll: SharedPoll) -> None:
        """Let no generation follow it any more: its answer has come, or none will."""
        if self._by_key.get(poll.key) is poll:
            del self._by_key[poll.key]
