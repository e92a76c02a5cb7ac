"""`genhook tick`: due work for a short time, where no worker runs."""

import argparse
import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import msgspec

from service.cli import interrupts, output
from service.cli.arguments import add_json, define, parse_number
from service.model.errors import StorageError
from service.settings import Settings, read_settings

if TYPE_CHECKING:  # They take most of a second to import, and `--help` needs none of them.
    from service.app import App
    from service.ticks import WorkCounts

Show = Callable[["WorkCounts"], None]


def add_tick(parser: argparse.ArgumentParser) -> None:
    """Add the options of `genhook tick`."""
    define(parser, tick, "* * * * * genhook tick --seconds 50")
    seconds = partial(parse_number, low=0.01, high=3_600)
    parser.add_argument(
        "--seconds",
        type=seconds,
        default=10.0,
        help="work for at most this many seconds (10)",
    )
    parser.add_argument(
        "--every",
        type=seconds,
        metavar="SECONDS",
        help="begin again every so many seconds, until a signal",
    )
    add_json(parser)


def tick(options: argparse.Namespace) -> int:
    """Do due work for at most `--seconds`; with `--every` again and again, until a signal."""
    from service.telemetry import log
    from service.telemetry.redact import Redactor

    # A platform may run ticks and nothing else: like `serve`, a tick creates the database.
    settings = read_settings()
    redactor = Redactor(settings.secrets, settings.public_url)
    log.configure(settings.log_level, redactor=redactor)
    interrupts.run(_tick(settings, options.seconds, options.every, partial(_print, options)))
    return 0


def _print(options: argparse.Namespace, done: "WorkCounts") -> None:
    counts = {n: v for n, v in msgspec.structs.asdict(done).items() if n != "more" and v}
    text = ", ".join(f"{count} {name}" for name, count in counts.items())
    more = f"{text or 'nothing was done'}; more is due, or another process works on it"
    output.show(options, done, [more if done.more else text or "nothing was due"])


async def _tick(settings: Settings, seconds: float, every: float | None, show: Show) -> None:
    from service.app import App
    from service.cli.stopping import Stop, on_signals

    # No loop runs here, whatever runs elsewhere: the polls of this process keep to the rate, too.
    app = App(msgspec.structs.replace(settings, worker="off"))
    stop = Stop(settings.shutdown_seconds, app.begin_stop)
    await app.start(worker=False)
    try:
        if refusal := app.worker.ownership.refusal:
            raise StorageError(refusal)
        on_signals(stop)  # What is under way is recorded before the process ends.
        if every is None:
            show(await app.worker.tick(seconds))
        else:
            await _repeat(app, seconds, every, show)
    finally:
        await app.stop(stop.work_ends_at)


async def _repeat(app: "App", seconds: float, every: float, show: Show) -> None:
    """Begin a tick every so many seconds, or at once after a longer one, until the process stops.

    A disk that fails for a while ends it as little as it ends a worker.
    """
    from service.telemetry import log

    stopping = app.context.stopping
    while not stopping.is_set():
        next_at = asyncio.get_running_loop().time() + every
        try:
            show(await app.worker.tick(seconds))
        except StorageError as error:
            log.get().error("worker.storage_failed", step="tick", error=str(error))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(next_at):
                await stopping.wait()
