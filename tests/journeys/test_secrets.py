"""Secrets stay in: no token, key or signing secret in logs, events, errors or lists."""

import base64
import json
from pathlib import Path

import httpx
import pytest

from service.delivery.target import Answer
from service.generations.sightings import ALIAS_ANSWERS
from service.store.database import Transaction
from tests.faults import rows, status_of
from tests.harness import ADMIN_KEY, PUBLIC_URL, SUBSCRIBER_URL, Harness, opened
from tests.logs import Console

SIGNING = "whsec_" + "c2VjcmV0" * 4


def _token(world: Harness) -> str:
    return world.upstream.callback_url().rpartition("/")[2]


async def _everything(world: Harness) -> str:
    """All that the API shows, and all that subscribers were sent."""
    paths = ["/v1/generations", "/v1/callbacks", "/v1/events", "/v1/deliveries", "/v1/subscribers"]
    texts = []
    for path in paths:
        listed = (await world.client.get(path)).json()["data"]
        answers = [await world.client.get(f"{path}/{item['id']}") for item in listed]
        texts += [json.dumps(listed), *(answer.text for answer in answers)]
        if path == "/v1/generations":
            stories = [await world.client.get(f"{path}/{i['id']}/timeline") for i in listed]
            texts += [answer.text for answer in stories]
    texts.append((await world.client.get("/metrics")).text)
    texts += [f"{sent.headers} {sent.body.decode()}" for sent in world.subscribers.webhooks]
    return "\n".join(texts)


async def test_a_callbacks_token_is_shown_nowhere(tmp_path: Path, console: Console) -> None:
    console.configure("debug")
    async with opened(tmp_path, public_url="https://hooks.example/base") as world:
        await world.subscribe()
        await world.generate()
        url, token = world.upstream.callback_url(), _token(world)
        escaped = url.replace("/", "\\/")
        raw = f'{{"status":"running","callback_url":"{url}","also":"{escaped}"}}'.encode()
        headers = {"x-original-url": url, "referer": url, "authorization": "Bearer hush-hush"}
        inside = url.replace("/base", "")  # As a proxy in front would pass it on.
        await world.anonymous.post(inside, content=raw, headers=headers)
        await world.anonymous.post(inside, content=b"\xff" + raw)
        await world.anonymous.post(inside + "x", content=raw, headers=headers)  # Forged.
        await world.anonymous.get(inside)
        echo = {
            "task_id": "task1",
            "status": "completed",
            "output": {"image_urls": ["https://cdn.example/1.png"]},
            "param": json.dumps({"callBackUrl": url, "prompt": 'a "harbour"', "n": escaped}),
            "request": f"curl -d callback_url={httpx.QueryParams({'u': url})} and so on",
        }
        world.upstream.poll_replies.append(httpx.Response(200, json={"code": 200, "data": echo}))
        await world.run()
        seen = await _everything(world)
        lines = console.text()
    assert "generation.succeeded" in seen
    assert "and so on" in seen
    assert "[redacted]" in seen
    assert '"event":"callback"' in lines
    for text in (seen, lines):
        assert token not in text
        assert token[:40] not in text
        assert "hush-hush" not in text
        assert "aio_upstream_key" not in text


