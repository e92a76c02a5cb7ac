"""Shared questions: of the generations that share a task, one is asked about, and others follow.

In memory alone: who follows a question whose answer is never recorded is still due.
"""

import msgspec
from msgspec.structs import replace

from service.generations.ingest import Reply
from service.model.generation import OPEN, Generation
from service.store.generations import SHARERS_MAX

Key = tuple[str, str]  # The route and the task. Without a task it is the generation's id.


class Question(msgspec.Struct, eq=False):
    """A question under way: the generation that is asked about, and those that share its task."""

    key: Key
    leader: Generation
    is_due: bool  # Else a client asks, of whichever process.
    followers: list[Generation] = []

    def reply_for(self, follower: Generation, reply: Reply, now: int) -> Reply:
        """Return the answer to the leader's question as the answer to one about a follower.

        A planned poll moves the plans of all that are open, so that the next one is for all, too.
        """
        is_planned = self.leader.is_poll_due(reply.exchange.at) and follower.status in OPEN
        exchange = replace(reply.exchange, generation_id=follower.id)
        is_planned = is_planned or follower.is_poll_due(now)
        return replace(reply, exchange=exchange, is_planned=is_planned)


class Questions:
    """The questions that wait for their answers."""

    def __init__(self) -> None:
        self._by_key: dict[Key, Question] = {}

    def missing(self, keys: set[Key]) -> int:
        """Return how many of these would be further questions."""
        return len(keys - self._by_key.keys())

    def open(self, key: Key, leader: Generation, *, is_due: bool) -> Question:
        """Begin a question that others may follow."""
        question = self._by_key[key] = Question(key, leader, is_due)
        return question

    def join(self, key: Key, generation: Generation) -> Question | None:
        """Let a generation follow the question that is under way about its task, if there is one.

        Its input is equal: that of the leader stands for it, and is in memory once.
        """
        question = self._by_key.get(key)
        if question is None or len(question.followers) == SHARERS_MAX:
            return None
        question.followers.append(replace(generation, input=question.leader.input))
        return question

    def close(self, question: Question) -> None:
        """Let nobody follow it any more: its answer has come, or none will."""
        if self._by_key.get(question.key) is question:
            del self._by_key[question.key]
