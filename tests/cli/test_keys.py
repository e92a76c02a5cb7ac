"""`genhook keys create`: a key is good only if somebody could see it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.cli import admin, main
from service.model.errors import StorageError

pytestmark = pytest.mark.usefixtures("bare_environment", "database")
CREATE = ["keys", "create", "--name", "x", "--scopes", "read"]


def full() -> int:
    """A descriptor of a full disk."""
    return os.open("/dev/full", os.O_WRONLY)


def unread() -> int:
    """A descriptor of a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the full device of Linux")
@pytest.mark.parametrize("more", [[], ["--json"]])
@pytest.mark.parametrize(("output", "to"), [(full, ">&-"), (full, ""), (unread, "")])
def test_no_key_is_created_where_nobody_would_see_it(
    output: Callable[[], int], to: str, more: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code = f"from service.cli import main; raise SystemExit(main.main({[*CREATE, *more]!r}))"
    shell = ["/bin/sh", "-c", f'"$0" -c "$1" {to}', sys.executable, code]
    descriptor = output()
    assert subprocess.run(shell, check=False, stdout=descriptor).returncode == 1  # noqa: S603
    os.close(descriptor)
    main.main(["migrate"])
    capsys.readouterr()
    main.main(["keys", "list"])
    assert capsys.readouterr().out == "There are none.\n"


def test_every_key_is_listed_however_many_there_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(admin, "KEYS_AT_ONCE", 2)
    for _ in range(5):
        assert main.main([*CREATE, "--json"]) == 0
    ids = [json.loads(line)["id"] for line in capsys.readouterr().out.splitlines()]
    assert main.main(["keys", "list", "--offline", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["data"]
    assert [key["id"] for key in listed] == ids[::-1]


def test_a_key_that_was_shown_and_not_stored_is_said_to_be_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def fails(*_: Any) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(admin, "_insert", fails)
    assert main.main(CREATE) == 1
    shown = capsys.readouterr()
    assert "ghk_" in shown.out
    assert "genhook: the key was not created: the disk is full.\n" in shown.err
