"""Ticks and drives: due work for a short time, where no worker runs.

A tick runs on request and does all due work. A drive runs within the request of a submission or a
callback and does the work that the request made due: a platform may stop the process afterwards.
Both need the right to work, and do nothing while another process has it.
"""

import asyncio
import math
from collections.abc import Collection
from typing import Literal

import msgspec

from service.context import wait_for
from service.model.errors import StorageError
from service.right import Right
from service.rounds import Rounds
from service.store.shards import ALL, NONE
from service.telemetry import log

_log = log.get()
HEARD_SECONDS = 0.1  # After a commit, until the holder of its shards has the notification.
REPEAT_SECONDS = 10.0  # A tick that begins within this time after one that said `more` repeats it.


class WorkCounts(msgspec.Struct):
    """How many rows a tick worked on; `more` if rows are still due, or may be."""

    submitted: int = 0
    polled: int = 0
    attempted: int = 0
    replayed: int = 0
    deleted: int = 0
    more: bool = False


def _sum(first: WorkCounts, last: WorkCounts) -> WorkCounts:
    """Return what both have done, and what the last one has left."""
    before, counts = msgspec.structs.asdict(first), msgspec.structs.asdict(last)
    return WorkCounts(**{n: v if n == "more" else v + before[n] for n, v in counts.items()})


