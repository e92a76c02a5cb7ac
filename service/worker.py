"""The worker: the loops that do due work, in a process that holds shards (on SQLite: all or none).

Processes that hold none stand by, and take over within a second of a worker's death.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from service.context import Context, wait_for
from service.delivery.dispatch import Dispatcher
from service.delivery.target import Sender
from service.generations.poll import Poller
from service.generations.submit import Submitter
from service.model.clock import SECOND
from service.model.errors import OtherRoleError, StorageError
from service.right import Right
from service.session import Session, Step, log_failure
from service.store.database import Ownership
from service.store.shards import shard_of
from service.telemetry import log
from service.ticks import Ticks, WorkCounts

_log = log.get()
STANDBY_SECONDS = 1.0
BEGIN_SECONDS = 10.0  # Of tries that fail, until a process counts as one that cannot work.
SLEEP_SECONDS_MAX = 30.0
RECORD_SECONDS = 1.0  # For requests that a stop cancels, to record that.


class Worker:
    """The loops of one process. They run while it holds the right to work on the database.

    `right` has the memory that ends with it. Submitter and poller belong to the process, whose
    clients use them too: they hold the requests under way and the budget of polls.
    """

    def __init__(self, context: Context, ownership: Ownership, sender: Sender) -> None:
        self.context = context
        self.ownership = ownership
        self.sender = sender
        self.submitter = Submitter(context)
        self.poller = Poller(context, self.submitter.budget, self.submitter.in_flight)
        self.task: asyncio.Task[None] | None = None
        self._was_able = False  # Whether the loops have begun once, or stood by.
        # Since when each try to begin has failed or waits, by the loop's clock; and the last error.
        self._trying_since: float | None = None
        self._failure: str | None = None
        self.stopping = asyncio.Event()
        self.right = Right(context, ownership, sender, self.submitter, self.poller, self.stopping)
        self.ticks = Ticks(self.right)

    @property
    def session(self) -> Session:
        """The session of the loops or the last tick; before the first one it is closed."""
        return self.right.session

    @property
    def dispatcher(self) -> Dispatcher:
        """The dispatcher of the session; before the first and after the last one it is closed."""
        return self.session.dispatcher

    @property
    def is_off(self) -> bool:
        """True if the loops were not started."""
        return self.task is None

    @property
    def problem(self) -> str | None:
        """Why the loops that were started do not run, as a sentence; None if they do.

        None as well while others hold all shards, or while the loops wait for a tick's end.
        """
        if self.task is not None and self.task.done():
            return "The worker has stopped."
        if self._trying_since is None or (self._was_able and self.ticks.is_ticking):
            return None
        seconds = asyncio.get_running_loop().time() - self._trying_since
        # One that has failed since the start may never be able to.
        if seconds < BEGIN_SECONDS and (self._was_able or self._failure is None):
            return None
        failure = self._failure or "the database does not answer"
        return f"The worker has not begun to work for {seconds:.0f} seconds: {failure}."

    @property
    def has_failed(self) -> bool:
        """True if an error has ended the loops."""
        task = self.task
        return bool(task and task.done() and not task.cancelled() and task.exception())

    def start(self) -> None:
        """Run the loops in a new task; if one fails, the task ends with its error."""
        self.task = asyncio.create_task(self.run(), name="worker")

    def when_ended(self, do: Callable[[], object]) -> None:
        """Call `do` once the loops have ended, if they were started."""
        if self.task is not None:
            self.task.add_done_callback(lambda _task: do())

    def stop(self) -> None:
        """Start no more work; `run` returns once requests under way have ended."""
        self.stopping.set()
        self.session.pause()
        self.session.end_loops()

    async def finish(self, ends_at: float) -> None:
        """After `stop`: wait for work under way until `ends_at` of the loop's clock, then end it.

        The rows of cancelled work are due after a restart, as after a crash.
        """
        # A task that was cancelled before it began could not record that nothing was sent.
        late = await wait_for_all(self.under_way, ends_at)
        if late:
            _log.warning("worker.stopped_late", ended=[task.get_name() for task in late[:10]])
        for task in late:
            task.cancel()
        if late:  # They record submissions that were not sent, unless the disk hangs.
            await asyncio.wait(late, timeout=RECORD_SECONDS)

    def under_way(self) -> set[asyncio.Task[Any]]:
        """Return the tasks that a stop waits for, requests of clients who hung up included."""
        requests = (*self.submitter.in_flight.values(), *self.poller.in_flight.values())
        loops = () if self.task is None else (self.task,)
        return {*loops, *self.ticks.under_way, *self.right.steps_under_way, *requests}

    def submitting(self) -> set[asyncio.Task[Any]]:
        """Return the submissions under way, and what may begin one: a drive, and its steps."""
        return {
            *self.ticks.driving,
            *self.right.steps_under_way,
            *self.submitter.in_flight.values(),
        }

    async def run(self) -> None:
        """Work while this process has the right to, until `stop`; then await the requests."""
        try:
            while not self.stopping.is_set():
                if await self._stand_by():
                    _log.info("worker.started")
                    async with asyncio.TaskGroup() as group:
                        for step, signal in self.session.loops:
                            group.create_task(self._loop(step, signal))
                if not self.stopping.is_set():
                    _log.error("worker.lost_its_right")
                    await self.end_session()
            await self.right.finish()
            # Who takes over asks about submissions at once: their process has ended by then.
            await self.submitter.settle()
        except Exception:
            _log.exception("worker.failed")
            raise
        finally:
            await self.end_session()
            _log.info("worker.stopped")

    async def _stand_by(self) -> bool:
        """Wait for the right to work; False at a stop. Log each failure, and try again."""
        has_waited = False
        while not self.stopping.is_set():
            try:
                if await self._take_over():
                    if has_waited:
                        _log.info("worker.took_over")
                    return True
                if not has_waited:
                    _log.info("worker.standing_by")
                has_waited = True
            except StorageError as error:
                self._failure = str(error)
                _log.error("worker.storage_failed", error=str(error))
                if isinstance(error, OtherRoleError):
                    self._note_able()
            except Exception:  # noqa: BLE001  it must not end the process, which serves clients
                self._failure = "an error of genhook, which the log has as worker.not_started"
                _log.exception("worker.not_started")
            await _sleep(self.stopping, STANDBY_SECONDS)
        return False

    async def _take_over(self) -> bool:
        """Try to become a worker; False while other processes hold every shard."""
        is_begun = await self.right.begin_loops(self._note_try)
        if is_begun:
            try:
                await self.poller.take_over(self.context.clock())
            except BaseException:
                await self.end_session()
                raise
        self._note_able()
        return is_begun

    def _note_try(self) -> None:
        if self._trying_since is None:
            self._trying_since = asyncio.get_running_loop().time()

    def _note_able(self) -> None:
        self._was_able, self._trying_since, self._failure = True, None, None

    async def end_session(self) -> None:
        """Throw the session of the loops away, then let other processes work."""
        await self.right.end_loops()

    async def _loop(self, step: Step, signal: asyncio.Event) -> None:
        """Repeat a step when it is due or signalled. After a failure, log it and back off."""
        failures = 0
        while self.ownership.is_held and not self.stopping.is_set():
            signal.clear()
            try:
                next_at = await step(self.context.clock())
            except Exception as error:  # noqa: BLE001  one step must not end the others
                failures += 1
                seconds = log_failure(step, error, failures)
                # It waits for no signal, which would repeat a step that fails at once.
                await _sleep(self.session.loops_ending, seconds)
                continue
            failures, seconds = 0, SLEEP_SECONDS_MAX
            if next_at is not None:
                seconds = min(max(next_at - self.context.clock(), 0) / SECOND, seconds)
            if not self.stopping.is_set():
                await _sleep(signal, seconds)
        self.session.end_loops()  # Of all loops, `watch` notices first that the right is lost.

    async def tick(self, seconds: float) -> WorkCounts:
        """Do due work for `seconds` or until `stop`; none while another tick or process works."""
        return await self.ticks.tick(seconds)

    async def drive(self, generation_id: str) -> None:
        """With GENHOOK_WORKER=off, do the work that the request of a generation made due."""
        may_work = self.ownership.refusal is None  # Else a process that may was notified.
        if self.is_off and may_work:
            await self.ticks.drive(shard_of(generation_id))


async def wait_for_all(
    under_way: Callable[[], set[asyncio.Task[Any]]], ends_at: float
) -> list[asyncio.Task[Any]]:
    """Wait until `ends_at` of the loop's clock for what is under way; return what has not ended.

    Again for the tasks that began meanwhile: a drive may leave work under way to one that ends its
    session, and that one may begin a drive.
    """
    waited: set[asyncio.Task[Any]] = set()
    while new := under_way() - waited:
        seconds = max(ends_at - asyncio.get_running_loop().time(), 0)
        await asyncio.wait(new, timeout=seconds)
        waited |= new
    return [task for task in waited if not task.done()]


async def _sleep(signal: asyncio.Event, seconds: float) -> None:
    """Let others run; then sleep until the signal or the end of `seconds`."""
    await asyncio.sleep(0)  # noqa: TID251  every sleep of a loop
    await wait_for(signal, seconds)
