"""A world for the dispatcher: several tenants, receivers of every mood, changes, and faults."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random  # noqa: TID251  a simulation is its seed
from typing import Any, cast
from unittest.mock import Mock, patch

import httpx

from service.delivery.lanes import NEVER, Lane
from service.delivery.slots import TENANT_WEIGHT
from service.model.clock import SECOND
from service.model.errors import StorageBusyError, StorageError
from service.store.item import Item
from service.store.sqlite.connection import Connection
from service.store.sqlite.readers import READERS
from tests.faults import crash, rows
from tests.harness import Harness, ManualClock, settings, success_report
from tests.simulation.receivers import MOODS, Known, Receivers, origin_of

TENANTS = ("default", "one", "two")
SCHEDULE = [0, 2, 10, 30]
# First the dispatcher's own pauses end, of a minute at most; then what is due by the schedule.
SETTLE_SECONDS = (*[70] * 8, *[2_500] * 4)
LOOKS_MAX = 3_000
# What fails while the queue in front of the database is full: all that the dispatcher does there.
UNITS = {"record_attempts", "_record_with_health", "delay", "cancel", "add"}
READS = {"read_recipient", "fetch_due", "next_due_times"}


Action = Callable[[], Awaitable[object]]


class Deliveries(Harness):
    """A service whose worker is driven by hand. `random` alone makes every choice."""

    def __init__(self, path: Path, random: Random) -> None:
        self.random = random
        count = random.choice((2, 5, 9, 20, 60))
        own = settings(path, max_in_flight=count, callback_trust="body", shutdown_seconds=0.0)
        clock = ManualClock()
        self.receivers = Receivers(clock, random, path / "genhook.db", count)
        super().__init__(own, clock)
        self.subscribers.send = self.receivers.send  # type: ignore[method-assign]
        self.clients: dict[str, httpx.AsyncClient] = {}
        self.known: list[Known] = []
        self.open_tasks: list[int] = []  # Indices of create requests without an outcome.
        self.trouble = 0.0  # How much of what the dispatcher asks of the database fails.
        self.crashes = 0
        self._urls = 0
        self._picked: set[Known] = set()  # Changed in the present step, each by one action.

    async def open(self) -> None:
        """Start the service with some subscribers of each tenant, and its first session."""
        await self.app.start(worker=False)
        for tenant in TENANTS:
            body = {"name": tenant, "scopes": ["submit", "read", "manage"], "tenant": tenant}
            answer = await self.client.post("/v1/keys", json=body)
            self.clients[tenant] = self.new_client(answer.json()["key"])
        for _ in range(6):
            await self.add_subscriber()
        await self._begin()

    async def close(self) -> None:
        """Stop the service and close the clients."""
        await self.app.stop()
        for client in (self.client, self.anonymous, *self.clients.values()):
            await client.aclose()

    async def step(self) -> str:
        """Run one random action, or let time pass while clients do some; return what it was."""
        self._picked.clear()
        asked: list[tuple[int, Action]] = [
            (12, self.submit),
            (8, self.finish),
            (6, self.change_mood),
            (5, self.change_status),
            (2, self.change_cap),
            (2, self.change_url),
            (2, self.rotate),
            (1, self.delete),
            (2, self.add_subscriber),
            (4, self.retry),
        ]
        others: list[tuple[int, Action]] = [
            (16, self.pass_some_time),
            (3, self.change_trouble),
            (1, self.change_status_elsewhere),
            (1, self.lose_session),
            (1, self.crash),
        ]
        action = self._choose(asked + others)
        beside: set[Action] = set()
        if action == self.pass_some_time:
            beside = {self._choose(asked) for _ in range(self.random.randrange(5))}
        names = sorted(each.__name__ for each in beside)
        await asyncio.gather(action(), *(getattr(self, name)() for name in names))
        return " ".join((action.__name__, *names))

    def _choose(self, actions: Sequence[tuple[int, Action]]) -> Action:
        [(_, action)] = self.random.choices(actions, [weight for weight, _ in actions])
        return action

    # What clients and upstream do.

    async def submit(self) -> None:
        """Create some generations of one tenant, perhaps with a `notify_url`."""
        tenant = self.random.choice(TENANTS)
        for _ in range(self.random.randrange(1, 5)):
            body: dict[str, Any] = {"model": "imagen4", "input": {"prompt": "a small harbour"}}
            if self.random.random() < 0.3:
                body["notify_url"] = url = self._new_url()
                known = Known(tenant, {url}, mood=self.random.choice(MOODS))
                self.receivers.by_url[url] = known
                self.known.append(known)
            answer = await self.clients[tenant].post("/v1/generations", json=body)
            assert answer.status_code == 202, answer.text
            self.open_tasks.append(len(self.upstream.creates) - 1)

    async def finish(self) -> None:
        """Let upstream report the ends of some generations."""
        for _ in range(self.random.randrange(1, 5)):
            if self.open_tasks:
                index = self.open_tasks.pop(self.random.randrange(len(self.open_tasks)))
                report = success_report(f"task{index + 1}")
                assert (await self.call_back(report, index)).status_code == 200

    async def add_subscriber(self) -> None:
        """Create a subscriber."""
        tenant, url = self.random.choice(TENANTS), self._new_url()
        rate, cap = self.random.choice((None, None, 5.0)), self.random.choice((1, 3, 100))
        known = Known(tenant, {url}, cap=cap, rate=rate, mood=self.random.choice(MOODS))
        self.receivers.by_url[url] = known
        body = {
            "url": url,
            "max_in_flight": cap,
            "rate_per_second": rate,
            "ordered": self.random.random() < 0.4,
            "retry_schedule_seconds": SCHEDULE,
        }
        answer = await self.clients[tenant].post("/v1/subscribers", json=body)
        assert answer.status_code == 201, answer.text
        known.id, known.secret = answer.json()["id"], answer.json()["secret"]
        self.known.append(known)

    async def change_mood(self) -> None:
        """Let a receiver answer in another way from now on."""
        self.random.choice(self.known).mood = self.random.choice(MOODS)

    async def change_status(self) -> None:
        """Pause, disable or enable a subscriber."""
        if known := self._pick():
            await self._set_status(known, self.random.choice(("active", "paused", "disabled")))

    async def change_status_elsewhere(self) -> None:
        """Pause, disable or enable a subscriber in another process; this one learns of it later."""
        if known := self._pick():
            status, before = self.random.choice(("active", "paused", "disabled")), known.status
            mine, self.app = self.app, self.new_app()
            await self.app.start(worker=False)
            await self._set_status(known, status)
            await self.app.stop()
            self.app = mine
            if "active" in (before, status):
                known.status = "active"
            trouble, self.trouble = self.trouble, 0.0  # Else it may not learn of it yet.
            await self._look()
            self.trouble = trouble
            known.status = status

    async def change_cap(self) -> None:
        """Allow a subscriber more attempts under way, or fewer."""
        if known := self._pick():
            cap = self.random.choice((1, 2, 8, 100))
            known.cap = max(known.cap, cap)
            await self._patch(known, max_in_flight=cap)
            known.cap = cap

    async def change_url(self) -> None:
        """Give a subscriber another URL."""
        if known := self._pick():
            url = self._new_url()
            self.receivers.by_url[url] = known
            known.urls.add(url)
            await self._patch(known, url=url)
            known.urls = {url}

    async def rotate(self) -> None:
        """Give a subscriber another secret."""
        if known := self._pick():
            path, body = f"/v1/subscribers/{known.id}/rotate-secret", {"overlap_seconds": 0}
            known.secret = ""
            answer = await self.clients[known.tenant].post(path, json=body)
            assert answer.status_code == 200, answer.text
            await let_others_begin()
            known.secret = answer.json()["secret"]

    async def delete(self) -> None:
        """Delete a subscriber."""
        if known := self._pick():
            answer = await self.clients[known.tenant].delete(f"/v1/subscribers/{known.id}")
            assert answer.status_code == 204, answer.text
            await let_others_begin()
            known.status = "deleted"

    async def retry(self) -> None:
        """Ask for an attempt of some delivery that has not arrived."""
        found = await rows(
            self,
            "SELECT tenant, id FROM deliveries WHERE status IN ('pending', 'dead') ORDER BY id",
        )
        if found:
            one = self.random.choice(found)
            path = f"/v1/deliveries/{one['id']}/retry"
            answer = await self.clients[one["tenant"]].post(path)
            assert answer.status_code in (202, 409), answer.text

    # What happens to the process.

    async def change_trouble(self) -> None:
        """Let the database refuse a part of what the dispatcher asks for, or nothing."""
        self.trouble = self.random.choice((0.0, 0.0, 0.3, 0.9))

    async def lose_session(self) -> None:
        """Lose the right to work, and begin again."""
        await self.app.worker.end_session()
        self.receivers.forget()
        await self._begin()

    async def crash(self) -> None:
        """Let the process die, and start another one."""
        self.crashes += 1
        await crash(self)
        self.receivers.forget()
        await self._begin()

    async def pass_some_time(self) -> None:
        """Advance time by a little or a lot, and do the due work."""
        await self.pass_time(self.random.choice((0, 0, 0.2, 1, 3, 20, 70)))

    async def pass_time(self, seconds: float) -> None:
        """Advance time from one event to the next, and do what is due at each."""
        ends_at = self.clock.now + round(seconds * SECOND)
        for _ in range(LOOKS_MAX):
            self.receivers.release()
            await self._look()
            if self.clock.now >= ends_at:
                break
            times = [until for until, _ in self.receivers.hanging.values()]
            if (at := self.app.worker.dispatcher.timers.next_at) is not None:
                times.append(at)
            self.clock.now = max(self.clock.now + 1, min([*times, ends_at]))
        assert self.clock.now >= ends_at, "the dispatcher looks at its lanes without an end"
        for step, _ in self.app.worker.session.steps:
            with suppress(StorageError):
                await step(self.clock.now)
        await self._quiesce()

    async def settle(self) -> None:
        """End all faults, let every receiver answer, and do all that is due within hours."""
        self.trouble = 0.0
        for known in self.receivers.by_url.values():
            known.mood = "good"
        self.receivers.release(everything=True)
        # A 410 from before would disable again what is enabled in the same millisecond.
        await self.pass_time(1)
        while self.open_tasks:
            await self.finish()
        for known in self.known:
            if known.id and known.status != "deleted":
                await self._set_status(known, "active")
        for seconds in SETTLE_SECONDS:
            await self.pass_time(seconds)

    # How it is done.

    async def _look(self) -> None:
        session = self.app.worker.session
        for step in (session.watch, session.dispatcher.run_due):
            with suppress(StorageError):
                await step(self.clock.now)
        await self._quiesce()

    async def _quiesce(self) -> None:
        """Wait until nothing is under way but attempts that hang."""
        receivers = self.receivers
        while busy := self.app.worker.dispatcher._tasks - receivers.hanging.keys():
            receivers.changed.clear()
            changed = asyncio.ensure_future(receivers.changed.wait())
            await asyncio.wait({*busy, changed}, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()

    async def _begin(self) -> None:
        """Begin a session, with faults in front of its database and a check at its slots."""
        database = self.app.database
        # Each reader is opened by a thread of its own, so all are before anything may depend on it.
        await asyncio.gather(*(database.schema_problem() for _ in range(READERS)))
        assert await self.app.worker._take_over()
        slots = self.app.worker.dispatcher.slots
        enqueue, read, take, release = database._enqueue, database.read, slots.take, slots.release
        held: dict[str, str] = {}

        def enqueue_or_fail(item: Item, **options: Any) -> Awaitable[Any]:
            if _name_of(item.unit) not in UNITS or self.random.random() >= self.trouble:
                return cast("Awaitable[Any]", enqueue(item, **options))
            if self.random.random() < 0.5:
                raise StorageBusyError("the queue is full")
            return _lose_answer(enqueue(item, **options))

        async def read_or_fail(unit: Any, *args: object) -> Any:
            if _name_of(unit) in READS and self.random.random() < self.trouble:
                raise StorageBusyError("the readers are busy")
            return await read(unit, *args)

        def take_and_check(lane: Lane, delivery_id: str) -> None:
            share = Counter(held.values())[lane.tenant]
            if slots.free <= share // TENANT_WEIGHT:
                self.receivers.wrong.append(f"more than the share of {lane.tenant}")
            held[delivery_id] = lane.tenant
            take(lane, delivery_id)

        def release_and_note(delivery_id: str) -> None:
            del held[delivery_id]
            release(delivery_id)

        if "_enqueue" not in vars(database):
            database._enqueue = enqueue_or_fail
            database.read = read_or_fail
        slots.take = take_and_check  # type: ignore[method-assign]
        slots.release = release_and_note  # type: ignore[method-assign]

    async def stored(self, sql: str) -> list[dict[str, Any]]:
        """Return rows as they are on disk."""
        return [dict(row) for row in await rows(self, sql)]

    def _new_url(self) -> str:
        self._urls += 1
        return f"http://127.0.0.{self.random.randrange(2, 6)}:7/{self._urls}"

    def _pick(self) -> Known | None:
        known = [each for each in self.known if each.id and each.status != "deleted"]
        free = [each for each in known if each not in self._picked]
        if not free:
            return None
        self._picked.add(one := self.random.choice(free))
        return one

    async def _set_status(self, known: Known, status: str) -> None:
        origins = [origin_of(known.tenant, url) for url in known.urls]
        if status == "active":
            known.status = status
        if status != "disabled":  # If it is, what was asked for until then is over.
            self.receivers.lifted |= dict.fromkeys(origins, NEVER)
        await self._patch(known, status=status)
        known.status = status
        if status != "disabled":
            self.receivers.lifted |= dict.fromkeys(origins, self.clock.now)

    async def _patch(self, known: Known, **fields: Any) -> None:
        path = f"/v1/subscribers/{known.id}"
        answer = await self.clients[known.tenant].patch(path, json=fields)
        assert answer.status_code == 200, answer.text
        await let_others_begin()


async def let_others_begin() -> None:
    """Let attempts begin that had their slots when a change was answered."""
    for _ in range(3):
        await asyncio.sleep(0)  # noqa: TID251  they begin in the next turn of the loop


def _name_of(unit: Callable[..., object]) -> str:
    return getattr(unit, "__name__", "")


async def _lose_answer(stored: Awaitable[Any]) -> Any:
    """Store it, perhaps, but tell nobody, as where a commit takes too long."""
    with suppress(Exception):
        await stored
    raise StorageBusyError("the database did not commit in time")


@contextmanager
def in_turns(random: Random, clock: ManualClock) -> Iterator[None]:
    """Run units on the loop, after some turns of others: a seed nearly repeats its history."""

    async def wait() -> None:
        for _ in range(random.choice((0, 1, 2, 5, 20))):
            await asyncio.sleep(0)  # noqa: TID251  others go on meanwhile

    async def apply(connection: Connection, do: Callable[..., Any], *args: object) -> Any:
        if _name_of(do) not in ("commit_group", "read"):
            return connection._run(do, *args)
        await wait()
        result = connection._run(do, *args)
        await wait()
        return result

    times = Mock(perf_counter=lambda: clock.now / SECOND)
    with (
        patch.object(Connection, "apply", apply),
        patch("service.delivery.attempt.time", times),
        patch("service.store.writes.PATIENCE_SECONDS", 0),
        patch("service.store.sqlite.database.CHECKPOINT_SECONDS", 3_600),
    ):
        yield
