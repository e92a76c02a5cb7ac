"""The system's resolver, and what a slow name costs."""

import asyncio
import socket
from collections.abc import Sequence

import pytest

from service.delivery.target import SenderClosed, SendError
from service.delivery.webhook import lookups
from service.delivery.webhook.egress import SystemLookup
from service.delivery.webhook.lookups import Lookups
from tests.wire.receivers import (
    HEADERS,
    OK,
    NotReachedError,
    always,
    patiently,
    receiving,
    sending,
)


async def test_this_machine_has_a_name() -> None:
    lookup = SystemLookup()
    assert set(await lookup("localhost", 80)) <= {"127.0.0.1", "::1"}
    lookup.close()


async def test_a_name_that_cannot_be_is_an_error() -> None:
    lookup = SystemLookup()
    with pytest.raises(socket.gaierror):
        await lookup("no-such-name.invalid", 80)
    lookup.close()


async def test_a_sender_uses_it_by_default() -> None:
    async with receiving(always(OK), name="localhost") as receiver, sending() as sender:
        assert (await sender.send(receiver.target, HEADERS, b"{}", 60)).status_code == 204


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that waits for a place in vain fails soon."""
    monkeypatch.setattr(lookups, "WAIT_SECONDS", 30.0)


class Names:
    """A name server for tests: names under dead.test are answered when `end` is called.

    So are names in `hanging`, with an address.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[str] = []
        self.hanging: set[str] = set()
        self._dead: dict[str, asyncio.Future[None]] = {}

    async def __call__(self, host: str, _port: int) -> Sequence[str]:
        self.asked.append(host)
        is_dead = host.endswith("dead.test")
        if is_dead or host in self.hanging:
            self._dead[host] = asyncio.get_running_loop().create_future()
            await self._dead[host]
        if is_dead:
            raise socket.gaierror("no answer")
        return ["192.0.2.1"]

    async def hang(self, queue: Lookups, hosts: Sequence[str]) -> list[asyncio.Task[Sequence[str]]]:
        """Ask for `hosts`, and return when as many as have a place are under way."""
        asking = [asyncio.create_task(ask(queue, host)) for host in hosts]
        await settle()
        return asking

    async def let_go(self, asking: Sequence[asyncio.Task[Sequence[str]]]) -> None:
        """End what hangs, again and again until none of `asking` waits."""
        while not all(task.done() for task in asking):
            self.end()
            await settle()
        await asyncio.gather(*asking, return_exceptions=True)

    def end(self, seconds: float = 10.0) -> None:
        """Let time pass, and answer what hangs."""
        self.now += seconds
        for waiting in self._dead.values():
            if not waiting.done():
                waiting.set_result(None)


def lookups_by(names: Names, places: int, slow_seconds: float = 1_000.0) -> Lookups:
    """Lookups by the clock of `names`: a busy machine makes none slow."""
    return Lookups(names, places=places, slow_seconds=slow_seconds, now=lambda: names.now)


async def ask(queue: Lookups, host: str, tenant: str = "a") -> Sequence[str]:
    return await (await queue.start(host, 443, tenant))


async def settle() -> None:
    """Let what is ready run."""
    loop = asyncio.get_running_loop()
    for _ in range(20):
        turn = loop.create_future()
        loop.call_soon(turn.set_result, None)
        await turn


async def test_all_attempts_share_one_lookup_of_a_name() -> None:
    names = Names()
    queue = lookups_by(names, 4)
    waiting = [asyncio.ensure_future(ask(queue, "slow.dead.test")) for _ in range(5)]
    await settle()
    assert await ask(queue, "quick.test") == ["192.0.2.1"]
    assert names.asked == ["slow.dead.test", "quick.test"]
    names.end()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(error, socket.gaierror) for error in ended)


async def test_dead_names_of_one_tenant_hold_up_no_other_tenant() -> None:
    names = Names()
    queue = lookups_by(names, 8)
    dead = await names.hang(queue, [f"{i}.dead.test" for i in range(50)])
    assert len(names.asked) < 8
    assert await ask(queue, "alive.test", "b") == ["192.0.2.1"]
    await names.let_go(dead)


async def test_a_name_that_was_quick_waits_for_none_that_hang() -> None:
    names = Names()
    queue = lookups_by(names, 4)
    await ask(queue, "alive.test")
    queue._slow_seconds = 0.0
    asking = await names.hang(queue, [f"{i}.dead.test" for i in range(50)])
    asking += await names.hang(queue, [f"{i}.more.dead.test" for i in range(50)])
    assert await ask(queue, "alive.test") == ["192.0.2.1"]
    await names.let_go(asking)


