"""What was carried out is named where its answer cannot be printed: a repeat may cost again."""

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import httpx
import pytest

from service.cli import main
from tests.cli.test_main import served
from tests.cli.test_mistakes import CREATE, GENERATION

pytestmark = [
    pytest.mark.usefixtures("bare_environment"),
    pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the full device of Linux"),
]
SECRET = "whsec_that_nobody_may_see"
KEY = {"id": "key_1", "name": "x", "key": SECRET}
SUBSCRIBER = {"id": "sub_1", "url": "http://x/", "secret": SECRET}
REPLAY = {"id": "rpl_1", "status": "done", "done": 1, "total": 1}
FULL = "genhook: the output cannot be written: No space left on device. "


def full() -> IO[str]:
    """An output on a full disk."""
    return Path("/dev/full").open("w")


def unread() -> IO[str]:
    """An output that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


Run = Callable[[str, Any], str]


@pytest.fixture(params=[full, unread])
def run(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """A command with an output that fails, and a service that answers; what it says of it."""

    def run(line: str, answer: Any) -> str:
        served(monkeypatch, lambda _: httpx.Response(200 if answer else 204, json=answer))
        with request.param() as file, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", file)
            assert main.main(shlex.split(line)) == 1
        said = capsys.readouterr().err
        reason = FULL if request.param is full else "genhook: nobody reads the output. "
        assert SECRET not in said
        return said[said.index(reason) :].removeprefix(reason).rstrip("\n")

    return run


@pytest.mark.parametrize("more", ["", " --json", " --no-wait"])
@pytest.mark.parametrize("line", [CREATE, "generations retry gen_0"])
def test_a_generation_is_named_with_the_key_that_finds_it(run: Run, line: str, more: str) -> None:
    said = run(f"{line}{more}", GENERATION)
    assert said.startswith(
        "The request was carried out: gen_1. genhook generations get gen_1 shows it. "
        "A repeat with --idempotency-key "
    )
    said = run(f"{line}{more} --idempotency-key order-1", GENERATION)
    assert said.endswith("A repeat with --idempotency-key order-1 gets the same answer.")


@pytest.mark.parametrize(
    ("more", "status"), [("", "processing"), ("", "succeeded"), (" --json", "succeeded")]
)
@pytest.mark.parametrize("line", [CREATE, "generations retry gen_0"])
def test_of_a_generation_whose_files_were_to_be_saved_it_is_said_what_saves_them(
    run: Run, line: str, more: str, status: str, tmp_path: Path
) -> None:
    folder = tmp_path / "my {pictures}"
    answer = {**GENERATION, "status": status}
    said = run(f"{line}{more} --save '{folder}'", answer)
    remedy = f"genhook generations get gen_1 --save '{folder}' shows it and saves its files. "
    assert said.startswith(f"The request was carried out: gen_1. {remedy}A repeat with ")


@pytest.mark.parametrize(
    ("line", "answer", "remedy"),
    [
        (
            "keys create --name x --scopes read --key ghk_own",
            KEY,
            ": key_1. Nobody has seen the key: genhook keys revoke key_1 revokes it.",
        ),
        (
            "subscribers create http://x/",
            SUBSCRIBER,
            ": sub_1. genhook subscribers secret sub_1 shows its secret.",
        ),
        (
            "subscribers rotate sub_1",
            {"secret": SECRET},
            ": sub_1. genhook subscribers secret sub_1 shows the new secret.",
        ),
        (
            "signing-secret rotate",
            {"secret": SECRET},
            ". genhook signing-secret get shows the new secret.",
        ),
        ("replay sub_1 --since 1h", REPLAY, ": rpl_1. genhook replays get rpl_1 shows it."),
        ("subscribers pause sub_1", {**SUBSCRIBER, "status": "paused"}, ": sub_1."),
    ],
)
def test_what_was_made_or_changed_is_named_with_what_to_do(
    run: Run, line: str, answer: Any, remedy: str
) -> None:
    said = run(line, answer)
    assert said[said.index("The request") :] == f"The request was carried out{remedy}"


def test_what_was_deleted_is_named(run: Run) -> None:
    assert run("subscribers delete sub_1", None) == "The request was carried out: sub_1."


def test_of_what_was_only_looked_at_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served(monkeypatch, lambda _: httpx.Response(200, json=GENERATION))
    for output, said in ((full, f"{FULL.strip()}\n"), (unread, "")):
        with output() as file, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", file)
            assert main.main(["generations", "get", "gen_1"]) == 1
        assert capsys.readouterr().err == said


def test_a_reader_that_leaves_after_the_first_line_is_told_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()

    class Leaving:
        """Reads one line."""

        def write(self, text: str) -> int:
            return os.write(writer, text.encode())

        def flush(self) -> None:
            if os.read(reader, 100).endswith(b"\n"):
                os.close(reader)

        def fileno(self) -> int:
            return writer

    served(monkeypatch, lambda _: httpx.Response(200, json=GENERATION))
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Leaving())
        assert main.main(shlex.split(f"{CREATE} --no-wait")) == 1
    os.close(writer)
    assert capsys.readouterr().err == ""
