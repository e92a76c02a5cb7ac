"""Old processes beside the schema of the next release, which only adds: they go on."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from types import ModuleType

import pytest

from service.app import App
from service.model.errors import StorageError
from service.store.postgres import schema as postgres_schema
from service.store.sqlite import schema as sqlite_schema
from tests import engine
from tests.harness import SUBSCRIBER_URL, Harness, opened

TABLES = (
    *("tenants", "keys", "idempotency", "generations", "task_names", "confirmations", "exchanges"),
    *(
        "generation_bodies",
        "generation_metadata",
        "callbacks",
        "callback_bodies",
        "events",
        "rests",
    ),
    *("subscribers", "deliveries", "attempts", "attempt_latency", "replays", "usage", "revisions"),
)
LISTED = ("generations", "subscribers", "events", "deliveries", "callbacks", "keys")
ADDED = "".join(
    f"ALTER TABLE {table} ADD COLUMN next_note TEXT;\n"
    f"ALTER TABLE {table} ADD COLUMN next_count {{integer}} NOT NULL DEFAULT 7;\n"
    for table in TABLES
)
MIGRATION = f"""{ADDED}
CREATE TABLE next_things (id TEXT PRIMARY KEY, generation_id TEXT NOT NULL);
CREATE INDEX next_index ON generations (next_count, id);
"""


def schema_of(database_engine: str) -> ModuleType:
    return postgres_schema if database_engine == "postgres" else sqlite_schema


@contextmanager
def next_release(folder: Path, database_engine: str) -> Iterator[None]:
    """What starts within it is of the next release, as far as the schema is concerned."""
    schema = schema_of(database_engine)
    number = schema.latest() + 1
    file = folder / f"{number:04}_next.sql"
    integer = "BIGINT" if database_engine == "postgres" else "INTEGER"
    file.write_text(MIGRATION.format(integer=integer))
    listed = [*schema.migrations(), (number, file)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "migrations", lambda: listed)
        yield


@asynccontextmanager
async def upgraded(world: Harness, folder: Path, database_engine: str) -> AsyncIterator[App]:
    """Run a process of the next release beside the old one."""
    if engine.schemas is not None:
        engine.schemas.use_up(folder)
    new = world.new_app()
    with next_release(folder, database_engine):
        await new.start(worker=False)
    try:
        yield new
    finally:
        await new.stop()


async def go_through_everything(world: Harness) -> str:
    """Submit, list, receive, deliver, replay and change; return the id of the generation."""
    generation = await world.generate()
    assert (await world.call_back()).status_code == 200
    await world.run()
    shown = await world.get(f"/v1/generations/{generation['id']}")
    assert shown["status"] == "succeeded"
    for path in LISTED:
        assert (await world.get(f"/v1/{path}"))["data"], path
    [subscriber] = (await world.get("/v1/subscribers"))["data"]
    replay = {
        "subscriber_id": subscriber["id"],
        "since": generation["created_at"],
        "until": "2100-01-01T00:00:00Z",
        "only": "all",
    }
    sent = len(world.subscribers.webhooks)
    answer = await world.client.post("/v1/replays", json=replay)
    assert answer.status_code == 202, answer.text
    await world.run(1)
    assert len(world.subscribers.webhooks) >= sent + 2
    change = {"description": "changed"}
    path = f"/v1/subscribers/{subscriber['id']}"
    assert (await world.client.patch(path, json=change)).status_code == 200
    return str(generation["id"])


async def prepare(world: Harness) -> None:
    """Use every statement, as an old process has that ran for a while."""
    await world.subscribe()
    key = {"name": "a key", "scopes": ["read"]}
    assert (await world.client.post("/v1/keys", json=key)).status_code == 201
    for _ in range(3):  # On every connection that it has.
        await go_through_everything(world)


async def test_an_old_process_goes_on_beside_the_next_schema_and_the_next_release(
    tmp_path: Path, database_engine: str
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await prepare(world)
        async with upgraded(world, tmp_path, database_engine) as new:
            by_old = await go_through_everything(world)
            old, world.app = world.app, new
            by_new = await go_through_everything(world)
            world.app = old
            for id_ in (by_old, by_new):
                assert (await world.get(f"/v1/generations/{id_}"))["status"] == "succeeded"
        await go_through_everything(world)
        types = world.subscribers.event_types(SUBSCRIBER_URL)
        assert types.count("generation.succeeded") >= 6


async def test_an_old_process_that_only_reads_goes_on_beside_the_next_schema(
    tmp_path: Path, database_engine: str
) -> None:
    """No write of it has noticed yet that its statements return more columns."""
    async with opened(tmp_path, callback_trust="body") as world:
        await prepare(world)
        paths = [f"/v1/{name}" for name in LISTED]
        before = [await world.get(path) for path in paths]
        async with upgraded(world, tmp_path, database_engine):
            assert [await world.get(path) for path in paths] == before


async def test_an_old_process_gets_one_row_beside_the_next_schema(
    tmp_path: Path, database_engine: str
) -> None:
    async with opened(tmp_path, callback_trust="body") as world:
        await prepare(world)
        [row] = (await world.get("/v1/generations", limit="1"))["data"]
        before = await world.get(f"/v1/generations/{row['id']}")
        async with upgraded(world, tmp_path, database_engine):
            assert await world.get(f"/v1/generations/{row['id']}") == before


async def test_a_process_that_runs_stays_ready_and_says_that_the_schema_is_newer(
    tmp_path: Path, database_engine: str
) -> None:
    async with opened(tmp_path) as world, upgraded(world, tmp_path, database_engine):
        answer = await world.client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (200, "ready")
        assert "made by a newer genhook; this one knows 1" in answer.json()["checks"]["schema"]


async def test_an_old_release_does_not_start_on_the_next_schema_and_says_why(
    tmp_path: Path, database_engine: str
) -> None:
    async with opened(tmp_path) as world, upgraded(world, tmp_path, database_engine):
        with pytest.raises(StorageError, match="has schema 2, made by a newer genhook"):
            await world.new_app().start()
        async with upgraded(world, tmp_path, database_engine) as again:
            assert again.worker.is_off


async def test_a_process_of_the_next_release_that_is_not_migrated_is_not_ready(
    tmp_path: Path, database_engine: str
) -> None:
    async with opened(tmp_path) as world:
        with next_release(tmp_path, database_engine):
            answer = await world.client.get("/readyz")
        assert (answer.status_code, answer.json()["status"]) == (503, "unready")
        assert "run genhook migrate" in answer.json()["checks"]["schema"]
