"""Callbacks whose bodies are believed: which of them are proof, and which are only hints."""

from pathlib import Path

import httpx
import msgspec
import pytest

from service.generations import proofs
from service.model.ids import new_id
from service.store.callbacks import Arrival
from service.store.database import Transaction
from tests.faults import rows, status_of
from tests.harness import Harness, create_answer, opened, success_report


@pytest.mark.parametrize(
    "body",
    [
        b'{"data": {"task_id": "task2", "task_id": "task1"}}',
        b'{"data": {"task_id": "task1", "taskId": "task2"}}',
        b'{"data": {"taskId": "task2", "task_id": "task1"}}',
        b'{"task_id": "task2", "data": {"task_id": "task1"}}',
        b'{"id": "task2", "data": {"task_id": "task1"}}',
        b'{"data": {"task_id": "task1", "job_id": "task2"}}',
        b'{"data": {"task_id": "task1", "output": {"id": "task2"}}}',
        b'{"data": {"request_id": "task2"}}',
        b'{"data": {"data": {"task_id": "task2"}}}',
    ],
)
async def test_a_body_that_also_names_the_task_of_another_generation_is_only_a_hint(
    tmp_path: Path, body: bytes
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        generation = await world.generate()
        url = world.upstream.callback_url()
        await world.generate()  # It is task2.
        end = b', "status": "completed", "results": ["https://x.example/1.png"]}'
        content = body.replace(b"}", end, 1)
        assert (await world.anonymous.post(url, content=content)).status_code == 200
        assert await status_of(world, generation["id"]) == "processing"
        assert len(await rows(world, "SELECT * FROM confirmations")) == 1


async def test_a_body_with_an_unknown_second_id_is_proof(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        generation = await world.generate()
        report = success_report("task1")
        report["data"]["taskId"] = "of-the-service-behind"
        assert (await world.call_back(report)).status_code == 200
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_a_body_that_gives_back_what_was_sent_is_only_a_hint(tmp_path: Path) -> None:
    sent = "https://cdn.example/in.png"
    async with opened(tmp_path, callback_trust="body") as world:
        input_ = {"prompt": "a harbour", "image_urls": [sent]}
        generation = await world.generate("seedream/4.5-edit", input=input_)
        report = {"data": {"task_id": "task1", "status": "completed", "images": [sent]}}
        assert (await world.call_back(report)).status_code == 200
        assert await status_of(world, generation["id"]) == "processing"
        report["data"]["images"] = [sent, "https://cdn.example/out.png"]
        world.upstream.poll_replies.append(httpx.Response(200, json=report))
        await world.run(1)
        shown = await world.get(f"/v1/generations/{generation['id']}")
        assert [file["url"] for file in shown["output"]["files"]] == ["https://cdn.example/out.png"]


@pytest.mark.parametrize("body", [{"status": "completed"}, {"status": "failed", "error": "nsfw"}])
async def test_a_final_word_without_a_task_is_only_a_hint(
    tmp_path: Path, body: dict[str, str]
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        generation = await world.generate()
        await world.call_back(body)
        assert await status_of(world, generation["id"]) == "processing"
        world.upstream.finish("task1")
        await world.run()
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_a_believed_callback_ends_all_that_share_its_task(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe()
        answer = httpx.Response(200, json=create_answer("shared"))
        world.upstream.create_replies.extend([answer] * 2)
        ids = [(await world.generate())["id"] for _ in range(2)]
        other = await world.generate(input={"prompt": "another"})
        await world.call_back(success_report("shared"), index=0)
        assert [await status_of(world, id_) for id_ in ids] == ["succeeded"] * 2
        assert await status_of(world, other["id"]) == "processing"
        await world.call_back(success_report("shared"), index=1)
        await world.run()
        assert world.subscribers.event_types().count("generation.succeeded") == 2


async def test_what_is_only_a_hint_ends_none_that_share_its_task(tmp_path: Path) -> None:
    sent = "https://cdn.example/in.png"
    async with opened(tmp_path, callback_trust="body") as world:
        answer = httpx.Response(200, json=create_answer("shared"))
        world.upstream.create_replies.extend([answer] * 2)
        input_ = {"prompt": "a harbour", "image_urls": [sent]}
        ids = [(await world.generate("seedream/4.5-edit", input=input_))["id"] for _ in range(2)]
        await world.call_back(success_report("shared", sent), index=0)
        assert [await status_of(world, id_) for id_ in ids] == ["processing"] * 2


@pytest.mark.parametrize(
    ("body", "verdict", "status"),
    [
        (
            b"\xef\xbb\xbf" + msgspec.json.encode(success_report("task1")),
            ("accepted", "body"),
            "succeeded",
        ),
        (
            b'{"data": {"task_id": "task1", "status": "COMPLETED"}}',
            ("accepted", "confirm"),
            "processing",
        ),
        (b"{", ("unreadable", "confirm"), "processing"),
        (msgspec.json.encode(success_report("task9")), ("accepted", "confirm"), "processing"),
        (
            b'{"status": "completed", "output": {"images": ["https://x.example/1.png"]}}',
            ("accepted", "confirm"),
            "processing",
        ),
        (b'{"status": "failed", "error": "nsfw"}', ("accepted", "confirm"), "processing"),
        (b'{"data": {"status": "failed", "error": "nsfw"}}', ("accepted", "body"), "failed"),
        (
            b'{"data": {"task_id": "task1", "images": ["https://x.example/1.png"]}}',
            ("accepted", "confirm"),
            "processing",
        ),
        (
            b'{"code": 500, "data": {"task_id": "task1", "status": "completed"}}',
            ("accepted", "confirm"),
            "processing",
        ),
        (
            b'{"code": 500, "data": {"task_id": "task1", "status": "failed"}}',
            ("accepted", "body"),
            "failed",
        ),
        (b'{"data": {"task_id": "task1", "stat', ("unreadable", "confirm"), "processing"),
    ],
    ids=[
        "read though not strict",
        "an end without a result",
        "not readable",
        "another task",
        "a success at the top without a task",
        "a failure at the top without a task",
        "a failure in data without a task",
        "files without a word",
        "a success beside a code of trouble",
        "a failure beside a code of trouble",
        "cut off",
    ],
)
async def test_a_callback_shows_whether_its_body_was_believed(
    tmp_path: Path, body: bytes, verdict: tuple[str, str], status: str
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        generation = await world.generate()
        await world.call_back(content=body)
        shown = await world.get(f"/v1/generations/{generation['id']}")
        assert shown["status"] == status
        [callback] = (await world.get("/v1/callbacks"))["data"]
        assert (callback["verdict"], callback["trust"]) == verdict


async def test_a_repeated_or_late_callback_is_not_shown_as_believed(tmp_path: Path) -> None:
    unproven = b'{"data": {"task_id": "task1", "status": "COMPLETED"}}'
    async with opened(tmp_path, callback_trust="body") as world:
        await world.generate()
        for body in (unproven, unproven, msgspec.json.encode(success_report("task1")), b"[]"):
            await world.call_back(content=body)
        found = (await world.get("/v1/callbacks", order="asc"))["data"]
        assert [(callback["verdict"], callback["trust"]) for callback in found] == [
            ("accepted", "confirm"),
            ("duplicate", "confirm"),
            ("accepted", "body"),
            ("late", "confirm"),
        ]


async def arrive_together(world: Harness, *callbacks: tuple[str, object]) -> None:
    """Let callbacks, each of a generation, come whose bodies are stored in one commit."""
    nonces = {row["id"]: row["nonce"] for row in await rows(world, "SELECT * FROM generations")}
    arrivals = [
        Arrival(
            id=new_id("cb", world.clock()),
            upstream="apiinone",
            received_at=world.clock(),
            headers=(),
            generation_id=generation_id,
            nonce=nonces[generation_id],
            trust="body",
            body=msgspec.json.encode(report),
            readable=True,
        )
        for generation_id, report in callbacks
    ]

    async def store(tx: Transaction) -> None:
        read = [proofs.read_proof(world.app.context, each) for each in arrivals]
        await proofs.write_proofs(tx, read, context=world.app.context)

    await world.app.database.write(store)


async def shared_by_two(world: Harness) -> list[str]:
    """Two equal generations with one task, and another one with its own; return their ids."""
    for task in ("task1", "task1", "task9"):
        world.upstream.create_replies.append(httpx.Response(200, json=create_answer(task)))
    equal = [(await world.generate())["id"] for _ in range(2)]
    other = await world.generate(input={"prompt": "another thing"})
    return [*equal, other["id"]]


async def test_a_body_that_is_not_believed_is_no_outcome_for_who_shares_the_task(
    tmp_path: Path,
) -> None:
    ours, theirs = "https://cdn.example/ours.png", "https://cdn.example/theirs.png"
    async with opened(tmp_path, callback_trust="body") as world:
        first, second, other = await shared_by_two(world)
        reports = success_report("task1", ours), success_report("task9", theirs)
        await arrive_together(world, *((first, report) for report in reports))
        for id_ in (first, second):
            output = (await world.get(f"/v1/generations/{id_}"))["output"]
            assert [file["url"] for file in output["files"]] == [ours]
        assert await status_of(world, other) == "processing"


async def test_who_shares_a_task_gets_its_end_though_a_report_of_progress_follows(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        first, second, _ = await shared_by_two(world)
        progress = {"data": {"task_id": "task1", "status": "processing"}}
        await arrive_together(world, (first, success_report("task1")), (first, progress))
        assert [await status_of(world, id_) for id_ in (first, second)] == ["succeeded"] * 2


async def test_an_outcome_without_a_task_is_of_one_generation_though_another_has_no_task_either(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        world.upstream.create_replies.extend([httpx.ReadTimeout("slow")] * 2)
        ids = [(await world.generate())["id"] for _ in range(2)]
        end = success_report("task1")
        del end["data"]["task_id"]
        await arrive_together(world, (ids[0], end), (ids[1], {"data": {"status": "processing"}}))
        assert [await status_of(world, id_) for id_ in ids] == ["succeeded", "processing"]


async def test_a_hint_beside_the_end_of_its_generation_asks_nothing(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        id_ = (await world.generate())["id"]
        await arrive_together(world, (id_, {"status": "completed"}), (id_, success_report("task1")))
        assert await status_of(world, id_) == "succeeded"
        await world.run(1)
        assert world.upstream.polls == []


@pytest.mark.parametrize("trust", ["confirm", "body"])
async def test_a_repeated_callback_of_a_timed_out_generation_is_a_hint(
    tmp_path: Path, trust: str
) -> None:
    hint = {"data": {"task_id": "task1", "status": "COMPLETED"}}
    async with opened(tmp_path, callback_trust=trust) as world:
        generation = await world.generate()
        await world.call_back(hint)
        for seconds in (3_600, 1, 60):
            await world.run(seconds)
        assert await status_of(world, generation["id"]) == "timed_out"
        world.upstream.finish("task1")
        await world.call_back(hint)
        await world.run(1)
        assert await status_of(world, generation["id"]) == "succeeded"
