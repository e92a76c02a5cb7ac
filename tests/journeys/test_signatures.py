"""Signed callbacks: each scheme through the front door, signed by code of the tests' own."""

import base64
import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest

from service.model.errors import SettingsError
from tests.faults import status_of
from tests.harness import Harness, opened, success_report

pytestmark = pytest.mark.sqlite_only("a signature is checked before anything is stored")

SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()
BODY = json.dumps(success_report("task1")).encode()
Headers = dict[str, str]


def mac(key: bytes, content: bytes) -> bytes:
    return hmac.new(key, content, hashlib.sha256).digest()


def standard(at: int, body: bytes = BODY, secret: str = SECRET) -> Headers:
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signature = base64.b64encode(mac(key, b"msg_1.%d.%b" % (at, body))).decode()
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,{signature}",
    }


def wavespeed(at: int, body: bytes = BODY, secret: str = SECRET) -> Headers:
    key = secret.removeprefix("whsec_").encode()
    signature = mac(key, b"msg_1.%d.%b" % (at, body)).hex()
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(at),
        "webhook-signature": f"v3,{signature}",
    }


def kie(at: int, body: bytes = BODY, secret: str = SECRET) -> Headers:
    task_id = json.loads(body)["data"]["task_id"]
    signature = base64.b64encode(mac(secret.encode(), f"{task_id}.{at}".encode())).decode()
    return {"x-webhook-timestamp": str(at), "x-webhook-signature": signature}


SIGN = {"standard": standard, "wavespeed": wavespeed, "kie": kie}
schemes = pytest.mark.parametrize("scheme", SIGN)


def signed(scheme: str) -> dict[str, Any]:
    return {"upstream_signature": scheme, "upstream_signature_secret": SECRET}


def seconds(world: Harness) -> int:
    return world.clock.now // 1_000


async def reasons(world: Harness) -> list[str | None]:
    page = await world.get("/v1/callbacks", order="asc")
    return [callback["reason"] for callback in page["data"]]


@pytest.mark.parametrize("scheme", ["standard", "wavespeed"])
async def test_a_signature_over_the_body_makes_it_believed(tmp_path: Path, scheme: str) -> None:
    async with opened(tmp_path, **signed(scheme)) as world:
        generation = await world.generate()
        headers = SIGN[scheme](seconds(world))
        assert (await world.call_back(content=BODY, headers=headers)).status_code == 200
        assert await status_of(world, generation["id"]) == "succeeded"
        assert world.upstream.polls == []


async def test_a_signature_over_the_task_id_alone_leaves_the_body_a_hint(tmp_path: Path) -> None:
    async with opened(tmp_path, **signed("kie")) as world:
        generation = await world.generate()
        headers = kie(seconds(world))
        evil = json.dumps(success_report("task1", "https://evil.example/1.png")).encode()
        assert (await world.call_back(content=evil, headers=headers)).status_code == 200
        assert await status_of(world, generation["id"]) == "processing"
        world.upstream.finish("task1")
        await world.run()
        view = await world.get(f"/v1/generations/{generation['id']}")
        assert view["output"]["files"][0]["url"] == "https://cdn.example/1.png"


@schemes
@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("none", "signature_missing"),
        ("another secret", "signature_wrong"),
        ("another body", "signature_wrong"),
        ("an old time", "signature_stale"),
        ("a time to come", "signature_stale"),
        ("another time", "signature_wrong"),
        ("nonsense", "signature_"),
    ],
)
async def test_a_signature_that_does_not_hold_is_a_401_and_nothing_is_believed(
    tmp_path: Path, scheme: str, fault: str, reason: str
) -> None:
    async with opened(tmp_path, callback_trust="body", **signed(scheme)) as world:
        generation = await world.generate()
        sign, at = SIGN[scheme], seconds(world)
        other = "whsec_" + base64.b64encode(b"another key of thirty-two bytes.").decode()
        changed = json.dumps(success_report("task2")).encode()
        headers: Headers = {
            "none": {},
            "another secret": sign(at, BODY, other),
            "another body": sign(at, changed),
            "an old time": sign(at - 301),
            "a time to come": sign(at + 301),
            "another time": sign(at) | {n: str(at - 1) for n in sign(at) if "timestamp" in n},
            "nonsense": dict.fromkeys(sign(at), "\u00e4,=="),
        }[fault]
        encoded = {name: value.encode("latin-1") for name, value in headers.items()}
        answer = await world.call_back(content=BODY, headers=encoded)
        assert answer.status_code == 401
        assert answer.json()["code"] == "signature_invalid"
        assert await status_of(world, generation["id"]) == "processing"
        [stored] = await reasons(world)
        assert stored is not None
        assert stored.startswith(reason)
        await world.run()
        assert world.upstream.polls == []


@schemes
async def test_bytes_that_were_rejected_are_no_duplicate_once_they_are_signed(
    tmp_path: Path, scheme: str
) -> None:
    async with opened(tmp_path, **signed(scheme)) as world:
        generation = await world.generate()
        world.upstream.finish("task1")
        old = SIGN[scheme](seconds(world) - 1_000)
        assert (await world.call_back(content=BODY, headers=old)).status_code == 401
        fresh = SIGN[scheme](seconds(world))
        assert (await world.call_back(content=BODY, headers=fresh)).status_code == 200
        await world.run()
        assert await status_of(world, generation["id"]) == "succeeded"


@schemes
async def test_a_callback_that_is_replayed_within_its_window_changes_nothing(
    tmp_path: Path, scheme: str
) -> None:
    async with opened(tmp_path, **signed(scheme)) as world:
        await world.subscribe()
        await world.generate()
        world.upstream.finish("task1")
        headers = SIGN[scheme](seconds(world))
        await world.call_back(content=BODY, headers=headers)
        await world.run(100)
        for _ in range(3):
            assert (await world.call_back(content=BODY, headers=headers)).status_code == 200
        await world.run(201)
        assert (await world.call_back(content=BODY, headers=headers)).status_code == 401
        types = sorted(world.subscribers.event_types())
        assert types == ["generation.submitted", "generation.succeeded"]


async def test_a_signature_does_not_stand_in_for_the_token(tmp_path: Path) -> None:
    async with opened(tmp_path, **signed("standard")) as world:
        await world.generate()
        url = world.upstream.callback_url()[:-1] + "_"
        headers = standard(seconds(world))
        assert (await world.anonymous.post(url, content=BODY, headers=headers)).status_code == 404


@schemes
async def test_a_secret_that_cannot_be_one_is_refused_at_the_start(
    tmp_path: Path, scheme: str
) -> None:
    bad = {"standard": "hush-hush", "wavespeed": "hush-hush", "kie": ""}[scheme]
    options = {"upstream_signature": scheme, "upstream_signature_secret": bad}
    with pytest.raises(SettingsError, match="GENHOOK_UPSTREAM_SIGNATURE_SECRET") as refusal:
        async with opened(tmp_path, **options):
            pass
    assert "hush-hush" not in str(refusal.value)
