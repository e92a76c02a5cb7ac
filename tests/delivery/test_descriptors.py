"""File descriptors: the limit is raised at start, and what it does not allow is not used."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from service.app import App
from service.delivery import descriptors
from service.settings import Settings
from tests.cli.test_serve import KEYS, surroundings
from tests.harness import settings as make_settings
from tests.logs import Console

RUN_NO_WORK = """
from service.cli import main, server
server.run = lambda working: working.close() or 0
main.main(['work'])
"""


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """[soft, hard], as the process sees and sets them."""
    limits = [1_024, 20_000]
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(limits))

    def setrlimit(_: int, both: tuple[int, int]) -> None:
        limits[:] = both

    monkeypatch.setattr(resource, "setrlimit", setrlimit)
    return limits


@pytest.fixture
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    folder = tmp_path_factory.mktemp("settings")
    return make_settings(folder, max_in_flight=1_000, connections_max=4_096)


def test_the_soft_limit_is_raised_to_what_is_needed(limits: list[int], settings: Settings) -> None:
    assert descriptors.raise_limit(settings, accepts=True) == settings
    assert limits == [descriptors.needed_for(settings, accepts=True), 20_000]


async def test_whatever_runs_the_service_raises_the_limit_and_keeps_to_it(
    limits: list[int], settings: Settings
) -> None:
    App(settings)
    assert limits == [descriptors.needed_for(settings, accepts=False), 20_000]
    App(settings, accepts=True)
    assert limits == [descriptors.needed_for(settings, accepts=True), 20_000]
    limits[:] = [1_024, 1_024]
    app = App(settings, accepts=True)
    assert app.settings == app.context.settings
    assert (app.settings.max_in_flight, app.settings.connections_max) == (448, 448)
    # Nobody comes in on Lambda.
    app = App(settings)
    assert (app.settings.max_in_flight, app.settings.connections_max) == (896, 4_096)


def test_a_limit_that_is_enough_is_left_alone(limits: list[int], settings: Settings) -> None:
    limits[:] = [50_000, 50_000]
    assert descriptors.raise_limit(settings, accepts=False) == settings
    assert limits == [50_000, 50_000]


@pytest.mark.parametrize("hard", [64, 300, 1_024, 2_000, 5_000])
def test_too_few_are_shared_between_both_directions_and_logged(
    limits: list[int], settings: Settings, hard: int, console: Console
) -> None:
    console.configure("info")
    limits[:] = [min(hard, 1_024), hard]
    allowed = descriptors.raise_limit(settings, accepts=True)
    assert limits[0] == hard
    assert allowed.max_in_flight >= 1
    assert allowed.connections_max >= 1
    if hard > 300:
        assert allowed.max_in_flight + allowed.connections_max + descriptors.OWN_DESCRIPTORS <= hard
    assert [line["event"] for line in console.lines()] == ["descriptors.few"]


@pytest.mark.parametrize(
    ("start", "incoming"),
    [
        ("from service.cli import main; main.main(['tick', '--seconds', '0.01'])", 0),
        ("from service.asgi import app; asyncio.run(app.lifespan().__aenter__())", 16),
        ("from service.serverless import handler as h; h._loop.run_until_complete(h._start())", 0),
        (RUN_NO_WORK, 16),
    ],
    ids=["tick", "asgi", "serverless", "work"],
)
def test_the_limit_is_raised_wherever_attempts_are_made(
    start: str, incoming: int, tmp_path: Path
) -> None:
    code = (
        "import asyncio, os, resource\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (128, hard))\n"
        f"{start}\n"
        "limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "os.write(1, f'limit {limit}\\n'.encode())\n"  # Whole, beside the lines of the log.
    )
    port = {"GENHOOK_WORK_PORT": "0"} if "'work'" in start else {}
    sizes = {"GENHOOK_MAX_IN_FLIGHT": "100", "GENHOOK_CONNECTIONS_MAX": "16"}
    done = subprocess.run(  # noqa: S603  our own code
        [sys.executable, "-c", code],
        env={**surroundings(), **KEYS, **sizes, **port, "GENHOOK_WORKER": "off"},
        cwd=tmp_path,
        capture_output=True,
        check=True,
        text=True,
    )
    assert f"limit {descriptors.OWN_DESCRIPTORS + 100 + incoming}" in done.stdout.splitlines()
