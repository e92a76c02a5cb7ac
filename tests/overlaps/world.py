"""Stops one process within a transaction while another one acts, and compares what is stored.

A unit locks what it decides by, so it must not matter at which of its statements another process
acts: all is stored as if that had happened before the unit began, or after its commit.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, Self

import asyncpg
import httpx

from service.model import ids
from service.model.clock import DAY, rfc3339
from service.store.item import Item
from service.store.postgres.database import Database
from service.store.postgres.transaction import Transaction
from tests import engine
from tests.harness import Harness, ManualClock, settings, started, success_report

Act = Callable[[Harness, Mapping[str, str]], Awaitable[Any]]
END = -1  # The point after the commit of a unit.
OTHER_URL, NOTIFY_URL = "http://127.0.0.1:7/other", "http://127.0.0.1:7/notify"
BLOCKED_SECONDS = 20
_BLOCKED = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()"""
_TABLES = """
SELECT c.table_name, array_agg(CAST(c.column_name AS TEXT)) AS columns
FROM information_schema.columns c
WHERE c.table_schema = current_schema() AND c.is_generated = 'NEVER'
    AND c.table_name <> 'schema_version' GROUP BY c.table_name ORDER BY c.table_name"""
# A delivery to a subscriber that was deleted meanwhile, which its lane cancels.
_CANCEL = """
UPDATE deliveries SET status = 'canceled', due_at = NULL
WHERE status = 'pending' AND subscriber_id NOT IN (SELECT id FROM subscribers)"""
# An idempotency key that has expired, rests that are over, and as many sign-ins as there may be.
_MORE = """
WITH keys AS (
    INSERT INTO idempotency (tenant, key, request_sha256, resource_id, created_at)
    VALUES ('default', 'the-key', '', '', CAST($1 AS BIGINT) - 86400001)
), rest AS (
    INSERT INTO rests (tenant, receiver, slow_until, asked_at)
    SELECT 'default', receiver, CAST($1 AS BIGINT) - 1, CAST($1 AS BIGINT) - 2
    FROM unnest(ARRAY['http://127.0.0.1:7', 'http://127.0.0.1:7 ' || $2]) receiver
)
INSERT INTO sign_ins (id_sha256, key_sha256, expires_at)
SELECT CAST(CAST(n AS TEXT) AS BYTEA), 'key', CAST($1 AS BIGINT) + n
FROM generate_series(1, 10) n"""
# They differ from run to run.
_IGNORED = ("nonce", "seq", "request_sha256", "duration_ms", "bucket", "id_sha256")
_ID = re.compile(r"\b([a-z]+)_[0-9a-f]{32}\b")
_UUID = re.compile(r"UUID\('[^']*'\)")
_unit: ContextVar[int] = ContextVar("_unit")


class Point(NamedTuple):
    """A point of time in a process: after so many statements of its n-th unit, or at its END."""

    unit: int
    statement: int


class Pauses:
    """Stops a process at a point, and notes which points there are."""

    def __init__(self, database: Database, at: Point | None) -> None:
        self.seen: list[Point] = []
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        self._at = at
        self._units = 0
        self._run_once = database._run_once
        database._run_once = self._run  # type: ignore[method-assign]
        database._transaction = lambda connection: _Pausing(  # type: ignore[method-assign]
            self, connection, database
        )

    async def _run(self, batch: Sequence[Item]) -> Any:
        self._units += 1
        unit = self._units
        _unit.set(unit)
        await self.note(Point(unit, 0))
        result = await self._run_once(batch)
        await self.note(Point(unit, END))
        return result

    async def note(self, point: Point) -> None:
        self.seen.append(point)
        if point == self._at:
            self.reached.set()
            await self.go_on.wait()


class _Pausing(Transaction):
    """A transaction that may stop after each statement of a unit."""

    __slots__ = ("_count", "_pauses")

    def __init__(self, pauses: Pauses, connection: Any, database: Database) -> None:
        held = database.holding.shards
        super().__init__(connection, database._clock(), held, is_pooled=database.is_pooled)
        self._pauses, self._count = pauses, 0

    async def _note(self) -> None:
        if (unit := _unit.get(0)) > 0:
            self._count += 1
            await self._pauses.note(Point(unit, self._count))


