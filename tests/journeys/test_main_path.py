"""The main path: submitted, called back or polled, told to subscribers."""

from datetime import UTC, datetime
from pathlib import Path

from standardwebhooks import Webhook

from tests.harness import SentWebhook, opened


def signed_by(secret: str, sent: SentWebhook) -> str:
    """The signature that the published library makes of what was sent."""
    at = datetime.fromtimestamp(int(sent.headers["webhook-timestamp"]), UTC)
    return Webhook(secret).sign(sent.headers["webhook-id"], at, sent.body.decode())


async def test_a_callback_is_confirmed_with_upstream_and_told_to_the_subscriber(
    tmp_path: Path,
) -> None:
    async with opened(tmp_path) as world:
        subscriber = await world.subscribe()
        generation = await world.generate()
        await world.run()
        world.upstream.finish("task1")
        assert (await world.call_back()).status_code == 200
        await world.run()
        seen = await world.get(f"/v1/generations/{generation['id']}")
        assert seen["status"] == "succeeded"
        assert seen["output"]["files"][0]["url"] == "https://cdn.example/1.png"
        assert world.upstream.polls == ["task1"]
        assert world.subscribers.event_types() == ["generation.submitted", "generation.succeeded"]
        assert len(world.subscribers.webhooks) == 2
        for sent in world.subscribers.webhooks:
            assert signed_by(subscriber["secret"], sent) == sent.headers["webhook-signature"]


async def test_without_a_public_url_every_model_is_polled(tmp_path: Path) -> None:
    async with opened(tmp_path, public_url=None) as world:
        await world.subscribe()
        generation = await world.generate()
        assert "callback_url" not in world.upstream.creates[0]
        assert generation["route"] == "poll"
        world.upstream.finish("task1")
        await world.run(60)
        types = world.subscribers.event_types()
        assert sorted(types) == ["generation.submitted", "generation.succeeded"]
