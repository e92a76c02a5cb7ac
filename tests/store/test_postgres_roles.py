"""Settings that a role has for other programs, and options of a URL: neither changes a unit."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from service.app import App
from service.cli import main, server_checks
from service.model.errors import StorageError
from service.store.postgres import Database, ShardLocks, locks
from service.store.postgres.connection import connect, raising_storage_error
from tests import engine
from tests.cli.test_serve import KEYS
from tests.harness import settings
from tests.wire.pooler import pooled

LIMITS = ("statement_timeout", "lock_timeout", "transaction_timeout")
Role = Callable[..., Coroutine[Any, Any, str]]


@pytest.fixture
async def role(postgres: engine.Schemas, tmp_path: Path) -> AsyncIterator[Role]:
    """A role with the settings of the call, and an empty schema; it returns its URL."""
    url = postgres.database_of(tmp_path, is_new=True)
    postgres.use_up(tmp_path)
    owner = await asyncpg.connect(postgres.url)
    name = f"role_of_{await owner.fetchval('SELECT current_database()')}"
    schema = url.rpartition("=")[2]
    await owner.execute(f"CREATE ROLE {name} LOGIN; GRANT ALL ON SCHEMA {schema} TO {name}")

    async def set_up(**settings: str) -> str:
        for setting, value in settings.items():
            await owner.execute(f"ALTER ROLE {name} SET {setting} = '{value}'")
        return re.sub(r"//[^/]*/", f"//{name}@/", url)

    try:
        yield set_up
    finally:
        await owner.execute(f"DROP OWNED BY {name} CASCADE; DROP ROLE {name}")
        await owner.close()


def user_of(url: str) -> str:
    return re.sub(r".*//|@.*", "", url)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    database = Database(url, clock=lambda: 7)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def show(tx: Any, *names: str) -> dict[str, str]:
    row = ", ".join(f"current_setting('{name}') AS {name}" for name in names)
    [settings] = await tx.select(f"SELECT {row}", {})
    return dict(settings)


async def test_limits_of_a_role_do_not_hold_for_units(role: Role) -> None:
    url = await role(**dict.fromkeys(LIMITS, "5s"))
    async with opened(url) as database:
        assert await database.write(show, *LIMITS) == dict.fromkeys(LIMITS, "0")
        assert await database.read(show, *LIMITS) == dict.fromkeys(LIMITS, "0")


async def test_limits_of_a_role_do_not_hold_behind_a_pooler(role: Role, tmp_path: Path) -> None:
    url = await role(**dict.fromkeys(LIMITS, "5s"))
    with pooled(tmp_path, url) as pooler:
        async with opened(pooler) as database:
            assert database.is_pooled
            assert await database.write(show, *LIMITS) == dict.fromkeys(LIMITS, "0")
            assert await database.read(show, *LIMITS) == dict.fromkeys(LIMITS, "0")


async def test_a_role_that_ends_idle_sessions_keeps_those_of_a_process(role: Role) -> None:
    url = await role(idle_session_timeout="5s")
    async with opened(url) as database:
        assert await database.read(show, "idle_session_timeout") == {"idle_session_timeout": "0"}
    connection = await connect(url)  # As the one that holds the right to work.
    assert await connection.fetchval("SHOW idle_session_timeout") == "0"
    await connection.close()


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_whoever_waits_sees_what_was_committed_whatever_isolation_a_role_has(
    role: Role, isolation: str
) -> None:
    url = await role(default_transaction_isolation=isolation)
    async with AsyncExitStack() as stack:
        databases = [await stack.enter_async_context(opened(url)) for _ in range(5)]
        applied = await asyncio.gather(*(each.migrate() for each in databases))
        assert sorted(map(len, applied))[:-1] == [0, 0, 0, 0]
        assert max(map(len, applied)) >= 1


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("channel_binding=require", 'unrecognized configuration parameter "channel_binding"'),
        ("enable_sort=maybe", 'parameter "enable_sort" requires a Boolean value'),
    ],
)
def test_an_option_that_the_server_does_not_take_is_a_sentence(
    postgres: engine.Schemas,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    said: str,
) -> None:
    monkeypatch.setenv("GENHOOK_DATABASE_URL", f"{postgres.url}&{option}")
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    assert main.main(["migrate"]) == 1
    error = capsys.readouterr().err
    assert f"cannot connect to the database: {said} (an option of GENHOOK_DATABASE_URL" in error
    assert "Traceback" not in error


async def test_a_new_connection_that_is_refused_is_no_fault_of_the_unit(
    role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is when a setting of a role has become one that the server does not take."""

    async def refuse(_: Any) -> None:
        raise asyncpg.UndefinedObjectError('unrecognized configuration parameter "gone"')

    async with opened(await role()) as database:
        monkeypatch.setattr(asyncpg.pool.Pool, "_get_new_connection", refuse)
        with pytest.raises(StorageError, match='parameter "gone"'):
            await database.write(show, "jit")
        with pytest.raises(StorageError, match='parameter "gone"'):
            await database.read(show, "jit")
        assert 'parameter "gone"' in (await database.write_problem() or "")


