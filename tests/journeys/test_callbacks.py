"""Callbacks: stored before they are answered, and confirmed by a poll unless they are proof."""

import asyncio
import base64
import itertools
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.model.clock import parse_rfc3339
from service.store.database import Transaction
from service.telemetry import metrics
from service.upstream.callback_url import CallbackTokens
from tests.faults import DelayedAnswer, rows, status_of, timeline_of
from tests.harness import PUBLIC_URL, Harness, create_answer, opened, success_report

FORGED = success_report("task1", "https://evil.example/1.png")
DAY = 86_400
SUCCESS_EVENTS = ["generation.submitted", "generation.succeeded"]


async def verdicts(world: Harness, **query: Any) -> list[str]:
    """Return the verdicts of all callbacks, oldest first."""
    listed = await world.get("/v1/callbacks", order="asc", **query)
    return [callback["verdict"] for callback in listed["data"]]


async def reasons(world: Harness) -> list[str | None]:
    listed = await world.get("/v1/callbacks", order="asc")
    return [callback["reason"] for callback in listed["data"]]


async def test_a_callback_is_stored_with_its_raw_body_and_headers_before_it_is_answered(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        raw = b'{ "data" : {"task_id":"task1", "status":"completed"}}'
        answer = await world.call_back(content=raw, headers={"X-Try": "1", "X-Try-Too": "2"})
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        assert answer.headers["x-request-id"].startswith("req_")
        [stored] = await rows(world, "SELECT * FROM callback_bodies")
        assert stored["body"] == raw
        [listed] = (await world.get("/v1/callbacks"))["data"]
        assert listed["generation_id"] == generation["id"]
        assert (listed["verdict"], listed["trust"]) == ("accepted", "confirm")
        shown = await world.get(f"/v1/callbacks/{listed['id']}")
        assert (shown["body"], shown["body_encoding"]) == (raw.decode(), "utf-8")
        assert (shown["headers"]["x-try"], shown["headers"]["x-try-too"]) == ("1", "2")


async def test_a_hint_is_confirmed_and_only_upstreams_answer_is_published(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        generation = await world.generate()
        assert (await world.call_back(FORGED)).status_code == 200
        assert await status_of(world, generation["id"]) == "processing"
        await world.run()
        assert await status_of(world, generation["id"]) == "processing"
        world.upstream.finish("task1", "https://cdn.example/good.png")
        assert (await world.call_back({**FORGED, "again": True})).status_code == 200
        await world.run(1)
        stored = await world.get(f"/v1/generations/{generation['id']}")
        assert stored["output"]["files"][0]["url"] == "https://cdn.example/good.png"
        for sent in world.subscribers.webhooks:
            assert b"evil" not in sent.body
        await world.run(DAY)
        assert sorted(world.subscribers.event_types()) == SUCCESS_EVENTS


async def test_a_forged_failure_does_not_fail_a_generation(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        world.upstream.finish("task1")
        await world.call_back({"data": {"task_id": "task1", "status": "failed"}})
        await world.run()
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_with_trust_in_bodies_the_callback_and_its_outcome_share_a_commit(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe()
        generation = await world.generate()
        await world.call_back()
        assert await status_of(world, generation["id"]) == "succeeded"
        await world.run(DAY)
        assert world.upstream.polls == []
        assert sorted(world.subscribers.event_types()) == SUCCESS_EVENTS
        [listed] = (await world.get("/v1/callbacks"))["data"]
        assert listed["trust"] == "body"


async def test_a_repeated_body_is_a_duplicate_and_causes_no_poll(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        for _ in range(3):
            assert (await world.call_back()).status_code == 200
        await world.run()
        assert await verdicts(world) == ["accepted", "duplicate", "duplicate"]
        assert len(world.upstream.polls) == 1


async def test_duplicates_within_one_commit_are_detected(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        answers = await asyncio.gather(*(world.call_back() for _ in range(8)))
        assert {answer.status_code for answer in answers} == {200}
        assert sorted(await verdicts(world)) == ["accepted"] + ["duplicate"] * 7


async def test_the_same_body_for_another_generation_is_no_duplicate(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        await world.generate()
        for index in (0, 1):
            await world.call_back(success_report("task"), index=index)
        assert await verdicts(world) == ["accepted", "accepted"]


@pytest.mark.parametrize("trust", ["confirm", "body"])
async def test_a_callback_after_the_outcome_is_late_and_changes_nothing(
    tmp_path: Path, trust: str
) -> None:
    async with opened(tmp_path, callback_trust=trust) as world:
        await world.subscribe()
        generation = await world.generate()
        world.upstream.finish("task1")
        await world.call_back()
        await world.run()
        before = await world.get(f"/v1/generations/{generation['id']}")
        polls = list(world.upstream.polls)
        contradiction = {"data": {"task_id": "task1", "status": "failed", "error": "changed"}}
        for body in (None, contradiction, FORGED):
            assert (await world.call_back(body)).status_code == 200
        await world.run(DAY)
        assert await verdicts(world) == ["accepted", "late", "late", "late"]
        assert await world.get(f"/v1/generations/{generation['id']}") == before
        assert world.upstream.polls == polls
        assert sorted(world.subscribers.event_types()) == SUCCESS_EVENTS


async def test_a_callback_before_the_create_answer_is_matched_by_its_token(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, shutdown_seconds=0) as world:
        await world.subscribe()
        delayed_answer = DelayedAnswer(httpx.Response(200, json=create_answer("task1")))
        world.upstream.create_replies.append(delayed_answer.reply)
        creating = asyncio.create_task(world.generate())
        await delayed_answer.requested.wait()
        world.upstream.finish("task1")
        assert (await world.call_back({"status": "completed"})).status_code == 200  # No task id.
        await world.run()
        assert world.upstream.polls == []
        delayed_answer.release()
        generation = await creating
        assert generation["status"] == "processing"
        await world.run(5)
        assert world.upstream.polls == ["task1"]
        assert await status_of(world, generation["id"]) == "succeeded"
        assert sorted(world.subscribers.event_types()) == SUCCESS_EVENTS


async def test_proof_before_the_create_answer_completes_the_generation(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await world.subscribe()
        delayed_answer = DelayedAnswer(httpx.Response(200, json=create_answer("task1")))
        world.upstream.create_replies.append(delayed_answer.reply)
        creating = asyncio.create_task(world.generate())
        await delayed_answer.requested.wait()
        assert (await world.call_back(success_report("task1"))).status_code == 200
        delayed_answer.release()
        generation = await creating
        assert (generation["status"], generation["task_id"]) == ("succeeded", "task1")
        await world.run(DAY)
        assert world.subscribers.event_types() == ["generation.succeeded"]
        assert world.upstream.polls == []


async def test_a_report_of_progress_after_a_lost_create_answer_causes_a_poll(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        world.upstream.create_replies.append(httpx.ReadTimeout("slow"))
        generation = await world.generate()
        world.upstream.finish("task1")
        await world.call_back({"data": {"task_id": "task1", "status": "processing"}})
        assert await status_of(world, generation["id"]) == "processing"
        await world.run()
        assert await status_of(world, generation["id"]) == "succeeded"


@pytest.mark.parametrize(
    "raw",
    [b"", b"done", b"{", b'"completed"', b"7", b"null", b"\xff\xfe\x00", b"[" * 5_000, b"a=1&b=2"],
    ids=repr,
)
@pytest.mark.parametrize("trust", ["confirm", "body"])
async def test_an_unreadable_body_is_stored_and_causes_a_confirmation(
    tmp_path: Path, raw: bytes, trust: str
) -> None:
    async with opened(tmp_path, callback_trust=trust) as world:
        generation = await world.generate()
        world.upstream.finish("task1")
        assert (await world.call_back(content=raw)).status_code == 200
        assert await verdicts(world) == ["unreadable"]
        [stored] = await rows(world, "SELECT body FROM callback_bodies")
        assert stored["body"] == raw
        await world.run()
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_a_binary_body_is_shown_in_base64(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        await world.call_back(content=b"\xff\x00 callbacks")
        [listed] = (await world.get("/v1/callbacks"))["data"]
        shown = await world.get(f"/v1/callbacks/{listed['id']}")
        assert shown["body_encoding"] == "base64"
        assert base64.b64decode(shown["body"]) == b"\xff\x00 callbacks"


async def test_a_list_of_clips_without_a_task_id_is_applied(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        generation = await world.generate()
        clip = {"id": "c1", "status": "complete", "audio_url": "https://cdn.example/1.mp3"}
        await world.call_back([{**clip, "status": "text", "audio_url": ""}])
        assert await status_of(world, generation["id"]) == "processing"
        await world.call_back([clip])
        assert await status_of(world, generation["id"]) == "succeeded"


async def _chunks(count: int) -> Any:
    for _ in range(count):
        yield b'{"a":"' + b"x" * 1_000


@pytest.mark.parametrize("chunked", [True, False])
async def test_a_body_over_the_limit_gets_413_and_is_not_applied(
    tmp_path: Path, *, chunked: bool
) -> None:
    async with opened(tmp_path, callback_trust="body", callback_body_bytes=2_048) as world:
        generation = await world.generate()
        body = success_report("task1") | {"padding": "x" * 3_000}
        options: dict[str, Any] = {"content": _chunks(4)} if chunked else {"body": body}
        answer = await world.call_back(**options)
        assert answer.status_code == 413
        assert answer.json()["code"] == "body_too_large"
        assert await status_of(world, generation["id"]) == "processing"
        assert await verdicts(world, generation_id=generation["id"]) == ["rejected"]
        assert await reasons(world) == ["body_too_large"]


async def test_a_body_over_the_limit_is_a_hint(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_body_bytes=2_048) as world:
        generation = await world.generate()
        world.upstream.finish("task1")
        assert (await world.call_back(content=_chunks(4))).status_code == 413
        await world.run(1)
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_a_body_over_the_limit_is_no_hint_if_its_token_was_revoked(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_body_bytes=2_048) as world:
        await world.generate()
        token = await _bad_token(world, "revoked")
        url = f"{PUBLIC_URL}/callbacks/apiinone/{token}"
        assert (await world.anonymous.post(url, content=_chunks(4))).status_code == 413
        assert not await rows(world, "SELECT * FROM confirmations")


async def test_a_body_over_the_limit_is_no_hint_if_a_signature_is_required(tmp_path: Path) -> None:
    signed = {"upstream_signature": "kie", "upstream_signature_secret": "s" * 32}
    async with opened(tmp_path, callback_body_bytes=2_048, **signed) as world:
        await world.generate()
        assert (await world.call_back(content=_chunks(4))).status_code == 413
        assert not await rows(world, "SELECT * FROM confirmations")


async def test_the_body_limit_does_not_rely_on_content_length(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_body_bytes=2_048) as world:
        await world.generate()
        answer = await world.call_back(content=_chunks(3), headers={"content-length": "10"})
        assert answer.status_code == 413
        answer = await world.call_back(content=b"x" * 2_048)
        assert answer.status_code == 200


def _tokens(world: Harness, *keys: str) -> CallbackTokens:
    return CallbackTokens(keys or world.settings.secret_keys, "apiinone")


async def _bad_token(world: Harness, kind: str) -> str:
    good = world.upstream.callback_url().rpartition("/")[2]
    [row] = await rows(world, "SELECT id, nonce, deadline_at FROM generations")
    expires_at = row["deadline_at"] + 7 * DAY * 1_000
    bad = {
        "forged": _tokens(world, "x" * 32).mint(row["id"], row["nonce"], expires_at),
        "malformed": good[:-2],
        "altered": good[:5] + ("A" if good[5] != "A" else "B") + good[6:],
        "expired": _tokens(world).mint(row["id"], row["nonce"], world.clock.now - 1_000),
        "revoked": _tokens(world).mint(row["id"], "n" * 22, expires_at),
        "unknown generation": _tokens(world).mint("gen_" + "0" * 32, row["nonce"], expires_at),
        "other upstream": CallbackTokens(world.settings.secret_keys, "other").mint(
            row["id"], row["nonce"], expires_at
        ),
        "empty": "",
        "long": "a" * 5_000,
        "with suffix": f"{good}/more",
    }
    return bad[kind]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("forged", "token_forged"),
        ("malformed", "token_malformed"),
        ("altered", "token_forged"),
        ("expired", "token_expired"),
        ("revoked", "token_revoked"),
        ("unknown generation", "token_revoked"),
        ("other upstream", "token_forged"),
        ("empty", "token_malformed"),
        ("long", "token_malformed"),
        ("with suffix", "token_malformed"),
    ],
)
async def test_an_invalid_token_is_a_404_and_changes_nothing(
    tmp_path: Path, kind: str, reason: str
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        generation = await world.generate()
        token = await _bad_token(world, kind)
        url = f"{PUBLIC_URL}/callbacks/apiinone/{token}"
        answer = await world.anonymous.post(url, json=success_report("task1"))
        assert answer.status_code == 404
        assert answer.json()["code"] == "token_invalid"
        assert await status_of(world, generation["id"]) == "processing"
        assert await verdicts(world) == ["rejected"]
        assert await reasons(world) == [reason]
        await world.run()
        assert world.upstream.polls == []
        # The valid URL still works after the rejection.
        assert (await world.call_back()).status_code == 200
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_another_upstreams_path_is_a_404(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        url = world.upstream.callback_url().replace("/apiinone/", "/elsewhere/")
        assert (await world.anonymous.post(url, json={})).status_code == 404
        assert (await world.anonymous.get(world.upstream.callback_url())).status_code == 405


async def test_a_used_url_is_refused_once_it_is_revoked(tmp_path: Path) -> None:
    async def revoke(tx: Transaction) -> None:
        await tx.select("UPDATE generations SET nonce = 'another'", {})

    async with opened(tmp_path, callback_trust="body") as world:
        generation = await world.generate()
        assert (await world.call_back({"status": "processing"})).status_code == 200
        await world.app.database.write(revoke)
        for _ in range(2):
            assert (await world.call_back()).status_code == 404
        assert await status_of(world, generation["id"]) == "processing"


async def test_a_callback_url_expires_seven_days_after_the_deadline(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        deadline_at = parse_rfc3339(generation["deadline_at"])
        world.clock.now = deadline_at + 7 * DAY * 1_000 - 1
        assert (await world.call_back()).status_code == 200
        world.clock.now += 2_000
        assert (await world.call_back()).status_code == 404
        assert await reasons(world) == [None, "token_expired"]


async def test_a_url_minted_under_the_older_key_still_works_after_a_rotation(
    tmp_path: Path,
) -> None:
    old, new = "o" * 32, "n" * 32
    async with opened(tmp_path, secret_keys=(old,)) as before:
        await before.generate()
        url = before.upstream.callback_url()
    async with opened(tmp_path, secret_keys=(old, new)) as both:
        assert (await both.anonymous.post(url, json=success_report("task1"))).status_code == 200
        await both.generate()
        newer = both.upstream.callback_url()
    async with opened(tmp_path, secret_keys=(new,)) as after:
        assert (await after.anonymous.post(newer, json=success_report("task2"))).status_code == 200
        assert (await after.anonymous.post(url, json=success_report("task3"))).status_code == 404


async def test_at_most_twenty_rejected_callbacks_a_second_are_stored(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        url = f"{PUBLIC_URL}/callbacks/apiinone/wrong"
        big = b"x" * 100_000
        answers = [await world.anonymous.post(url, content=big) for _ in range(30)]
        assert {answer.status_code for answer in answers} == {404}
        assert len(await verdicts(world)) == 20
        world.clock.advance(1)
        await world.anonymous.post(url, content=big)
        assert len(await verdicts(world)) == 21
        [stored] = await rows(world, "SELECT max(length(body)) AS size FROM callback_bodies")
        assert stored["size"] <= 4_096
        # They belong to no tenant: only an admin sees them.
        key = (await world.client.post("/v1/keys", json={"name": "r", "scopes": ["read"]})).json()
        async with world.new_client(key["key"]) as reader:
            assert (await reader.get("/v1/callbacks")).json()["data"] == []


@pytest.mark.sqlite_only("it runs due work hundreds of times")
async def test_any_number_of_callbacks_causes_at_most_one_poll_a_second(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        asked_at = []
        for step in range(41):  # Eight new bodies a second, for five seconds.
            await world.call_back({"status": "processing", "step": step})
            before = len(world.upstream.polls)
            await world.run(0.125)
            asked_at += [step] * (len(world.upstream.polls) - before)
        assert len(asked_at) == 5 + (asked_at[0] == 0)
        assert all(later - sooner >= 8 for sooner, later in itertools.pairwise(asked_at))
        assert await status_of(world, generation["id"]) == "processing"


async def test_a_callback_during_a_poll_causes_another_poll(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        running = {"code": 200, "data": {"task_id": "task1", "status": "processing"}}
        delayed_answer = DelayedAnswer(httpx.Response(200, json=running))
        world.upstream.poll_replies.append(delayed_answer.reply)
        await world.call_back({"status": "first"})
        tick = asyncio.create_task(world.run())
        await delayed_answer.requested.wait()
        world.clock.advance(0.2)
        world.upstream.finish("task1")
        await world.call_back({"status": "completed"})
        delayed_answer.release()
        await tick
        assert await status_of(world, generation["id"]) == "processing"
        await world.run(0.7)
        assert world.upstream.polls == ["task1"]
        await world.run(0.1)
        assert world.upstream.polls == ["task1", "task1"]
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_many_callbacks_at_once_share_commits(tmp_path: Path) -> None:
    commits: list[int] = []
    async with opened(tmp_path) as world:
        for _ in range(64):
            await world.generate()
        database = world.app.database
        commit = database._commit

        async def count_and_commit(*args: Any) -> None:
            commits.append(len(args[-1]))
            await commit(*args)

        database._commit = count_and_commit
        answers = await asyncio.gather(
            *(world.call_back(success_report(f"task{i + 1}"), index=i) for i in range(64))
        )
        assert {answer.status_code for answer in answers} == {200}
        assert sum(commits) == 64
        assert len(commits) <= 4
        assert await verdicts(world, limit=250) == ["accepted"] * 64


@pytest.mark.parametrize("trust", ["confirm", "body"])
async def test_a_callback_is_answered_only_after_its_commit(tmp_path: Path, trust: str) -> None:
    async with opened(tmp_path, callback_trust=trust) as world:
        await world.generate()
        database = world.app.database
        commit, started, allowed = database._commit, asyncio.Event(), asyncio.Event()

        async def wait_and_commit(*args: Any) -> None:
            started.set()
            await allowed.wait()
            await commit(*args)

        database._commit = wait_and_commit
        calling = asyncio.create_task(world.call_back())
        await started.wait()
        stored = await verdicts(world)
        is_answered = calling.done()
        allowed.set()
        assert (stored, is_answered) == ([], False)
        assert (await calling).status_code == 200
        assert await verdicts(world) == ["accepted"]


@pytest.mark.sqlite_only("it makes the connection read-only")
@pytest.mark.parametrize("trust", ["confirm", "body"])
async def test_while_storage_fails_a_callback_is_answered_with_503(
    tmp_path: Path, trust: str
) -> None:
    async with opened(tmp_path, callback_trust=trust) as world:
        generation = await world.generate()
        database = world.app.database
        await database.apply(lambda c: c.execute("PRAGMA query_only=ON"))
        answer = await world.call_back()
        assert answer.status_code == 503
        assert answer.json()["code"] == "storage_unavailable"
        assert answer.headers["retry-after"] == "1"
        await database.apply(lambda c: c.execute("PRAGMA query_only=OFF"))
        queue_max, database._queue.items_max = database._queue.items_max, 0
        assert (await world.call_back()).status_code == 503
        database._queue.items_max = queue_max
        assert await verdicts(world) == []
        world.upstream.finish("task1")
        assert (await world.call_back()).status_code == 200
        await world.run()
        assert await status_of(world, generation["id"]) == "succeeded"


async def test_a_stopped_process_answers_503(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        await world.app.stop()
        assert (await world.call_back()).status_code == 503


async def test_an_unexpected_error_is_a_500_and_stores_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: Any) -> Any:
        raise RuntimeError("unexpected")

    async with opened(tmp_path) as world:
        await world.generate()
        counted = metrics.callbacks.values["not_stored",]
        with monkeypatch.context() as patched:
            patched.setattr("service.generations.ingest.callbacks.insert", fail)
            answer = await world.call_back()
        assert metrics.callbacks.values["not_stored",] == counted + 1
        assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
        assert "unexpected" not in answer.text
        assert await verdicts(world) == []
        assert (await world.call_back()).status_code == 200


async def test_a_callback_that_is_cut_off_is_not_stored(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        await world.generate()
        messages = [
            {"type": "http.request", "body": b'{"a":', "more_body": True},
            {"type": "http.disconnect"},
        ]
        sent: list[Any] = []
        path = httpx.URL(world.upstream.callback_url()).path
        scope = {"type": "http", "method": "POST", "path": path, "headers": []}

        async def receive() -> Any:
            return messages.pop(0)

        async def send(message: Any) -> None:
            sent.append(message)

        await world.app(scope, receive, send)
        assert sent == []
        assert await verdicts(world) == []


async def test_the_timeline_lists_every_callback(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        world.upstream.finish("task1")
        await world.call_back(content=b"?")
        await world.call_back()
        await world.run()
        await world.call_back()
        verdicts = [
            verdict
            for kind, verdict in await timeline_of(world, generation["id"])
            if kind == "callback"
        ]
        assert verdicts == ["unreadable", "accepted", "late"]
