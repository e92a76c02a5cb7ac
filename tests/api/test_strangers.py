"""Requests without a valid key: what they are answered, and how many log lines they leave."""

from collections import Counter
from pathlib import Path

import pytest

from service.api import asgi
from tests.api.test_traces import of
from tests.harness import ADMIN_KEY, opened
from tests.logs import Console


async def test_strangers_leave_few_lines_and_others_all_of_theirs(
    tmp_path: Path, console: Console
) -> None:
    async with opened(tmp_path) as world:
        console.configure("info")
        async with world.new_client("ghk_" + "b" * 40) as stranger:
            for _ in range(asgi.STRANGERS_LOGGED_PER_SECOND + 10):
                await stranger.get("/v1/keys")
        for _ in range(asgi.STRANGERS_LOGGED_PER_SECOND + 10):
            await world.client.get("/v1/keys/key_1")
        lines = of(console, "request.refused")
        by_status = Counter(line["status"] for line in lines)
        assert by_status[401] == asgi.STRANGERS_LOGGED_PER_SECOND
        assert by_status[404] == asgi.STRANGERS_LOGGED_PER_SECOND + 10
        world.clock.advance(1)
        await world.anonymous.get("http://genhook/v1/keys")
        [line] = of(console, "request.refused")
        assert line["unlogged"] == 10


@pytest.mark.parametrize(
    ("headers", "detail"),
    [({}, "needed"), ({"authorization": "Bearer ghk_x"}, "unknown or revoked")],
)
async def test_an_unknown_key_is_told_apart_from_none(
    tmp_path: Path, headers: dict[str, str], detail: str
) -> None:
    async with opened(tmp_path) as world:
        answer = await world.anonymous.get("http://genhook/v1/keys", headers=headers)
        assert answer.status_code == 401
        assert detail in answer.json()["detail"]


@pytest.mark.parametrize("keys", [(ADMIN_KEY, ADMIN_KEY), (ADMIN_KEY, "ghk_" + "b" * 40)])
async def test_two_keys_in_one_request_are_refused(tmp_path: Path, keys: tuple[str, str]) -> None:
    async with opened(tmp_path) as world:
        for order in (keys, keys[::-1]):
            lines = [("authorization", f"Bearer {key}") for key in order]
            answer = await world.anonymous.get("http://genhook/v1/keys", headers=lines)
            assert (answer.status_code, answer.json()["code"]) == (400, "invalid_header")
            assert answer.json()["detail"] == "Authorization was sent more than once."
