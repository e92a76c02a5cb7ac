"""What the callbacks of one generation leave: bounded, without secrets, and the end as it came."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from service.api import receiver
from service.model.ids import new_id
from service.store import callbacks, retention
from service.store.database import Row
from service.telemetry import metrics
from tests.faults import rows, status_of
from tests.harness import PUBLIC_URL, Harness, opened, success_report

MEBIBYTE = 1 << 20


def progress(number: int, padding: int = 0) -> bytes:
    data = {"task_id": "task1", "status": "processing", "progress": number, "pad": "." * padding}
    return msgspec.json.encode({"code": 200, "data": data})


async def kept(world: Harness) -> list[Row]:
    """Return the callbacks that are kept, oldest first, with the sizes of what was stored."""
    return await rows(
        world,
        "SELECT c.id, c.verdict, c.reason, length(b.headers) AS headers, length(b.body) AS body "
        "FROM callback_bodies b JOIN callbacks c ON c.id = b.callback_id ORDER BY c.id",
    )


async def test_a_known_url_cannot_fill_the_disk(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        world.upstream.finish("task1")
        await world.call_back()
        await world.run()
        assert await status_of(world, generation["id"]) == "succeeded"
        not_kept = metrics.callbacks.values["not_kept",]
        same = b"[" + b" " * (MEBIBYTE - 2) + b"]"
        answers = [await world.call_back(content=same) for _ in range(100)]
        assert {answer.status_code for answer in answers} == {200}
        assert answers[0].json() == {"status": "ok"}
        assert answers[-1].json() == {"status": "ok", "kept": False}
        stored = await kept(world)
        assert len(stored) == callbacks.PROGRESS_MAX == 90
        assert [row["body"] for row in stored[2:]] == [0] * 88, "repeated bytes are stored once"
        assert metrics.callbacks.values["not_kept",] == not_kept + 11
        shown = await world.get(f"/v1/callbacks/{stored[-1]['id']}")
        assert (shown["verdict"], shown["body"]) == ("late", same.decode())


@pytest.mark.parametrize("trust", ["confirm", "body"])
async def test_the_end_is_kept_as_it_came_after_any_number_of_callbacks(
    tmp_path: Path, trust: str
) -> None:
    async with opened(tmp_path, callback_trust=trust) as world:
        generation = await world.generate()
        for number in range(100):
            assert (await world.call_back(content=progress(number))).status_code == 200
        await world.run(1)
        world.upstream.finish("task1")
        assert (await world.call_back()).json() == {"status": "ok"}
        await world.run(1)
        assert await status_of(world, generation["id"]) == "succeeded"
        stored = await kept(world)
        assert len(stored) == callbacks.PROGRESS_MAX + 1
        shown = await world.get(f"/v1/callbacks/{stored[-1]['id']}")
        assert msgspec.json.decode(shown["body"]) == success_report("task1")


@pytest.mark.parametrize("body", [{"url": "https://cdn.example/1.png"}, {}])
async def test_what_may_be_the_end_is_kept_after_any_number_of_callbacks(
    tmp_path: Path, body: dict[str, str]
) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        for number in range(100):
            await world.call_back(content=progress(number))
        end = msgspec.json.encode({"status": "completed", **body})
        await world.call_back(content=end)
        assert (await kept(world))[-1]["body"] == len(end)


async def test_callbacks_are_bounded_in_bytes_and_a_row_says_what_is_not_kept(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        for number in range(6):
            answer = await world.call_back(content=progress(number, MEBIBYTE - 200))
            assert answer.json() == {"status": "ok"}
        large = b"[" + b" " * (MEBIBYTE - 2) + b"]"
        assert (await world.call_back(content=large)).json() == {"status": "ok"}
        await world.call_back()
        stored = await kept(world)
        assert [row["reason"] for row in stored] == [None] * 2 + [callbacks.NOT_KEPT] * 5 + [None]
        assert [bool(row["body"]) for row in stored] == [True] * 2 + [False] * 5 + [True]
        assert sum(row["body"] + row["headers"] for row in stored) <= 4 * MEBIBYTE


async def test_a_small_end_is_kept_beside_large_callbacks(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        for number in range(50):
            await world.call_back(content=progress(number, 65_000))
        await world.call_back()
        [*_, last] = await kept(world)
        assert (last["reason"], bool(last["body"])) == (None, True)


async def test_a_callback_that_is_not_kept_is_still_a_hint(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        for number in range(91):
            await world.call_back(content=progress(number))
        for _ in range(5):
            await world.run(1)
        assert await rows(world, "SELECT * FROM confirmations") == []
        polls = len(world.upstream.polls)
        answer = await world.call_back(content=progress(92))
        assert answer.json() == {"status": "ok", "kept": False}
        await world.run()
        assert len(world.upstream.polls) == polls + 1


async def insert(world: Harness, bodies: list[bytes], *, reports_end: bool | None) -> list[Any]:
    """Store callbacks of the generation in one commit."""

    async def store_all(tx: Any) -> list[Any]:
        [generation] = await tx.select("SELECT id, nonce FROM generations", {})
        arrivals = [
            callbacks.Arrival(
                id=new_id("cb", world.clock()),
                upstream="apiinone",
                received_at=0,
                headers=[],
                generation_id=generation["id"],
                nonce=generation["nonce"],
                body=body,
                readable=True,
                reports_end=reports_end,
            )
            for body in bodies
        ]
        return await callbacks.insert(tx, arrivals)

    stored: list[Any] = await world.app.database.write(store_all)
    return stored


async def test_callbacks_of_one_commit_share_the_room(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        stored = await insert(world, [progress(n) for n in range(100)], reports_end=False)
        assert [callback.is_kept for callback in stored] == [True] * 90 + [False] * 10


async def test_the_body_of_an_end_that_comes_twice_in_one_commit_is_kept(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        end = msgspec.json.encode(success_report("task1"))
        large = [b"[" + b" " * (MEBIBYTE - len(end) // 3) + b"%d]" % n for n in range(3)]
        await insert(world, large, reports_end=False)
        unread = await insert(world, [end] * 2, reports_end=None)
        assert [callback.is_kept for callback in unread] == [None] * 2
        stored = await insert(world, [end] * 2, reports_end=True)
        assert [callback.verdict for callback in stored] == ["accepted", "duplicate"]
        assert [row["body"] for row in await kept(world)][3:] == [len(end), 0]


async def test_rejected_callbacks_take_no_room(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_body_bytes=1_024) as world:
        await world.generate()
        await world.call_back(content=progress(1))  # Without it nobody looks what is kept.
        for _ in range(100):
            world.clock.advance(1)
            assert (await world.call_back(content=b"x" * 2_000)).status_code == 413
        assert (await world.call_back()).json() == {"status": "ok"}


async def stored_headers(world: Harness) -> list[dict[str, str]]:
    stored = await rows(world, "SELECT headers FROM callback_bodies ORDER BY callback_id")
    return [dict(msgspec.json.decode(row["headers"])) for row in stored]


async def test_no_secret_is_stored_with_the_headers_of_a_callback(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        path = world.upstream.callback_url().removeprefix(PUBLIC_URL)
        token = path.rpartition("/")[2]
        secret = {
            "authorization": "Basic dXNlcjpwYXNz",
            "cookie": "session=1",
            "x-auth-token": "abc",
            "x-api-key": "abc",
            "referer": f"https://proxy.example{path}?x=1",
            "x-original-uri": path,
            "x-segment": token,
            "x-note": "aio_upstream_key",
        }
        headers = {**secret, "x-harmless": "yes", "webhook-signature": "v1,abc="}
        assert (await world.call_back(headers=headers)).status_code == 200
        rejected = await world.anonymous.post("http://genhook/callbacks/apiinone/x", headers=secret)
        assert rejected.status_code == 404
        for stored in await stored_headers(world):
            text = str(stored)
            assert token not in text
            assert "aio_" not in text
            assert "session=1" not in text
            assert "abc'" not in text
            assert "dXNl" not in text
        accepted = (await stored_headers(world))[0]
        assert (accepted["x-harmless"], accepted["webhook-signature"]) == ("yes", "v1,abc=")


async def test_the_headers_of_callbacks_are_bounded_in_bytes(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        large = {f"x-{number}": "v" * 1_000 for number in range(60)}
        assert (await world.call_back(headers=large)).status_code == 200
        await world.anonymous.post("http://genhook/callbacks/apiinone/x", headers=large)
        accepted, rejected = (len(str(headers)) for headers in await stored_headers(world))
        assert 10_000 < accepted < 18_000
        assert 2_000 < rejected < 5_000


async def test_strangers_do_not_hide_the_rejected_callbacks_of_a_generation(tmp_path: Path) -> None:
    signed = {"upstream_signature": "kie", "upstream_signature_secret": "s" * 32}
    async with opened(tmp_path, **signed) as world:
        generation = await world.generate()
        for _ in range(receiver.REJECTIONS_PER_SECOND + 5):
            await world.anonymous.post(f"{PUBLIC_URL}/callbacks/apiinone/wrong", json={})
        limit = receiver.REJECTIONS_OF_GENERATION_PER_SECOND
        for _ in range(limit + 5):
            assert (await world.call_back()).status_code == 401
        stored = await world.get("/v1/callbacks", generation_id=generation["id"])
        assert len(stored["data"]) == limit


async def test_a_body_that_was_late_gives_strangers_no_new_second(tmp_path: Path) -> None:
    signed = {"upstream_signature": "kie", "upstream_signature_secret": "s" * 32}

    async def be_strange(world: Harness) -> None:
        for _ in range(receiver.REJECTIONS_PER_SECOND + 5):
            await world.anonymous.post(f"{PUBLIC_URL}/callbacks/apiinone/wrong", json={})

    async with opened(tmp_path, **signed) as world:

        async def late() -> AsyncIterator[bytes]:
            yield b"{"
            world.clock.advance(10)
            await be_strange(world)
            yield b"}"

        await world.generate()
        assert (await world.call_back(content=late())).status_code == 401
        await be_strange(world)
        [row] = await rows(world, "SELECT count(*) AS count FROM callbacks WHERE tenant = ''")
        assert row["count"] == receiver.REJECTIONS_PER_SECOND


async def test_strangers_do_not_push_out_the_rejected_callbacks_of_a_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "REJECTED_MAX", 2)
    signed = {"upstream_signature": "kie", "upstream_signature_secret": "s" * 32}
    async with opened(tmp_path, **signed) as world:
        generation = await world.generate()
        await world.call_back()
        for _ in range(5):
            await world.anonymous.post(f"{PUBLIC_URL}/callbacks/apiinone/wrong", json={})
        await world.run(2 * 3_600)
        kept = await rows(world, "SELECT generation_id FROM callbacks WHERE verdict = 'rejected'")
        assert sorted(row["generation_id"] for row in kept) == ["", "", generation["id"]]
