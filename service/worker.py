"""The worker: the loops that do due work, in the process that owns the database.

Others stand by and take over within a second of its death. Only this module sleeps.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any

from service.context import Context
from service.delivery.dispatch import Dispatcher
from service.delivery.target import Sender
from service.generations.poll import Poller
from service.generations.submit import Submitter
from service.model.clock import SECOND
from service.model.errors import StorageError
from service.session import Session, Step, WorkCounts
from service.store import reseal, retention
from service.store.database import Ownership
from service.telemetry import log

_log = log.get()
STANDBY_SECONDS = 1.0
SLEEP_SECONDS_MAX = 30.0
RECORD_AGAIN_SECONDS = 1.0
RECORD_SECONDS = 1.0  # For work that is ended by a stop.
BACKOFF_SECONDS_MAX = 60.0  # Of a loop whose step fails again and again.


class Worker:
    """The loops of one process. They run while it holds the ownership of the database.

    What belongs to the ownership is in `session`. Submitter and poller belong to the process, which
    uses them for requests of clients too: they hold requests under way and upstream's budget.
    """

    def __init__(self, context: Context, ownership: Ownership, sender: Sender) -> None:
        self.context = context
        self.ownership = ownership
        self.sender = sender
        self.submitter = Submitter(context)
        self.poller = Poller(context, self.submitter.budget, self.submitter.in_flight)
        self.task: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        # Where the last sweep is. It may be old: what it passed stays deleted.
        self._sweep = retention.Sweep()
        self.session = self._new_session()  # Not open: it receives nothing and attempts nothing.
        self._tick_lock = asyncio.Lock()
        self._late_steps: set[asyncio.Task[int | None]] = set()  # Of ticks whose time was up.
        self._tick_rest: asyncio.Task[None] | None = None  # Ends the session of the last tick.

    @property
    def dispatcher(self) -> Dispatcher:
        """The dispatcher of the session; before the first and after the last one it is closed."""
        return self.session.dispatcher

    @property
    def is_off(self) -> bool:
        """True if the loops were not started."""
        return self.task is None

    @property
    def is_alive(self) -> bool:
        """False if the loops were started and have ended."""
        return self.task is None or not self.task.done()

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
        self._stopping.set()
        self.session.pause()
        self.session.wake()

    async def finish(self, ends_at: float) -> None:
        """After `stop`: wait for work under way until `ends_at` of the loop's clock, then end it.

        The rows of what is ended are due after a restart, as after a crash.
        """
        own = [task for task in (self.task, self._tick_rest) if task is not None]
        await _wait(own, ends_at)
        requests = await self._wait_for_requests(ends_at)
        late = [task for task in (*own, *requests, *self._late_steps) if not task.done()]
        if late:
            _log.warning("worker.stopped_late", ended=[task.get_name() for task in late[:10]])
        for task in late:
            task.cancel()
        if late:  # They record what did not leave, unless the disk hangs.
            await asyncio.wait(late, timeout=RECORD_SECONDS)

    async def _wait_for_requests(self, ends_at: float) -> set[asyncio.Task[Any]]:
        """Wait for the requests to upstream, those of clients who hung up included; return all.

        Each has begun by then: one that is cancelled before could not record that it did not leave.
        """
        waited: set[asyncio.Task[Any]] = set()
        own = self.submitter.in_flight, self.poller.in_flight
        while new := {task for tasks in own for task in tasks.values()} - waited:
            await _wait(new, ends_at)
            waited |= new
        return waited

    async def run(self) -> None:
        """Work while this process has the right to, until `stop`; then await the requests."""
        try:
            while not self._stopping.is_set():
                await self._stand_by()
                if self.ownership.is_held:
                    _log.info("worker.started")
                    async with asyncio.TaskGroup() as group:
                        for step, signal in self.session.loops:
                            group.create_task(self._loop(step, signal))
                if not self._stopping.is_set():
                    _log.error("worker.lost_its_right")
                    await self._end_session()
            await self._settle()
        except Exception:
            _log.exception("worker.failed")
            raise
        finally:
            await self._end_session()
            _log.info("worker.stopped")

    async def _stand_by(self) -> None:
        """Return as the owner, or once stopped; whatever fails meanwhile is tried again."""
        has_waited = False
        while not self._stopping.is_set():
            try:
                if await self._take_over():
                    if has_waited:
                        _log.info("worker.took_over")
                    return
                if not has_waited:
                    _log.info("worker.standing_by")
                has_waited = True
            except StorageError as error:
                _log.error("worker.storage_failed", error=str(error))
            except Exception:  # noqa: BLE001  it must not end the process, which serves clients
                _log.exception("worker.not_started")
            await _sleep(self._stopping, STANDBY_SECONDS)

    async def _take_over(self) -> bool:
        """Try to become the worker; False while another process is."""
        if not await self.ownership.acquire():
            return False
        try:
            await reseal.run(self.context.database, self.context.vault)
            await self.poller.take_over(self.context.clock())
            self.session = self._new_session()
            self.session.resume()
        except BaseException:
            await self._end_session()
            raise
        return True

    def _new_session(self) -> Session:
        requests = (self.submitter, self.poller)
        return Session(self.context, self.ownership, self.sender, *requests, self._sweep)

    async def _end_session(self) -> None:
        """Throw the session away before another process may work."""
        try:
            await self.session.close()
        finally:
            await self.ownership.release()

    async def _loop(self, step: Step, signal: asyncio.Event) -> None:
        """Repeat a step when it is due or signalled. Whatever fails is logged and backed off."""
        failures = 0
        while self.ownership.is_held and not self._stopping.is_set():
            signal.clear()
            try:
                next_at = await step(self.context.clock())
            except Exception as error:  # noqa: BLE001  one step must not end the others
                failures += 1
                seconds = _log_failure(step, error, failures)
                # Not the signal, which would repeat a step that cannot be done at once.
                await _sleep(self._stopping, seconds)
                continue
            failures, seconds = 0, SLEEP_SECONDS_MAX
            if next_at is not None:
                seconds = min(max(next_at - self.context.clock(), 0) / SECOND, seconds)
            await _sleep(signal, seconds)
        self.session.wake()  # The watch sees first that the right is lost.

    async def _settle(self) -> None:
        """Wait for everything under way."""
        await self.submitter.settle()
        await self.poller.settle()
        await self.dispatcher.settle()

    async def tick(self, seconds: float) -> WorkCounts:
        """Do due work for `seconds` or until `stop`; none while another tick or process works.

        What is under way by then goes on without the caller, and its session ends with it.
        """
        if self._tick_lock.locked():
            return WorkCounts(more=True)
        async with self._tick_lock:
            ends_at = asyncio.get_running_loop().time() + seconds
            is_guest = self.ownership.is_held and self._tick_rest is None
            if not (is_guest or await self._take_over_for_tick()):
                return WorkCounts(more=True)
            session = self.session
            session.begin_tick()
            try:
                more = await self._work_until(ends_at)
            finally:
                counts = session.end_tick()
                if not is_guest:
                    await self._end_tick()
            return WorkCounts(**counts, more=more)

    async def _take_over_for_tick(self) -> bool:
        """Own the database for a tick, perhaps still in the session of the last one."""
        if self._tick_rest is not None and self._tick_rest.cancel():
            await asyncio.wait([self._tick_rest])
        self._tick_rest = None
        if not self.ownership.is_held:
            if not await self.ownership.acquire():
                return False
            self.session = self._new_session()
        self.session.resume()
        return True

    async def _end_tick(self) -> None:
        """End the session of a tick, or have it end once what is under way has ended."""
        self.session.pause()
        in_flight = (*self.submitter.in_flight, *self.poller.in_flight, *self._late_steps)
        if self.dispatcher.is_settled and not in_flight:
            await self._end_session()
        else:
            self._tick_rest = asyncio.create_task(self._finish_tick(), name="rest of a tick")

    async def _finish_tick(self) -> None:
        try:
            if self._late_steps:
                await asyncio.wait(self._late_steps)
            await self._settle()
            while not (self.dispatcher.is_settled or self._stopping.is_set()):
                await _sleep(self._stopping, RECORD_AGAIN_SECONDS)  # The disk failed.
                await self.dispatcher.run_due(self.context.clock())
                await self._settle()
        except asyncio.CancelledError:
            if not self._stopping.is_set():
                raise  # The next tick goes on in this session.
        except Exception:  # noqa: BLE001  the rows are still due, and another process may work
            _log.exception("worker.step_failed", step="the rest of a tick")
        await self._end_session()

    async def _work_until(self, ends_at: float) -> bool:
        """Repeat every step until no row is due or time is up; return whether rows are due."""
        loop, has_failed = asyncio.get_running_loop(), False
        steps = [step for step, _ in self.session.steps]
        while True:
            now = self.context.clock()
            await self.session.look(now)  # The session may be an earlier tick's.
            due_times: list[int | None] = []
            for step in [*steps]:
                try:
                    due_times.append(await self._run_step(step, now, ends_at))
                except TimeoutError:
                    return True
                except StorageError:
                    raise
                except Exception as error:  # noqa: BLE001  one step must not end the others
                    _log_failure(step, error, 1)
                    steps.remove(step)
                    has_failed = True
            settling = asyncio.create_task(self._settle_tick(), name="settling of a tick")
            await self._wait_in_tick(settling, ends_at)
            settling.cancel()
            is_due = any(at is not None and at <= self.context.clock() for at in due_times)
            is_due |= bool(self.submitter.repeated)
            if loop.time() >= ends_at or self._stopping.is_set() or not is_due:
                return is_due or has_failed

    async def _settle_tick(self) -> None:
        """Wait for what a tick started."""
        await self.submitter.settle_repeated()
        await self.poller.settle()
        await self.dispatcher.settle()

    async def _wait_in_tick(self, task: asyncio.Task[Any], ends_at: float) -> None:
        """Wait for a task until `ends_at` or until the process is to stop."""
        seconds = max(ends_at - asyncio.get_running_loop().time(), 0)
        stopping = asyncio.create_task(self._stopping.wait(), name="stop of a tick")
        await asyncio.wait({task, stopping}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()

    async def _run_step(self, step: Step, now: int, ends_at: float) -> int | None:
        """Run one step; TimeoutError at `ends_at` or a stop, and the step ends without the tick.

        It is not cancelled: a submission that is cancelled under way is lost.
        """
        if self._stopping.is_set():
            raise TimeoutError
        task = asyncio.create_task(step(now), name="step of a tick")
        self._late_steps.add(task)
        task.add_done_callback(self._drop_step)
        await self._wait_in_tick(task, ends_at)
        if not task.done():
            raise TimeoutError
        return task.result()

    def _drop_step(self, task: asyncio.Task[int | None]) -> None:
        self._late_steps.discard(task)
        if not task.cancelled():
            task.exception()  # Retrieved: the tick may be over.


def _log_failure(step: Step, error: Exception, failures: int) -> float:
    """Log that a step failed; return for how many seconds its loop backs off."""
    name = getattr(step, "__name__", "step")
    if isinstance(error, StorageError):  # It is the disk's, and may be over at any moment.
        _log.error("worker.storage_failed", step=name, error=str(error))
        return 1.0
    seconds: float = min(2.0 ** (failures - 1), BACKOFF_SECONDS_MAX)
    _log.error("worker.step_failed", step=name, retry_seconds=seconds, exc_info=error)
    return seconds


async def _wait(tasks: Iterable[asyncio.Task[Any]], ends_at: float) -> None:
    """Wait for all tasks until `ends_at` of the loop's clock."""
    under_way = [task for task in tasks if not task.done()]
    if under_way:
        seconds = max(ends_at - asyncio.get_running_loop().time(), 0)
        await asyncio.wait(under_way, timeout=seconds)


async def _sleep(signal: asyncio.Event, seconds: float) -> None:
    """Let others run; then sleep until the signal or the end of `seconds`."""
    await asyncio.sleep(0)  # noqa: TID251  the one module that sleeps
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await signal.wait()
