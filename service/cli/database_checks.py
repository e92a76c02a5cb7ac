"""What `genhook doctor` says of either database: what is missing, and the age of due work."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from service.cli.arguments import to_sentence
from service.model.clock import MINUTE
from service.store.migrations import Older

CLOCK_OFF_MS = 2 * MINUTE  # Receivers of Standard Webhooks allow five minutes.
DUE_SECONDS_MAX = 300  # A row is taken within seconds, unless something holds it up.
# A commit that changes nothing: only with one does a full or failing disk show itself.
TOUCH = "UPDATE revisions SET number = number"
# The secrets of tenants and subscribers, each with its context; see store/reseal.py.
SEALED = """
SELECT 'secrets:' || id, sealed_secrets FROM tenants
UNION ALL SELECT 'secrets:' || id, sealed_secrets FROM subscribers WHERE sealed_secrets IS NOT NULL
UNION ALL SELECT 'headers:' || id, sealed_headers FROM subscribers WHERE sealed_headers IS NOT NULL
"""
_NO_WORKER = "no worker runs, the worker is behind,"
_HELD_UP = {  # By kind of a row: what else may hold it up.
    "delivery": "or its receiver is slow, limited or asked for a pause",
    "replay": "or its subscriber is owed a lot already",
}
_HELD_UP_UPSTREAM = "or upstream is slow, or asked for a pause"

Level = Literal["ok", "warn", "fail"]


class Finding(NamedTuple):
    """The result of a check, as a sentence; a warning or a failure also says what to do."""

    level: Level
    about: str
    message: str


def judge_schema(problem: str | None, version: int) -> Finding:
    """Say whether the schema is the latest; with a failure no process starts."""
    if problem is None:
        return Finding("ok", "schema", f"The schema is {version}, which is the latest.")
    level: Level = "warn" if isinstance(problem, Older) else "fail"
    return Finding(level, "schema", to_sentence(problem))


def judge_tables(missing: Iterable[str]) -> Iterator[Finding]:
    """Say which tables are missing. What they held is lost, so nobody should create them anew."""
    for name in missing:
        yield Finding("fail", "tables", f"The table {name} is missing: restore a backup.")


def judge_indexes(missing: Mapping[str, str]) -> Iterator[Finding]:
    """Say which indexes are missing, each with the statement that creates it."""
    for name, statement in missing.items():
        message = f"{name} is missing, and what needs it is slow or fails: run `{statement}`."
        yield Finding("fail", "indexes", message)
    if not missing:
        yield Finding("ok", "indexes", "None is missing.")


def judge_due(rows: Iterable[tuple[str, int | None]], now: int) -> Iterator[Finding]:
    """Say for how long the oldest row of each kind has been due. `rows` are (kind, time)."""
    ages = {kind: (now - at) // 1_000 for kind, at in rows if at is not None and at <= now}
    for kind, seconds in ages.items():
        if seconds > DUE_SECONDS_MAX:
            why = f"{_NO_WORKER} {_HELD_UP.get(kind, _HELD_UP_UPSTREAM)}"
            yield Finding("warn", "due", f"A {kind} has been due for {_duration(seconds)}: {why}.")
    young = {kind: seconds for kind, seconds in ages.items() if seconds <= DUE_SECONDS_MAX}
    if young:
        oldest = ", ".join(f"{kind} {_duration(seconds)}" for kind, seconds in young.items())
        yield Finding("ok", "due", f"The oldest of each kind that is due: {oldest}.")
    if not ages:
        yield Finding("ok", "due", "Nothing is due now.")


def _duration(seconds: int) -> str:
    if seconds < 2 * 60:
        return f"{seconds} seconds"
    if seconds < 2 * 3_600:
        return f"{seconds // 60} minutes"
    return f"{seconds // 3_600:,} hours" if seconds < 2 * 86_400 else f"{seconds // 86_400:,} days"