@pytest.mark.parametrize("seconds", [0.0, 1e6])
async def test_a_name_that_failed_waits_apart_until_it_is_quick(seconds: float) -> None:
    names = Names()
    queue = lookups_by(names, 4)
    await names.let_go(await names.hang(queue, ["0.dead.test", "1.dead.test"]))
    await names.let_go(await names.hang(queue, ["2.dead.test", "3.dead.test"]))
    names.now += seconds
    names.asked.clear()
    dead = await names.hang(queue, [f"{i}.dead.test" for i in range(4)])
    assert names.asked == ["0.dead.test", "1.dead.test"]
    # No place of new names is held, as these names failed before.
    assert await ask(queue, "0.test") == ["192.0.2.1"]
    await names.let_go(dead)


async def test_a_slow_name_waits_apart_until_it_is_quick() -> None:
    names = Names()
    queue = lookups_by(names, 2)
    names.hanging = {"slow.test"}
    slow = await names.hang(queue, ["slow.test"])
    names.end(2_000.0)
    await names.let_go(slow)
    names.hanging = set()
    dead = await names.hang(queue, ["1.dead.test"])
    assert await ask(queue, "slow.test") == ["192.0.2.1"]  # From a place for suspect names.
    await names.let_go(dead)
    dead = await names.hang(queue, ["1.dead.test", "2.dead.test"])
    assert await ask(queue, "slow.test") == ["192.0.2.1"]  # From one for quick names.
    await names.let_go(dead)


async def test_a_lookup_that_takes_long_frees_its_place_for_new_names() -> None:
    names = Names()
    queue = lookups_by(names, 2, slow_seconds=0.0)
    dead = await names.hang(queue, ["slow.dead.test"])
    assert await ask(queue, "alive.test") == ["192.0.2.1"]
    assert names.asked == ["slow.dead.test", "alive.test"]
    await names.let_go(dead)


async def test_a_quick_name_that_hangs_frees_its_place_before_suspect_names_get_one() -> None:
    names = Names()
    queue = lookups_by(names, 2)
    for host in ("1.test", "2.test"):
        await ask(queue, host)
    await names.let_go(await names.hang(queue, ["1.dead.test"]))
    await names.let_go(await names.hang(queue, ["2.dead.test"]))
    dead = await names.hang(queue, ["1.dead.test"])
    queue._slow_seconds = 0.0
    names.hanging = {"1.test"}
    asking = await names.hang(queue, ["1.test", "2.dead.test"])
    names._dead["1.dead.test"].set_result(None)
    assert await ask(queue, "2.test") == ["192.0.2.1"]
    await names.let_go([*dead, *asking])


async def test_of_names_that_wait_the_latest_comes_first() -> None:
    names = Names()
    queue = lookups_by(names, 2)
    dead = await names.hang(queue, [f"{i}.dead.test" for i in range(3)])
    alive = await names.hang(queue, ["alive.test"])
    names.end()
    await settle()
    assert alive[0].done()
    assert names.asked[:2] == ["0.dead.test", "alive.test"]
    await names.let_go([*dead, *alive])


async def test_the_names_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "NAMES_MAX", 2)
    names = Names()
    queue = lookups_by(names, 4)
    for host in ("0.test", "1.test", "0.test", "2.test"):
        await ask(queue, host)
    for i in range(3):
        await names.let_go(await names.hang(queue, [f"{i}.dead.test"]))
    assert list(queue._quick_names) == ["0.test", "2.test"]
    assert list(queue._suspect_names) == ["1.dead.test", "2.dead.test"]


async def test_who_waits_for_a_place_at_the_end_is_told_that_the_sender_was_closed() -> None:
    names = Names()
    queue = lookups_by(names, 2)
    running = asyncio.ensure_future(ask(queue, "1.dead.test"))
    await settle()
    waiting = asyncio.ensure_future(ask(queue, "2.dead.test"))
    await settle()
    queue.close()
    with pytest.raises(SenderClosed):
        await waiting
    with pytest.raises(SenderClosed):
        await ask(queue, "3.test")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_waiting_for_a_place_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookups, "WAIT_SECONDS", 0.0)
    names = Names()
    queue = lookups_by(names, 2)
    running = asyncio.ensure_future(ask(queue, "1.dead.test"))
    await settle()
    with pytest.raises(SendError, match="the lookups of other names took all places"):
        await ask(queue, "2.test")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_wait_for_a_place_is_no_part_of_the_attempts_time() -> None:
    names = Names()

    async def lookup(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"] if host == "here.test" else await names(host, port)

    async def attempt(seconds: float) -> int:
        async with (
            receiving(always(OK), name="here.test") as receiver,
            sending(lookup=lookup) as sender,
        ):
            sender._lookups = Lookups(lookup, places=2, slow_seconds=1_000.0)
            running = asyncio.ensure_future(sender._lookups.start("1.dead.test", 443, ""))
            await settle()
            asyncio.get_running_loop().call_later(seconds * 1.5, names.end)
            try:
                answer = await sender.send(receiver.target, HEADERS, b"{}", seconds)
            except SendError as error:
                raise NotReachedError from error
            finally:
                await asyncio.gather(running, return_exceptions=True)
            return answer.status_code

    assert await patiently(attempt) == 204
