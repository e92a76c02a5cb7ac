"""Rounds of due work, of a tick or of a drive: each runs every step once."""

import asyncio
from collections.abc import Iterable, Sequence

from service.delivery.loading import held_up_until
from service.model.clock import SECOND
from service.model.errors import StorageError
from service.right import Right
from service.session import Session, Step, log_failure

# How long a tick waits for what is held up, as long as it sends attempts.
HELD_UP_SECONDS_MAX = 1.0
# What is held up for longer, as by a rest of a day, is like a retry: a tick that comes then finds
# it.
SOON_SECONDS = 60.0
LOOK_SECONDS = 5.0  # Between two looks at all lanes. In between, commits are handed over.
ROUND_SECONDS = 0.1  # Between two looks at the due rows, while requests are under way.


class Rounds:
    """The rounds of one tick or of one turn of a drive, in a session of the right to work."""

    def __init__(self, right: Right, session: Session, *, is_tick: bool) -> None:
        self._right = right
        self._session = session
        self._is_tick = is_tick
        self._steps = session.tick_steps if is_tick else session.drive_steps
        self._look_at = 0.0  # When to look at the rows of all lanes, by the loop's clock.
        self._failed: set[Step] = set()
        signals = right.context.signals
        self._ends = (signals.submit, signals.poll)

    async def run(self, ends_at: float, requested: asyncio.Event) -> bool:
        """Repeat every step until no row is due, time is up, or requests wait for the next turn.

        Return whether rows are due. A step that fails is left out from then on: requests that come
        later begin the next run.

        After a tick has waited, rows of others may be due: it looks for commits. A drive does so
        after its turn.
        """
        loop, session, attempted = asyncio.get_running_loop(), self._session, -1
        self._failed.clear()
        self._look_at = loop.time()  # The session may be that of an earlier tick.
        while True:
            try:
                is_due, is_settled, held_up_seconds = await self._run_steps(ends_at, requested)
            except TimeoutError:
                return True
            if self._is_tick and await self._right.others_committed(self._right.ownership.locked):
                is_due, self._look_at = True, loop.time()
            more = is_due or bool(self._failed) or held_up_seconds is not None
            if requested.is_set() or self.is_over(ends_at):
                # What is left under way may make rows due, and polls may wait for the rate.
                return more or not is_settled or session.debt_seconds() > 0
            if not is_due and is_settled:
                attempted, before = session.dispatcher.attempted, attempted
                seconds = session.debt_seconds()
                if held_up_seconds is not None and attempted > before:
                    seconds = max(seconds, min(held_up_seconds, HELD_UP_SECONDS_MAX))
                if not seconds:
                    return more
                await self._right.wait(None, min(ends_at, loop.time() + seconds), requested)
                if self.is_over(ends_at):
                    return True  # What it has waited for.

    def is_over(self, ends_at: float) -> bool:
        """Return whether the time is up, or the process stops."""
        return asyncio.get_running_loop().time() >= ends_at or self._right.stopping.is_set()

    def _held_up_seconds(self) -> float | None:
        """Return for how long something is held up, as by a rate; None if nothing leaves soon."""
        now, dispatcher = self._right.context.clock(), self._session.dispatcher
        lanes_until = held_up_until(dispatcher.lanes.values(), now)
        if lanes_until is not None and lanes_until - now > SOON_SECONDS * SECOND:
            lanes_until = None
        times = (lanes_until, dispatcher.unrecorded.retry_at, self._right.poller.retry_at)
        until = min((at for at in times if at is not None), default=None)
        return None if until is None else max(until - now, 0) / SECOND

    async def _run_steps(
        self, ends_at: float, requested: asyncio.Event
    ) -> tuple[bool, bool, float | None]:
        """Run every step that has not failed; wait until its requests end, or more rows are due.

        So a receiver that hangs holds up no other work. Return whether rows are due, whether those
        requests have ended, and for how long something is held up. TimeoutError if a step does not
        end in time.
        """
        now = self._right.context.clock()
        due_times: list[int | None] = []
        if (began_at := asyncio.get_running_loop().time()) >= self._look_at:
            due_times.append(await self._try_step(self._session.look, now, ends_at))
            self._look_at = began_at + LOOK_SECONDS
        else:
            await self._try_step(self._session.follow_changes, now, ends_at)
        if not self._right.has_loops:  # Else the loops clear them.
            for signal in self._ends:
                signal.clear()
        due_times += [
            await self._try_step(step, now, ends_at)
            for step in self._steps
            if step not in self._failed
        ]
        is_settled = await self._settle(due_times, ends_at, requested)
        # Only a tick waits for what is held up: a client waits for a drive. It is read before what
        # is due: what stops being held up in between then counts as due.
        held_up_seconds = self._held_up_seconds() if self._is_tick else None
        is_due = self._is_due(due_times) or bool(self._right.submitter.from_rows)
        return is_due, is_settled, held_up_seconds

    async def _try_step(self, step: Step, now: int, ends_at: float) -> int | None:
        """Run one step; if it fails, it is left out from then on, and the others go on."""
        try:
            return await self._run_step(step, now, ends_at)
        except (TimeoutError, StorageError):
            raise
        except Exception as error:  # noqa: BLE001  one step must not end the others
            log_failure(step, error, 1)
            self._failed.add(step)
            return None

    async def _settle(
        self, due_times: Sequence[int | None], ends_at: float, requested: asyncio.Event
    ) -> bool:
        """Wait until the requests under way have ended; return whether they have.

        The wait ends with the time, at requests that wait for the next turn, and once rows are due,
        at which it looks every ROUND_SECONDS.
        """
        loop = asyncio.get_running_loop()
        settling = asyncio.create_task(self._right.settle(), name="settling of a tick")
        try:
            while True:
                look_at = min(ends_at, loop.time() + ROUND_SECONDS)
                await self._right.wait(settling, look_at, requested)
                is_over = requested.is_set() or self.is_over(ends_at)
                if settling.done() or is_over or self._is_due(due_times):
                    return settling.done()
        finally:
            settling.cancel()

    def _is_due(self, due_times: Iterable[int | None]) -> bool:
        """Return whether rows are due by now; `due_times` are those that the steps have returned.

        A poll or a submission that has ended since may have left its place to another one.
        """
        times = [*due_times]
        if not self._failed:  # Else it may be the dispatcher's step, which takes the timers.
            times.append(self._session.dispatcher.timers.next_at)  # Some were set meanwhile.
        now = self._right.context.clock()
        has_ended = not self._right.has_loops and any(signal.is_set() for signal in self._ends)
        return has_ended or any(at is not None and at <= now for at in times)

    async def _run_step(self, step: Step, now: int, ends_at: float) -> int | None:
        """Run one step. At `ends_at` or a stop raise TimeoutError; the step goes on alone.

        It is not cancelled: a submission that is cancelled in flight is lost.
        """
        if self._right.stopping.is_set():
            raise TimeoutError
        task = asyncio.create_task(step(now), name="step of a tick")
        self._right.steps_under_way.add(task)
        task.add_done_callback(self._drop_step)
        await self._right.wait(task, ends_at)
        if not task.done():
            raise TimeoutError
        return task.result()

    def _drop_step(self, task: asyncio.Task[int | None]) -> None:
        self._right.steps_under_way.discard(task)
        if not task.cancelled():
            task.exception()  # Retrieved, or asyncio would log it.
