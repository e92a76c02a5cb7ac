"""The command line: its options, its output and its exit status."""

import argparse
import asyncio
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme

from service.app import App
from service.cli import admin, calls, doctor, main
from service.model.clock import parse_rfc3339
from service.model.errors import CommandError, StorageError
from service.settings import read_settings
from service.telemetry import log

pytestmark = pytest.mark.usefixtures("bare_environment")
NOW = parse_rfc3339("2026-11-22T18:20:00Z")


@pytest.fixture
def migrated(database: Path) -> Path:
    """Create the database of the settings; return its path."""
    asyncio.run(admin._migrate(read_settings()))
    return database


def run(line: str) -> int:
    return main.main(shlex.split(line))


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Every command that does something, without the groups."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for group in groups:
        for command in group.choices.values():
            yield from commands(command)
    if not groups:
        yield parser


COMMANDS = {
    command.prog: command for name in main.COMMANDS for command in commands(main.parser(name))
}


# Options


def test_the_commands_of_the_design_are_all_there() -> None:
    words = {name.split()[1] for name in COMMANDS}
    running = {"serve", "work", "sandbox", "demo"}
    own = {"migrate", "tick", "backup", "copy", "keys", "doctor"}
    nouns = {"subscribers", "generations", "deliveries", "events", "models", "usage"}
    nouns |= {"callbacks", "replays", "signing-secret"}
    assert words == running | own | nouns | {"listen", "replay", "completion"}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_has_help_with_an_example_that_it_takes(name: str) -> None:
    text = COMMANDS[name].format_help()
    example = text.partition("example:\n")[2].strip()
    assert name in example
    assert COMMANDS[name].description


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_has_a_function(name: str) -> None:
    assert callable(COMMANDS[name].get_default("run"))


