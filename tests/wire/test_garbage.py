"""What fails often frees its body at once: collections of garbage are rare (service/cli/memory.py).

An error holds the frames that it has passed. If one of them holds the error, only a collection
frees both, with all that these frames hold.
"""

import asyncio
import contextlib
import gc
import types
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from service.api.problem import Problem
from service.delivery.target import SendError
from service.model.errors import StorageError
from service.store.database import Transaction
from service.store.item import Item
from tests.faults import storage_failure
from tests.harness import Harness, opened
from tests.wire import receivers
from tests.wire.receivers import HEADERS, need, patiently, receiving, sending

Failure = Callable[[Harness], Awaitable[None]]


@contextmanager
def nothing_left() -> Iterator[None]:
    """Fail if the block leaves frames of the service that only a collection would free."""
    gc.collect()
    gc.disable()
    try:
        yield
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        frames = [each for each in gc.garbage if isinstance(each, types.FrameType)]
        left = [f.f_code.co_qualname for f in frames if "/service/" in f.f_code.co_filename]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left == []


async def post(world: Harness, path: str, *parts: bytes) -> int:
    """Send a request whose body never ends, and return the status of its answer."""
    waiting = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    statuses: list[int] = []

    async def receive() -> Any:
        return waiting.pop(0) if waiting else await asyncio.Future()

    async def send(message: Any) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    key = world.client.headers["authorization"].encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"authorization", key), (b"content-type", b"application/json")],
    }
    await world.app(scope, receive, send)
    return statuses[0]


async def call_back_without_a_token(world: Harness) -> None:
    answer = await world.anonymous.post("http://genhook/callbacks/apiinone/tok_wrong", json={})
    assert answer.status_code == 404


async def call_back_too_much(world: Harness) -> None:
    answer = await world.call_back(content=b" " * (world.settings.callback_body_bytes + 1))
    assert answer.status_code == 413


async def call_back_too_slowly(world: Harness) -> None:
    assert await post(world, urlsplit(world.upstream.callback_url()).path, b"{") == 408


async def ask_too_slowly(world: Harness) -> None:
    assert await post(world, "/v1/generations", b"{") == 408


async def hang_up(world: Harness) -> None:
    asking = asyncio.ensure_future(post(world, "/v1/generations", b"{"))
    await asyncio.wait([asking], timeout=0.01)
    asking.cancel()
    await asyncio.wait([asking])


@pytest.mark.parametrize(
    "fail",
    [
        call_back_without_a_token,
        call_back_too_much,
        call_back_too_slowly,
        ask_too_slowly,
        hang_up,
    ],
)
async def test_a_refused_request_leaves_nothing_for_the_collector(
    tmp_path: Path, fail: Failure
) -> None:
    async with opened(tmp_path, body_seconds=0.05) as world:
        await world.generate()
        await fail(world)  # What the first one prepares stays.
        with nothing_left():
            await fail(world)


async def test_a_callback_with_a_wrong_signature_leaves_nothing_for_the_collector(
    tmp_path: Path,
) -> None:
    scheme = {"upstream_signature": "kie", "upstream_signature_secret": "s" * 32}
    async with opened(tmp_path, **scheme) as world:
        await world.generate()
        for _ in range(2):
            with nothing_left():
                answer = await world.call_back()
                assert answer.status_code == 401


async def refuse(_tx: Transaction, _body: object) -> None:
    raise Problem(409, "conflict", "It was there before.")


async def fail_to_store(_tx: Transaction, _body: object) -> None:
    raise storage_failure()


@pytest.mark.parametrize("is_batched", [False, True], ids=["alone", "batched"])
@pytest.mark.parametrize("unit", [refuse, fail_to_store])
async def test_a_unit_that_fails_leaves_nothing_for_the_collector(
    tmp_path: Path, unit: Any, *, is_batched: bool
) -> None:
    async with opened(tmp_path) as world:
        database = world.app.database
        write = database.write_batched if is_batched else database.write
        for _ in range(2):
            with nothing_left(), contextlib.suppress(Problem, StorageError):
                await write(unit, b"body")


async def test_the_traceback_of_an_error_still_leads_into_its_unit(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        with pytest.raises(Problem) as caught:
            await world.app.database.write(refuse, b"body")
        assert caught.traceback[-1].name == "refuse"


async def test_an_error_from_beside_a_unit_says_where_it_came_from() -> None:
    item, nothing = Item(refuse, ()), dict[str, str]()
    try:
        nothing["wanted"]
    except KeyError as error:
        item.resolve(error)
    with pytest.raises(KeyError) as caught:
        await item.future
    assert len(caught.traceback) == 2


async def test_a_webhook_without_an_answer_leaves_nothing_for_the_collector() -> None:
    async def attempt(seconds: float) -> None:
        async with receiving(receivers.hang) as receiver, sending() as sender:
            with nothing_left():
                for _ in range(2):
                    # pytest.raises would keep the error.
                    with contextlib.suppress(SendError):
                        await sender.send(receiver.target, HEADERS, b"{}", seconds / 10)
            need(reached=len(receiver.requests) == 2)

    await patiently(attempt)


async def test_a_failed_attempt_leaves_nothing_for_the_collector(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(retry_schedule_seconds=[0, 60, 60])

        def refuse(*_: object) -> int:
            raise SendError("connect_refused", "Nobody listens.")

        world.subscribers.on_send = refuse
        await world.generate()
        await world.call_back()
        await world.run()
        with nothing_left():
            await world.run(60)
        assert len(world.subscribers.webhooks) > 1