@pytest.mark.parametrize("form", ["{url}", "{token}", "see {url}"])
async def test_a_callback_url_in_place_of_a_task_is_not_kept_as_a_name_of_it(
    tmp_path: Path, form: str
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe()
        generation = await world.generate()
        token = _token(world)
        name = form.format(url=world.upstream.callback_url(), token=token)
        world.upstream.tasks["task1"] = {"task_id": name, "status": "completed", "output": ["x"]}
        for _ in range(6):
            await world.run(400)
        assert await rows(world, "SELECT * FROM task_names") == []
        assert await status_of(world, generation["id"]) == "processing"
        assert token not in await _everything(world)
        assert len(world.upstream.polls) > ALIAS_ANSWERS


async def test_a_url_within_json_within_json_does_not_break_the_result(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        generation = await world.generate()
        url = world.upstream.callback_url()
        inner = json.dumps({"callBackUrl": url, "prompt": "next\nline"})
        data = {"task_id": "task1", "status": "completed", "param": inner}
        data["output"] = {"image_urls": ["https://cdn.example/1.png"]}  # type: ignore[assignment]
        world.upstream.poll_replies.append(httpx.Response(200, json={"code": 200, "data": data}))
        await world.call_back({"status": "done"})
        await world.run()
        found = await world.get(f"/v1/generations/{generation['id']}")
        assert found["status"] == "succeeded"
        param = json.loads(found["output"]["raw"]["data"]["param"])
        assert param == {"callBackUrl": "[redacted]", "prompt": "next\nline"}


async def test_text_around_a_callback_url_is_kept(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        generation = await world.generate()
        url = world.upstream.callback_url()
        remark = f'we called {url}, "twice"; see https://up.example/callbacks for help'
        body = {
            "data": {
                "status": "completed",
                "remark": remark,
                "images": [{"url": "https://c.example/1.png"}],
            }
        }
        await world.call_back(body)
        found = await world.get(f"/v1/generations/{generation['id']}")
        kept = found["output"]["raw"]["data"]["remark"]
        assert kept == 'we called [redacted], "twice"; see https://up.example/callbacks for help'


async def test_keys_and_signing_secrets_are_shown_nowhere(tmp_path: Path, console: Console) -> None:
    console.configure("debug")
    settings = {
        "upstream_api_key": "sk-hush-hush-1234",
        "upstream_signature": "standard",
        "upstream_signature_secret": SIGNING,
    }
    async with opened(tmp_path, **settings) as world:
        subscriber = await world.subscribe(headers={"x-key": "hush-hush-5678"})
        made = await world.client.post("/v1/keys", json={"name": "n", "scopes": ["read"]})
        logged_in = made.json()["key"]
        world.upstream.create_replies.append(
            httpx.Response(401, json={"error": {"message": "Incorrect key: sk-hush-hush-1234"}})
        )
        body = {"model": "imagen4", "input": {"prompt": "a small harbour"}}
        refused = await world.client.post("/v1/generations", json=body)
        assert refused.status_code == 502
        await world.generate()
        said = {"code": 500, "message": "no quota for sk-hush-hush-1234"}
        world.upstream.poll_replies.append(httpx.Response(500, json=said))
        await world.run(70)
        shown = await _everything(world)
        lines = console.text()
    assert "Incorrect key: [redacted]" in refused.text
    secrets = ("sk-hush-hush-1234", SIGNING, "s" * 32, ADMIN_KEY, subscriber["secret"], logged_in)
    for text in (refused.text, shown, lines):
        for secret in secrets:
            assert secret not in text
    assert "hush-hush-5678" not in lines
    assert PUBLIC_URL not in lines


async def _bodies(tx: Transaction, delivery_id: str) -> bytes:
    rows = await tx.all("attempts_of_delivery", delivery_id=delivery_id)
    return b"".join(row["response_body"] + row["response_headers"].encode() for row in rows)


async def test_a_receiver_that_echoes_its_headers_does_not_show_them(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        secrets = {"authorization": "Bearer top-secret-of-theirs", "x-api-key": "hush-hush"}
        pasted = {"x-token": " with-spaces  "}  # Receivers read it without them.
        await world.subscribe(headers={**secrets, **pasted})
        more = {"token": "top-secret-of-theirs", "pasted": "with-spaces", "also": "seen"}
        body = json.dumps({**secrets, **more}).encode()
        echo = Answer(400, (("x-echo", "hush-hush"), ("x-more", "seen")), body + b"\xff")
        world.subscribers.answers[SUBSCRIBER_URL].append(echo)
        await world.generate()
        await world.run()
        [delivery] = (await world.get("/v1/deliveries"))["data"]
        shown = (await world.client.get(f"/v1/deliveries/{delivery['id']}")).text
        found = await world.app.database.read(_bodies, delivery["id"])
    assert shown.count("seen") == 2
    for secret in ("top-secret-of-theirs", "hush-hush", "with-spaces"):
        assert secret not in shown
        assert secret.encode() not in found


@pytest.mark.parametrize(
    "secret", ["hush-7", "sk_live_4f9a8b7c6d5e4f3a2b1c0d9e8f7a6b5c", 'a"b"c"d"e"f']
)
async def test_an_echo_that_is_cut_within_a_secret_shows_none_of_it(
    tmp_path: Path, secret: str
) -> None:
    async with opened(tmp_path) as world:
        await world.subscribe(headers={"x-token": secret})
        echo = json.dumps({"seen": "seen", "token": secret}).encode()
        await world.generate()
        half = len(secret) // 2 + 1
        for left_out in range(len(b'"}'), half):
            body = echo[: len(echo) - left_out]
            world.subscribers.answers[SUBSCRIBER_URL].append(Answer(400, (), body))
            await world.run()
            [delivery] = (await world.get("/v1/deliveries"))["data"]
            shown = await world.get(f"/v1/deliveries/{delivery['id']}")
            body_shown = shown["attempts"][-1]["response_body"]
            assert body_shown == '{"seen": "seen", "token": "[redacted]'
            await world.client.post(f"/v1/deliveries/{delivery['id']}/retry")


async def test_a_callback_is_shown_without_a_key_whatever_its_shape(tmp_path: Path) -> None:
    key = "sk-live-0123456789"
    async with opened(tmp_path, upstream_api_key=key) as world:
        await world.generate()
        for body in (b'{"debug": "called with %s"}', b"\xff called with %s"):
            await world.call_back(content=body % key.encode(), headers={"x-debug": f"key={key}"})
        for callback in (await world.get("/v1/callbacks"))["data"]:
            shown = await world.get(f"/v1/callbacks/{callback['id']}")
            text = shown["body"]
            if shown["body_encoding"] == "base64":
                text = base64.b64decode(text).decode("latin-1")
            assert "called with [redacted]" in text
            assert shown["headers"]["x-debug"] == "key=[redacted]"


async def test_a_callback_is_shown_without_texts_under_secret_names_and_stored_as_it_came(
    tmp_path: Path,
) -> None:
    body = (
        b'{"token": "s3cr3tvalue123",  "password":"hunter2hunter2", "API-Key": "k\\"y",'
        b' "data": {"tokens": "a b", "token": 17, "param": "{\\"secret\\": \\"hush\\"}"}}'
    )
    cut = (
        b'{"token": "[redacted]",  "password":"[redacted]", "API-Key": "[redacted]",'
        b' "data": {"tokens": "a b", "token": 17, "param": "{\\"secret\\": \\"[redacted]\\"}"}}'
    )
    async with opened(tmp_path) as world:
        await world.generate()
        for sent, shown in ((body, cut), (body + b"\xff", cut + b"\xff")):
            await world.call_back(content=sent)
            [listed, *_] = (await world.get("/v1/callbacks"))["data"]
            view = await world.get(f"/v1/callbacks/{listed['id']}")
            is_text = view["body_encoding"] == "utf-8"
            assert (view["body"].encode() if is_text else base64.b64decode(view["body"])) == shown
        await world.call_back(content=body)  # It is known by the digest of what came.
        assert (await world.get("/v1/callbacks"))["data"][0]["verdict"] == "duplicate"
        stored = [
            bytes(row["body"]) for row in await rows(world, "SELECT body FROM callback_bodies")
        ]
        assert body in stored
