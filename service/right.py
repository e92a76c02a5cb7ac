"""The right to work: this process's shards (on SQLite: all or none), and the session beside it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Any

from service.context import Context, wait_for
from service.delivery.lanes import NEVER
from service.delivery.target import Sender
from service.generations.poll import Poller
from service.generations.submit import Submitter
from service.session import Session
from service.store import retention
from service.store.database import Ownership
from service.telemetry import log

_log = log.get()
AfterEnd = Callable[[Collection[int]], Awaitable[None]]
RECORD_AGAIN_SECONDS = 1.0  # After results of attempts could not be stored.


class Right:
    """The right of this process to work, with the session that begins and ends with it.

    Loops, a tick or a drive have it, one at a time; but a tick beside running loops works in their
    session. Submitter and poller outlive sessions; they hold the requests under way.
    """

    def __init__(
        self,
        context: Context,
        ownership: Ownership,
        sender: Sender,
        submitter: Submitter,
        poller: Poller,
        stopping: asyncio.Event,
    ) -> None:
        self.context = context
        self.ownership = ownership
        self.sender = sender
        self.submitter, self.poller = submitter, poller
        self.stopping = stopping
        # How far retention has deleted. It may be out of date: deleted rows stay deleted.
        self._sweep = retention.Sweep()
        self.steps_under_way: set[asyncio.Task[int | None]] = set()  # Some outlive their tick.
        self.ending: asyncio.Task[None] | None = None  # Ends the session of the last tick or drive.
        self._lock = asyncio.Lock()  # Held while a session begins or ends, and by ticks and drives.
        self.has_loops = False  # Whether the session is that of the loops.
        self.session = self.new_session()  # Not open: it takes and starts nothing.

    def new_session(self) -> Session:
        """Return a session that is not open."""
        return Session(
            self.context, self.ownership, self.sender, self.submitter, self.poller, self._sweep
        )

    @asynccontextmanager
    async def hold(
        self, shards: Callable[[], Collection[int] | None], after_end: AfterEnd
    ) -> AsyncIterator[Session | None]:
        """Within, a tick or a drive works in a session; None if no shard that it asks for is free.

        `shards` is called when no other tick or drive works here any more; of the shards that it
        returns, the free ones are taken. If it returns None, nothing is left to do.
        Requests that are under way by the end go on; after them the session ends, and `after_end`
        is called with the shards that were given up.
        """
        async with self._lock:
            if not self.has_loops:
                to_take = shards()
                session = None if to_take is None else await self._begin(to_take)
                try:
                    yield session
                finally:
                    if session is not None:
                        await self._end(after_end)
                return
        yield self.session if self.ownership.is_held else None

    async def begin_loops(self, on_turn: Callable[[], None]) -> bool:
        """Begin the session of the loops; False while no shard is free.

        A tick that works here ends first; then `on_turn` is called.
        """
        async with self._lock:
            on_turn()
            self.has_loops = await self._begin(None) is not None
            return self.has_loops

    async def end_loops(self) -> None:
        """Throw the session away, then let other processes work; not the session of a tick."""
        async with self._lock:
            if self.has_loops:
                self.has_loops = False
                await self._close()

    async def settle(self) -> None:
        """Wait for the submissions, polls and attempts under way that need the right to work.

        New submissions of clients need none, and a busy process always has one under way.
        """
        await self.submitter.settle_from_rows()
        await self.poller.settle()
        await self.session.dispatcher.settle()

    async def wait(
        self, task: asyncio.Task[Any] | None, ends_at: float, interrupt: asyncio.Event | None = None
    ) -> None:
        """Wait for a task or `ends_at`, for a stop, or until `interrupt` is set."""
        seconds = max(ends_at - asyncio.get_running_loop().time(), 0)
        signals = (self.stopping, interrupt)
        ends = [asyncio.create_task(signal.wait()) for signal in signals if signal is not None]
        waited = ends if task is None else [task, *ends]
        try:
            await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()

    async def others_committed(self, shards: Collection[int]) -> bool:
        """Whether another process has committed in these shards; False beside loops, which look.

        Who holds other shards hears of the commits in them.
        """
        return not self.has_loops and await self.ownership.other_process_committed(shards)

    async def finish(self) -> None:
        """After the last step: wait until all that it started has ended and is recorded.

        At a stop, what could not be recorded is tried again every second, until the process ends.
        """
        dispatcher = self.session.dispatcher
        while True:
            dispatcher.record_again(NEVER if self.stopping.is_set() else self.context.clock())
            if self.steps_under_way:
                await asyncio.wait(self.steps_under_way)
            await self.settle()
            if dispatcher.is_settled:
                return
            if self.stopping.is_set():
                await asyncio.sleep(RECORD_AGAIN_SECONDS)  # noqa: TID251  the database fails
            else:
                await wait_for(self.stopping, RECORD_AGAIN_SECONDS)

    async def _begin(self, shards: Collection[int] | None) -> Session | None:
        """Take shards, or a worker's share, and go on in the last tick's session if it is open."""
        # Ticks of processes that know nothing of each other's polls take turns.
        is_in_turn = shards is not None and self.context.settings.worker == "off"
        try:
            if self.ending is not None and self.ending.cancel():
                await asyncio.wait([self.ending])
            self.ending = None
            was_held = self.ownership.is_held
            if not await self.ownership.acquire(shards):
                return None
            if not was_held:
                await self.session.close()  # A session that lost its right is still open.
                self.session = self.new_session()
                if is_in_turn:
                    self.poller.budget.begin_turn(self.context.clock())
            await self.ownership.other_process_committed()  # Later commits count.
            if not self.stopping.is_set():  # A stop lets no more attempts start.
                self.session.resume(is_in_turn=is_in_turn)
        except BaseException:
            await self._end(None)
            raise
        return self.session

    async def _end(self, after_end: AfterEnd | None) -> None:
        """End the session, now or once the requests under way have ended."""
        self.session.pause()
        in_flight = self.submitter.from_rows or self.poller.in_flight or self.steps_under_way
        is_settled = self.session.dispatcher.is_settled and not in_flight
        if is_settled and not self.session.debt_seconds():
            await self._close()
        else:
            self.ending = asyncio.create_task(self._finish(after_end), name="rest of a tick")

    async def _finish(self, after_end: AfterEnd | None) -> None:
        """Wait for the requests under way, then end the session.

        Whoever begins next has the lock, cancels the wait and goes on in the session. The end has
        the lock as well: half of it would leave locks on shards that nobody knows of.
        """
        try:
            await self.finish()
            await wait_for(self.stopping, self.session.debt_seconds())
        except asyncio.CancelledError:
            # Cancelled by the next one, which has the lock and goes on; or by a stop: it ends now.
            if self._lock.locked():
                raise
        except Exception:  # noqa: BLE001  the rows are still due, and another process may work
            _log.exception("worker.step_failed", step="the rest of a tick")
        async with self._lock:
            shards = self.ownership.locked
            await self._close()
        if after_end is not None:
            await after_end(shards)

    async def _close(self) -> None:
        try:
            await self.session.close()
        finally:
            await self.ownership.release()