class Ticks:
    """The ticks and the drives of one process, one at a time."""

    def __init__(self, right: Right) -> None:
        self._right = right
        self.is_ticking = False
        # Of ticks that repeat each other: the submissions left of those before the first one, and
        # when the last one said `more`.
        self._awaited: set[str] = set()
        self._said_more_at = -math.inf
        self._driving: asyncio.Task[None] | None = None
        self._drive_ends_at = 0.0
        self._shards: set[int] = set()  # Of the requests that the drive works for.
        self._may_try_again = False  # Whether the drive, once refused, is to try once more.
        self._requested = asyncio.Event()  # Set: requests wait for the next turn.
        # Set at the end of the turn that takes up the requests that wait now.
        self._turn_ended = asyncio.Event()
        settings = right.context.settings
        self._drive_seconds = settings.drive_seconds if settings.worker == "off" else 0.0
        self._may_go_on = False  # Whether a drive may follow beyond the time of its request.
        self._held = NONE  # The shards of the last turn of a drive, when it ended.

    @property
    def driving(self) -> list[asyncio.Task[None]]:
        """The drive under way, or the last one."""
        return [] if self._driving is None else [self._driving]

    @property
    def under_way(self) -> list[asyncio.Task[None]]:
        """The tasks that a stop waits for."""
        ending = self._right.ending
        return self.driving if ending is None else [*self.driving, ending]

    async def tick(self, seconds: float) -> WorkCounts:
        """Do due work for `seconds` or until a stop; none while another tick or process works.

        Then wait for the submissions that were under way before, and work once more: their answers
        may be unstored, and nothing stores them while a platform has frozen the process. The right
        to work is not held meanwhile. A busy process always has some under way: where the time is
        up, `more` is for those before the first of the ticks that repeat each other.
        """
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + seconds
        ids: set[str] = set() if self._right.has_loops else {*self._right.submitter.in_flight}
        repeats = loop.time() <= self._said_more_at + REPEAT_SECONDS
        awaited = self._awaited & ids if repeats else ids
        done = await self._work(ends_at)
        if ids:
            done = await self._work_again(done, ids, awaited, ends_at)
        done.more |= self._right.context.database.is_retrying
        self._awaited = awaited
        self._said_more_at = loop.time() if done.more else -math.inf
        return done

    async def _work_again(
        self, done: WorkCounts, ids: Collection[str], awaited: Collection[str], ends_at: float
    ) -> WorkCounts:
        """Wait for the submissions, then work once more if there is time; return what both did."""
        try:
            if await self._settle(ids, ends_at):
                both = _sum(done, await self._work(ends_at))
                is_cut = not awaited and asyncio.get_running_loop().time() >= ends_at
                # What came with later submissions is left to the next tick.
                return msgspec.structs.replace(both, more=done.more) if is_cut else both
        except StorageError:  # What the tick has done is counted all the same.
            return msgspec.structs.replace(done, more=True)
        return msgspec.structs.replace(done, more=done.more or bool(awaited))

    async def _settle(self, ids: Collection[str], ends_at: float) -> bool:
        """Wait for these submissions; return whether they have ended before `ends_at`."""
        settling = asyncio.create_task(
            self._right.submitter.settle(ids), name="submissions of a tick"
        )
        try:
            await self._right.wait(settling, ends_at)
            return settling.done() and asyncio.get_running_loop().time() < ends_at
        finally:
            settling.cancel()

    async def _work(self, ends_at: float) -> WorkCounts:
        """Do due work. What is under way by the end goes on; after it the session ends."""
        if self.is_ticking:
            return WorkCounts(more=True)
        self.is_ticking = True
        try:
            return await self._run_rounds(ends_at)
        finally:
            self.is_ticking = False

    async def _run_rounds(self, ends_at: float) -> WorkCounts:
        async with self._right.hold(lambda: ALL, self._look_again) as session:
            if session is None:
                return WorkCounts(more=True)
            self._may_go_on = True
            session.begin_tick()
            rounds = Rounds(self._right, session, is_tick=True)
            try:
                has_time = True
                while has_time:
                    turn_ended = await self._take_up()
                    try:
                        waiting = asyncio.Event() if turn_ended is None else self._requested
                        more = await rounds.run(ends_at, waiting)
                    finally:
                        if turn_ended is not None:
                            turn_ended.set()
                    # Requests that came meanwhile share its next turn.
                    has_time = waiting.is_set() and not rounds.is_over(ends_at)
                await self._right.submitter.forget_placed()
                # Some may be left that found no place, or that are in shards of others.
                more = more or await self._right.submitter.has_due() or self._lacks_shards()
            finally:
                counts = session.end_tick()
                held = self._right.ownership.locked
        if not more and not self._right.ownership.is_held:  # Else the rest of it looks.
            try:
                more = await self._right.others_committed(held)
            except StorageError:  # What the tick has done is counted all the same.
                more = True
        return WorkCounts(**counts, more=more)

    def _lacks_shards(self) -> bool:
        """Return whether a tick does not see all due work; beside loops, the workers see it."""
        return not self._right.has_loops and self._right.ownership.shards != ALL

    async def _take_up(self) -> asyncio.Event | None:
        """Let a tick work for the requests that wait now; return the event to set after its turn.

        None if other processes hold shards of theirs: a drive tries again after the tick.
        """
        if missing := self._shards - self._right.ownership.shards:
            await self._right.ownership.acquire(missing)
        if not self._shards <= self._right.ownership.shards:
            return None
        self._shards.clear()
        return self._begin_turn()

    async def drive(self, shard: int) -> None:
        """Do the due work of a shard; return after its turn, when its time is up, or at a stop.

        Requests that come during a turn share the next one. Nothing is raised.
        """
        if not self._drive_seconds or self._right.stopping.is_set():
            return
        self._drive_ends_at = asyncio.get_running_loop().time() + self._drive_seconds
        self._may_go_on = True
        turn_ended = self._turn_ended
        self._request({shard})
        await wait_for(turn_ended, self._drive_seconds)

    def _request(self, shards: Collection[int]) -> None:
        """Have a turn follow that works on these shards, by a tick or the drive under way."""
        self._may_try_again = True
        self._shards.update(shards)
        self._requested.set()
        if self._driving is None or self._driving.done():
            self._driving = asyncio.create_task(self._drive(), name="drive")

    async def _look_again(self, held: Collection[int]) -> None:
        """After a turn, or after requests that outlived one: drive if others have committed.

        Whoever was refused these shards meanwhile had committed before. Beyond its time, a request
        or a tick is followed by one drive: else the commits of others keep a process at work.
        """
        now = asyncio.get_running_loop().time()
        has_time = now < self._drive_ends_at
        # While it holds shards, requests are under way: it looks once they have ended.
        may_go_on = self._may_go_on and not self._right.ownership.is_held
        if not self._drive_seconds or self._right.stopping.is_set() or not (has_time or may_go_on):
            return
        try:
            is_wanted = await self._right.others_committed(held)
        except StorageError as problem:  # The rows stay due for the next request or tick.
            _log.warning("drive.failed", error=repr(problem))
            return
        if is_wanted:
            if not has_time:
                self._may_go_on, self._drive_ends_at = False, now + self._drive_seconds
            self._request(held)

    async def _drive(self) -> None:
        """Take turns while requests wait for one, or other processes commit without working.

        A process that finds the right to work taken gives up. So the process that had it looks for
        commits once more after it has released the right. On PostgreSQL it may release the right
        before it is notified, so the process that gave up tries once more after HEARD_SECONDS:
        once for the latest of its requests.
        """
        try:
            while self._requested.is_set() and not self._right.stopping.is_set():
                outcome = await self._drive_once()
                if outcome in ("worked", "missing"):
                    await self._look_again(self._held)
                is_refused = outcome in ("missing", "refused")
                if is_refused and self._may_try_again and not self._requested.is_set():
                    self._may_try_again = False
                    await wait_for(self._requested, HEARD_SECONDS)  # Or until another comes.
                    self._requested.set()
        except Exception as error:  # noqa: BLE001  the request is stored, and its rows stay due
            _log.warning("drive.failed", error=repr(error))
        finally:
            self._turn_ended.set()
            self._turn_ended = asyncio.Event()
            self._requested.clear()
            self._shards.clear()

    def _begin_turn(self) -> asyncio.Event:
        """Take up the requests that wait now; return the event to set at the end of their turn."""
        turn_ended, self._turn_ended = self._turn_ended, asyncio.Event()
        self._requested.clear()
        return turn_ended

    async def _drive_once(self) -> Literal["worked", "missing", "refused", "served"]:
        """Take a turn; "missing": others hold shards that it needs; "served": a tick has worked."""
        turn_ended = self._turn_ended
        try:
            async with self._right.hold(self._wanted_shards, self._look_again) as session:
                if not self._requested.is_set():
                    return "served"
                turn_ended = self._begin_turn()
                if session is None:
                    return "refused"
                before, more, rounds = NONE, False, Rounds(self._right, session, is_tick=False)
                while not more:
                    if missing := self._missing_shards():
                        await self._right.ownership.acquire(missing)
                    if (held := self._right.ownership.shards) == before:
                        break  # Rows of shards that were added want another run.
                    before = held
                    more = await rounds.run(self._drive_ends_at, self._requested)
                self._held = self._right.ownership.locked
                await self._right.submitter.forget_placed()
                return "missing" if self._missing_shards() else "worked"
        finally:
            turn_ended.set()  # A platform may stop the process once its requests are answered.

    def _wanted_shards(self) -> set[int] | None:
        """Return the shards to take; None once a tick has worked for all requests."""
        return self._missing_shards() if self._requested.is_set() else None

    def _missing_shards(self) -> set[int]:
        """Return the shards that the drive needs and does not hold."""
        self._shards |= self._right.context.missed_shards
        self._right.context.missed_shards.clear()
        return self._shards - self._right.ownership.shards
