"""Rotation: the old secret signs beside the new one for as long as was asked, and no longer."""

import base64
import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519
from standardwebhooks import Webhook

from tests.contract.contract import breaches
from tests.harness import Harness, SentWebhook, opened
from tests.journeys.gates import queue_answers

ONE = {"event_types": ["generation.submitted"]}
NOTIFY_URL = "http://127.0.0.1:7/notify"
DAY = 86_400


def signed_by(secret: str, sent: SentWebhook) -> str:
    at = datetime.fromtimestamp(int(sent.headers["webhook-timestamp"]), UTC)
    return Webhook(secret).sign(sent.headers["webhook-id"], at, sent.body.decode())


def assert_signed(sent: SentWebhook, *secrets: str) -> None:
    """Signed by these, in this order, and by nothing else."""
    assert sent.headers["webhook-signature"].split(" ") == [signed_by(s, sent) for s in secrets]


def everything_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in folder.iterdir())


async def rotate(world: Harness, subscriber: dict[str, Any], **fields: Any) -> dict[str, Any]:
    path = f"/v1/subscribers/{subscriber['id']}/rotate-secret"
    answered = await world.client.post(path, json=fields)
    assert answered.status_code == 200, answered.text
    found: dict[str, Any] = answered.json()
    return found


async def latest(world: Harness) -> SentWebhook:
    await world.generate()
    await world.run()
    return world.subscribers.webhooks[-1]


