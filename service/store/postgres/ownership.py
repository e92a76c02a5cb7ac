"""The right to work on PostgreSQL: shards, held as advisory locks by a session that sends beats.

Workers share the shards evenly: each looks at the locks every second, gives up the shards beyond
its share, and takes free ones. The look is its beat, too. If a worker has sent no beat for
`locks.SILENT_SECONDS` of the server's clock, another one ends its connections; its own shards are
invalid before that, so that it starts nothing. A worker sends no beat while it cannot commit.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

from service.model.errors import StorageError
from service.store.postgres import locks
from service.store.postgres.connection import CONNECT_SECONDS, connect, raising_storage_error
from service.store.postgres.database import Database
from service.store.postgres.notices import CHANNEL_SQL, read_notice, sender_of
from service.store.shards import ALL, NONE, choose_surplus, share_of
from service.telemetry import log

_log = log.get()

BEAT_SECONDS = 1.0
VALID_SECONDS = 4.0  # Shorter than `locks.SILENT_SECONDS`, after which others may have the shards.
BEAT_SECONDS_MAX = 10.0  # Until a server that does not answer counts as lost.
RELEASE_SECONDS = 1.0
LOOK_SECONDS = 5.0  # A notice may be lost.
_CHANNEL = f"SELECT {CHANNEL_SQL}"


def seconds_since_boot() -> float:
    """Return a time that goes on while the machine sleeps, where the system has such a clock."""
    clock: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


def seconds_asleep() -> float:
    """Return for how long the machine has slept, from any point on; 0 if the system cannot say."""
    return seconds_since_boot() - time.monotonic()


class ShardLocks:
    """The shards of this process: the server takes them away when the connection ends.

    The connection is kept for the next time, until the database is closed.
    """

    def __init__(
        self,
        database: Database,
        clock: Callable[[], float] = seconds_since_boot,
        asleep: Callable[[], float] = seconds_asleep,
    ) -> None:
        self.busy: Callable[[], Collection[int]] = frozenset  # Shards with requests under way.
        self.on_lost: Callable[[frozenset[int]], None] = lambda _shards: None
        self._database = database
        self._clock, self._asleep = clock, asleep
        self._locks: locks.Locks | None = None
        self._locked: set[int] = set()
        self._leaving: set[int] = set()  # Of `_locked`; given up once no request is under way.
        self._is_worker = False
        # When the last answered beat was sent, and since when beats were regular.
        self._beat_at, self._regular_since = -VALID_SECONDS, 0.0
        # Who was silent at the last look; since when that is known, and how long the machine had
        # slept by then.
        self._suspect: tuple[int, float, float] | None = None
        self._looked_at = -LOOK_SECONDS
        # The shards that callers have asked for since this process last held none.
        self._interests: Collection[int] = NONE
        self._told: set[int] = set()  # Shards in which others have committed.
        self._round_lock = asyncio.Lock()  # A tick and the standby loop may both run a round.
        self._timer: asyncio.TimerHandle | None = None
        self._beating: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        """The name of all connections of this process."""
        return self._database.name

    @property
    def refusal(self) -> str | None:
        """Why this process can never hold a shard, or None."""
        if self._database.is_pooled:
            return locks.POOLED
        return None if self._database.is_tracked else locks.UNTRACKED

    @property
    def is_held(self) -> bool:
        """Whether this process holds a shard, as far as it knows."""
        return bool(self._locked) and self._is_connected

    @property
    def shards(self) -> frozenset[int]:
        """The shards that this process may work on now."""
        return self._database.holding.shards if self.is_held else NONE

    @property
    def locked(self) -> frozenset[int]:
        """The shards that no other process can take now."""
        return frozenset(self._locked) if self.is_held else NONE

    @property
    def _is_connected(self) -> bool:
        return self._locks is not None and not self._locks.connection.is_closed()

    async def acquire(self, shards: Collection[int] | None = None) -> bool:
        """Take the free ones of these shards, or this worker's share of all.

        Return whether this process holds any. StorageError if that cannot be determined.
        """
        if refusal := self.refusal:
            raise StorageError(refusal)
        async with self._round_lock:
            before = self._interests if self.is_held else NONE
            self._interests = ALL if shards is None else {*before, *shards}
            await self._run_round(shards, CONNECT_SECONDS)
        if self.is_held:
            self._plan_beat()
        return self.is_held

    async def release(self) -> None:
        """Give up every shard; if that fails or is cancelled, end the connection with its locks."""
        try:
            async with self._round_lock:
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None
                is_in_use = self._is_connected and (self._is_worker or self._locked)
                self._forget()
                if self._locks is not None and is_in_use:
                    async with asyncio.timeout(RELEASE_SECONDS):
                        await self._locks.leave()
        except BaseException as error:
            if self._locks is not None:
                self._locks.connection.terminate()
            self._forget()
            if not isinstance(error, Exception):
                raise

    async def holders(self) -> dict[str, frozenset[int]]:
        """Return the shards of every process that works on the database, by its name."""
        return await self._database.read_raw(locks.holders)

    async def beat(self) -> None:
        """Send a beat, and share the shards; StorageError if every shard is lost.

        While this process cannot commit, it sends none: another process may be able to work.
        """
        if await self._database.commit_problem() is not None:
            return
        async with self._round_lock:
            if self._locked or self._is_worker:
                await self._run_round((), BEAT_SECONDS_MAX)

    async def other_process_committed(self, shards: Collection[int] | None = None) -> bool:
        """True if another process may have committed: it sent a notice, or LOOK_SECONDS are up.

        With `shards` only if it sent a notice of one of them.
        """
        now = asyncio.get_running_loop().time()
        among = (self.shards or self._interests) if shards is None else shards
        is_told = not self._told.isdisjoint(among)
        if is_due := is_told or (shards is None and now - self._looked_at >= LOOK_SECONDS):
            self._told, self._looked_at = set(), now
        return is_due

    def _plan_beat(self) -> None:
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(BEAT_SECONDS, self._start_beat)

    def _start_beat(self) -> None:
        self._timer = None
        self._beating = asyncio.create_task(self._beat_and_go_on(), name="beat")

    async def _beat_and_go_on(self) -> None:
        try:
            await self.beat()
        except StorageError as error:
            _log.error("shards.lost", error=str(error))
        if self.is_held:
            self._plan_beat()

    async def _run_round(self, shards: Collection[int] | None, seconds: float) -> None:
        """Run a round within `seconds`; if it fails, end the connection, and with it the locks."""
        try:
            with raising_storage_error("cannot lock the database"):
                async with asyncio.timeout(seconds):
                    if not self._is_connected:
                        self._forget()
                        await self._connect()
                    await self._round(shards)
        except BaseException:
            if self._database.lock_connection is not None:
                self._database.lock_connection.terminate()
            self._forget()
            raise

    async def _connect(self) -> None:
        connection = await connect(self._database.url, self._database.name)
        self._database.lock_connection = connection
        self._locks = await locks.begin(connection)
        await connection.add_listener(await connection.fetchval(_CHANNEL), self._hear)
        self._looked_at = asyncio.get_running_loop().time()

    async def _round(self, shards: Collection[int] | None) -> None:
        """Look at the locks, then give up and take shards; `shards` is None for a worker."""
        session = self._locks
        assert session is not None
        if shards is None and not self._is_worker:
            await session.join()
            self._is_worker = True
        sent_at = self._clock()
        view = await session.read_view()
        if view.own != self._locked or (self._is_worker and session.pid not in view.workers):
            raise StorageError("the server took locks away")
        self._note_beat(sent_at)
        if self._is_worker:
            await self._share(session, view)
        elif free := set(shards or ()) - view.taken:
            await self._take(session, free)
        self._publish()
        silent = view.silent
        if silent and self._had_time(silent, sent_at) and await session.terminate(silent):
            _log.warning("worker.replaced", name=silent.name, seconds=silent.seconds)

    def _had_time(self, silent: locks.Silent, now: float) -> bool:
        """Return whether a silent process had SILENT_SECONDS to send a beat.

        When a machine wakes, all processes seem silent. So this process must itself have sent
        regular beats for so long, or have known of this very silence for so long, without a sleep
        of its machine. (Ticks may be too rare for regular beats.)
        """
        asleep = self._asleep()
        pid, since, asleep_then = self._suspect or (0, now, asleep)
        is_another = pid != silent.pid or silent.seconds < now - since  # Or another silence.
        if is_another or asleep - asleep_then > VALID_SECONDS:
            since, asleep_then = now, asleep
        self._suspect = silent.pid, since, asleep_then
        return now - min(since, self._regular_since) >= locks.SILENT_SECONDS

    async def _share(self, session: locks.Locks, view: locks.View) -> None:
        """Give up the shards beyond this worker's share, or take free ones up to it."""
        share = share_of(session.pid, view.workers)
        busy = self.busy() if len(self._locked) > share else ()
        self._leaving = choose_surplus(self._locked, share, self._leaving, busy)
        self._publish()  # From here on nothing starts in the shards that are given up.
        if gone := self._leaving - set(busy):
            self._locked -= gone
            self._leaving -= gone
            await session.give_up(gone)
        if free := sorted(ALL - view.taken)[: max(0, share - len(self._locked))]:
            await self._take(session, free)

    async def _take(self, session: locks.Locks, free: Iterable[int]) -> None:
        taken = await session.take(free)
        if not self._is_connected:  # A release that was canceled has ended it meanwhile.
            raise StorageError("the connection was closed")
        self._locked |= taken

    def _note_beat(self, sent_at: float) -> None:
        if sent_at - self._beat_at > VALID_SECONDS:
            self._regular_since = sent_at
        if not self._database.holding.shards:
            # What was committed meanwhile was handed over to nobody.
            self._told |= self._locked
        self._beat_at = sent_at

    def _publish(self) -> None:
        self._hold(frozenset(self._locked - self._leaving), self._beat_at + VALID_SECONDS)

    def _forget(self) -> None:
        self._locked, self._leaving, self._is_worker = set(), set(), False
        self._hold(NONE, 0.0)

    def _hold(self, shards: frozenset[int], until: float) -> None:
        if lost := self._database.holding.put(shards, until, self._clock):
            self.on_lost(lost)

    def _hear(self, _connection: Any, _pid: int, _channel: str, payload: str) -> None:
        shards, sender = read_notice(payload)
        if sender != sender_of(self.name):  # A process knows its own commits.
            self._told |= shards
