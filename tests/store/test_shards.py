"""Shards: how workers share them, what makes one lose them, and who is replaced."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from service.model.errors import StorageError
from service.store import writes
from service.store.database import Transaction
from service.store.postgres import Database, ShardLocks, locks, notices, ownership
from service.store.shards import ALL, SHARDS, choose_surplus, shard_of, share_of
from tests import engine, limits
from tests.store.test_postgres import connected, kill_all, opened, until, until_blocked

ROUNDS = 4  # Beats of each after which the shares are even.


@pytest.fixture(autouse=True)
def _no_beats_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 3_600)


class Seconds:
    """A clock of seconds that a test sets."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def database(postgres: engine.Schemas, tmp_path: Path) -> AsyncIterator[Database]:
    async with opened(postgres, tmp_path) as database:
        await database.migrate()
        yield database


@contextlib.asynccontextmanager
async def working(database: Database, **options: Any) -> AsyncIterator[ShardLocks]:
    """A worker on this database, which takes what it can."""
    lock = ShardLocks(database, **options)
    await lock.acquire()
    try:
        yield lock
    finally:
        await lock.release()


@contextlib.asynccontextmanager
async def another(
    postgres: engine.Schemas, path: Path, **options: Any
) -> AsyncIterator[ShardLocks]:
    """A worker of another process on the same database."""
    async with opened(postgres, path) as database, working(database, **options) as lock:
        yield lock


async def share(*workers: ShardLocks) -> None:
    """Let the workers look until their shares are even; one without any asks for it again."""
    for _ in range(ROUNDS):
        for worker in workers:
            await (worker.beat() if worker.is_held else worker.acquire())


async def locked(database: Database) -> dict[int, set[int]]:
    """Return the shards that the server says are held, by the session."""
    sql = f"SELECT l.pid, CAST(l.objid AS INTEGER) AS shard FROM pg_locks l WHERE {locks.OURS}"  # noqa: S608
    held: dict[int, set[int]] = {}
    async with connected(database) as connection:
        class_ = await locks.class_of(connection)
        for row in await connection.fetch(sql, class_):
            if row["shard"] < SHARDS:
                held.setdefault(row["pid"], set()).add(row["shard"])
    return held


def counts(*workers: ShardLocks) -> list[int]:
    return sorted(len(worker.shards) for worker in workers)


def id_of(shard: int) -> str:
    """Return an id of this shard."""
    return next(f"sub_{n}" for n in range(10_000) if shard_of(f"sub_{n}") == shard)


async def test_the_server_computes_the_shards_that_we_do(database: Database) -> None:
    ids = [
        "",
        "gen_1",
        "sub_01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "gen_æøå",
        *(f"sub_{n}" for n in range(99)),
    ]
    async with connected(database) as connection:
        found = [await connection.fetchval("SELECT shard_of($1)", id_) for id_ in ids]
    assert found == [shard_of(id_) for id_ in ids]
    assert shard_of("123456789") == 0xCBF43926 % SHARDS, "the check value of CRC-32"


@pytest.mark.parametrize("count", [1, 3, 24, 64, 100])
def test_shares_are_even_and_all_of_the_work(count: int) -> None:
    workers = list(range(1_000, 1_000 + count))
    shares = [share_of(worker, workers) for worker in workers]
    assert sum(shares) == SHARDS
    assert max(shares) - min(shares) <= 1


def test_what_is_given_up_first_is_what_has_nothing_under_way() -> None:
    assert choose_surplus({1, 2, 3, 4}, 2, leaving=set(), busy={1, 2}) == {3, 4}
    assert choose_surplus({1, 2, 3}, 1, leaving={3}, busy={1, 2, 3}) == {3, 2}
    assert choose_surplus({1, 2}, 2, leaving={1}, busy=set()) == set()


