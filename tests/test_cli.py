"""The command line: what may be written, what is said, and with which status it ends."""

import argparse
import asyncio
import importlib
import json
import os
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import cli, doctor, follow, log, options, remote
from service.app import App
from service.clock import parse_rfc3339, rfc3339
from service.errors import CommandError, StorageError
from service.settings import VARIABLES, read_settings

SECRET_KEY = "0123456789abcdef0123456789abcdef"
NOW = parse_rfc3339("2026-11-22T18:20:00Z")


def run(line: str) -> int:
    return cli.main(shlex.split(line))


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Every command that does something, without the groups."""
    groups = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    for group in groups:
        for command in group.choices.values():
            yield from commands(command)
    if not groups:
        yield parser


COMMANDS = {command.prog: command for command in commands(options.parser())}


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the surroundings, and a log that stays as the other tests know it."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable.name, raising=False)
    monkeypatch.setattr(log, "configure", lambda *_: None)


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings with which the commands on the database itself work."""
    path = tmp_path / "genhook.db"
    monkeypatch.setenv("GENHOOK_DATABASE_URL", f"sqlite:///{path}")
    monkeypatch.setenv("GENHOOK_SECRET_KEYS", SECRET_KEY)
    return path


# What may be written


def test_the_commands_of_the_design_are_all_there() -> None:
    words = {name.split()[1] for name in COMMANDS}
    running, own = {"serve", "work", "sandbox", "demo"}, {"migrate", "tick", "keys", "doctor"}
    assert words == running | own | {"subscribers", "generations", "listen", "replay"}


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_has_help_with_an_example_that_it_takes(name: str) -> None:
    text = COMMANDS[name].format_help()
    example = text.partition("example:\n")[2].strip()
    assert name in example
    assert COMMANDS[name].description


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_a_command_names_a_function_that_is_there(name: str) -> None:
    module, _, function = COMMANDS[name].get_default("run").partition(":")
    assert callable(getattr(importlib.import_module(f"service.{module}"), function))


def test_help_waits_for_no_import_that_it_does_not_need() -> None:
    code = (
        "import sys\nfrom service import cli\n"
        "try: cli.main(['serve', '--help'])\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(*{'asyncio', 'httpx', 'msgspec', 'starlette', 'uvicorn'} & {*sys.modules})"
    )
    said = subprocess.run(  # noqa: S603  our own code
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert said.stdout.startswith("usage: genhook serve")
    assert said.stdout.splitlines()[-1] == ""


def test_without_a_command_help_is_printed_and_the_status_is_two(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([]) == 2
    assert "genhook" in capsys.readouterr().out


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("genhook 0.")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nothing", "invalid choice"),
        ("serve --port 65536", "a port is from 0 to 65535"),
        ("sandbox --speed 0", "from 0.01 to 1000"),
        ("sandbox --speed much", "invalid _speed value"),
        ("tick --seconds nan", "above 0"),
        ("keys", "COMMAND"),
        ("keys create --name x --scopes submit,everything", "separated by commas"),
        ("keys create --name= --scopes read", "1 to 100 printable characters"),
        ("generations create --model m --input []", "a JSON object"),
        ("generations create --model m --input {", "a JSON object"),
        ("generations list --status done", "invalid choice"),
        ("replay sub_1", "--since"),
        ("replay sub_1 --since yesterday", "neither an age"),
        ("replay sub_1 --since 2026-11-22T18:20:00", "neither an age"),
    ],
)
def test_a_wrong_command_line_ends_with_two_and_says_why(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(line)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("90m", "2026-11-22T16:50:00.000Z"),
        ("24h", "2026-11-21T18:20:00.000Z"),
        ("7d", "2026-11-15T18:20:00.000Z"),
        ("2026-11-22T19:20:00+01:00", "2026-11-22T18:20:00.000Z"),
    ],
)
def test_a_moment_is_an_age_or_a_time(text: str, at: str) -> None:
    assert follow.moment(text, NOW) == at


def test_an_age_beyond_all_times_is_refused() -> None:
    with pytest.raises(ValueError, match="neither an age"):
        follow.moment("99999999999d", NOW)


# How it ends


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
    assert run("migrate") == 2
    assert capsys.readouterr().err.startswith("genhook: GENHOOK_SECRET_KEYS is not set")


def test_an_error_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "doctor", lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        run("doctor")


