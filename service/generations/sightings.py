"""Counts answers that are believed only once several have said the same.

The counts are in memory and bounded. After a restart upstream is polled a few times more.
"""

import hashlib
from collections import OrderedDict

import msgspec

from service.model.clock import SECOND

SIGHTINGS_MAX = 10_000  # Generations whose answers are remembered.
# The files of a task that is said to be done may come a moment later. It is polled again so long
# after the first such answer, and not by the plan of polls, whose next one may be a second away.
NO_FILES_MS = tuple(seconds * SECOND for seconds in (15, 30, 45))
ALIAS_ANSWERS = 3  # Answers with the same other id before it counts as another name of the task.


class Sighting(msgspec.Struct):
    """What the answers about one generation said, how often, and since when."""

    digest: bytes  # Of what was said, which may be large.
    count: int
    first_at: int


class Paths:
    """Which tasks each status path last answered about, and those that decline all polls.

    There are as many as the catalogue has.
    """

    def __init__(self) -> None:
        self.troubled: set[str] = set()
        self._answered_at: dict[str, dict[str, int]] = {}  # By generation, of the latest two.

    def note_answer(self, path: str, generation_id: str, now: int) -> None:
        """Note that upstream answered about a generation's task, and named it."""
        self.troubled.discard(path)
        answered_at = self._answered_at.setdefault(path, {})
        answered_at.pop(generation_id, None)
        answered_at[generation_id] = now
        if len(answered_at) > 2:
            del answered_at[next(iter(answered_at))]

    def answered_another(self, path: str, generation_id: str, since: int) -> bool:
        """Whether upstream answered about another generation's task on the path since then."""
        others = self._answered_at.get(path, {}).items()
        return any(id_ != generation_id and at >= since for id_, at in others)


class Sightings:
    """The latest sighting of each generation, and which task each other id was met for."""

    def __init__(self) -> None:
        self.paths = Paths()
        self._by_generation: OrderedDict[str, Sighting] = OrderedDict()
        self._met_by: OrderedDict[str, str | None] = OrderedDict()  # None: several tasks.

    def note(self, generation_id: str, content: str, now: int) -> Sighting:
        """Count an answer; one with another content begins a new count."""
        digest = hashlib.sha256(content.encode()).digest()
        sighting = self._by_generation.pop(generation_id, None)
        if sighting is None or sighting.digest != digest:
            sighting = Sighting(digest, 0, now)
        sighting.count += 1
        self._by_generation[generation_id] = sighting
        if len(self._by_generation) > SIGHTINGS_MAX:
            self._by_generation.popitem(last=False)
        return sighting

    def note_alias(self, generation_id: str, task_id: str, other_id: str, now: int) -> bool:
        """Count an answer that names another task; return whether that id is an alias of this task.

        Resellers show the id of the service behind them. An id that polls of two different tasks
        return is a name of neither. Generations that share a task meet it as the same one.
        """
        met_by = self._met_by.setdefault(other_id, task_id)
        self._met_by.move_to_end(other_id)
        if len(self._met_by) > SIGHTINGS_MAX:
            self._met_by.popitem(last=False)
        if met_by != task_id:
            self._met_by[other_id] = None
            return False
        return self.note(generation_id, f"task {other_id}", now).count >= ALIAS_ANSWERS

    def files_due_at(self, generation_id: str, now: int) -> int | None:
        """Return when to poll again about a task that is said to be done and has no files."""
        sighting = self._by_generation.get(generation_id)
        times = [sighting.first_at + after_ms for after_ms in NO_FILES_MS] if sighting else []
        return next((at for at in times if at > now), None)

    def forget(self, generation_id: str) -> None:
        """Forget the answers about a generation: the latest one says something certain."""
        self._by_generation.pop(generation_id, None)
