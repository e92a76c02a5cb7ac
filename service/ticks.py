"""Ticks and drives: due work for a short time, where no worker runs.

A tick runs on request and does all due work. A drive runs within the request of a submission or a
callback and does the work that the request made due: a platform may stop the process afterwards.
Both need the right to work, and do nothing while another process has it.
"""

import asyncio
from collections.abc import Collection, Iterable
from typing import Any, Protocol

from service.context import Context, wait_for
from service.delivery.lanes import held_up_until
from service.generations.poll import Poller
from service.generations.submit import Submitter
from service.model.clock import SECOND
from service.model.errors import StorageError
from service.session import Session, Step, WorkCounts, log_failure
from service.store.database import Ownership
from service.store.shards import ALL, NONE
from service.telemetry import log

_log = log.get()
RECORD_AGAIN_SECONDS = 1.0  # After results of attempts could not be stored.
# How long a tick waits for deliveries that a rate holds up, as long as it sends attempts.
HELD_UP_SECONDS_MAX = 1.0
ROUND_SECONDS = 0.1  # Between two looks at the due rows, while requests are under way.
HEARD_SECONDS = 0.1  # After a commit, until the holder of its shards has the notification.


class Holder(Protocol):
    """The worker of this process, as far as ticks use it."""

    context: Context
    ownership: Ownership
    submitter: Submitter
    poller: Poller
    session: Session
    stopping: asyncio.Event

    def begin_session(self) -> None:
        """Replace the session, which is over, by a new one."""

    async def end_session(self) -> None:
        """Throw the session away, then let other processes work."""

    async def settle(self) -> None:
        """Wait for all submissions, polls and attempts under way."""