async def test_workers_that_come_and_go_share_evenly(
    database: Database, postgres: engine.Schemas, tmp_path: Path
) -> None:
    async with working(database) as first:
        for _ in range(2):
            assert counts(first) == [64]
            async with another(postgres, tmp_path) as second, another(postgres, tmp_path) as third:
                workers = first, second, third
                await share(*workers)
                assert counts(*workers) == [21, 21, 22]
                assert frozenset().union(*(worker.shards for worker in workers)) == ALL
                held = await locked(database)
                assert sorted(map(sorted, held.values())) == sorted(
                    sorted(worker.shards) for worker in workers
                )
            await share(first)


async def test_a_shard_with_requests_under_way_starts_nothing_and_is_given_up_after_them(
    database: Database, postgres: engine.Schemas, tmp_path: Path
) -> None:
    async with working(database) as first, another(postgres, tmp_path) as second:
        busy = set(ALL)
        first.busy = lambda: busy
        await share(first, second)
        leaving = ALL - first.shards
        assert (len(leaving), counts(second)) == (32, [0])
        assert not any(first._database.holds(id_of(shard)) for shard in leaving)
        busy -= set(list(leaving)[:10])
        await share(first, second)
        assert counts(first, second) == [10, 32]
        busy.clear()
        await share(first, second)
        assert counts(first, second) == [32, 32]


async def test_shards_are_reported_as_lost_before_others_can_take_them(
    database: Database, postgres: engine.Schemas, tmp_path: Path
) -> None:
    lost: list[tuple[frozenset[int], bool]] = []
    async with working(database) as first:

        def note(shards: frozenset[int]) -> None:
            may_start = any(database.holds(id_of(shard)) for shard in shards)
            lost.append((shards, may_start))

        first.on_lost, first.busy = note, lambda: ALL
        await first.beat()
        assert lost == []
        async with another(postgres, tmp_path) as second:
            await share(first, second)
            upper = ALL - first.shards
            assert (lost, counts(second)) == ([(upper, False)], [0])
            first.busy = frozenset
            await share(first, second)
            assert counts(first, second) == [32, 32]
            assert lost == [(upper, False)]
            await kill_all(database)
            await until(lambda: not first.is_held)
            await first.beat()
            assert lost == [(upper, False), (ALL - upper, False)]


async def test_shards_that_were_invalid_for_a_while_are_not_lost(database: Database) -> None:
    clock, lost = Seconds(), list[frozenset[int]]()
    async with working(database, clock=clock) as worker:
        worker.on_lost = lost.append
        clock.now += ownership.VALID_SECONDS
        await worker.beat()
        assert (worker.shards, lost) == (ALL, [])
    assert lost == [ALL]


async def test_a_shard_that_is_needed_again_before_it_is_given_up_is_kept(
    database: Database, postgres: engine.Schemas, tmp_path: Path
) -> None:
    async with working(database) as first:
        first.busy = lambda: ALL
        async with another(postgres, tmp_path) as second:
            await share(first, second)
            assert counts(first) == [32]
        await first.beat()
        assert counts(first) == [64]


async def test_shards_are_not_valid_for_long_after_the_last_beat(database: Database) -> None:
    clock = Seconds()
    async with working(database, clock=clock) as worker:
        clock.now += ownership.VALID_SECONDS
        assert (worker.shards, database.holds("sub_1")) == (frozenset(), False)
        assert worker.is_held
        await worker.beat()
        assert (worker.shards, database.holds("sub_1")) == (ALL, True)


def test_shards_are_invalid_before_others_may_have_them() -> None:
    """As the service has it: the limits of the tests are others."""
    postgres = "service.store.postgres"
    valid_seconds = limits.OWN[f"{postgres}.ownership.VALID_SECONDS"]
    assert valid_seconds < limits.OWN[f"{postgres}.locks.SILENT_SECONDS"]


