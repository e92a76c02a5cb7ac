"""Workers as processes on PostgreSQL: killed, stopped for a while, and continued."""

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import asyncpg

from service.store.postgres import locks
from tests import engine
from tests.cli.test_serve import KEYS, started

Held = dict[str, int]
SHARED_SECONDS = 10.0


async def until(
    connection: asyncpg.Connection, is_so: Callable[[list[int]], bool], seconds: float = 60
) -> Held:
    """Wait until the numbers of shards that processes hold are so; return them by process."""
    async with asyncio.timeout(seconds):
        while True:
            holders = await locks.holders(connection)
            held = {name: len(shards) for name, shards in holders.items() if shards}
            if is_so(sorted(held.values())):
                return held
            await connection.execute("SELECT pg_sleep(0.05)")


async def test_who_is_killed_or_stopped_is_replaced_and_who_goes_on_has_a_share_again(
    postgres: engine.Schemas, tmp_path: Path
) -> None:
    url = postgres.database_of(tmp_path)
    work, ready = {**KEYS, "GENHOOK_DATABASE_URL": url}, "worker.started"
    with started(tmp_path, "work", ready=ready, **work) as first:
        connection = await asyncpg.connect(url)
        [(name, _)] = (await until(connection, lambda held: held == [64])).items()
        with (
            started(tmp_path, "work", ready=ready, **work) as second,
            started(tmp_path, "work", ready=ready, **work) as third,
        ):
            held = await until(connection, lambda held: held == [21, 21, 22])
            assert name in held
            second.process.kill()
            await until(connection, lambda held: held == [32, 32])
            first.process.send_signal(signal.SIGSTOP)
            held = await until(connection, lambda held: held == [64])
            assert name not in held
            first.process.send_signal(signal.SIGCONT)
            held = await until(connection, lambda held: held == [32, 32])
            assert name in held, "it goes on by itself"
            status, out, _ = third.end()
            assert (status, "worker.replaced" in out) == (0, True)
            await until(connection, lambda held: held == [64])
        assert first.end()[0] == 0
        await connection.close()


async def test_one_three_one_and_three_workers_share_the_work_evenly_within_ten_seconds(
    postgres: engine.Schemas, tmp_path: Path
) -> None:
    url = postgres.database_of(tmp_path)
    work, ready = {**KEYS, "GENHOOK_DATABASE_URL": url}, "worker.started"
    with started(tmp_path, "work", ready=ready, **work):
        connection = await asyncpg.connect(url)
        for _ in range(2):
            await until(connection, lambda held: held == [64], SHARED_SECONDS)
            with (
                started(tmp_path, "work", ready=ready, **work) as second,
                started(tmp_path, "work", ready=ready, **work) as third,
            ):
                await until(connection, lambda held: held == [21, 21, 22], SHARED_SECONDS)
                second.process.kill()
                assert third.end()[0] == 0
        await connection.close()
