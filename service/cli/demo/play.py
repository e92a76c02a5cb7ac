"""The three scenes of the demo: each is shown as it happens and checked at its end."""

import asyncio
import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from rich.console import Console

from service.cli.demo import screen
from service.cli.demo.audience import TERMINAL, Audience
from service.cli.demo.stage import Stage, running
from service.model.clock import parse_rfc3339
from service.model.errors import CommandError

LOOK_SECONDS = 0.1
SCENE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Scene:
    """A generation to create, and the route by which its outcome must come."""

    name: str
    model: str
    prompt: str
    route: str
    called_back: bool


SCENES = (
    Scene("By callback", "imagen4-fast", "A lighthouse at dusk", "callback", called_back=True),
    Scene("By polling", "ideogram-v3-turbo", "A harbour in the rain", "poll", called_back=False),
    Scene(
        "With its callback lost",
        "imagen4-fast",
        "A night train in snow [sandbox: lose-callback]",
        "callback",
        called_back=False,
    ),
)


async def play(output: Path) -> int:
    """Play every scene in turn; 0 if each check passed, else 1."""
    console = screen.new_console()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="genhook-demo-"))
        _create(output)
        async with running(Path(folder)) as stage:
            screen.title(console, "genhook demo: upstream, service and subscriber on this machine")
            failures = [
                failure
                for number, scene in enumerate(SCENES, 1)
                for failure in await _perform(stage, console, number, scene, output)
            ]
            console.print()
            count = len(stage.audience.webhooks)
    success = f"{len(SCENES)} generations, one outcome each; {count} webhooks, all signatures valid"
    screen.verdict(console, [f"{len(failures)} checks failed"] if failures else [], success)
    return 1 if failures else 0


def _create(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot create {output}: {error.strerror}.") from error


async def _perform(
    stage: Stage, console: Console, number: int, scene: Scene, output: Path
) -> list[str]:
    """Play one scene; the checks that failed."""
    screen.heading(console, number, scene.name, f"{scene.model}: {scene.prompt}")
    failures, pictures = [], []
    try:
        with screen.waiting(console, scene.name.lower()):
            async with asyncio.timeout(SCENE_SECONDS):
                generation, entries = await _follow(stage, console, scene)
        failures += await _failed_checks(stage, generation, entries, scene)
        pictures += await _pictures(stage, generation, output, f"{number}-{scene.model}")
    except (httpx.HTTPError, OSError) as error:  # A timeout is an OSError.
        failures.append(str(error) or "there was no outcome in time")
    named = [f"{scene.name}: {failure}" for failure in failures]
    screen.verdict(console, named, ", ".join(pictures))
    return named


async def _follow(
    stage: Stage, console: Console, scene: Scene
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Create the generation and show its timeline until its outcome has been delivered."""
    body = {"model": scene.model, "input": {"prompt": scene.prompt}}
    generation = await stage.ask("POST", "/v1/generations", json=body)
    path = f"/v1/generations/{generation['id']}"
    began = parse_rfc3339(generation["created_at"])
    shown: set[tuple[str, str]] = set()
    while True:
        stage.audience.arrival.clear()
        entries = (await stage.ask("GET", f"{path}/timeline"))["data"]
        for entry in entries:
            seconds = (parse_rfc3339(entry["at"]) - began) / 1_000
            if (entry["at"], entry["summary"]) not in shown:
                screen.entry(console, entry, seconds, _note(stage.audience, entry))
            shown.add((entry["at"], entry["summary"]))
        if _is_over(entries):
            return await stage.ask("GET", path), entries
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stage.audience.arrival.wait(), LOOK_SECONDS)


def _note(audience: Audience, entry: dict[str, Any]) -> str:
    """For an attempt, the result of the subscriber's own check of the signature."""
    event_id = entry["detail"].get("event_id")
    own = [webhook for webhook in audience.webhooks if webhook.event_id == event_id]
    is_verified = [webhook.refusal is None for webhook in own] == [True]
    return "signature verified" if entry["type"] == "attempt" and is_verified else ""


def _is_over(entries: list[dict[str, Any]]) -> bool:
    """True once there is an outcome and each event has been sent."""
    events = {e["id"] for e in entries if e["type"] == "event"}
    ended = any(e["detail"].get("type") in TERMINAL for e in entries if e["type"] == "event")
    return ended and events <= {e["detail"].get("event_id") for e in entries}


async def _failed_checks(
    stage: Stage, generation: dict[str, Any], entries: list[dict[str, Any]], scene: Scene
) -> list[str]:
    """Check a generation that has ended, and what the subscriber received of it."""
    query = {"generation_id": generation["id"]}
    events = (await stage.ask("GET", "/v1/events", params=query))["data"]
    stored = {event["id"] for event in events if event["type"] in TERMINAL}
    delivered = stage.audience.outcomes(generation["id"])
    called_back = any(entry["type"] == "callback" for entry in entries)
    expected = "a callback" if scene.called_back else "no callback"
    checks = {
        f"it ended {generation['status']}, not succeeded": generation["status"] == "succeeded",
        f"its route was {generation['route']}, not {scene.route}": (
            generation["route"] == scene.route
        ),
        f"{expected} was expected": called_back == scene.called_back,
        f"{len(stored)} terminal events are stored, not one": len(stored) == 1,
        "the subscriber did not receive the outcome exactly once": delivered == stored,
        "a signature is not valid": not any(w.refusal for w in stage.audience.webhooks),
    }
    return [failure for failure, passed in checks.items() if not passed]


async def _pictures(stage: Stage, generation: dict[str, Any], output: Path, stem: str) -> list[str]:
    """Fetch, save and open every file; their paths and sizes. OSError if one is no picture."""
    pictures = []
    files = (generation["output"] or {}).get("files", [])
    if not files:
        raise OSError("there is no picture")
    for number, file in enumerate(files, 1):
        answer = await stage.client.get(file["url"], headers={"authorization": ""})
        answer.raise_for_status()
        path = output / (f"{stem}-{number}.png" if number > 1 else f"{stem}.png")
        path.write_bytes(answer.content)
        with Image.open(path) as picture:
            picture.load()
            pictures.append(f"{path} ({picture.width} x {picture.height})")
    return pictures