async def test_a_worker_that_cannot_commit_shows_no_sign_of_life(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(_tx: Transaction) -> None:
        raise ConnectionResetError("the server is gone")

    clock = Seconds()
    async with working(database, clock=clock) as worker:
        assert await database.commit_problem() is None
        monkeypatch.setattr(writes, "write_trial", fail)
        with pytest.raises(StorageError):
            await database.write(fail)
        clock.now += ownership.VALID_SECONDS
        await worker.beat()
        assert worker.shards == frozenset()


async def test_a_worker_that_can_commit_beats_though_a_commit_has_just_failed(
    database: Database,
) -> None:
    """One connection was lost, or one item fails again and again."""

    async def fail(_tx: Transaction) -> None:
        raise ConnectionResetError("the connection is gone")

    clock = Seconds()
    async with working(database, clock=clock) as worker:
        always = asyncio.ensure_future(database.write_always(fail))
        with pytest.raises(StorageError):
            await database.write(fail)
        clock.now += ownership.VALID_SECONDS
        await worker.beat()
        assert worker.shards == ALL
        always.cancel()


async def test_a_trial_commit_waits_for_no_row_that_others_have_locked(database: Database) -> None:
    async with connected(database) as connection, connection.transaction():
        await connection.execute("SELECT * FROM revisions FOR UPDATE")
        trial = asyncio.ensure_future(database.commit_problem())
        await until_blocked(database, trial)
        assert trial.done()
        assert trial.result() is None


async def test_a_worker_that_went_silent_is_replaced_with_all_its_connections(
    database: Database,
    postgres: engine.Schemas,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Seconds()
    async with opened(postgres, tmp_path) as other, working(other) as silent:
        async with working(database, clock=clock) as worker:
            monkeypatch.setattr(locks, "SILENT_SECONDS", 0.0)
            await worker.beat()
            await until(lambda: not silent.is_held)
            assert silent.shards == frozenset()
            await share(worker)
            assert counts(worker) == [64]
        names = "SELECT application_name FROM pg_stat_activity"
        async with connected(database) as connection:
            left = {row[0] for row in await connection.fetch(names)}
        assert database.name in left
        assert other.name not in left


async def test_a_worker_that_was_silent_itself_replaces_nobody(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "VALID_SECONDS", 4)
    monkeypatch.setattr(locks, "SILENT_SECONDS", 6)
    clock = Seconds()
    async with working(database, clock=clock) as worker:
        view = locks.View(
            silent=locks.Silent(0, "genhook-0", 99.0),
            own=frozenset(worker._locked),
            taken=ALL,
            workers=(),
            is_hidden=False,
        )
        replaced: list[float] = []

        async def read_view(_locks: locks.Locks) -> locks.View:
            return view

        async def terminate(_locks: locks.Locks, _silent: locks.Silent) -> bool:
            replaced.append(clock.now)
            return True

        monkeypatch.setattr(locks.Locks, "read_view", read_view)
        monkeypatch.setattr(locks.Locks, "terminate", terminate)
        worker._is_worker = False  # What it holds stays.
        clock.now += 60
        for _ in range(8):
            await worker.beat()
            clock.now += 1
        assert replaced == [1_066.0, 1_067.0]


@pytest.mark.parametrize(
    ("pause", "seconds", "slept", "count"),
    [(8, 15, 0.5, 1), (8, 7, 0, 0), (5.5, 12.5, 0, 0), (8, 15, 8, 0)],
    ids=["the same silence", "another silence", "too soon", "the machine slept"],
)
async def test_who_only_ticks_replaces_whom_it_has_found_silent_before(
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    pause: float,
    seconds: float,
    slept: float,
    count: int,
) -> None:
    monkeypatch.setattr(ownership, "VALID_SECONDS", 4)
    monkeypatch.setattr(locks, "SILENT_SECONDS", 6)
    clock, asleep, silences, replaced = Seconds(), Seconds(), [7.0, seconds], list[float]()
    read_view = locks.Locks.read_view

    async def view_silence(session: locks.Locks) -> locks.View:
        view = await read_view(session)
        return view._replace(silent=locks.Silent(7, "genhook-0", silences.pop(0)), taken=ALL)

    async def terminate(_locks: locks.Locks, silent: locks.Silent) -> bool:
        replaced.append(silent.seconds)
        return True

    ticking = ShardLocks(database, clock=clock, asleep=asleep)
    assert await ticking.acquire({1})
    await ticking.release()
    clock.now += 60
    monkeypatch.setattr(locks.Locks, "read_view", view_silence)
    monkeypatch.setattr(locks.Locks, "terminate", terminate)
    for _ in range(2):
        assert not await ticking.acquire(ALL)
        clock.now += pause
        asleep.now += slept
    assert replaced == [seconds] * count


async def test_who_has_spoken_since_is_not_replaced(
    database: Database, postgres: engine.Schemas, tmp_path: Path
) -> None:
    async with another(postgres, tmp_path) as other, working(database) as worker:
        assert worker._locks
        assert other._locks
        named = locks.Silent(other._locks.pid, other._database.name, 99.0)
        assert not await worker._locks.terminate(named)
        await other.beat()


async def test_all_is_lost_with_the_connection(
    database: Database, postgres: engine.Schemas, tmp_path: Path
) -> None:
    async with opened(postgres, tmp_path) as other, working(database) as first:
        await kill_all(database)
        await until(lambda: not first.is_held)
        assert first.shards == frozenset()
        second = ShardLocks(other)
        while True:
            with contextlib.suppress(StorageError):
                assert await second.acquire()
                break
        assert counts(second) == [64]
        await second.release()


async def test_a_lock_that_the_server_does_not_know_of_is_the_end_of_all(
    database: Database,
) -> None:
    async with working(database) as worker:
        assert worker._locks
        await worker._locks.give_up([7])
        with pytest.raises(StorageError, match="took locks away"):
            await worker.beat()
        assert not worker.is_held


async def test_beats_go_on_by_themselves(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0)
    clock = Seconds()
    async with working(database, clock=clock) as worker:
        for _ in range(3):
            clock.now += ownership.VALID_SECONDS
            assert not worker.shards
            await until(lambda: bool(worker.shards))


async def test_what_is_wanted_is_taken_where_it_is_free(
    database: Database, postgres: engine.Schemas, tmp_path: Path
) -> None:
    async with opened(postgres, tmp_path) as other:
        first, second = ShardLocks(database), ShardLocks(other)
        assert await first.acquire({1, 2})
        assert not await second.acquire({2})
        assert await second.acquire({2, 3})
        assert await first.acquire({3, 4})
        assert [*map(sorted, (first.shards, second.shards))] == [[1, 2, 4], [3]]
        for lock in (first, second):
            await lock.release()
            await lock.release()
        assert await locked(database) == {}


async def test_two_schemas_of_one_database_have_shards_of_their_own(
    database: Database, postgres: engine.Schemas, tmp_path: Path
) -> None:
    async with opened(postgres, tmp_path / "other") as other, working(database) as first:
        await other.migrate()
        async with working(other) as second:
            await share(first, second)
            assert counts(first, second) == [64, 64]


async def test_two_databases_have_shards_of_their_own_though_one_is_a_copy(
    database: Database, postgres: engine.Schemas
) -> None:
    [name] = {database.url.partition("?")[0].rpartition("/")[2]}
    url = database.url.replace(f"/{name}?", f"/{name}_copy?")
    id_ = "SELECT CAST(genhook_id AS TEXT) FROM schema_version"
    async with connected(database) as connection:
        await connection.execute(f"CREATE DATABASE {name}_copy")
        same = await connection.fetchval(id_)
    try:
        copied = await asyncpg.connect(url)
        await copied.execute(f"CREATE SCHEMA {url.rpartition('=')[2]}")
        copy = Database(url)
        await copy.open()
        await copy.migrate()
        await copied.execute(f"UPDATE schema_version SET genhook_id = '{same}'")  # noqa: S608
        await copied.close()
        async with working(database) as first, working(copy) as second:
            await share(first, second)
            assert counts(first, second) == [64, 64]
        await copy.close()
    finally:
        async with connected(database) as connection:
            await connection.execute(f"DROP DATABASE {name}_copy WITH (FORCE)")


async def refusal(database: Database) -> str:
    with pytest.raises(StorageError) as refused:
        await ShardLocks(database).acquire()
    return str(refused.value)


async def test_a_pooler_that_shares_sessions_is_refused(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have come after the start: what a connection calls its session is none then."""
    monkeypatch.setattr(asyncpg.Connection, "get_server_pid", lambda _connection: 7)
    for _ in range(3):
        assert "a pooler such as PgBouncer" in await refusal(database)
        assert database.lock_connection.is_closed(), "the next try opens another one"


async def test_a_server_that_shows_no_activity_is_refused(
    database: Database, postgres: engine.Schemas
) -> None:
    database.url += "&track_activities=off"
    assert "track_activities is off" in await refusal(database)


async def test_a_worker_of_another_role_is_refused_and_the_others_go_on(
    database: Database, postgres: engine.Schemas, tmp_path: Path
) -> None:
    role = f"role_{database.name.partition('-')[2]}"
    url = database.url.replace("postgres:@", f"{role}:@")
    assert url != database.url
    async with working(database) as worker:
        async with connected(database) as connection:
            await connection.execute(f"CREATE ROLE {role} LOGIN SUPERUSER")
        try:
            other = Database(url)
            await other.open()
            assert "all workers must use one role" in await refusal(other)
            await other.close()
            await worker.beat()
            assert counts(worker) == [64]
        finally:
            async with connected(database) as connection:
                await connection.execute(f"DROP ROLE {role}")


async def told(lock: ShardLocks, is_so: Callable[[], object]) -> bool:
    await until(lambda: bool(is_so()))
    return await lock.other_process_committed()


async def test_what_is_committed_is_told_to_who_holds_its_shard(
    database: Database, postgres: engine.Schemas, tmp_path: Path
) -> None:
    async with working(database) as first, another(postgres, tmp_path) as second:
        await share(first, second)
        assert not await first.other_process_committed()
        assert not await second.other_process_committed()
        [mine], [theirs] = [sorted(lock.shards)[:1] for lock in (first, second)]
        assert database.hand_over(id_of(mine))
        assert not database.hand_over(id_of(theirs))
        assert await told(second, lambda: second._told)
        assert not await second.other_process_committed()


async def test_a_process_hears_of_others_alone_and_can_ask_about_some_shards(
    database: Database, postgres: engine.Schemas, tmp_path: Path
) -> None:
    async with working(database) as first, another(postgres, tmp_path) as second:
        await share(first, second)
        [mine], [theirs] = [sorted(lock.shards)[:1] for lock in (first, second)]
        assert not database.hand_over(id_of(theirs))
        await until(lambda: bool(second._told))
        async with connected(database) as connection:  # The server tells in order of the commits.
            await connection.execute(notices._NOTIFY, f"{7 << SHARDS | 1 << mine:x}")
        await until(lambda: bool(first._told))
        assert first._told == {mine}
        assert not await first.other_process_committed({theirs})
        assert await first.other_process_committed({mine, theirs})


async def test_who_had_no_valid_shard_for_a_while_keeps_its_locks_and_looks(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with working(database) as worker:
        await worker.other_process_committed()
        locked, seconds = worker.locked, Seconds()
        monkeypatch.setattr(worker, "_clock", seconds)
        await worker.beat()
        assert not await worker.other_process_committed()
        seconds.now += ownership.VALID_SECONDS + 1
        assert (worker.shards, worker.locked) == (frozenset(), locked)
        assert not database.hand_over(id_of(min(locked)))  # Only its own notice tells of it.
        await worker.beat()
        assert worker.shards == locked
        assert await worker.other_process_committed(locked)


async def test_a_process_that_works_on_nothing_tells_of_all_its_commits(
    database: Database, postgres: engine.Schemas, tmp_path: Path
) -> None:
    async with working(database) as worker:
        assert not await worker.other_process_committed()
        async with opened(postgres, tmp_path) as other:
            assert not other.hand_over("gen_1")  # It is told, although the process ends at once.
        assert await told(worker, lambda: worker._told)


def test_the_clock_of_the_shards_goes_on() -> None:
    assert ownership.seconds_since_boot() <= ownership.seconds_since_boot()
    assert ownership.seconds_asleep() > -1