@pytest.mark.parametrize("line", ["--help", "serve --help", "--version serve --port 1"])
def test_help_imports_nothing_that_it_does_not_need(line: str) -> None:
    code = (
        "import sys\nfrom service.cli import main\n"
        f"try: main.main({line.split()!r})\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(*{'asyncio', 'httpx', 'msgspec', 'starlette', 'uvicorn'} & {*sys.modules})"
    )
    done = subprocess.run(  # noqa: S603  our own code
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert done.stdout.startswith(("usage: genhook", "genhook 0."))
    assert done.stdout.splitlines()[-1] == ""


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main([]) == 2
    text = " ".join(capsys.readouterr().out.split())
    for name, (_, summary) in main.COMMANDS.items():
        assert f" {name} {summary}" in text


def test_without_a_command_help_is_printed_and_the_status_is_two(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main.main([]) == 2
    assert "genhook" in capsys.readouterr().out


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("genhook 0.")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nothing", "COMMAND: must be one of: serve, work"),
        ("serve --port 65536", "must be a port, from 0 to 65535"),
        ("serve --host ''", "must not be empty"),
        ("sandbox --host ' '", "an address, such as 127.0.0.1"),
        ("sandbox --speed 0", "from 0.01 to 1000"),
        ("sandbox --speed much", "must be a number from 0.01 to 1000"),
        ("tick --every 0", "must be a number from 0.01 to 3600"),
        ("tick --seconds nan", "must be a number from 0.01 to 3600"),
        ("tick --seconds abc", "must be a number from 0.01 to 3600"),
        ("tick --seconds 1_0", "must be a number from 0.01 to 3600"),
        ("sandbox --port 1_0", "must be a port, from 0 to 65535"),
        ("sandbox --port \u0661", "must be a port, from 0 to 65535"),
        ("sandbox --speed ' 1'", "must be a number from 0.01 to 1000"),
        ("generations list --limit 1_0", "must be a whole number"),
        ("replay sub_1 --since \u0661h", "neither an age"),
        ("listen --forward-to nope", "must be a URL, such as http://127.0.0.1:3000/hooks"),
        ("listen --forward-to http://[", "must be a URL, such as http://127.0.0.1:3000/hooks"),
        ("keys", "COMMAND"),
        ("keys create --name x --scopes submit,everything", "must be one or more of submit, read"),
        ("keys create --name= --scopes read", "must not be empty"),
        ("keys create --name '\t' --scopes read", "must be 1 to 100 printable characters"),
        ("generations create --model m --input []", "must be a JSON object"),
        ("generations create --model m --input {", "must be a JSON object"),
        ("generations list --status done", "must be one of: queued, processing"),
        ("replay sub_1", "--since"),
        ("keys revoke ../keys/key_1", "must be the id of a key, such as key_0"),
        ("subscribers delete ../keys/key_1", "must be the id of a subscriber"),
        ("generations get x?y", "must be the id of a generation"),
        ("generations timeline %2e%2e", "must be the id of a generation"),
        ("replay a/b --since 1h", "must be the id of a subscriber, such as sub_0"),
        ("replay sub_1 --since yesterday", "neither an age"),
        ("replay sub_1 --since 2026-11-22T18:20:00", "neither an age"),
    ],
)
def test_a_wrong_command_line_ends_with_two_and_says_why(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(line)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("key", ["aio_é", "aio_a b"])
def test_a_key_of_the_sandbox_is_one_that_can_be_sent(
    key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):  # Only parsed: with a good key it would serve.
        main.parser("sandbox").parse_args(["sandbox", "--api-key", key])
    assert "must be visible ASCII characters" in capsys.readouterr().err


# Exit status


@pytest.mark.parametrize(
    ("error", "status"), [(CommandError("it rains."), 1), (StorageError("the disk is full"), 1)]
)
def test_an_error_for_people_is_one_sentence(
    error: Exception,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> int:
        raise error

    monkeypatch.setattr(doctor, "doctor", fail)
    assert run("doctor") == status
    assert capsys.readouterr().err == f"genhook: {str(error).rstrip('.')}.\n"


def test_a_setting_that_is_missing_ends_with_two_and_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run("keys list --offline") == 2
    assert capsys.readouterr().err.startswith("genhook: GENHOOK_SECRET_KEYS is not set")


def test_a_fault_of_genhook_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "doctor", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run("doctor")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the full device of Linux")
@pytest.mark.parametrize("line", ["--version", "--help", "keys create --help", ""])
def test_an_output_that_cannot_be_written_is_one_sentence(line: str) -> None:
    code = f"from service.cli import main; raise SystemExit(main.main({line.split()!r}))"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(  # noqa: S603  our own code
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert done.stderr == b"genhook: the output cannot be written: No space left on device.\n"


def test_an_output_in_ascii_gets_what_it_cannot_show_escaped_as_in_json() -> None:
    code = (
        "from service.cli import doctor, main, streams\n"
        "doctor.doctor = lambda options: streams.echo('\"\\xe9\\U0001f600\"') or 0\n"
        "raise SystemExit(main.main(['doctor']))"
    )
    environ = {**os.environ, "PYTHONIOENCODING": "ascii"}  # noqa: TID251  handed on
    done = subprocess.run(  # noqa: S603  our own code
        [sys.executable, "-c", code], capture_output=True, check=True, env=environ
    )
    assert done.stdout == b'"\\u00e9\\ud83d\\ude00"\n'
    assert json.loads(done.stdout) == "é\U0001f600"


def test_a_closed_output_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            "from service.cli import main; raise SystemExit(main.main(['doctor']))",
        ],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")


# The database itself


def test_migrate_prints_what_it_applied_and_nothing_the_second_time(
    database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("migrate") == 0
    assert capsys.readouterr().out.startswith("applied 0001_")
    assert run("migrate") == 0
    text = capsys.readouterr().out
    assert "applied" not in text
    assert str(database) in text


@pytest.mark.parametrize("line", ["keys list", "keys revoke key_0", "backup a.db", "doctor"])
def test_a_command_that_creates_nothing_says_that_there_is_no_database(
    line: str,
    database: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(database.parent)
    assert run(line) == 1
    shown = "".join(capsys.readouterr())
    assert str(database) in shown
    assert "there is no database" in shown or "does not exist" in shown
    assert list(database.parent.iterdir()) == []


@pytest.mark.parametrize("line", ["migrate", "tick", "keys create --name x --scopes read"])
def test_a_command_that_creates_something_creates_the_database_too_and_says_so(
    line: str, database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line) == 0
    assert database.exists()
    created = [text for text in capsys.readouterr().err.splitlines() if str(database) in text]
    assert [json.loads(text)["event"] for text in created] == ["database.created"]
    assert run(line) == 0
    assert "database.created" not in capsys.readouterr().err


@pytest.mark.usefixtures("database")
def test_scopes_may_have_spaces_after_the_commas(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("keys create --name shop --scopes 'read, submit' --json") == 0
    assert json.loads(capsys.readouterr().out)["scopes"] == ["read", "submit"]


def status_with(key: str) -> int:
    """The status that the service answers to a key in its database."""

    async def ask() -> int:
        app = App(read_settings())
        await app.start(worker=False)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://genhook") as client:
            answer = await client.get("/v1/generations", headers={"authorization": f"Bearer {key}"})
        await app.stop()
        return answer.status_code

    return asyncio.run(ask())


def test_a_key_opens_the_service_until_it_is_revoked(
    database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("keys create --name shop --scopes read,submit --tenant other --json") == 0
    key = json.loads(capsys.readouterr().out)
    assert (key["tenant"], key["scopes"]) == ("other", ["read", "submit"])
    assert key["key"].encode() not in database.read_bytes()
    assert status_with(key["key"]) == 200
    assert main.main(["keys", "revoke", key["id"]]) == 0
    assert status_with(key["key"]) == 401


@pytest.mark.usefixtures("database")
def test_every_act_on_keys_leaves_an_audit_line_without_the_key(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    levels: list[str] = []
    monkeypatch.setattr(log, "configure", lambda level, **_: levels.append(level))

    def audit() -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
        return [line for line in lines if line["event"] == "audit"]

    assert run("keys create --name shop --scopes read --tenant other") == 0
    [created] = audit()
    assert (created["act"], created["of_tenant"]) == ("key.create", "other")
    assert created["of_scopes"] == ["read"]
    assert "ghk_" not in str(created)
    assert run("keys list") == 0
    assert audit() == []
    assert run(f"keys revoke {created['id']}") == 0
    [revoked] = audit()
    assert (revoked["act"], revoked["id"]) == ("key.revoke", created["id"])
    assert run("keys revoke key_0") == 4
    assert "audit" not in capsys.readouterr().err
    assert {*levels} == {"info"}  # Else the lines would not be written.


@pytest.mark.usefixtures("database")
def test_keys_are_listed_without_the_keys_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    run("keys create --name shop --scopes read")
    key = capsys.readouterr().out.partition("ghk_")[2].split()[0]
    assert run("keys list") == 0
    text = capsys.readouterr().out
    assert text.startswith("ID ")
    assert re.search("key_[0-9a-f]{32}  live +default +read +shop", text)
    assert key not in text
    assert run("keys list --json") == 0
    assert [k["name"] for k in json.loads(capsys.readouterr().out)["data"]] == ["shop"]


@pytest.mark.usefixtures("migrated")
@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("keys revoke key_0", 4, "there is no key key_0"),
        ("keys create --name x --scopes read --tenant No", 2, "a tenant's name"),
    ],
)
def test_a_wrong_key_is_refused(
    line: str, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line) == status
    assert message in capsys.readouterr().err


# Logs go to standard error


def test_with_json_standard_output_is_only_json(migrated: Path) -> None:
    code = (
        "from service.cli import main\nfrom service.cli import tick as command\n"
        "from service.telemetry import log\n"
        "tick = command._tick\n"
        "def logging_tick(*arguments):\n"
        "    log.get().warning('working')\n"
        "    return tick(*arguments)\n"
        "command._tick = logging_tick\n"
        "raise SystemExit(main.main(['tick', '--seconds', '60', '--json']))"
    )
    done = subprocess.run(  # noqa: S603  our own code
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert json.loads(done.stdout)["more"] is False
    assert json.loads(done.stderr)["event"] == "working"
    assert migrated.exists()


@pytest.mark.usefixtures("migrated")
@pytest.mark.parametrize(("line", "status"), [("tick --seconds 60", 0), ("keys revoke key_0", 4)])
def test_without_any_stream_a_command_ends_as_ever(line: str, status: int) -> None:
    assert status_without("<&- >&- 2>&-", line) == status


def status_without(redirections: str, line: str) -> int:
    """The status of a command in a process of its own, some of whose streams are closed."""
    code = f"from service.cli import main; raise SystemExit(main.main({line.split()!r}))"
    shell = ["/bin/sh", "-c", f'"$0" -c "$1" {redirections}', sys.executable, code]
    return subprocess.run(shell, check=False).returncode  # noqa: S603  our own code


# A service elsewhere


Replies = Callable[[httpx.Request], httpx.Response]


def served(monkeypatch: pytest.MonkeyPatch, replies: Replies) -> None:
    """Have every command talk to a scripted service."""

    def connect(_: argparse.Namespace) -> httpx.Client:
        return httpx.Client(transport=httpx.MockTransport(replies), base_url="http://genhook")

    monkeypatch.setattr(calls, "connect", connect)


PROBLEM = {
    "detail": "The request has wrong fields.",
    "code": "invalid_request",
    "errors": [{"pointer": "/input/prompt", "message": "is required"}],
}

WRONG_QUERY = {
    "detail": "The query parameter limit must be a whole number.",
    "code": "invalid_query",
    "errors": [{"pointer": "?limit", "message": "must be a whole number"}],
}


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (
            httpx.Response(422, json=PROBLEM),
            "The request has wrong fields: /input/prompt is required (invalid_request), says http://genhook.",
        ),
        (
            httpx.Response(
                422, json={**PROBLEM, "errors": [{"pointer": "/url", "message": PROBLEM["detail"]}]}
            ),
            "genhook: The request has wrong fields (invalid_request), says http://genhook.",
        ),
        (
            httpx.Response(400, json=WRONG_QUERY),
            "genhook: The query parameter limit must be a whole number (invalid_query), says http://genhook.\n",
        ),
        (
            httpx.Response(401, json={"detail": "It is unknown.", "code": "unauthorized"}),
            "It is unknown (unauthorized), says http://genhook.",
        ),
        (httpx.Response(502, text="<html>"), "http://genhook/v1/generations answered 502"),
        (httpx.Response(404, json=[]), "http://genhook/v1/generations answered 404"),
        (httpx.Response(200, text="hello"), "is not genhook"),
    ],
)
def test_a_refusal_is_one_sentence_with_its_code(
    reply: httpx.Response,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    served(monkeypatch, lambda _: reply)
    status = {401: 5, 502: 3}.get(reply.status_code, 1)
    assert run("generations create --model m") == status
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("text", ["", "<html>", "{}"])
def test_a_server_that_does_not_delete_as_genhook_does_has_deleted_nothing(
    text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served(monkeypatch, lambda _: httpx.Response(200, text=text))
    assert run("subscribers delete sub_1") == 1
    assert "is not genhook" in capsys.readouterr().err


def test_a_refusal_cannot_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = {"detail": "red \x1b[31m", "code": "x"}
    served(monkeypatch, lambda _: httpx.Response(422, json=problem))
    run("generations list")
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("generations list --url http://127.0.0.1:1", "a key is needed"),
        ("generations list --key ghk_x --url http://127.0.0.1:1", "no answer from http://127"),
    ],
)
def test_a_service_that_cannot_be_asked_is_one_sentence(
    line: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line) == (3 if message.startswith("no answer") else 2)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environ", "url", "key"),
    [
        ({"GENHOOK_ADMIN_KEY": "ghk_admin"}, "http://127.0.0.1:8000", "ghk_admin"),
        (
            {"GENHOOK_ADMIN_KEY": "ghk_admin", "GENHOOK_API_KEY": "ghk_own", "PORT": "1"},
            "http://127.0.0.1:1",
            "ghk_own",
        ),
        (
            {"GENHOOK_API_KEY": "ghk_own", "GENHOOK_PUBLIC_URL": "https://a.example"},
            "https://a.example",
            "ghk_own",
        ),
        (
            {
                "GENHOOK_API_KEY": "ghk_own",
                "GENHOOK_PUBLIC_URL": "https://a.example",
                "GENHOOK_URL": "https://b.example",
            },
            "https://b.example",
            "ghk_own",
        ),
    ],
)
def test_the_environment_names_the_service_and_the_key(
    environ: dict[str, str], url: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PORT", raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with calls.connect(argparse.Namespace(url=None, key=None)) as connected:
        assert str(connected.base_url) == url
        assert connected.headers["authorization"] == f"Bearer {key}"


@pytest.mark.parametrize("end", ["\n", "\r\n", " "])
def test_a_key_is_sent_without_the_line_end_after_it(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GENHOOK_API_KEY", f"ghk_own{end}")
    with calls.connect(argparse.Namespace(url=None, key=None)) as connected:
        assert connected.headers["authorization"] == "Bearer ghk_own"


@pytest.mark.parametrize("key", ["ghk_hush\rhush", "ghk_hush hush", "ghk_hush\x7f", "ghk_hush-é"])
def test_a_key_that_cannot_be_sent_is_named_and_not_shown(
    key: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GENHOOK_API_KEY", key)
    assert run("subscribers list --url http://127.0.0.1:9") == 2
    shown = capsys.readouterr().err
    assert "GENHOOK_API_KEY" in shown
    assert "hush" not in shown


def test_a_list_of_subscribers_shows_their_descriptions(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    view = {"id": "sub_1", "status": "active", "url": "https://a.example/", "event_types": []}
    page = {"data": [{**view, "description": "the web shop"}], "next": None}
    served(monkeypatch, lambda _: httpx.Response(200, json=page))
    assert run("subscribers list") == 0
    assert "the web shop" in capsys.readouterr().out


def test_event_types_do_not_swallow_the_url() -> None:
    line = "subscribers create --event-types ping,generation.failed https://a.example/"
    options = main.parser("subscribers").parse_args(line.split())
    assert options.argument_event_types == ["ping", "generation.failed"]
    assert options.argument_target == "https://a.example/"


@pytest.mark.parametrize("scheme", ["https", "HTTPS"])
def test_the_certificates_of_the_environment_count_for_this_machine_too(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ca.pem"
    trustme.CA(organization_name="ours").cert_pem.write_to_path(str(path))
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    options = argparse.Namespace(url=f"{scheme}://localhost:8443", key="ghk_x")
    with calls.connect(options) as connected:
        transport: Any = connected._transport
        [trusted] = transport._pool._ssl_context.get_ca_certs()
    assert "ours" in str(trusted["subject"])
