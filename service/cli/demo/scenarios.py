"""The three scenarios of the demo: each is shown while it runs and checked at its end."""

import asyncio
import contextlib
import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from rich.console import Console

from service.cli import new_file, saving
from service.cli.demo import screen
from service.cli.demo.environment import Environment, running_environment
from service.cli.demo.subscriber import TERMINAL, Subscriber
from service.model.clock import parse_rfc3339

TIMELINE_SECONDS = 0.1  # Between two reads of the timeline; a webhook ends the wait.
SCENARIO_SECONDS = 15.0

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A generation to create, its expected route, and whether a callback is expected."""

    name: str
    model: str
    prompt: str
    route: str
    callback: bool


SCENARIOS = (
    Scenario("By callback", "imagen4-fast", "A lighthouse at dusk", "callback", callback=True),
    Scenario("By polling", "ideogram-v3-turbo", "A harbour in the rain", "poll", callback=False),
    Scenario(
        "With its callback lost",
        "imagen4-fast",
        "A night train in snow [sandbox: lose-callback]",
        "callback",
        callback=False,
    ),
)


async def run(output: Path, *, on_postgres: bool = False) -> int:
    """Run every scenario in turn; return 0 if all checks passed, else 1."""
    console = screen.new_console()
    with tempfile.TemporaryDirectory(prefix="genhook-demo-") as folder:
        saving.prepare(str(output))
        async with running_environment(Path(folder), on_postgres=on_postgres) as environment:
            screen.title(
                console,
                "genhook demo: upstream, service and subscriber on this machine"
                + (", with PostgreSQL" if on_postgres else ""),
                "Its keys are throwaway ones, made for this run; only the pictures are kept.",
            )
            failures = 0
            for number, scenario in enumerate(SCENARIOS, 1):
                failures += await _run_scenario(environment, console, number, scenario, output)
            console.print()
            webhooks = len(environment.subscriber.webhooks)
    if failures:
        screen.result(console, [f"{failures} checks failed"], "")
        return 1
    summary = f"{len(SCENARIOS)} generations with one outcome each; {webhooks} webhooks"
    screen.result(console, [], f"{summary}, every signature verified")
    return 0


async def _run_scenario(
    environment: Environment, console: Console, number: int, scenario: Scenario, output: Path
) -> int:
    """Run and show one scenario; return how many checks failed."""
    screen.heading(console, number, scenario.name, f"{scenario.model}: {scenario.prompt}")
    failures, picture = [], ""
    try:
        with screen.waiting(console, scenario.name.lower()):
            async with asyncio.timeout(SCENARIO_SECONDS):
                generation, entries = await _follow(environment, console, scenario)
        failures = await _failed_checks(environment, generation, entries, scenario)
        picture = await _save_picture(environment, generation, output, f"{number}-{scenario.model}")
    except (httpx.HTTPError, OSError) as error:  # A timeout is an OSError.
        failures.append(str(error) or f"no outcome within {SCENARIO_SECONDS:g} seconds")
    messages = [f"{scenario.name}: {failure}" for failure in failures]
    screen.result(console, messages, picture)
    return len(failures)


async def _follow(
    environment: Environment, console: Console, scenario: Scenario
) -> tuple[Json, list[Json]]:
    """Create the generation and show its timeline until its outcome is delivered."""
    body = {"model": scenario.model, "input": {"prompt": scenario.prompt}}
    generation = await environment.call("POST", "/v1/generations", json=body)
    path = f"/v1/generations/{generation['id']}"
    created_at = parse_rfc3339(generation["created_at"])
    shown: set[tuple[str, str]] = set()
    while True:
        environment.subscriber.changed.clear()
        entries = (await environment.call("GET", f"{path}/timeline"))["data"]
        for entry in entries:
            seconds = (parse_rfc3339(entry["at"]) - created_at) / 1_000
            if (entry["at"], entry["summary"]) not in shown:
                screen.entry(console, entry, seconds, _note(environment.subscriber, entry))
            shown.add((entry["at"], entry["summary"]))
        if _is_finished(entries):
            return await environment.call("GET", path), entries
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(environment.subscriber.changed.wait(), TIMELINE_SECONDS)


def _note(subscriber: Subscriber, entry: Json) -> str:
    """Return a note for an attempt whose signature the subscriber verified."""
    event_id = entry["detail"].get("event_id")
    verified = [
        webhook.error is None for webhook in subscriber.webhooks if webhook.event_id == event_id
    ]
    return "signature verified" if entry["type"] == "attempt" and verified == [True] else ""


def _is_finished(entries: list[Json]) -> bool:
    """Whether there is an outcome and every event has an attempt."""
    events = [entry for entry in entries if entry["type"] == "event"]
    has_outcome = any(event["detail"].get("type") in TERMINAL for event in events)
    sent = {entry["detail"].get("event_id") for entry in entries}
    return has_outcome and {event["id"] for event in events} <= sent


async def _failed_checks(
    environment: Environment, generation: Json, entries: list[Json], scenario: Scenario
) -> list[str]:
    """Check a generation that ended; return a sentence for each check that failed."""
    query = {"generation_id": generation["id"]}
    events = (await environment.call("GET", "/v1/events", params=query))["data"]
    stored = {event["id"] for event in events if event["type"] in TERMINAL}
    delivered = environment.subscriber.outcomes(generation["id"])
    called_back = any(entry["type"] == "callback" for entry in entries)
    expected = "a callback" if scenario.callback else "no callback"
    checks = {
        f"it ended {generation['status']}, not succeeded": generation["status"] == "succeeded",
        f"its route was {generation['route']}, not {scenario.route}": (
            generation["route"] == scenario.route
        ),
        f"{expected} was expected": called_back == scenario.callback,
        f"{len(stored)} terminal events are stored, not one": len(stored) == 1,
        "the subscriber did not receive exactly one outcome": delivered == stored,
        "a signature is wrong": not any(
            webhook.error for webhook in environment.subscriber.webhooks
        ),
    }
    return [failure for failure, passed in checks.items() if not passed]


async def _save_picture(environment: Environment, generation: Json, output: Path, stem: str) -> str:
    """Save the generation's picture; return its path and size. OSError if it is none."""
    files = (generation["output"] or {}).get("files", [])
    if not files:
        raise OSError("there is no picture")
    answer = await environment.client.get(files[0]["url"], headers={"authorization": ""})
    answer.raise_for_status()
    with Image.open(io.BytesIO(answer.content)) as picture:
        picture.load()
        size = f"({picture.width} x {picture.height})"
    path = _save(answer.content, output / f"{stem}.png", f"{stem}-{generation['id']}.png")
    return f"{path} {size}"


def _save(content: bytes, target: Path, other_name: str) -> Path:
    """Save a picture under a name, or under the other one if that is another file's; return where.

    A picture that an earlier demo has saved is the same: it stays. OSError names the file.
    """
    try:
        if os.path.lexists(target):
            if target.is_file() and target.read_bytes() == content:
                return target
            target = target.with_name(other_name)
        with new_file.create(target, saving.MODE) as partial:
            partial.write_bytes(content)
    except OSError as error:
        raise OSError(f"{target} cannot be saved: {error.strerror}") from error
    return target