def _stopping(name: str) -> Any:
    original = getattr(Transaction, name)

    async def run(tx: _Pausing, *args: Any, **values: Any) -> Any:
        result = await original(tx, *args, **values)
        await tx._note()
        return result

    return run


for _name in ("one", "all", "lock", "keep", "lock_names", "run", "many", "select"):
    setattr(_Pausing, _name, _stopping(_name))


class Stage:
    """A schema with rows of every kind, to which it can be set back.

    sweep: if given, the rows are old, and this deletes at the end what has come to be deletable.
    """

    def __init__(self, path: Path, trust: str, sweep: Act | None = None) -> None:
        self.path, self.trust, self._sweep = path, trust, sweep
        self.names: dict[str, str] = {}
        self._connection: Any = None
        self._columns: dict[str, list[str]] = {}
        self._rows: dict[str, list[Any]] = {}

    async def __aenter__(self) -> Self:
        """Store the rows by what a user and upstream do."""
        ids._state.update(ms=0, counter=0)
        async with self._opened() as world:
            await self._fill(world)
        self._connection = await asyncpg.connect(engine.database_of(self.path))
        await self._craft()
        for name, columns in await self._connection.fetch(_TABLES):
            self._columns[name] = sorted(columns)
            self._rows[name] = await self._connection.fetch(_select(name, self._columns[name]))
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._connection.close()

    async def _fill(self, world: Harness) -> None:
        subscriber = await world.subscribe(headers={"x-own": "a value"})
        other = await world.subscribe(OTHER_URL)
        ended = await world.generate()
        noticed = await world.generate(notify_url=NOTIFY_URL)
        for number, _ in enumerate((ended, noticed)):
            world.upstream.finish(f"task{number + 1}")
            await world.call_back(success_report(f"task{number + 1}"), index=number)
        await world.run(2)
        opened = await world.generate()
        world.upstream.create_replies.append(TimeoutError())
        lost = await world.generate(metadata={"of": "nobody"})
        world.upstream.create_replies.append(httpx.Response(503))
        waiting = await world.generate()
        dead = (await world.get("/v1/deliveries", subscriber_id=subscriber["id"]))["data"]
        await world.client.patch(f"/v1/subscribers/{other['id']}", json={"status": "disabled"})
        self.names = {
            "subscriber": subscriber["id"],
            "other": other["id"],
            "ended": ended["id"],
            "noticed": noticed["id"],
            "open": opened["id"],
            "lost": lost["id"],
            "waiting": waiting["id"],
            "delivery": dead[0]["id"],
            "pending": dead[1]["id"],
        }
        for number, name in enumerate(("ended", "noticed", "open", "lost", "waiting")):
            self.names[f"{name}_callback"] = world.upstream.callback_url(number)
        since = rfc3339(world.clock() - DAY)
        body = {"subscriber_id": subscriber["id"], "since": since, "until": "2100-01-01T00:00:00Z"}
        replay = await world.client.post("/v1/replays", json={**body, "only": "all"})
        assert replay.status_code == 202, replay.text
        self.names["replay"] = replay.json()["id"]
        self._now = world.clock()

    async def _craft(self) -> None:
        """Give some rows a state that takes long to reach."""
        await self._connection.execute(
            "UPDATE deliveries SET status = 'dead', due_at = NULL WHERE id = $1",
            self.names["delivery"],
        )
        await self._connection.execute(
            "UPDATE deliveries SET status = 'pending', due_at = $2 WHERE id = $1",
            *(self.names["pending"], self._now),
        )
        await self._connection.execute(_MORE, self._now, self.names["subscriber"])
        await self._connection.execute(
            "UPDATE generations SET submit_at = $2 WHERE id = $1",
            *(self.names["waiting"], self._now),
        )
        await self._connection.execute(
            "UPDATE generations SET deadline_at = $2, next_poll_at = NULL WHERE id = $1",
            *(self.names["lost"], self._now),
        )

    def _opened(self, like: Harness | None = None) -> AbstractAsyncContextManager[Harness]:
        clock = like.clock if like else ManualClock()
        options: dict[str, Any] = {"callback_trust": self.trust, "deadline_seconds": 3_600}
        world = Harness(settings(self.path, **options), clock)
        if like is not None:
            world.upstream, world.subscribers = like.upstream, like.subscribers
            world.app = world.new_app()
        return started(world, worker=False)

    async def _set_back(self) -> None:
        for name, columns in self._columns.items():
            await self._connection.execute(f"DELETE FROM {name}")  # noqa: S608
            await self._connection.copy_records_to_table(
                name, records=self._rows[name], columns=columns
            )

    async def points_of(self, first: Act) -> list[Point]:
        """Return the points of an act at which it can be stopped."""
        _, pauses = await self._play(first, None, None)
        return pauses.seen

    async def play(self, first: Act, second: Act, at: Point) -> Any:
        """Return what is stored, and what was answered, if `second` acts while `first` stops.

        None if `first` did not come to this point: work that runs side by side has no fixed order.
        """
        outcome, pauses = await self._play(first, second, at)
        return outcome if pauses.reached.is_set() else None

    async def _play(self, first: Act, second: Act | None, at: Point | None) -> tuple[Any, Pauses]:
        await self._set_back()
        ids._state.update(ms=0, counter=0)
        async with self._opened() as world, self._opened(world) as other:
            world.clock.now = self._now + (40 * DAY if self._sweep else 0)
            world.upstream.finish("task3")
            database: Any = world.app.context.database
            pauses = Pauses(database, at)
            acting = [asyncio.ensure_future(_act_whole(first, world, self.names))]
            if second is not None:
                stopped = asyncio.ensure_future(pauses.reached.wait())
                await asyncio.wait([stopped, *acting], return_when=asyncio.FIRST_COMPLETED)
                stopped.cancel()
                acting.append(asyncio.ensure_future(_act_whole(second, other, self.names)))
                await self._wait_until_blocked(acting[1])
            pauses.go_on.set()
            answers = await asyncio.gather(*acting, return_exceptions=True)
            if self._sweep:
                await self._sweep(other, self.names)
        return ([_answer(each) for each in answers], await self._dump()), pauses

    async def _wait_until_blocked(self, acting: "asyncio.Future[Any]") -> None:
        """Wait until an act is over or waits for a lock of the one that was stopped."""
        async with asyncio.timeout(BLOCKED_SECONDS):
            while not acting.done() and not await self._connection.fetchval(_BLOCKED):
                await asyncio.wait([acting], timeout=0.002)

    async def _dump(self) -> dict[str, list[str]]:
        """Return the rows of every table, without what differs from run to run."""
        known = {*self.names.values()}
        await self._connection.execute(_CANCEL)
        dump: dict[str, list[str]] = {}
        for name, columns in self._columns.items():
            shown = [c for c in columns if c not in _IGNORED]
            rows = await self._connection.fetch(_select(name, shown))
            dump[name] = sorted(_plain(dict(row), known) for row in rows)
        return dump


async def _act_whole(act: Act, world: Harness, names: Mapping[str, str]) -> Any:
    """Act, and wait for the submissions that this began; return the answer."""
    answer = await act(world, names)
    assert world.app.worker is not None
    await world.app.worker.submitter.settle()
    return answer


def _select(table: str, columns: Sequence[str]) -> str:
    return f"SELECT {', '.join(columns)} FROM {table}"  # noqa: S608


def _plain(row: Mapping[str, Any], known: set[str]) -> str:
    values = {
        name: "sealed" if name.startswith("sealed") and value else value
        for name, value in row.items()
    }
    text = _UUID.sub("", str(values))
    return _ID.sub(lambda id_: id_[0] if id_[0] in known else f"{id_[1]}_*", text)


def _answer(answer: Any) -> Any:
    if isinstance(answer, BaseException):
        return repr(answer)
    return getattr(answer, "status_code", answer)
