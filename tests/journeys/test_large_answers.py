"""Large answers and callbacks are read outside of the event loop and of the commit stream."""

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from service.generations import judge
from service.store import turns
from service.telemetry.redact import Redactor
from service.upstream import documents, reading
from tests.harness import Harness, opened, success_report

pytestmark = pytest.mark.sqlite_only("which thread reads an answer is the same on both")

PNG = "https://cdn.example/1.png"


@pytest.fixture
def readers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The names of the threads that read a body, and its size, in order."""
    noted: list[tuple[str, int]] = []
    parse = documents.parse

    def note(body: bytes, *options: Any) -> Any:
        noted.append((threading.current_thread().name, len(body)))
        return parse(body, *options)

    monkeypatch.setattr(documents, "parse", note)
    return noted


def large(task_id: str, **data: Any) -> bytes:
    words = [{"word": f"word {number}", "at": number} for number in range(3_000)]
    data = {"task_id": task_id, **data, "words": words}
    return msgspec.json.encode({"code": 200, "data": data})


async def test_large_answers_are_read_and_redacted_in_the_reading_thread(
    tmp_path: Path, readers: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    redactors: set[str] = set()
    redact = Redactor.json

    def note(self: Redactor, value: Any) -> Any:
        if isinstance(value, dict) and "data" in value:
            redactors.add(threading.current_thread().name)
        return redact(self, value)

    monkeypatch.setattr(Redactor, "json", note)
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        content = large("task1", status="SUCCESS", output=[PNG])
        world.upstream.poll_replies.append(httpx.Response(200, content=content))
        await world.run(60)
        [generation] = (await world.get("/v1/generations"))["data"]
        assert generation["status"] == "succeeded"
    assert all(name.startswith("reading") for name, size in readers if size == len(content))
    assert len(content) in [size for _, size in readers]
    assert all(name.startswith("reading") for name in redactors)


async def test_tasks_of_others_are_left_out_of_a_large_answer_in_the_reading_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: set[str] = set()
    leave_out = judge._without

    def note(*options: Any) -> Any:
        threads.add(threading.current_thread().name.split("_")[0])
        return leave_out(*options)

    monkeypatch.setattr(judge, "_without", note)
    async with opened(tmp_path, public_url=None) as world:
        for _ in range(2):
            await world.generate()
        content = large("task1", status="SUCCESS", output=[PNG], recent=[{"task_id": "task2"}])
        world.upstream.poll_replies.append(httpx.Response(200, content=content))
        await world.run(60)
        generation = (await world.get("/v1/generations"))["data"][-1]
        assert generation["status"] == "succeeded"
    assert threads == {"reading"}


async def test_a_large_file_is_redacted_in_the_reading_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    redactors: set[str] = set()
    redact = Redactor.json

    def note(self: Redactor, value: Any) -> Any:
        if isinstance(value, str) and value.startswith("data:"):
            redactors.add(threading.current_thread().name.split("_")[0])
        return redact(self, value)

    monkeypatch.setattr(Redactor, "json", note)
    async with opened(tmp_path) as world:
        kind = {"content-type": "audio/mpeg"}
        sound = httpx.Response(200, content=b"ID3" * reading.READ_ON_LOOP_BYTES, headers=kind)
        world.upstream.create_replies.append(sound)
        generation = await world.generate("elevenlabs-v3", input={"dialogue": [{"text": "hello"}]})
        assert generation["status"] == "succeeded"
    assert redactors == {"reading"}


async def test_small_answers_are_read_at_once(
    tmp_path: Path, readers: list[tuple[str, int]]
) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.generate()
        world.upstream.finish("task1")
        await world.run(60)
    assert {name for name, _ in readers} == {threading.main_thread().name}


async def call_back_large(world: Harness, **data: Any) -> None:
    answer = await world.call_back(content=large("task1", **data))
    assert answer.status_code == 200


@pytest.mark.parametrize("trust", ["confirm", "body"])
async def test_no_large_callback_is_read_on_the_loop_or_while_commits_wait(
    tmp_path: Path, readers: list[tuple[str, int]], trust: str
) -> None:
    async with opened(tmp_path, callback_trust=trust) as world:
        await world.generate()
        await call_back_large(world, status="IN_PROGRESS")
        await world.run(1)
        world.upstream.finish("task1")
        for _ in range(3):
            await world.run(100)
        [generation] = (await world.get("/v1/generations"))["data"]
        assert generation["status"] == "succeeded"
    sizes = {size for name, size in readers if not name.startswith("reading")}
    assert max(sizes) <= reading.READ_ON_LOOP_BYTES


async def test_a_large_callback_that_is_proof_waits_for_its_turn_and_not_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.generate()
        await world.generate()
        monkeypatch.setattr(turns, "TURN_SECONDS", 0)
        async with world.app._receiver._turns.turn("another"):
            late = await world.call_back(content=large("task1", status="SUCCESS", output=[PNG]))
            assert (late.status_code, late.json()["code"]) == (503, "storage_unavailable")
            assert (await world.get("/v1/callbacks"))["data"] == []
            assert (await world.call_back()).status_code == 200  # It is small.
        again = await world.call_back(
            index=0, content=large("task1", status="SUCCESS", output=[PNG])
        )
        assert again.status_code == 200
        generations = (await world.get("/v1/generations"))["data"]
        assert [each["status"] for each in generations] == ["succeeded"] * 2


async def test_a_large_callback_is_shown_in_turn_by_a_thread_that_reads_nothing_of_upstream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = dict[int, str]()
    redact = Redactor.text

    def note(self: Redactor, text: str) -> str:
        threads[len(text)] = threading.current_thread().name.split("_")[0]
        return redact(self, text)

    monkeypatch.setattr(Redactor, "text", note)
    async with opened(tmp_path) as world:
        await world.generate()
        bodies = [b'"%s"' % (b"%41" * count) for count in (6_000, 5_000)]
        for body in bodies:
            assert (await world.call_back(content=body)).status_code == 200
        small, shown = [each["id"] for each in (await world.get("/v1/callbacks"))["data"]]
        monkeypatch.setattr(turns, "TURN_SECONDS", 0)
        async with world.app.context.redactions.turn("another"):
            late = await world.client.get(f"/v1/callbacks/{shown}")
            assert (late.status_code, late.json()["code"]) == (503, "storage_unavailable")
            assert (await world.get(f"/v1/callbacks/{small}"))["body"] == bodies[1].decode()
        assert (await world.get(f"/v1/callbacks/{shown}"))["body"] == bodies[0].decode()
        monkeypatch.setattr(world.app.context.redactions, "_held_bytes", Counter(another=100 << 20))
        assert (await world.client.get(f"/v1/callbacks/{shown}")).status_code == 503
    own = threading.current_thread().name.split("_")[0]
    assert [threads[len(body)] for body in bodies] == ["reading for clients", own]


async def test_a_large_callback_names_the_task_whose_create_answer_was_lost(
    tmp_path: Path, readers: list[tuple[str, int]]
) -> None:
    async with opened(tmp_path) as world:
        world.upstream.create_replies.append(httpx.ReadTimeout("no answer"))
        await world.generate()
        world.upstream.poll_replies.append(httpx.Response(200, json=success_report("task1")))
        await call_back_large(world, status="SUCCESS")
        await world.run(1)
        [generation] = (await world.get("/v1/generations"))["data"]
        assert (generation["status"], generation["task_id"]) == ("succeeded", "task1")
    assert {name.split("_")[0] for name, size in readers if size > 65_536} == {"reading"}