def test_an_interruption_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "doctor", interrupt)
    assert run("doctor") == 130


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-c", "from service import cli; raise SystemExit(cli.main(['doctor']))"],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")


# The database itself


def test_migrate_says_what_it_applied_and_nothing_the_second_time(
    database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("migrate") == 0
    assert capsys.readouterr().out.startswith("applied 0001_")
    assert run("migrate") == 0
    said = capsys.readouterr().out
    assert "applied" not in said
    assert str(database) in said


def test_a_tick_says_what_was_done(database: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("tick --seconds 1") == 0
    assert capsys.readouterr().out == "nothing was due\n"
    assert run("tick --json") == 0
    assert json.loads(capsys.readouterr().out)["more"] is False
    assert database.exists()


def status_with(key: str) -> int:
    """What the service answers to a key that is in its database."""

    async def ask() -> int:
        app = App(read_settings())
        await app.start(worker=False)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://genhook") as client:
            answer = await client.get("/v1/generations", headers={"authorization": f"Bearer {key}"})
        await app.stop()
        return answer.status_code

    return asyncio.run(ask())


def test_a_key_made_here_opens_the_service_until_it_is_revoked(
    database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("keys create --name shop --scopes read,submit --tenant other --json") == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["tenant"], made["scopes"]) == ("other", ["read", "submit"])
    assert made["key"].encode() not in database.read_bytes()
    assert status_with(made["key"]) == 200
    assert cli.main(["keys", "revoke", made["id"]]) == 0
    assert status_with(made["key"]) == 401


@pytest.mark.usefixtures("database")
def test_keys_are_listed_without_the_keys_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    run("keys create --name shop --scopes read")
    key = capsys.readouterr().out.partition("ghk_")[2].split()[0]
    assert run("keys list") == 0
    said = capsys.readouterr().out
    assert said.startswith("key_")
    assert "live  default  read  shop" in said
    assert key not in said
    assert run("keys list --json") == 0
    assert [k["name"] for k in json.loads(capsys.readouterr().out)["data"]] == ["shop"]


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("keys revoke key_0", "there is no key key_0"),
        ("keys create --name x --scopes read --tenant No", "a tenant's name"),
    ],
)
def test_a_key_that_cannot_be_is_refused(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line) == 1
    assert said in capsys.readouterr().err


# The doctor


