"""Which connections the sender makes, keeps, gives up and never makes."""

import asyncio
import gc
import ipaddress
import socket
from collections.abc import Sequence

import pytest

from service.delivery.target import SenderClosed, SendError, Target, parse_target
from service.delivery.webhook import sender as webhook_sender
from service.delivery.webhook.egress import Policy
from service.delivery.webhook.sender import WebhookSender
from tests.ports import free_port
from tests.wire import receivers
from tests.wire.receivers import (
    HEADERS,
    LOOPS,
    OK,
    NotReachedError,
    always,
    in_turn,
    names,
    once,
    patiently,
    receiving,
    sending,
)

pytestmark = pytest.mark.parametrize("anyio_backend", LOOPS, ids=["asyncio", "uvloop"])


@pytest.fixture(autouse=True)
def _repeats_have_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine is no reason for a kept connection not to be replaced."""
    monkeypatch.setattr(webhook_sender, "REPEAT_SECONDS", 60.0)


async def post(sender: WebhookSender, target: Target, seconds: float = 60) -> int:
    return (await sender.send(target, HEADERS, b"{}", seconds)).status_code


# Kept connections


async def test_one_connection_serves_one_request_after_another() -> None:
    async with receiving(always(OK)) as receiver, sending() as sender:
        assert [await post(sender, receiver.target) for _ in range(5)] == [204] * 5
        assert receiver.connections == 1


async def test_targets_of_one_origin_share_connections() -> None:
    async with receiving(always(OK)) as receiver, sending() as sender:
        await post(sender, parse_target(f"http://127.0.0.1:{receiver.port}/one"))
        await post(sender, parse_target(f"http://127.0.0.1:{receiver.port}/two"))
        assert receiver.connections == 1
        assert [request.split()[1] for request in receiver.requests] == [b"/one", b"/two"]


async def test_requests_in_flight_have_connections_of_their_own() -> None:
    together = asyncio.Barrier(3)

    async def script(peer: receivers.Peer) -> None:
        await peer.request()
        await together.wait()
        await peer.write(OK)

    async with receiving(script) as receiver, sending() as sender:
        statuses = await asyncio.gather(*(post(sender, receiver.target) for _ in range(3)))
        assert statuses == [204] * 3
        assert receiver.connections == 3


async def test_no_more_are_kept_than_the_limit_says() -> None:
    together = asyncio.Barrier(3)

    async def script(peer: receivers.Peer) -> None:
        while True:
            await peer.request()
            await together.wait()
            await peer.write(OK)

    async with receiving(script) as receiver, sending(idle_per_origin=1) as sender:
        for connections in (3, 5):
            await asyncio.gather(*(post(sender, receiver.target) for _ in range(3)))
            assert receiver.connections == connections


async def test_a_connection_unused_for_too_long_is_closed() -> None:
    closed = asyncio.Event()

    async def script(peer: receivers.Peer) -> None:
        await peer.request()
        await peer.write(OK)
        await peer.gone()
        closed.set()

    async with (
        receiving(in_turn(script, always(OK))) as receiver,
        sending(idle_seconds=0.05) as sender,
    ):
        await post(sender, receiver.target)
        async with asyncio.timeout(60):
            await closed.wait()
        assert await post(sender, receiver.target) == 204
        assert receiver.connections == 2


async def test_connections_left_at_different_times_are_all_closed() -> None:
    closed = asyncio.Barrier(3)

    def slow(seconds: float) -> receivers.Script:
        async def script(peer: receivers.Peer) -> None:
            await peer.request()
            await peer.beat(seconds)
            await peer.write(OK)
            await peer.gone()
            await closed.wait()

        return script

    async with (
        receiving(slow(0)) as one,
        receiving(slow(0.05)) as two,
        sending(idle_seconds=0.1) as sender,
    ):
        await asyncio.gather(post(sender, one.target), post(sender, two.target))
        async with asyncio.timeout(60):
            await closed.wait()


async def test_an_unused_connection_gives_way_to_another_target() -> None:
    async with (
        receiving(always(OK)) as one,
        receiving(always(OK)) as two,
        sending(connections=1) as sender,
    ):
        for _ in range(2):
            assert await post(sender, one.target) == 204
            assert await post(sender, two.target) == 204
        assert (one.connections, two.connections) == (2, 2)


async def test_who_waits_for_a_connection_gets_the_next_one_that_is_free() -> None:
    async with (
        receiving(always(OK)) as one,
        receiving(always(OK)) as two,
        sending(connections=2) as sender,
    ):
        targets = [one.target, two.target] * 10
        assert await asyncio.gather(*(post(sender, target) for target in targets)) == [204] * 20


async def test_waiting_for_a_connection_is_part_of_the_deadline() -> None:
    async with receiving(receivers.hang) as receiver, sending(connections=1) as sender:
        hanging = asyncio.ensure_future(post(sender, receiver.target))
        waiting = asyncio.ensure_future(post(sender, receiver.target, 0.1))
        with pytest.raises(SendError) as caught:
            await waiting
        assert caught.value.code == "timeout"
        assert not hanging.done()
        hanging.cancel()
        await asyncio.gather(hanging, return_exceptions=True)


# Connections that the receiver closed


async def test_a_kept_connection_that_is_closed_without_an_answer_is_replaced_once() -> None:
    async def script(peer: receivers.Peer) -> None:
        await peer.request()
        await peer.write(OK)
        await peer.request()
        peer.reset()

    async with receiving(in_turn(script, always(OK))) as receiver, sending() as sender:
        assert await post(sender, receiver.target) == 204
        assert await post(sender, receiver.target) == 204
        assert receiver.connections == 2
        assert len(receiver.requests) == 3
        assert receiver.requests[1] == receiver.requests[2]


async def test_a_kept_connection_that_ends_later_had_a_reader_and_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def script(peer: receivers.Peer) -> None:
        await peer.request()
        await peer.write(OK)
        await peer.request()

    monkeypatch.setattr(webhook_sender, "REPEAT_SECONDS", -1.0)
    async with receiving(in_turn(script, always(OK))) as receiver, sending() as sender:
        assert await post(sender, receiver.target) == 204
        with pytest.raises(SendError) as caught:
            await post(sender, receiver.target)
        assert caught.value.code == "connection_closed"
        assert len(receiver.requests) == 2


async def test_the_replacement_is_fresh_and_not_replaced_again() -> None:
    together = asyncio.Barrier(2)

    async def closes_second(peer: receivers.Peer) -> None:
        await peer.request()
        await together.wait()
        await peer.write(OK)
        await peer.request()

    scripts = in_turn(closes_second, closes_second, receivers.close_silently)
    async with receiving(scripts) as receiver, sending() as sender:
        await asyncio.gather(post(sender, receiver.target), post(sender, receiver.target))
        with pytest.raises(SendError) as caught:
            await post(sender, receiver.target)
        assert caught.value.code == "connection_closed"
        assert receiver.connections == 3
        assert len(receiver.requests) == 4


@pytest.mark.parametrize("first_byte", [b"H", b"\n", b"HTTP/1.1 500 No\r\nContent-Length: 9\r\n"])
async def test_after_one_byte_of_an_answer_nothing_is_sent_again(first_byte: bytes) -> None:
    async def script(peer: receivers.Peer) -> None:
        await peer.request()
        await peer.write(OK)
        await peer.request()
        await peer.write(first_byte)

    async with receiving(in_turn(script, always(OK))) as receiver, sending() as sender:
        assert await post(sender, receiver.target) == 204
        with pytest.raises(SendError) as caught:
            await post(sender, receiver.target)
        assert caught.value.code == "connection_closed"
        assert len(receiver.requests) == 2


async def test_a_fresh_connection_that_is_closed_is_not_replaced() -> None:
    async with receiving(receivers.close_silently) as receiver, sending() as sender:
        with pytest.raises(SendError) as caught:
            await post(sender, receiver.target)
        assert caught.value.code == "connection_closed"
        assert len(receiver.requests) == 1


async def test_a_replacement_goes_to_an_address_that_is_checked_anew() -> None:
    found = ["127.0.0.1"]

    async def lookup(_host: str, _port: int) -> Sequence[str]:
        return found

    async def script(peer: receivers.Peer) -> None:
        await peer.request()
        await peer.write(OK)
        await peer.request()

    async with (
        receiving(script, name="receiver.test") as receiver,
        sending(lookup=lookup) as sender,
    ):
        await post(sender, receiver.target)
        found[:] = ["10.0.0.1"]
        with pytest.raises(SendError) as caught:
            await post(sender, receiver.target)
        assert caught.value.code == "address_refused"


async def test_a_connection_closed_while_unused_is_not_tried() -> None:
    async with receiving(once(OK)) as receiver, sending() as sender:
        for _ in range(3):
            assert await post(sender, receiver.target) == 204
        assert receiver.connections == 3
        assert len(receiver.requests) == 3


# Addresses


async def test_a_name_that_turns_private_reaches_nothing() -> None:
    found = ["93.184.215.14"]

    async def lookup(_host: str, _port: int) -> Sequence[str]:
        return found

    async with (
        receiving(always(OK), name="receiver.test") as receiver,
        sending(Policy(allow_http=True), lookup=lookup) as sender,
    ):
        target = receiver.target  # Made while the name is public.
        found[:] = ["127.0.0.1"]
        with pytest.raises(SendError) as caught:
            await post(sender, target)
        assert caught.value.code == "address_refused"
        assert "127.0.0.1" not in str(caught.value)
        assert receiver.connections == 0


async def test_plain_http_is_not_sent_unless_it_is_allowed() -> None:
    policy = Policy(allow_networks=receivers.LOCAL.allow_networks)
    async with receiving(always(OK)) as receiver, sending(policy) as sender:
        with pytest.raises(SendError) as caught:
            await post(sender, receiver.target)
        assert caught.value.code == "address_refused"
        assert receiver.connections == 0


async def test_a_literal_address_is_checked_as_well() -> None:
    async with (
        receiving(always(OK)) as receiver,
        sending(Policy(allow_http=True)) as sender,
    ):
        with pytest.raises(SendError) as caught:
            await post(sender, receiver.target)
        assert caught.value.code == "address_refused"
        assert receiver.connections == 0


async def test_a_kept_connection_stays_where_it_was_checked() -> None:
    lookups = 0

    async def lookup(_host: str, _port: int) -> Sequence[str]:
        nonlocal lookups
        lookups += 1
        return ["127.0.0.1"] if lookups == 1 else ["10.0.0.1"]

    script = in_turn(once(OK + b"x"), always(OK))
    async with (
        receiving(always(OK), name="receiver.test") as kept,
        receiving(script, name="other.test") as lost,
        sending(lookup=lookup) as sender,
    ):
        assert [await post(sender, kept.target) for _ in range(3)] == [204] * 3
        assert lookups == 1
        lookups = 0
        assert await post(sender, lost.target) == 204
        with pytest.raises(SendError) as caught:
            await post(sender, lost.target)
        assert caught.value.code == "address_refused"
        assert (lookups, lost.connections) == (2, 1)


async def test_addresses_are_tried_in_turn() -> None:
    only = Policy(allow_http=True, allow_networks=(ipaddress.ip_network("127.0.0.0/30"),))
    lookup = names(receiver_test=["10.0.0.1", "127.0.0.3", "127.0.0.2", "127.0.0.1"])
    async with (
        receiving(always(OK), name="receiver.test") as receiver,
        sending(only, lookup=lookup) as sender,
    ):
        assert await post(sender, receiver.target) == 204
        assert receiver.connections == 1


async def test_an_address_that_hangs_leaves_time_for_the_next() -> None:
    with socket.socket() as listener, socket.socket() as full:
        listener.bind(("127.0.0.1", 0))  # First: connections that ended keep ports of it for long.
        port = listener.getsockname()[1]
        full.bind(("127.0.0.2", port))
        full.listen(0)
        with socket.create_connection(("127.0.0.2", port)):
            server = await asyncio.start_server(_answer, sock=listener)
            lookup = names(receiver_test=["127.0.0.2", "127.0.0.1"])
            target = parse_target(f"http://receiver.test:{port}/")

            async def attempt(seconds: float) -> int:
                async with sending(lookup=lookup) as sender:
                    try:
                        return await post(sender, target, seconds)
                    except SendError as error:
                        raise NotReachedError from error

            async with server:
                assert await patiently(attempt, 0.6) == 204


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"{}")
    writer.write(OK)
    writer.close()


async def test_no_more_than_four_addresses_are_tried() -> None:
    lookup = names(receiver_test=[f"127.0.0.{n}" for n in range(2, 6)] + ["127.0.0.1"])
    async with (
        receiving(always(OK), name="receiver.test") as receiver,
        sending(lookup=lookup) as sender,
    ):
        with pytest.raises(SendError) as caught:
            await post(sender, receiver.target)
        assert caught.value.code == "connect_refused"
        assert receiver.connections == 0


async def test_nobody_listening_is_refused() -> None:
    async with sending() as sender:
        with pytest.raises(SendError) as caught:
            await post(sender, parse_target(f"http://127.0.0.1:{free_port()}/"))
        assert caught.value.code == "connect_refused"


async def test_an_address_without_a_route_fails_to_connect() -> None:
    everywhere = Policy(allow_http=True, allow_networks=(ipaddress.ip_network("0.0.0.0/0"),))
    async with sending(everywhere) as sender:
        with pytest.raises(SendError) as caught:
            await post(sender, parse_target("http://255.255.255.255/"))
        assert caught.value.code == "connect_failed"


async def test_an_unknown_name_is_a_dns_failure() -> None:
    async with sending(lookup=names()) as sender:
        with pytest.raises(SendError) as caught:
            await post(sender, parse_target("http://receiver.test/"))
        assert caught.value.code == "dns_failed"


# Ends


async def test_a_canceled_send_closes_its_connection() -> None:
    gone = asyncio.Event()
    asked = asyncio.Event()

    async def script(peer: receivers.Peer) -> None:
        await peer.request()
        asked.set()
        await peer.gone()
        gone.set()

    async with receiving(script) as receiver, sending() as sender:
        sent = asyncio.ensure_future(post(sender, receiver.target))
        await asked.wait()
        sent.cancel()
        async with asyncio.timeout(60):
            await gone.wait()
        assert sent.cancelled()


async def test_a_send_that_fails_gives_its_connection_back() -> None:
    async with (
        receiving(receivers.hang) as silent,
        receiving(in_turn(once(b"no"), always(OK))) as receiver,
        sending(connections=1) as sender,
    ):
        for target, seconds, code in (
            (silent.target, 0.1, "timeout"),
            (receiver.target, 60, "protocol_error"),
        ):
            with pytest.raises(SendError) as caught:
                await post(sender, target, seconds)
            assert caught.value.code == code
        assert await post(sender, receiver.target) == 204


async def test_a_send_canceled_while_connecting_gives_its_connection_back() -> None:
    connected = asyncio.Event()

    async def script(peer: receivers.Peer) -> None:
        connected.set()
        await peer.gone()  # The handshake is never answered.

    async with (
        receiving(script) as silent,
        receiving(always(OK)) as receiver,
        sending(connections=1) as sender,
    ):
        for _ in range(2):
            target = parse_target(f"https://127.0.0.1:{silent.port}/")
            sent = asyncio.ensure_future(post(sender, target, 60))
            await connected.wait()
            connected.clear()
            sent.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sent
        assert silent.connections == 2
        assert await post(sender, receiver.target) == 204


async def test_closing_ends_what_is_in_flight_and_leaves_nothing_behind() -> None:
    asked = asyncio.Event()

    async def script(peer: receivers.Peer) -> None:
        await peer.request()
        asked.set()
        await peer.gone()

    async with receiving(in_turn(always(OK), script)) as receiver:
        async with sending() as sender:
            await post(sender, receiver.target)
            sent = [asyncio.ensure_future(post(sender, receiver.target)) for _ in range(2)]
            await asked.wait()
            assert await sent[0] == 204
        with pytest.raises(SenderClosed):
            await sent[1]
        with pytest.raises(SenderClosed):
            await post(sender, receiver.target)
    gc.collect()  # What was not closed complains here.


async def test_nothing_is_kept_of_a_receiver_that_closes_each_connection() -> None:
    answer = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
    async with receiving(always(answer)) as receiver, sending() as sender:
        assert (await sender.send(receiver.target, HEADERS, b"{}", 60)).status_code == 204
        assert sender._idle == {}
