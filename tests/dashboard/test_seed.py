"""The rows that the tests in a browser look at: of every state that the contract knows."""

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service.model.key import SCOPES
from tests.contract.contract import SCHEMAS
from tests.dashboard.seed import EACH, ROWS_MIN, SETTINGS, STATES, read_all, seed, values_of
from tests.harness import Harness, opened


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Harness]:
    async with opened(tmp_path, **SETTINGS) as harness:
        yield harness


async def test_every_value_of_every_state_is_among_over_a_thousand_rows(world: Harness) -> None:
    ids = await seed(world)
    rows = {path: await read_all(world, path) for _, _, path in STATES}
    rows |= {path: await read_all(world, path) for path in ("/v1/events", "/v1/keys")}
    for schema, field, path in STATES:
        found = Counter(row[field] for row in rows[path])
        assert values_of(schema, field), (schema, field)
        assert values_of(schema, field) - found.keys() == set(), (schema, field, found)
    statuses = Counter(row["status"] for row in rows["/v1/generations"])
    assert min(statuses.values()) >= EACH, statuses
    assert {row["type"] for row in rows["/v1/events"]} == set(SCHEMAS["EventType"]["enum"])
    assert {scope for row in rows["/v1/keys"] for scope in row["scopes"]} == set(SCOPES)
    assert {row["revoked_at"] is None for row in rows["/v1/keys"]} == {True, False}
    assert sum(map(len, rows.values())) >= ROWS_MIN
    retried = await world.get(f"/v1/deliveries/{ids['dlv']}")
    triggers = {attempt["trigger"] for attempt in retried["attempts"]}
    assert triggers == {"scheduled", "manual"}
    assert (await world.get(f"/v1/replays/{ids['rpl']}"))["status"] == "running"
    shown = await world.get(f"/v1/generations/{ids['gen']}")
    assert shown["output"]["files"], "the page of a generation has no picture"
