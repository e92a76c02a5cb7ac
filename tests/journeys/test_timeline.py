"""The timeline of a generation: complete, in order, and for its own tenant only."""

import itertools
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults import timeline_of
from tests.harness import Harness, opened


async def entries(world: Harness, generation_id: str) -> list[dict[str, Any]]:
    page = await world.get(f"/v1/generations/{generation_id}/timeline")
    data: list[dict[str, Any]] = page["data"]
    return data


async def test_the_timeline_of_a_generation_that_succeeds(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        generation = await world.generate()
        await world.run(1)
        world.upstream.finish("task1")
        for body in (None, {"again": True}):
            world.clock.advance(1)
            await world.call_back(body)
            await world.run(1)
        assert await timeline_of(world, generation["id"]) == [
            ("stored", ""),
            ("submission", "taken"),
            ("submitted", ""),
            ("event", "generation.submitted"),
            ("attempt", "200"),
            ("callback", "accepted"),
            ("poll", "succeeded"),
            ("event", "generation.succeeded"),
            ("attempt", "200"),
            ("callback", "late"),
        ]


async def test_the_timeline_of_a_generation_that_times_out(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(event_types=["generation.timed_out"])
        world.upstream.create_replies.append(httpx.ConnectError("refused"))
        generation = await world.generate()
        await world.run(1)
        world.upstream.poll_replies.append(httpx.Response(429, headers={"retry-after": "9"}))
        world.upstream.poll_replies.append(httpx.Response(500))
        world.upstream.poll_replies.append(httpx.Response(404))
        for seconds in (59, 9, 10, 3_600):
            await world.run(seconds)
        world.subscribers.answers["http://127.0.0.1:7/inbox"].append(500)
        await world.run()
        timeline = await timeline_of(world, generation["id"])
        assert [word for kind, word in timeline if kind == "submission"] == ["put_off", "taken"]
        polls = [word for kind, word in timeline if kind == "poll"]
        assert polls[:4] == ["throttled", "unwell", "absent", "processing"]
        assert [word for kind, word in timeline if kind == "event"] == [
            "generation.submitted",
            "generation.timed_out",
        ]


async def test_every_entry_has_a_time_a_type_and_a_sentence_and_times_never_run_backwards(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        generation = await world.generate()
        for step in range(4):
            await world.run(30)
            await world.call_back({"step": step})
        world.upstream.finish("task1")
        await world.run(30)
        timeline = await entries(world, generation["id"])
        assert len(timeline) > 12
        for entry in timeline:
            assert set(entry) == {"at", "type", "id", "summary", "detail"}
            assert entry["summary"].endswith(".")
        assert all(a["at"] <= b["at"] for a, b in itertools.pairwise(timeline))


async def test_a_poll_shows_upstreams_answer_and_its_duration(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate("ideogram-v3-turbo")
        document = {"code": 500, "message": "the machine is on fire"}
        world.upstream.poll_replies.append(httpx.Response(503, json=document))
        await world.run(3)
        [poll] = [e for e in await entries(world, generation["id"]) if e["type"] == "poll"]
        assert poll["detail"]["outcome"] == "unwell"
        assert poll["detail"]["status_code"] == 503
        assert poll["detail"]["duration_ms"] >= 0


async def test_attempts_name_their_subscriber_and_what_it_answered(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()
        world.subscribers.answers[subscriber["url"]].append(503)
        generation = await world.generate()
        await world.run()
        await world.run(10)
        attempts = [e for e in await entries(world, generation["id"]) if e["type"] == "attempt"]
        assert [a["detail"]["status_code"] for a in attempts] == [503, 200]
        assert [a["detail"]["number"] for a in attempts] == [1, 2]
        assert {a["detail"]["subscriber_id"] for a in attempts} == {subscriber["id"]}


async def test_another_tenant_sees_no_timeline(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        body = {"name": "n", "scopes": ["read", "submit"], "tenant": "other"}
        key = (await world.client.post("/v1/keys", json=body)).json()["key"]
        async with world.new_client(key) as stranger:
            path = f"/v1/generations/{generation['id']}"
            assert (await stranger.get(path)).status_code == 404
            assert (await stranger.get(f"{path}/timeline")).status_code == 404
            assert (await stranger.post(f"{path}/refresh")).status_code == 404
        assert world.upstream.polls == []


async def test_a_timeline_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.store.generations.EXCHANGES_MAX", 2)
    async with opened(tmp_path) as world:
        generation = await world.generate("cogview-4")
        for _ in range(5):
            await world.run(60)
        assert len(world.upstream.polls) == 5
        timeline = await timeline_of(world, generation["id"])
        assert [word for kind, word in timeline if kind == "poll"] == ["processing"] * 2