def found(**environ: str) -> Callable[[pytest.MonkeyPatch], dict[str, set[str]]]:
    """Levels of what the doctor finds, by what they are about, in this environment."""

    def examine(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        levels: dict[str, set[str]] = {}
        for finding in doctor.examine(NOW, online=False):
            assert finding.said.endswith(".")
            levels.setdefault(finding.about, set()).add(finding.level)
        return levels

    return examine


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    ("name", "value", "about", "level"),
    [
        ("GENHOOK_SECRET_KEYS", SECRET_KEY, "keys", "ok"),
        ("GENHOOK_SECRET_KEYS", "a" * 40, "keys", "fail"),
        ("GENHOOK_SECRET_KEYS", f"{SECRET_KEY},{SECRET_KEY}", "keys", "warn"),
        ("GENHOOK_SECRET_KEYS", "short", "settings", "fail"),
        ("GENHOOK_ADMIN_KEY", "ghk_" + "a" * 40, "admin key", "fail"),
        ("GENHOOK_ADMIN_KEY", "", "admin key", "warn"),
        ("GENHOOK_PUBLIC_URL", "", "public url", "warn"),
        ("GENHOOK_PUBLIC_URL", "http://127.0.0.1:8000", "public url", "warn"),
        ("GENHOOK_PUBLIC_URL", "https://genhook.example", "public url", "ok"),
        ("GENHOOK_UPSTREAM_API_KEY", "", "upstream", "fail"),
        ("GENHOOK_UPSTREAM_API_KEY", "aio_x", "upstream", "ok"),
        ("GENHOOK_UPSTREAM_APIKEY", "aio_x", "settings", "warn"),
        ("GENHOOK_DATABASE_URL", "sqlite:////nowhere/genhook.db", "disk", "fail"),
    ],
)
def test_the_doctor_judges_a_setting(
    name: str, value: str, about: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert level in found(**{name: value})(monkeypatch)[about]


def test_the_doctor_is_content_with_a_database_that_is_well(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found()(monkeypatch)["database"] == {"warn"}
    run("keys create --name x --scopes read")
    levels = found()(monkeypatch)
    assert (levels["database"], levels["schema"], levels["seals"]) == ({"ok"}, {"ok"}, {"ok"})
    assert database.exists()


@pytest.mark.parametrize(
    ("statement", "about", "level"),
    [
        ("PRAGMA user_version=0", "schema", "warn"),
        ("PRAGMA user_version=999", "schema", "fail"),
        ("UPDATE tenants SET sealed_secrets=x'00'", "seals", "fail"),
    ],
)
def test_the_doctor_finds_what_ails_a_database(
    statement: str, about: str, level: str, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("keys create --name x --scopes read")
    connection = sqlite3.connect(database)
    connection.execute(statement)
    connection.commit()
    connection.close()
    assert found()(monkeypatch)[about] == {level}


def test_the_doctor_finds_a_database_of_other_keys(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("keys create --name x --scopes read")
    assert found(GENHOOK_SECRET_KEYS=SECRET_KEY[::-1])(monkeypatch)["seals"] == {"fail"}
    assert database.exists()


def test_the_doctor_finds_a_file_that_is_no_database(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.write_text("a diary, not a database, and long enough to be read as one\n" * 100)
    assert found()(monkeypatch)["database"] == {"fail"}


@pytest.mark.usefixtures("database")
def test_the_doctor_finds_a_clock_that_was_never_set() -> None:
    levels = {f.about: f.level for f in doctor.examine(0, online=False)}
    assert levels["clock"] == "fail"


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    ("answer", "at", "levels"),
    [
        (httpx.Response(404), NOW, ["ok"]),
        (httpx.Response(401), NOW, ["fail"]),
        (httpx.Response(503), NOW, ["warn"]),
        (httpx.ConnectError("no route"), NOW, ["fail"]),
        (httpx.Response(404), NOW + 3_600_000, ["ok", "fail"]),
    ],
)
def test_the_doctor_asks_upstream(
    answer: httpx.Response | Exception,
    at: int,
    levels: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def get(*_: object, **__: object) -> httpx.Response:
        if isinstance(answer, Exception):
            raise answer
        answer.headers["date"] = "Sun, 22 Nov 2026 18:20:00 GMT"
        return answer

    monkeypatch.setattr(httpx, "get", get)
    assert [f.level for f in doctor._online(read_settings(), at)] == levels


@pytest.mark.usefixtures("database")
def test_a_failure_is_the_doctors_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor --json") == 1
    findings = json.loads(capsys.readouterr().out)
    assert {"level": "fail", "about": "upstream"}.items() <= findings[4].items()


# A service elsewhere


Replies = Callable[[httpx.Request], httpx.Response]


def served(monkeypatch: pytest.MonkeyPatch, replies: Replies) -> None:
    """Have every command talk to a scripted service."""

    def connect(_: argparse.Namespace) -> httpx.Client:
        return httpx.Client(transport=httpx.MockTransport(replies), base_url="http://genhook")

    monkeypatch.setattr(remote, "connect", connect)
    monkeypatch.setattr(follow, "connect", connect)


PROBLEM = {
    "detail": "The request has wrong fields.",
    "code": "invalid_request",
    "errors": [{"pointer": "/input/prompt", "message": "is required"}],
}


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (
            httpx.Response(422, json=PROBLEM),
            "The request has wrong fields: /input/prompt is required (invalid_request).",
        ),
        (httpx.Response(502, text="<html>"), "http://genhook/v1/generations answered 502"),
        (httpx.Response(404, json=[]), "http://genhook/v1/generations answered 404"),
        (httpx.Response(200, text="hello"), "is not genhook"),
    ],
)
def test_a_refusal_is_one_sentence_with_its_code(
    reply: httpx.Response,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    served(monkeypatch, lambda _: reply)
    assert run("generations create --model m") == 1
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_refusal_cannot_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problem = {"detail": "red \x1b[31m", "code": "x"}
    served(monkeypatch, lambda _: httpx.Response(422, json=problem))
    run("generations list")
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("generations list --key ghk_x --url ftp://x", "ftp://x is no URL"),
        ("generations list --url http://127.0.0.1:1", "a key is needed"),
        ("generations list --key ghk_x --url http://127.0.0.1:1", "no answer from"),
    ],
)
def test_a_service_that_cannot_be_asked_is_one_sentence(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(line) == 1
    assert said in capsys.readouterr().err


def replies_of(replays: list[dict[str, Any]], asked: list[httpx.Request]) -> Replies:
    """A service whose replay is at the next of `replays` each time it is looked at."""

    def reply(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(202, json=replays.pop(0))

    return reply


def replay_at(done: int, status: str = "running") -> dict[str, Any]:
    return {"id": "rpl_1", "status": status, "done": done, "total": 40}


def test_a_replay_is_watched_until_it_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[httpx.Request] = []
    states = [replay_at(0), replay_at(10), replay_at(10), replay_at(40, "done")]
    served(monkeypatch, replies_of(states, asked))
    given = options.parser().parse_args(["replay", "sub_1", "--since", "24h", "--only", "all"])
    waits: list[float] = []
    assert follow.replay(given, cli._say, waits.append) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == ["0 of 40", "10 of 40", "40 of 40", "rpl_1 done: 40 events sent again."]
    assert len(waits) == 3
    body = json.loads(asked[0].content)
    assert set(body) == {"subscriber_id", "since", "until", "only", "event_types", "dry_run"}
    assert body["since"] < body["until"]


@pytest.mark.parametrize(
    ("line", "last", "status", "said"),
    [
        ("--dry-run", replay_at(0, "done"), 0, "rpl_1 done: 40 events would be sent."),
        ("", replay_at(1, "canceled"), 1, "rpl_1 canceled after 1 event sent again."),
    ],
)
def test_how_a_replay_ends_is_said(
    line: str,
    last: dict[str, Any],
    status: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    served(monkeypatch, replies_of([last], []))
    assert run(f"replay sub_1 --since {rfc3339(NOW)} {line}") == status
    assert capsys.readouterr().out.splitlines()[-1] == said


def test_a_replay_goes_on_without_its_watcher(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    served(monkeypatch, replies_of([replay_at(0)], []))
    given = options.parser().parse_args(["replay", "sub_1", "--since", "1h"])
    with pytest.raises(CommandError, match="rpl_1 goes on"):
        follow.replay(given, cli._say, interrupt)
    assert capsys.readouterr().out == "0 of 40\n"


# Listening


def event(number: int) -> bytes:
    found = {"id": f"evt_{number}", "type": "ping", "timestamp": rfc3339(NOW), "data": {}}
    return json.dumps(found, indent=number).encode()  # so that bytes are kept, not remade


def page(*events: bytes) -> httpx.Response:
    ids = [json.loads(found)["id"] for found in events]
    after = json.dumps(ids[-1] if ids else None).encode()
    return httpx.Response(
        200, content=b'{"data":[' + b",".join(events) + b'],"next":' + after + b"}"
    )


def listen_to(
    script: list[httpx.Response | Exception], monkeypatch: pytest.MonkeyPatch, line: str = ""
) -> list[str]:
    """What `listen` asks for while the service answers by the script, then is interrupted."""
    asked: list[str] = []

    def reply(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.params.get("after", ""))
        if not script:
            raise KeyboardInterrupt
        answer = script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    served(monkeypatch, reply)
    given = options.parser().parse_args(["listen", *line.split()])
    with pytest.raises(KeyboardInterrupt):
        follow.listen(given, cli._say, lambda _: None)
    return asked


def test_listening_starts_at_what_is_new_and_goes_on_from_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script: list[httpx.Response | Exception] = [page(event(1)), page(event(2), event(3)), page()]
    assert listen_to(script, monkeypatch) == ["", "evt_1", "evt_3", "evt_3"]
    said = capsys.readouterr().out
    assert said.splitlines() == [
        "18:20:00  ping                    evt_2"[:38],
        said.splitlines()[1],
    ]
    assert "evt_1" not in said


def test_listening_waits_for_a_service_that_is_away(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    away = httpx.ConnectError("refused")
    busy = httpx.Response(503, json={"detail": "Not now.", "code": "storage_unavailable"})
    script = [away, busy, page(event(2))]
    assert listen_to(script, monkeypatch, "--after evt_1 --json") == ["evt_1"] * 3 + ["evt_2"]
    said = capsys.readouterr().out
    assert said.count("Trying again.") == 1
    assert event(2).decode() in said


def test_listening_with_a_secret_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    served(monkeypatch, lambda _: page())
    assert run("listen --once --secret whsec_short") == 1
    assert "--secret cannot be used" in capsys.readouterr().err
