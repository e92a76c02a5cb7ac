"""`genhook replay` sends stored events again and shows the progress; `replays` looks at them."""

import argparse
import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from service.cli import answers, calls, client, nouns, output, streams
from service.cli.arguments import NULL, parse_limit, parse_list
from service.cli.command import IDEMPOTENCY, Command, argument
from service.cli.subscribers import EVENT_TYPES_HELP
from service.model.clock import DAY, HOUR, MINUTE, now_ms, parse_rfc3339, rfc3339
from service.model.errors import CommandError, UsageError
from service.model.number import read_whole

if TYPE_CHECKING:
    import httpx

Step = Callable[[int, int], None]  # Shows how many of how many events are sent.

LOOK_SECONDS = 0.5
_AGES = {"m": MINUTE, "h": HOUR, "d": DAY}


class Moment(NamedTuple):
    """The value of an option: an RFC 3339 time, and whether it was given as an age."""

    time: str
    is_age: bool


def parse_moment(text: str) -> Moment:
    """Read a time, or an age: `90m`, `24h`, `7d`."""
    try:
        if text[-1:] in _AGES and (number := read_whole(text[:-1])) is not None:
            return Moment(rfc3339(now_ms() - number * _AGES[text[-1]]), is_age=True)
        time = rfc3339(parse_rfc3339(text, round_up=True))  # As the service does.
        return Moment(time, is_age=False)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            f"{output.plain(text)} is neither an age, such as 90m, 24h or 7d, nor a time, such as "
            "2026-11-22T18:20:00Z"
        ) from None


def replay(command: Command, options: argparse.Namespace, wait: calls.Wait = calls.pause) -> int:
    """Send stored events again and show the progress; 1 if the replay is canceled."""
    since, until = options.argument_since, options.argument_until
    if options.argument_idempotency_key and (until is None or since.is_age or until.is_age):
        raise UsageError(
            "with --idempotency-key, --since and --until must be times: a repeat with an age would "
            "ask for another period."
        )
    period = {"since": since.time, "until": until.time if until else rfc3339(now_ms())}
    body = client.values_of(command, options, "body") | period
    with calls.connect(options) as connection:
        view = client.send(connection, command, options, json=body)
        with _show_progress(options) as step:
            view = _watch(connection, view, step, wait, options.argument_id)
    output.show(options, view, [_format_result(view, dry_run=options.argument_dry_run)])
    return 1 if view["status"] == "canceled" else 0


def _format_result(view: dict[str, Any], *, dry_run: bool) -> str:
    count = view["total"] if dry_run else view["done"]
    end = "canceled after" if view["status"] == "canceled" else "done:"
    verb = "would be sent" if dry_run else "sent again"
    return output.plain(f"{view['id']} {end} {count} event{'s'[: count != 1]} {verb}.")


def _watch(
    connection: "httpx.Client",
    view: dict[str, Any],
    step: Step,
    wait: calls.Wait,
    subscriber_id: str,
) -> dict[str, Any]:
    """Show the progress until the replay ends; an interruption ends only the watching."""
    id_, replays = output.plain(view["id"]), "genhook replays"
    goes_on = f"{id_} goes on: {replays} get {id_} shows it, {replays} cancel {id_} ends it."
    path, explained = f"{nouns.REPLAY.path}/{view['id']}", None
    try:
        while view["status"] == "running":
            done = view["done"]
            step(done, view["total"])
            wait(LOOK_SECONDS)
            view = calls.ask_again(connection, path, answers.Replay, goes_on, wait)
            if view["done"] == done != explained and view["status"] == "running":
                explained = done
                _explain(connection, subscriber_id)
    except KeyboardInterrupt:
        streams.note(f"genhook: {goes_on}")
        raise
    step(view["done"], view["total"])
    return view


def _explain(connection: "httpx.Client", subscriber_id: str) -> None:
    """Say why a replay stands still, if its subscriber is the reason."""
    path = f"{nouns.SUBSCRIBER.path}/{subscriber_id}"
    with contextlib.suppress(CommandError):  # It may be deleted; the replay says how it ends.
        status = calls.ask(connection, "GET", path, dict[str, Any]).get("status")
        if status in ("paused", "disabled"):
            resume = f"genhook subscribers resume {subscriber_id}"
            state = f"{subscriber_id} is {status}"
            streams.note(f"genhook: {state}, so nothing is sent: {resume} changes that.")


@contextlib.contextmanager
def _show_progress(options: argparse.Namespace) -> Iterator[Step]:
    """Show a bar on a terminal that has rich, else a line for each change; nothing with JSON."""
    is_terminal = sys.stderr is not None and sys.stderr.isatty()
    if options.json:
        yield lambda _done, _total: None
        return
    if not is_terminal or importlib.util.find_spec("rich") is None:  # It is an extra.
        yield _make_line_printer()
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("replaying", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _make_line_printer() -> Step:
    last: list[tuple[int, int]] = []

    def step(done: int, total: int) -> None:
        if last != [(done, total)]:
            last[:] = [(done, total)]
            streams.note(f"{done} of {total}")

    return step


REPLAY = Command(
    "send stored events to a subscriber again",
    f"{nouns.SUBSCRIBER.example} --since 24h --only all",
    *("POST", nouns.REPLAY.path),
    (
        nouns.SUBSCRIBER.id_argument("body", "subscriber_id", "SUBSCRIBER", "id of the subscriber"),
        argument(
            *("own", "--since", "start of the period: an age (90m, 24h, 7d) or an RFC 3339 time"),
            required=True,
            type=parse_moment,
        ),
        argument("own", "--until", "end of the period, in the same form (now)", type=parse_moment),
        argument(
            *("body", "--only", "dead: events whose delivery is dead; all: every event (dead)"),
            choices=("dead", "all"),
            default="dead",
        ),
        argument(
            *("body", "--event-types"),
            f"{EVENT_TYPES_HELP}; with --only all these are all of generations",
            type=parse_list,
            default=[],
            metavar="TYPES",
        ),
        argument(
            *("body", "--rate-per-second"),
            "create at most this many deliveries a second, or none for no limit (none)",
            type=parse_limit,
            default=NULL,
            metavar="N",
        ),
        argument("body", "--dry-run", "only count the events", action="store_true"),
        IDEMPOTENCY,
    ),
    shape=answers.Replay,
    lost="genhook replays get {id} shows it.",
    run=replay,
)
_FIELDS = ("id", "status", "subscriber_id", "done", "total", "dry_run", "created_at", "finished_at")
REPLAYS = {
    "list": nouns.REPLAY.page(
        "list replays",
        "",
        shows=("id", "status", "done", "total", "dry_run", "subscriber_id", "created_at"),
    ),
    "get": nouns.REPLAY.one("show a replay and how far it is", "GET", shows=_FIELDS),
    "cancel": nouns.REPLAY.one(
        "cancel a replay that runs, with its deliveries that are pending",
        "POST /cancel",
        says="{id} is {status}.",
    ),
}
