"""The system's resolver, and what a slow name costs."""

import asyncio
import socket
from collections.abc import Sequence

import pytest

from service.delivery.target import SenderClosed, SendError
from service.delivery.webhook import lookups
from service.delivery.webhook.egress import SystemLookup
from service.delivery.webhook.lookups import SUSPECT_SECONDS, Lookups
from tests.wire.receivers import HEADERS, OK, always, receiving, sending


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


class Names:
    """A name server for tests: names under dead.test are answered when `end` is called."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked: list[str] = []
        self._dead: dict[str, asyncio.Future[None]] = {}

    async def __call__(self, host: str, _port: int) -> Sequence[str]:
        self.asked.append(host)
        if host.endswith("dead.test"):
            self._dead[host] = asyncio.get_running_loop().create_future()
            await self._dead[host]
            raise socket.gaierror("no answer")
        return ["192.0.2.1"]

    def end(self, seconds: float = 10.0) -> None:
        self.now += seconds
        for waiting in self._dead.values():
            if not waiting.done():
                waiting.set_result(None)


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
    queue = Lookups(names, places=4, now=lambda: names.now)
    waiting = [asyncio.ensure_future(ask(queue, "slow.dead.test")) for _ in range(5)]
    await settle()
    assert await ask(queue, "quick.test") == ["192.0.2.1"]
    assert names.asked == ["slow.dead.test", "quick.test"]
    names.end()
    ended = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(error, socket.gaierror) for error in ended)


async def test_dead_names_of_one_tenant_hold_up_no_other_tenant() -> None:
    names = Names()
    queue = Lookups(names, places=16, now=lambda: names.now)
    dead = [asyncio.ensure_future(ask(queue, f"{i}.dead.test")) for i in range(50)]
    await settle()
    assert len(names.asked) < 8
    assert await ask(queue, "alive.test", "b") == ["192.0.2.1"]
    for task in dead:
        task.cancel()
    await asyncio.gather(*dead, return_exceptions=True)


async def test_a_name_that_failed_lately_waits_apart_for_half_a_minute() -> None:
    names = Names()
    queue = Lookups(names, places=8, now=lambda: names.now)
    dead = [f"{i}.dead.test" for i in range(4)]
    for round_ in range(2):
        waiting = [asyncio.ensure_future(ask(queue, name)) for name in dead]
        await settle()
        names.end()
        await settle()
        names.end(0)
        await asyncio.gather(*waiting, return_exceptions=True)
        assert len(names.asked) == 4 * (round_ + 1)
    waiting = [asyncio.ensure_future(ask(queue, name)) for name in dead]
    await settle()
    # No place of the others is held, as these names failed before.
    assert await asyncio.gather(*(ask(queue, f"{i}.test") for i in range(2))) == [["192.0.2.1"]] * 2
    assert names.asked[8:] == [*dead[:2], "0.test", "1.test"]
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    names.end(SUSPECT_SECONDS + 1)
    await settle()


async def test_a_lookup_that_takes_long_frees_its_place_for_fresh_names() -> None:
    names = Names()
    queue = Lookups(names, places=4, slow_seconds=0.0, now=lambda: names.now)
    dead = asyncio.ensure_future(ask(queue, "slow.dead.test"))
    await settle()
    assert await ask(queue, "alive.test") == ["192.0.2.1"]
    assert names.asked == ["slow.dead.test", "alive.test"]
    dead.cancel()
    await asyncio.gather(dead, return_exceptions=True)


async def test_who_waits_for_a_place_at_the_end_is_told_that_the_sender_was_closed() -> None:
    names = Names()
    queue = Lookups(names, places=2, now=lambda: names.now)
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
    queue = Lookups(names, places=2, now=lambda: names.now)
    running = asyncio.ensure_future(ask(queue, "1.dead.test"))
    await settle()
    with pytest.raises(SendError, match="waits behind names that fail"):
        await ask(queue, "2.test")
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


async def test_the_wait_for_a_place_is_no_part_of_the_attempts_time() -> None:
    names = Names()

    async def lookup(host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"] if host == "here.test" else await names(host, port)

    async with (
        receiving(always(OK), name="here.test") as receiver,
        sending(lookup=lookup) as sender,
    ):
        sender._lookups = Lookups(lookup, places=2)
        running = asyncio.ensure_future(sender._lookups.start("1.dead.test", 443, ""))
        await settle()
        attempt = asyncio.ensure_future(sender.send(receiver.target, HEADERS, b"{}", 0.2))
        asyncio.get_running_loop().call_later(0.3, names.end)
        assert (await attempt).status_code == 204
        await asyncio.gather(running, return_exceptions=True)
