"""The system's resolver, and what a slow name costs."""

import asyncio
import socket
import threading

import pytest

from service.delivery.webhook import egress
from service.delivery.webhook.egress import SystemLookup
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
        assert (await sender.send(receiver.target, HEADERS, b"{}", 5)).status_code == 204


async def test_a_slow_name_holds_one_thread_and_no_other_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answered = threading.Event()
    asked: list[str] = []

    def getaddrinfo(host: str, _port: int) -> list[str]:
        asked.append(host)
        if host == "slow.test":
            answered.wait(10)
        return ["192.0.2.1"]

    monkeypatch.setattr(egress, "_getaddrinfo", getaddrinfo)
    lookup = SystemLookup(threads=2)
    for _ in range(3):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await lookup("slow.test", 443)
    waiting = [asyncio.ensure_future(lookup("slow.test", 443)) for _ in range(5)]
    assert await lookup("quick.test", 443) == ["192.0.2.1"]
    answered.set()
    assert await asyncio.gather(*waiting) == [["192.0.2.1"]] * 5
    assert asked == ["slow.test", "quick.test"]
    assert await lookup("slow.test", 443) == ["192.0.2.1"]
    assert asked[2:] == ["slow.test"]
    lookup.close()
