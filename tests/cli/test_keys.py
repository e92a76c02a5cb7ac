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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the full device of Linux")
@pytest.mark.parametrize("more", [[], ["--json"]])
@pytest.mark.parametrize("output", [full, unread])
def test_a_key_that_was_revoked_offline_is_named_where_nothing_can_be_printed(
    output: Callable[[], int],
    more: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main.main([*CREATE, "--json"]) == 0
    id_ = json.loads(capsys.readouterr().out)["id"]
    with os.fdopen(output(), "w") as file, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        assert main.main(["keys", "revoke", id_, "--offline", *more]) == 1
    assert f"The request was carried out: {id_}." in capsys.readouterr().err


def test_the_options_of_a_list_count_offline_as_they_do_for_a_service(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def create(*more: str) -> str:
        assert main.main([*CREATE, "--json", *more]) == 0
        return str(json.loads(capsys.readouterr().out)["id"])

    def listed(*more: str) -> tuple[list[str], str | None]:
        assert main.main(["keys", "list", "--offline", "--json", *more]) == 0
        page = json.loads(capsys.readouterr().out)
        return [key["id"] for key in page["data"]], page["next"]

    other, *ids = create("--tenant", "other"), *(create() for _ in range(3))
    assert listed() == ([*ids[::-1], other], None)
    assert listed("--tenant", "other") == ([other], None)
    assert listed("--tenant", "default", "--order", "asc") == (ids, None)
    assert listed("--limit", "2") == (ids[:0:-1], ids[1])
    assert listed("--limit", "2", "--after", ids[1]) == ([ids[0], other], None)
    assert main.main(["keys", "list", "--limit", "2"]) == 0
    assert capsys.readouterr().out.endswith(f"more: --after {ids[1]}\n")


@pytest.mark.parametrize("words", [["--limit", "251"], ["--after", "x"]])
def test_an_option_of_a_list_that_a_service_would_refuse_is_refused_offline(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["keys", "list", *words]) == 2
    assert words[0] in capsys.readouterr().err


@pytest.mark.parametrize("words", [CREATE, ["keys", "list"], ["keys", "revoke", "key_1"]])
@pytest.mark.parametrize("by", ["--url", "GENHOOK_URL"])
def test_where_a_service_is_named_no_database_is_opened_for_want_of_a_key(
    words: list[str],
    by: str,
    database: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    option = ["--url", "http://127.0.0.1:1"] if by == "--url" else []
    if not option:
        monkeypatch.setenv(by, "http://127.0.0.1:1")
    assert main.main([*words, *option]) == 2
    assert capsys.readouterr().err.startswith("genhook: a key is needed: give --key")
    assert not database.exists()


@pytest.mark.parametrize("option", ["--url http://127.0.0.1:1", "--key ghk_x"])
def test_a_service_and_offline_are_refused_together(
    option: str, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["keys", "list", "--offline", *option.split()]) == 2
    said = f"genhook: {option.partition(' ')[0]} needs a service: leave out --offline.\n"
    assert capsys.readouterr().err == said
    assert not database.exists()


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