class Ticks:
    """The ticks and the drives of one process, one at a time."""

    def __init__(self, holder: Holder) -> None:
        self._holder = holder
        self._lock = asyncio.Lock()
        self._is_ticking = False
        self.late_steps: set[asyncio.Task[int | None]] = set()  # They outlived their tick.
        self._ending: asyncio.Task[None] | None = None  # Ends the session of the last tick.
        self._driving: asyncio.Task[None] | None = None
        self._drive_ends_at = 0.0
        self._shards: set[int] = set()  # Of the requests that the drive works for.
        self._requested = asyncio.Event()  # Set: requests wait for the next turn.
        self._turn_ended = asyncio.Event()  # Set by the next turn.

    @property
    def under_way(self) -> tuple[asyncio.Task[None] | None, ...]:
        """The tasks that a stop waits for."""
        return self._driving, self._ending

    async def tick(self, seconds: float) -> WorkCounts:
        """Do due work for `seconds` or until a stop; none while another tick or process works.

        Requests that are under way by then go on without the caller; after them the session ends.
        """
        if self._is_ticking:
            return WorkCounts(more=True)
        self._is_ticking = True
        try:
            async with self._lock:
                return await self._tick(asyncio.get_running_loop().time() + seconds)
        finally:
            self._is_ticking = False

    async def _tick(self, ends_at: float) -> WorkCounts:
        is_guest = self._holder.ownership.is_held and self._ending is None
        if not (is_guest or await self._take_over(ALL)):
            return WorkCounts(more=True)
        session = self._holder.session
        session.begin_tick()
        try:
            more = await self._work_until(ends_at, [step for step, _ in session.steps])
        finally:
            counts = session.end_tick()
            if not is_guest:
                await self._end()
        return WorkCounts(**counts, more=more)

    async def drive(self, seconds: float, shard: int) -> None:
        """Do the due work of a shard; return after its turn, after `seconds`, or at a stop.

        Requests that come during a turn share the next one. Nothing is raised.
        """
        if seconds <= 0 or self._holder.stopping.is_set():
            return
        self._drive_ends_at = asyncio.get_running_loop().time() + seconds
        self._shards.add(shard)
        self._requested.set()
        turn_ended = self._turn_ended
        if self._driving is None or self._driving.done():
            self._driving = asyncio.create_task(self._drive(), name="drive")
        await wait_for(turn_ended, seconds)

    async def _drive(self) -> None:
        """Take turns while requests wait for one, or other processes commit without working.

        A process that finds the right to work taken gives up. So the process that had it looks for
        commits once more after it has released the right. On PostgreSQL it may release the right
        before it is notified, so the process that gave up tries once more after HEARD_SECONDS.
        """
        loop, ownership, is_wanted = asyncio.get_running_loop(), self._holder.ownership, True
        turn_ended, may_try_again = self._turn_ended, True
        try:
            while is_wanted and not self._holder.stopping.is_set():
                async with self._lock:
                    turn_ended, self._turn_ended = self._turn_ended, asyncio.Event()
                    self._requested.clear()
                    has_worked, is_refused = await self._drive_once()
                turn_ended.set()
                has_time = has_worked and loop.time() < self._drive_ends_at
                others_wait = has_time and await ownership.other_process_committed()
                is_wanted = others_wait or self._requested.is_set()
                if is_refused and may_try_again and not is_wanted:
                    may_try_again, is_wanted = False, True
                    await wait_for(self._holder.stopping, HEARD_SECONDS)
        except Exception as error:  # noqa: BLE001  the request is stored, and its rows stay due
            _log.warning("drive.failed", error=repr(error))
        finally:
            turn_ended.set()
            self._turn_ended.set()
            self._turn_ended = asyncio.Event()
            self._shards.clear()

    async def _drive_once(self) -> tuple[bool, bool]:
        """Take a turn. Return whether it worked, and whether others hold shards that it needs."""
        if not await self._take_over(self._missing_shards()):
            return False, True
        ownership = self._holder.ownership
        try:
            await ownership.other_process_committed()  # Later commits count.
            held = NONE
            while held != (held := ownership.shards):  # Its work may make rows of others due.
                steps = self._holder.session.drive_steps
                more = await self._work_until(self._drive_ends_at, [*steps], self._requested)
                if not more and (missing := self._missing_shards()):
                    await ownership.acquire(missing)
            return True, bool(self._missing_shards())
        finally:
            await self._end()  # A next turn goes on in this session, unless all has ended.

    def _missing_shards(self) -> set[int]:
        """Return the shards that the drive needs and does not hold."""
        self._shards |= self._holder.context.elsewhere
        self._holder.context.elsewhere.clear()
        return self._shards - self._holder.ownership.shards

    async def _take_over(self, shards: Collection[int]) -> bool:
        """Take free shards, and the last tick's session if it is open; False if none is free."""
        holder = self._holder
        if self._ending is not None and self._ending.cancel():
            await asyncio.wait([self._ending])
        self._ending = None
        was_held = holder.ownership.is_held
        if not await holder.ownership.acquire(shards):
            return False
        if not was_held:
            holder.poller.is_in_turn = self._is_in_turn
            await holder.session.close()  # A session that lost its right is still open.
            holder.begin_session()
            if self._is_in_turn:
                holder.poller.budget.begin_turn(holder.context.clock())
        holder.session.resume()
        return True

    @property
    def _is_in_turn(self) -> bool:
        """Whether processes take turns, without knowing of each other's polls."""
        return self._holder.context.settings.worker == "off"

    def _debt_seconds(self) -> float:
        """Return for how long to keep the right to work, so that all turns keep the poll rate."""
        if not self._is_in_turn:
            return 0.0
        return self._holder.poller.budget.debt_seconds(self._holder.context.clock())

    async def _end(self) -> None:
        """End the session of a tick, now or once the requests under way have ended."""
        holder = self._holder
        holder.session.pause()
        in_flight = (*holder.submitter.in_flight, *holder.poller.in_flight, *self.late_steps)
        is_settled = holder.session.dispatcher.is_settled and not in_flight
        if is_settled and not self._debt_seconds():
            await holder.end_session()
        else:
            self._ending = asyncio.create_task(self._finish(), name="rest of a tick")

    async def _finish(self) -> None:
        holder = self._holder
        stopping, dispatcher = holder.stopping, holder.session.dispatcher
        try:
            if self.late_steps:
                await asyncio.wait(self.late_steps)
            await holder.settle()
            while not (dispatcher.is_settled or stopping.is_set()):
                await wait_for(stopping, RECORD_AGAIN_SECONDS)  # The disk failed.
                await dispatcher.run_due(holder.context.clock())
                await holder.settle()
            await wait_for(stopping, self._debt_seconds())
        except asyncio.CancelledError:
            if not stopping.is_set():
                raise  # The next tick goes on in this session.
        except Exception:  # noqa: BLE001  the rows are still due, and another process may work
            _log.exception("worker.step_failed", step="the rest of a tick")
        await holder.end_session()

    async def _work_until(
        self, ends_at: float, steps: list[Step], interrupt: asyncio.Event | None = None
    ) -> bool:
        """Repeat every step until no row is due, time is up, or `interrupt` is set.

        Return whether rows are due. A step that fails is left out from then on.
        """
        loop, holder = asyncio.get_running_loop(), self._holder
        # Look at the rows first: the session may be that of an earlier tick.
        steps, count = [holder.session.look, *steps], len(steps) + 1
        attempted = -1
        while True:
            try:
                is_due, is_settled = await self._run_steps(steps, ends_at, interrupt)
            except TimeoutError:
                return True
            # A drive does not wait for it: a client waits for the drive, and a tick comes later.
            held_up_seconds = self._held_up_seconds() if interrupt is None else None
            more = is_due or len(steps) < count or held_up_seconds is not None
            is_over = loop.time() >= ends_at or holder.stopping.is_set()
            if is_over or (interrupt is not None and interrupt.is_set()):
                # What a tick leaves under way may need another one.
                return more or (interrupt is None and not is_settled)
            if not is_due and is_settled:
                attempted, before = holder.session.dispatcher.attempted, attempted
                seconds = self._debt_seconds()
                if held_up_seconds is not None and attempted > before:
                    seconds = max(seconds, min(held_up_seconds, HELD_UP_SECONDS_MAX))
                if not seconds:
                    return more
                await self._wait(None, min(ends_at, loop.time() + seconds), interrupt)

    def _held_up_seconds(self) -> float | None:
        """Return for how long a rate or a rest holds up due deliveries; None if none does."""
        now = self._holder.context.clock()
        until = held_up_until(self._holder.session.dispatcher.lanes.values(), now)
        return None if until is None else (until - now) / SECOND

    async def _run_steps(
        self, steps: list[Step], ends_at: float, interrupt: asyncio.Event | None
    ) -> tuple[bool, bool]:
        """Run every step once; wait until the requests that it starts end, or more rows are due.

        So a receiver that hangs holds up no other work. Return whether rows are due, and whether
        those requests have ended. TimeoutError if a step does not end in time.
        """
        holder, clock = self._holder, self._holder.context.clock
        now = clock()
        due_times: list[int | None] = []
        for step in [*steps]:
            try:
                due_times.append(await self._run_step(step, now, ends_at))
            except (TimeoutError, StorageError):
                raise
            except Exception as error:  # noqa: BLE001  one step must not end the others
                log_failure(step, error, 1)
                steps.remove(step)
        settling = asyncio.create_task(self._settle(), name="settling of a tick")
        await self._wait(settling, self._round_ends_at(due_times, ends_at), interrupt)
        is_settled = settling.done()
        settling.cancel()
        is_due = any(at is not None and at <= clock() for at in due_times)
        return is_due or bool(holder.submitter.repeated), is_settled

    def _round_ends_at(self, due_times: Iterable[int | None], ends_at: float) -> float:
        """Return until when to wait for requests: until rows are due, in ROUND_SECONDS or later."""
        next_at = min((at for at in due_times if at is not None), default=None)
        if next_at is None:
            return ends_at
        seconds = max((next_at - self._holder.context.clock()) / SECOND, ROUND_SECONDS)
        return min(ends_at, asyncio.get_running_loop().time() + seconds)

    async def _settle(self) -> None:
        """Wait for the submissions, polls and attempts that a tick started."""
        await self._holder.submitter.settle_repeated()
        await self._holder.poller.settle()
        await self._holder.session.dispatcher.settle()

    async def _wait(
        self, task: asyncio.Task[Any] | None, ends_at: float, interrupt: asyncio.Event | None = None
    ) -> None:
        """Wait for a task or `ends_at`, for a stop, or until `interrupt` is set."""
        seconds = max(ends_at - asyncio.get_running_loop().time(), 0)
        signals = (self._holder.stopping, interrupt)
        ends = [asyncio.create_task(signal.wait()) for signal in signals if signal is not None]
        waited = ends if task is None else [task, *ends]
        await asyncio.wait(waited, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            end.cancel()

    async def _run_step(self, step: Step, now: int, ends_at: float) -> int | None:
        """Run one step. At `ends_at` or a stop raise TimeoutError; the step goes on alone.

        It is not cancelled: a submission that is cancelled in flight is lost.
        """
        if self._holder.stopping.is_set():
            raise TimeoutError
        task = asyncio.create_task(step(now), name="step of a tick")
        self.late_steps.add(task)
        task.add_done_callback(self._drop_step)
        await self._wait(task, ends_at)
        if not task.done():
            raise TimeoutError
        return task.result()

    def _drop_step(self, task: asyncio.Task[int | None]) -> None:
        self.late_steps.discard(task)
        if not task.cancelled():
            task.exception()  # Retrieved, or asyncio would log it.
