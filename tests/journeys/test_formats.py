"""The forms of a webhook, checked against what others made of the same standards."""

import base64
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event
from standardwebhooks import Webhook

from service.delivery import formats
from tests.harness import Harness, SentWebhook, opened

EVENT = {
    "id": "evt_1",
    "type": "generation.succeeded",
    "timestamp": "2026-11-22T18:20:05.031Z",
    "data": {"id": "gen_1", "status": "succeeded", "output": {"files": []}, "metadata": {}},
}
RAW = b'{ "id":"evt_1","type":"generation.succeeded","timestamp":"2026-11-22T18:20:05.031Z",'
RAW += b'"data":{"status":"succeeded" , "id":"gen_1","n":1.50}}'
PING = msgspec.json.encode({**EVENT, "type": "ping", "data": {"subscriber_id": "sub_1"}})


def test_full_is_the_event_byte_for_byte() -> None:
    formatted = formats.format_event("full", RAW)
    assert formatted.body is RAW
    assert formatted.headers == {}


def test_thin_is_the_id_and_the_status_of_a_generation() -> None:
    assert msgspec.json.decode(formats.format_event("thin", msgspec.json.encode(EVENT)).body) == {
        "id": "evt_1",
        "type": "generation.succeeded",
        "timestamp": "2026-11-22T18:20:05.031Z",
        "data": {"id": "gen_1", "status": "succeeded"},
    }


def test_an_event_about_no_generation_is_thin_already() -> None:
    assert formats.format_event("thin", PING).body == PING


def test_the_body_of_a_cloud_event_is_the_data_byte_for_byte() -> None:
    formatted = formats.format_event("cloudevents", RAW)
    assert formatted.body == b'{"status":"succeeded" , "id":"gen_1","n":1.50}'
    assert formatted.headers == {
        "ce-specversion": "1.0",
        "ce-id": "evt_1",
        "ce-source": "urn:genhook:events",
        "ce-type": "generation.succeeded",
        "ce-time": "2026-11-22T18:20:05.031Z",
        "ce-subject": "gen_1",
    }
    assert "ce-subject" not in formats.format_event("cloudevents", PING).headers


def test_an_event_is_formatted_once_for_all_its_subscribers_unless_it_is_large() -> None:
    event = msgspec.json.encode({**EVENT, "id": "evt_shared"})
    assert formats.format_event("thin", event) is formats.format_event(
        "thin", bytes(bytearray(event))
    )
    data = {"id": "gen_1", "status": "succeeded", "output": "x" * formats.CACHED_BYTES_MAX}
    large = msgspec.json.encode({**EVENT, "data": data})
    assert formats.format_event("thin", large) is not formats.format_event("thin", large)


@pytest.mark.parametrize("payload", ["thin", "cloudevents"])
def test_what_is_not_read_of_the_data_may_have_any_shape(payload: Any) -> None:
    odd = msgspec.json.encode({**EVENT, "data": {"id": "gen_1", "status": "x", "files": {"id": 1}}})
    assert formats.format_event(payload, odd).body


async def sent_as(
    world: Harness, payload: str, **fields: Any
) -> tuple[dict[str, Any], SentWebhook]:
    made = await world.subscribe(payload=payload, event_types=["generation.submitted"], **fields)
    await world.generate()
    await world.run()
    return made, world.subscribers.webhooks[-1]


@pytest.mark.parametrize("payload", ["full", "thin", "cloudevents"])
async def test_the_signature_covers_the_bytes_that_are_sent(tmp_path: Path, payload: str) -> None:
    async with opened(tmp_path) as world:
        made, sent = await sent_as(world, payload)
        at = datetime.fromtimestamp(int(sent.headers["webhook-timestamp"]), UTC)
        signer = Webhook(made["secret"])
        expected = signer.sign(sent.headers["webhook-id"], at, sent.body.decode())
        assert sent.headers["webhook-signature"] == expected
        assert sent.headers["content-type"] == "application/json"


async def test_a_cloud_event_is_read_by_the_projects_own_library(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        _, sent = await sent_as(world, "cloudevents")
        event = from_http_event(HTTPMessage(headers=sent.headers, body=sent.body))
        stored = (await world.get("/v1/events"))["data"][0]
        assert event.get_id() == stored["id"] == sent.headers["webhook-id"]
        assert event.get_type() == "generation.submitted"
        assert event.get_source() == "urn:genhook:events"
        assert event.get_specversion() == "1.0"
        assert event.get_subject() == stored["data"]["id"]
        assert event.get_time() is not None
        assert event.get_data() == stored["data"]


async def test_subscribers_of_each_form_get_the_same_event(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        for payload in ("full", "thin", "cloudevents"):
            await world.subscribe(f"http://127.0.0.1:7/{payload}", payload=payload)
        await world.generate()
        await world.run()
        assert len({sent.headers["webhook-id"] for sent in world.subscribers.webhooks}) == 1
        assert len({sent.body for sent in world.subscribers.webhooks}) == 3


async def test_an_asymmetric_signature_is_verified_by_openssl(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        made, sent = await sent_as(world, "full", signature="v1a")
        secrets = await world.get(f"/v1/subscribers/{made['id']}/secret")
    first, second = sent.headers["webhook-signature"].split(" ")
    assert first.startswith("v1,")
    public = base64.b64decode(secrets["public_key"].removeprefix("whpk_"))
    (tmp_path / "key.der").write_bytes(bytes.fromhex("302a300506032b6570032100") + public)
    (tmp_path / "proof").write_bytes(base64.b64decode(second.removeprefix("v1a,")))
    head = f"{sent.headers['webhook-id']}.{sent.headers['webhook-timestamp']}.".encode()
    (tmp_path / "message").write_bytes(head + sent.body)
    command = "openssl pkeyutl -verify -pubin -keyform DER -inkey key.der -rawin -in message"
    found = subprocess.run(  # noqa: ASYNC221, S603  a moment, and nobody waits
        [*command.split(), "-sigfile", "proof"], cwd=tmp_path, capture_output=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert b"Successfully" in found.stdout
