"""The three scenes of the demo, followed as they happen and checked when they are over."""

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
from service.cli.demo.stage import Stage, built
from service.model.clock import parse_rfc3339
from service.model.errors import CommandError

LOOK_SECONDS = 0.1
SCENE_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class Scene:
    """A generation to ask for, and by which way its outcome must come."""

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
    """Every scene in turn; 0 if all that was promised held, else 1."""
    console = screen.new_console()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="genhook-demo-"))
        _make(output)
        async with built(Path(folder)) as stage:
            screen.title(console, "genhook demo: upstream, service and subscriber on this machine")
            failures = [
                failure
                for number, scene in enumerate(SCENES, 1)
                for failure in await _perform(stage, console, number, scene, output)
            ]
            console.print()
            count = len(stage.audience.heard)
    said = f"{len(SCENES)} generations, each told once; {count} webhooks, each signature verified"
    failed = [f"{len(failures)} of what was promised did not hold"] if failures else []
    screen.verdict(console, failed, said)
    return 1 if failures else 0


def _make(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CommandError(f"cannot make {output}: {error.strerror}.") from error


async def _perform(
    stage: Stage, console: Console, number: int, scene: Scene, output: Path
) -> list[str]:
    """Play one scene; what of it did not hold."""
    screen.heading(console, number, scene.name, f"{scene.model}: {scene.prompt}")
    failures, pictures = [], []
    try:
        with screen.waiting(console, scene.name.lower()):
            async with asyncio.timeout(SCENE_SECONDS):
                generation, entries = await _follow(stage, console, scene)
        failures += await _complaints(stage, generation, entries, scene)
        pictures += await _pictures(stage, generation, output, f"{number}-{scene.model}")
    except (httpx.HTTPError, OSError) as error:  # A timeout is an OSError.
        failures.append(str(error) or "there is no outcome in time")
    said = [f"{scene.name}: {failure}" for failure in failures]
    screen.verdict(console, said, ", ".join(pictures))
    return said


async def _follow(
    stage: Stage, console: Console, scene: Scene
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Ask for the generation and show its timeline until its outcome has been told."""
    body = {"model": scene.model, "input": {"prompt": scene.prompt}}
    generation = await stage.ask("POST", "/v1/generations", json=body)
    path = f"/v1/generations/{generation['id']}"
    began = parse_rfc3339(generation["created_at"])
    shown: set[tuple[str, str]] = set()
    while True:
        stage.audience.news.clear()
        entries = (await stage.ask("GET", f"{path}/timeline"))["data"]
        for entry in entries:
            seconds = (parse_rfc3339(entry["at"]) - began) / 1_000
            if (entry["at"], entry["summary"]) not in shown:
                screen.entry(console, entry, seconds, _note(stage.audience, entry))
            shown.add((entry["at"], entry["summary"]))
        if _is_over(entries):
            return await stage.ask("GET", path), entries
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stage.audience.news.wait(), LOOK_SECONDS)


def _note(audience: Audience, entry: dict[str, Any]) -> str:
    """For an attempt: what the subscriber's own check said."""
    event_id = entry["detail"].get("event_id")
    verified = [heard.refusal is None for heard in audience.heard if heard.event_id == event_id]
    return "signature verified" if entry["type"] == "attempt" and verified == [True] else ""


def _is_over(entries: list[dict[str, Any]]) -> bool:
    """True once there is an outcome and each event has been sent."""
    events = {e["id"] for e in entries if e["type"] == "event"}
    ended = any(e["detail"].get("type") in TERMINAL for e in entries if e["type"] == "event")
    return ended and events <= {e["detail"].get("event_id") for e in entries}


async def _complaints(
    stage: Stage, generation: dict[str, Any], entries: list[dict[str, Any]], scene: Scene
) -> list[str]:
    """What does not hold of a generation that is over."""
    query = {"generation_id": generation["id"]}
    events = (await stage.ask("GET", "/v1/events", params=query))["data"]
    stored = {event["id"] for event in events if event["type"] in TERMINAL}
    told = stage.audience.outcomes(generation["id"])
    called_back = any(entry["type"] == "callback" for entry in entries)
    wanted = "a callback" if scene.called_back else "no callback"
    checks = {
        f"it ended {generation['status']}, not succeeded": generation["status"] == "succeeded",
        f"its route was {generation['route']}, not {scene.route}": (
            generation["route"] == scene.route
        ),
        f"{wanted} was expected": called_back == scene.called_back,
        f"{len(stored)} terminal events are stored, not one": len(stored) == 1,
        "the subscriber was not told the outcome exactly once": told == stored,
        "a signature does not hold": not any(heard.refusal for heard in stage.audience.heard),
    }
    return [said for said, holds in checks.items() if not holds]


async def _pictures(stage: Stage, generation: dict[str, Any], output: Path, stem: str) -> list[str]:
    """Fetch, save and open every file; its path and size. OSError for one that is no picture."""
    said = []
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
            said.append(f"{path} ({picture.width} x {picture.height})")
    return said