@pytest.mark.parametrize("kind", [asyncpg.InterfaceError, asyncpg.InternalClientError])
def test_a_lost_connection_is_not_told_in_the_words_of_the_driver(kind: type[Exception]) -> None:
    with (
        pytest.raises(StorageError, match=r"^the database failed: the connection was lost$"),
        raising_storage_error("the database failed"),
    ):
        raise kind("cannot switch to state 15; another operation (2) is in progress")


@pytest.fixture
def blind(postgres: engine.Schemas, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables of a process for whose sessions `track_activities` is off."""
    monkeypatch.setenv("GENHOOK_DATABASE_URL", f"{engine.database_of(Path())}&track_activities=off")
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("worker", [True, None])
async def test_where_sessions_are_hidden_no_worker_starts(
    postgres: engine.Schemas, tmp_path: Path, *, worker: bool | None
) -> None:
    url = f"{engine.database_of(tmp_path)}&track_activities=off"
    app = App(settings(tmp_path, database_path=url, worker="embedded"))
    with pytest.raises(StorageError, match="track_activities is off for this role"):
        await app.start(worker=worker)


@pytest.mark.usefixtures("blind")
def test_where_sessions_are_hidden_a_tick_ends_with_a_sentence(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.main(["tick"]) == 1
    assert "genhook: track_activities is off for this role" in capsys.readouterr().err


@pytest.mark.usefixtures("blind")
def test_the_doctor_says_that_no_worker_can_begin_where_sessions_are_hidden(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.main(["migrate"]) == 0
    main.main(["doctor"])
    assert "fail  worker       None can begin: track_activities is off" in capsys.readouterr().out


@pytest.mark.usefixtures("bare_environment")
async def test_the_doctor_says_why_a_worker_could_not_begin(
    role: Role, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = await role()
    async with opened(url) as database:
        await database.migrate()
        server = await asyncio.to_thread(server_checks.look, url)
        assert server.worker_problem is None
        url_of_other = re.sub(r"//[^/]*/", "//postgres@/", url)
        worker = ShardLocks(database)
        assert await worker.acquire()
        server = await asyncio.to_thread(server_checks.look, url_of_other)
        assert "all workers must use one role" in (server.worker_problem or "")
        await worker.release()


async def test_the_doctor_holds_no_locks_while_it_tries_to_begin(
    role: Role, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, begin = await role(), locks.begin

    async def change_and_begin(connection: Any) -> Any:
        other = await connect(url)
        await other.execute("SET lock_timeout = '2s'; ALTER TABLE revisions ADD COLUMN more INT")
        other.terminate()
        return await begin(connection)

    async with opened(url) as database:
        await database.migrate()
        monkeypatch.setattr(locks, "begin", change_and_begin)
        server = await asyncio.to_thread(server_checks.look, url)
        assert (server.problem, server.worker_problem) == (None, None)


async def test_a_worker_of_a_new_role_is_ready_and_waits_until_those_of_the_old_one_have_ended(
    role: Role, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a rolling deployment, which ends the old process once the new one is ready."""
    url, begin, refused = await role(), locks.begin, asyncio.Semaphore(0)

    async def begin_and_tell(connection: Any) -> Any:
        try:
            return await begin(connection)
        except StorageError:
            refused.release()
            raise

    async with opened(url) as database, asyncio.timeout(60):
        await database.migrate()
        old = ShardLocks(database)
        assert await old.acquire()
        monkeypatch.setattr(locks, "begin", begin_and_tell)
        monkeypatch.setattr("service.worker.STANDBY_SECONDS", 0)
        new = App(settings(tmp_path, database_path=re.sub(r"//[^/]*/", "//postgres@/", url)))
        await new.start()
        for _ in range(2):  # It has handled the first refusal before the second one.
            await refused.acquire()
        assert new.worker.problem is None
        await old.release()
        while not new.worker.ownership.is_held:
            await asyncio.wait([asyncio.create_task(refused.acquire())], timeout=0.1)
        await new.stop()


async def test_where_a_role_changed_at_its_login_cannot_see_itself_it_is_told_so(
    role: Role, postgres: engine.Schemas
) -> None:
    url = await role()
    owner = await asyncpg.connect(postgres.url)
    await owner.execute(f"GRANT pg_checkpoint TO {user_of(url)}")
    await role(role="pg_checkpoint")
    connection = await connect(url)
    with pytest.raises(StorageError, match="the role is changed after the login"):
        await locks.begin(connection)
    connection.terminate()
    await owner.close()


async def test_workers_whose_role_is_changed_at_their_login_see_each_other(
    role: Role, postgres: engine.Schemas
) -> None:
    url = await role()
    owner = await asyncpg.connect(postgres.url)
    await owner.execute(f"GRANT postgres TO {user_of(url)}")
    await role(role="postgres")
    await owner.close()
    async with opened(url) as database:
        await database.migrate()
        first, second = await connect(url, "first"), await connect(url, "second")
        await (await locks.begin(first)).join()
        await locks.begin(second)
        first.terminate()
        second.terminate()