async def test_both_secrets_sign_until_the_overlap_ends(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        made = await world.subscribe(**ONE)
        assert_signed(await latest(world), made["secret"])
        rotated = await rotate(world, made)
        assert rotated["secret"] != made["secret"]
        assert rotated["previous_expires_at"] == "2026-11-19T11:06:40.000Z"
        assert_signed(await latest(world), rotated["secret"], made["secret"])
        await world.run(DAY - 1)
        assert_signed(await latest(world), rotated["secret"], made["secret"])
        await world.run(1)
        assert_signed(await latest(world), rotated["secret"])
        shown = await world.get(f"/v1/subscribers/{made['id']}/secret")
        assert shown == {**rotated, "previous_expires_at": None}


async def test_an_attempt_signs_with_the_secrets_of_its_own_moment(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        made = await world.subscribe(**ONE, retry_schedule_seconds=[0, 60, 60])
        queue_answers(world, 500, 500)
        await world.generate()
        await world.run()
        rotated = await rotate(world, made, overlap_seconds=90)
        await world.run(60)
        await world.run(60)
        first, second, third = world.subscribers.webhooks
        assert_signed(first, made["secret"])
        assert_signed(second, rotated["secret"], made["secret"])
        assert_signed(third, rotated["secret"])


@pytest.mark.parametrize("overlap", [0, 604_800])
async def test_the_overlap_may_be_nothing_or_a_week(tmp_path: Path, overlap: int) -> None:
    async with opened(tmp_path) as world:
        made = await world.subscribe(**ONE)
        rotated = await rotate(world, made, overlap_seconds=overlap)
        if overlap == 0:
            assert rotated["previous_expires_at"] is None
            assert_signed(await latest(world), rotated["secret"])
            return
        await world.run(overlap - 1)
        assert_signed(await latest(world), rotated["secret"], made["secret"])
        await world.run(1)
        assert_signed(await latest(world), rotated["secret"])


async def test_rotating_twice_keeps_every_secret_that_is_still_in_its_time(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        made = await world.subscribe(**ONE)
        second = await rotate(world, made, overlap_seconds=600)
        third = await rotate(world, made, overlap_seconds=60)
        assert_signed(await latest(world), third["secret"], second["secret"], made["secret"])
        await world.run(60)
        assert_signed(await latest(world), third["secret"], made["secret"])


@pytest.mark.parametrize("kept", ["", "secret"])
async def test_a_rotation_without_overlap_ends_every_overlap(tmp_path: Path, kept: str) -> None:
    async with opened(tmp_path) as world:
        made = await world.subscribe(**ONE)
        await rotate(world, made, overlap_seconds=600)
        current = await rotate(world, made, overlap_seconds=600)
        secret = {kept: current[kept]} if kept else {}
        last = await rotate(world, made, overlap_seconds=0, **secret)
        assert (last["secret"] == current["secret"]) == bool(kept)
        assert last["previous_expires_at"] is None
        assert_signed(await latest(world), last["secret"])


async def test_rotating_to_the_current_secret_signs_once_with_it(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        made = await world.subscribe(**ONE)
        await rotate(world, made, secret=made["secret"], overlap_seconds=600)
        assert_signed(await latest(world), made["secret"])


@pytest.mark.parametrize("owner", ["subscriber", "tenant"])
async def test_a_rotation_that_is_repeated_with_its_key_rotates_once(
    tmp_path: Path, owner: str
) -> None:
    async with opened(tmp_path) as world:
        made = await world.subscribe(**ONE)
        base = f"/v1/subscribers/{made['id']}"
        path = f"{base}/rotate-secret" if owner == "subscriber" else "/v1/signing-secret/rotate"
        shown = f"{base}/secret" if owner == "subscriber" else "/v1/signing-secret"
        key = {"idempotency-key": "rotate-7"}
        answers = [
            await world.client.post(path, json={"overlap_seconds": 0}, headers=key)
            for _ in range(2)
        ]
        assert [breaches(each) for each in answers] == [[], []]
        assert answers[0].json() == answers[1].json() == await world.get(shown)
        assert [each.headers.get("idempotency-replayed") for each in answers] == [None, "true"]
        other = await world.client.post(path, json={"overlap_seconds": 60}, headers=key)
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
        assert breaches(other) == []
        assert (await rotate(world, made))["secret"] != answers[0].json()["secret"]
        assert answers[0].json()["secret"].encode() not in everything_in(tmp_path)


@pytest.mark.parametrize("signature", ["v1", "v1a"])
async def test_after_a_secret_key_was_lost_a_rotation_repairs(
    tmp_path: Path, signature: str
) -> None:
    async with opened(tmp_path) as world:
        made = await world.subscribe(**ONE, signature=signature, headers={"X-Team": "a"})
        world.settings = msgspec.structs.replace(
            world.settings, secret_keys=("lost-and-found" * 3,)
        )
        await world.restart()
        path = f"/v1/subscribers/{made['id']}"
        for method, route in (("GET", "/secret"), ("POST", "/test"), ("POST", "/rotate-secret")):
            refused = await world.client.request(method, path + route)
            assert (refused.status_code, refused.json()["code"]) == (409, "secret_unreadable")
        rotated = await rotate(world, made, overlap_seconds=0)
        assert rotated["secret"] != made["secret"]
        assert (rotated["public_key"] is None) == (signature == "v1")
        kept = await world.client.patch(path, json={"headers": {"X-Team": "[redacted]"}})
        assert (kept.status_code, kept.json()["code"]) == (409, "secret_unreadable")
        never = await world.client.patch(path, json={"headers": {"X-Other": "[redacted]"}})
        assert never.status_code == 422  # None was ever stored.
        given = await world.client.patch(path, json={"headers": {"X-Team": "b"}})
        assert given.status_code == 200
        tested = await world.client.post(path + "/test")
        assert tested.json()["attempt"]["status_code"] == 200
        assert (
            signed_by(rotated["secret"], world.subscribers.webhooks[-1])
            in (world.subscribers.webhooks[-1].headers["webhook-signature"])
        )


async def test_a_process_that_lacks_a_key_replaces_no_secret_that_others_can_read(
    tmp_path: Path,
) -> None:
    """As while keys are rotated and it was not restarted yet."""
    async with opened(tmp_path) as world:
        made = await world.subscribe(**ONE, headers={"X-Team": "a"})
        keys = world.settings.secret_keys
        world.settings = msgspec.structs.replace(world.settings, secret_keys=("another" * 5,))
        await world.restart()
        path = f"/v1/subscribers/{made['id']}/rotate-secret"
        refused = await world.client.post(path, json={"overlap_seconds": 60})
        assert (refused.status_code, refused.json()["code"]) == (409, "secret_unreadable")
        assert "rotate" not in refused.json()["detail"]
        subscriber = f"/v1/subscribers/{made['id']}"
        kept = {"description": "new", "headers": {"X-Team": "[redacted]"}}
        refused = await world.client.patch(subscriber, json=kept)
        assert breaches(refused) == []
        assert (refused.status_code, refused.json()["code"]) == (409, "secret_unreadable")
        assert (await world.get(subscriber))["description"] == ""
        world.settings = msgspec.structs.replace(world.settings, secret_keys=keys)
        await world.restart()
        assert_signed(await latest(world), made["secret"])


async def test_after_a_secret_key_was_lost_the_tenants_own_secret_can_be_rotated(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        await world.get("/v1/signing-secret")
        world.settings = msgspec.structs.replace(
            world.settings, secret_keys=("lost-and-found" * 3,)
        )
        await world.restart()
        for method, route in (("GET", ""), ("POST", "/rotate")):
            refused = await world.client.request(method, f"/v1/signing-secret{route}")
            assert (refused.status_code, refused.json()["code"]) == (409, "secret_unreadable")
        path, without = "/v1/signing-secret/rotate", {"overlap_seconds": 0}
        rotated = await world.client.post(path, json=without)
        assert (await world.get("/v1/signing-secret")) == rotated.json()


async def test_a_secret_of_ones_own_is_taken_and_a_weak_one_refused(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        made = await world.subscribe(**ONE)
        own = "whsec_" + base64.b64encode(b"k" * 32).decode()
        assert (await rotate(world, made, secret=own))["secret"] == own
        path = f"/v1/subscribers/{made['id']}/rotate-secret"
        weak = "whsec_" + base64.b64encode(b"k" * 23).decode()
        refused = await world.client.post(path, json={"secret": weak})
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["pointer"] == "/secret"
        assert weak not in refused.text
        assert_signed(await latest(world), own, made["secret"])


def verified_by(public_key: str, sent: SentWebhook) -> bool:
    """Return whether one of the `v1a` signatures is of the key."""
    raw = base64.b64decode(public_key.removeprefix("whpk_"))
    key = ed25519.Ed25519PublicKey.from_public_bytes(raw)
    headers = sent.headers
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + sent.body
    for one in headers["webhook-signature"].split(" "):
        version, _, signature = one.partition(",")
        if version == "v1a":
            with contextlib.suppress(InvalidSignature):
                key.verify(base64.b64decode(signature), content)
                return True
    return False


async def test_both_key_pairs_sign_until_the_overlap_ends(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        made = await world.subscribe(**ONE, signature="v1a")
        old = await world.get(f"/v1/subscribers/{made['id']}/secret")
        new = await rotate(world, made, overlap_seconds=600)
        assert new["public_key"] != old["public_key"]
        assert await world.get(f"/v1/subscribers/{made['id']}/secret") == new
        sent = await latest(world)
        kinds = [one.partition(",")[0] for one in sent.headers["webhook-signature"].split(" ")]
        assert kinds == ["v1", "v1", "v1a", "v1a"]
        assert verified_by(new["public_key"], sent)
        assert verified_by(old["public_key"], sent)
        await world.run(600)
        sent = await latest(world)
        assert verified_by(new["public_key"], sent)
        assert not verified_by(old["public_key"], sent)


async def test_a_key_that_leaked_signs_no_more_after_a_rotation_without_overlap(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        made = await world.subscribe(**ONE, signature="v1a")
        old = await world.get(f"/v1/subscribers/{made['id']}/secret")
        new = await rotate(world, made, overlap_seconds=0)
        sent = await latest(world)
        assert verified_by(new["public_key"], sent)
        assert not verified_by(old["public_key"], sent)


async def test_a_rotation_to_the_current_secret_keeps_its_key_pair(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        made = await world.subscribe(**ONE, signature="v1a")
        current = await rotate(world, made)
        ended = await rotate(world, made, secret=current["secret"], overlap_seconds=0)
        assert ended == {**current, "previous_expires_at": None}


async def test_a_secret_that_comes_back_gets_another_key_pair_and_signs_once(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        made = await world.subscribe(**ONE, signature="v1a")
        first = await world.get(f"/v1/subscribers/{made['id']}/secret")
        second = await rotate(world, made)
        third = await rotate(world, made, secret=first["secret"])
        sent = await latest(world)
        kinds = [one.partition(",")[0] for one in sent.headers["webhook-signature"].split(" ")]
        assert kinds == ["v1", "v1", "v1a", "v1a", "v1a"]
        assert all(verified_by(one["public_key"], sent) for one in (first, second, third))


async def test_the_tenants_own_secret_rotates_for_every_notify_url(tmp_path: Path) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        old = (await world.get("/v1/signing-secret"))["secret"]
        await world.generate(notify_url=NOTIFY_URL)
        await world.run()
        answered = await world.client.post("/v1/signing-secret/rotate", json={})
        new = answered.json()["secret"]
        assert (await world.call_back({"data": {"status": "failed"}})).is_success
        await world.run()
        assert_signed(world.subscribers.webhooks_to(NOTIFY_URL)[-1], new, old)
        await world.generate(notify_url=NOTIFY_URL)
        await world.run(DAY)
        assert (await world.call_back({"data": {"status": "failed"}})).is_success
        await world.run()
        assert_signed(world.subscribers.webhooks_to(NOTIFY_URL)[-1], new)


async def test_a_secret_survives_a_restart_and_is_never_in_the_file(tmp_path: Path) -> None:
    async with opened(tmp_path) as world:
        made = await world.subscribe(**ONE)
        rotated = await rotate(world, made)
        await world.restart()
        assert_signed(await latest(world), rotated["secret"], made["secret"])
        content = everything_in(tmp_path)
        for secret in (made["secret"], rotated["secret"]):
            assert secret.encode() not in content
            assert base64.b64decode(secret.removeprefix("whsec_")) not in content
