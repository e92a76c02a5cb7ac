"""A process that only serves, behind PgBouncer in transaction mode; who works is refused there."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode

import asyncpg
import httpx
import msgspec
import pytest

from service.app import App
from service.model.errors import StorageError
from service.store.database import Transaction
from service.store.postgres import Database, ownership
from service.ticks import Ticks
from tests import engine
from tests.cli.test_serve import KEYS, ended, start
from tests.harness import Harness, opened, success_report
from tests.store.test_workers import until
from tests.wire.pooler import pooled

REFUSED = "a pooler such as PgBouncer stands before the database"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.01)
    monkeypatch.setattr("service.worker.STANDBY_SECONDS", 0.01)


@asynccontextmanager
async def beside(world: Harness, url: str, worker: str) -> AsyncIterator[App]:
    """Run another process, which reaches the database by its own URL."""
    web = world.settings
    world.settings = msgspec.structs.replace(web, database_path=url, worker=worker)
    app, world.settings = world.new_app(), web
    await app.start()
    try:
        yield app
    finally:
        await app.stop()


async def test_a_web_process_serves_behind_a_pooler_and_a_worker_beside_it_works(
    tmp_path: Path, postgres: engine.Schemas, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def drive(*_: object) -> None:
        raise AssertionError("it cannot have the right to work")

    monkeypatch.setattr(Ticks, "drive", drive)
    url = postgres.database_of(tmp_path, is_new=True)
    with pooled(tmp_path, url) as pooler:
        async with (
            opened(tmp_path, database_path=pooler, worker="off", callback_trust="body") as world,
            beside(world, url, "embedded"),
        ):
            assert world.app.database.is_pooled
            await world.subscribe()
            generations = [await world.generate() for _ in range(30)]
            assert (await world.call_back(success_report("task1"), 0)).status_code == 200
            ended = await world.get(f"/v1/generations/{generations[0]['id']}", wait="60")
            assert ended["status"] == "succeeded"
            await until(world, lambda: len(world.subscribers.webhooks) == 31)
            first = await world.get("/v1/events", limit=25, order="asc")
            second = await world.get("/v1/events", limit=25, order="asc", after=first["next"])
            ids = [row["id"] for page in (first, second) for row in page["data"]]
            assert len(set(ids)) == len(ids) == 31
            assert (await world.client.get("/readyz")).status_code == 200
            assert 'genhook_shards{role="web"} 0.0' in (await world.client.get("/metrics")).text


async def test_clients_of_few_sessions_do_not_meet_each_others_statements(
    tmp_path: Path, postgres: engine.Schemas
) -> None:
    """Three processes with ten connections each share two sessions, and count names from one."""
    url = postgres.database_of(tmp_path)
    with pooled(tmp_path, url) as pooler, pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncpg.Connection, "_get_unique_id", lambda _, prefix: f"{prefix}_1")
        async with (
            opened(tmp_path, database_path=pooler, worker="off", callback_trust="body") as world,
            AsyncExitStack() as stack,
        ):
            await world.subscribe()
            clients = [world.client]
            for _ in range(2):
                app = await stack.enter_async_context(beside(world, pooler, "off"))
                transport = httpx.ASGITransport(app)
                options = {"base_url": "http://genhook", "headers": world.client.headers}
                client = httpx.AsyncClient(transport=transport, **options)  # type: ignore[arg-type]
                clients.append(await stack.enter_async_context(client))

            async def use(number: int) -> list[int]:
                client = clients[number % 3]
                body = {"model": "imagen4", "input": {"prompt": f"harbour {number}"}}
                answers = [
                    await client.post("/v1/generations", json=body),
                    await client.get("/v1/generations", params={"limit": 25}),
                    await client.get("/v1/events", params={"limit": 25, "order": "asc"}),
                    await client.get("/v1/usage"),
                ]
                return [answer.status_code for answer in answers]

            statuses = await asyncio.gather(*map(use, range(30)))
            assert Counter(map(tuple, statuses)) == {(202, 200, 200, 200): 30}


async def test_nothing_of_a_transaction_stays_in_a_session_of_the_pooler(
    tmp_path: Path, postgres: engine.Schemas
) -> None:
    url = postgres.database_of(tmp_path)
    seen: list[str] = []

    async def look(tx: object) -> None:
        [row] = await tx.select("SELECT current_setting('enable_seqscan') AS value", {})  # type: ignore[attr-defined]
        seen.append(row["value"])

    with pooled(tmp_path, url, sessions=1) as pooler:
        async with opened(tmp_path, database_path=pooler, worker="off") as world:
            await world.generate()
            await world.get("/v1/events")
            await world.app.database.read(look)
            await world.app.database.write(look)
            assert seen == ["off", "off"]
            other = await asyncpg.connect(pooler.partition("?")[0], statement_cache_size=0)
            for setting in ("enable_seqscan", "search_path"):
                value = await other.fetchval(f"SELECT current_setting('{setting}')")
                seen.append(value)
            assert seen[2:] == ["on", '"$user", public']
            assert await other.fetchval("SELECT count(*) FROM pg_prepared_statements") == 0
            locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = $1"
            pid = await other.fetchval("SELECT pg_backend_pid()")
            assert await other.fetchval(locks, pid) == 0
            await other.close()


async def test_a_web_process_goes_on_after_its_pooler_was_away(
    tmp_path: Path, postgres: engine.Schemas
) -> None:
    url = postgres.database_of(tmp_path)
    with pooled(tmp_path, url) as pooler:
        world = await (stack := AsyncExitStack()).enter_async_context(
            opened(tmp_path, database_path=pooler, worker="off", callback_trust="body")
        )
        await world.generate()
    async with stack:
        assert (await world.call_back()).status_code == 503
        assert (await world.client.get("/readyz")).status_code == 503
        port = int(pooler.partition("127.0.0.1:")[2].partition("/")[0])
        with pooled(tmp_path, url, port=port):
            async with asyncio.timeout(60):
                while (await world.call_back()).status_code != 200:
                    pass


@pytest.mark.parametrize("mode", ["transaction", "session"])
async def test_who_works_is_refused_behind_a_pooler(
    tmp_path: Path, postgres: engine.Schemas, mode: str
) -> None:
    url = postgres.database_of(tmp_path)
    with pooled(tmp_path, url, sessions=20, mode=mode) as pooler:
        async with opened(tmp_path, database_path=pooler, worker="off") as world:
            with pytest.raises(StorageError, match=REFUSED):
                async with beside(world, pooler, "embedded"):
                    pass
            tick = await world.client.post("/v1/tick")
            assert (tick.status_code, tick.json()["code"]) == (503, "storage_unavailable")
            assert REFUSED in tick.json()["detail"]


@pytest.mark.parametrize("line", ["serve --port 0", "work", "tick --every 1"])
def test_a_command_that_works_ends_with_a_sentence_behind_a_pooler(
    tmp_path: Path, postgres: engine.Schemas, line: str
) -> None:
    url = postgres.database_of(tmp_path)
    with pooled(tmp_path, url) as pooler:
        environ = {**KEYS, "GENHOOK_DATABASE_URL": pooler}
        with start(tmp_path, *line.split(), **environ) as process:
            out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert REFUSED in out + err
    assert "Traceback" not in out + err


@pytest.mark.parametrize("line", ["--from {file} --to {url}", "--from {url} --to {file}"])
def test_a_copy_ends_with_a_sentence_behind_a_pooler(
    tmp_path: Path, postgres: engine.Schemas, line: str
) -> None:
    file = "sqlite:///genhook.db"
    assert ended(tmp_path, "migrate", **KEYS, GENHOOK_DATABASE_URL=file)[0] == 0
    with pooled(tmp_path, postgres.database_of(tmp_path)) as pooler:
        status, err = ended(tmp_path, "copy", *line.format(file=file, url=pooler).split(), **KEYS)
    assert status == 1
    assert err.startswith(f"genhook: {REFUSED}"), err


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("odd-name", "odd-name"),
        ("Mixed", "mixed"),
        ('"Mixed"', "Mixed"),
        (' "a,""b" , public', 'a,"b'),
        ("o'clock;drop", "o'clock;drop"),
    ],
)
async def test_a_search_path_of_the_url_is_that_of_each_transaction(
    tmp_path: Path, postgres: engine.Schemas, path: str, schema: str
) -> None:
    url = postgres.database_of(tmp_path).rpartition("&")[0]
    name = schema.replace('"', '""')
    owner = await asyncpg.connect(url)
    await owner.execute(f'CREATE SCHEMA "{name}"')
    try:
        with pooled(tmp_path, url) as pooler:
            for way in (f"{url}&", f"{pooler}?"):
                database = Database(f"{way}{urlencode({'search_path': path})}")
                await database.open()
                assert await database.read(current_schema) == schema
                await database.close()
    finally:
        await owner.execute(f'DROP SCHEMA "{name}"')
        await owner.close()


async def current_schema(tx: Transaction) -> str:
    [row] = await tx.select("SELECT current_schema() AS name", {})
    return str(row["name"])


@pytest.mark.parametrize(("worker", "level"), [("embedded", "fail"), ("off", "warn")])
def test_the_doctor_says_who_may_connect_to_a_pooler(
    tmp_path: Path, postgres: engine.Schemas, worker: str, level: str
) -> None:
    url = postgres.database_of(tmp_path, is_new=True)
    with pooled(tmp_path, url) as pooler:
        environ = {**KEYS, "GENHOOK_DATABASE_URL": pooler}
        for line in ("migrate", "keys create --offline --name first --scopes read"):
            with start(tmp_path, *line.split(), **environ) as process:
                out, err = process.communicate(timeout=60)
            assert process.returncode == 0, out + err
        environ["GENHOOK_WORKER"] = worker
        with start(tmp_path, "doctor", "--json", **environ) as process:
            out, _ = process.communicate(timeout=60)
    findings = {each["about"]: each for each in json.loads(out)}
    assert findings["pooler"]["level"] == level
    assert "only processes with GENHOOK_WORKER=off" in findings["pooler"]["message"]
    assert findings["schema"]["level"] == findings["database"]["level"] == "ok"
