"""The doctor: its findings about settings, database, keys and clock, and their levels."""

import json
import os
import shlex
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.cli import doctor, main
from service.cli.database_checks import Finding
from service.model.clock import parse_rfc3339
from service.settings import read_settings
from tests.conftest import SECRET_KEY
from tests.harness import opened

pytestmark = pytest.mark.usefixtures("bare_environment")
NOW = parse_rfc3339("2026-11-22T18:20:00Z")


def run(line: str) -> int:
    return main.main(shlex.split(line))


def levels_of(**environ: str) -> Callable[[pytest.MonkeyPatch], dict[str, set[str]]]:
    """The levels of the findings in this environment, by what they are about."""

    def examine(monkeypatch: pytest.MonkeyPatch) -> dict[str, set[str]]:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        levels: dict[str, set[str]] = {}
        for finding in doctor.examine(NOW, online=False):
            assert finding.message.endswith(".")
            levels.setdefault(finding.about, set()).add(finding.level)
        return levels

    return examine


def test_the_doctor_names_every_wrong_setting(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PORT", "x")
    monkeypatch.setenv("GENHOOK_WRITE_QUEUE", "0")
    assert run("doctor") == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == ["PORT", "GENHOOK_WRITE_QUEUE"]


@pytest.mark.usefixtures("database")
def test_the_doctor_reads_the_secret_of_signatures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GENHOOK_UPSTREAM_SIGNATURE", "standard")
    monkeypatch.setenv("GENHOOK_UPSTREAM_SIGNATURE_SECRET", "whsec_!!!!!!!!!")
    assert run("doctor") == 1
    assert "GENHOOK_UPSTREAM_SIGNATURE_SECRET" in capsys.readouterr().out


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize(
    ("name", "value", "about", "level"),
    [
        ("GENHOOK_SECRET_KEYS", SECRET_KEY, "keys", "ok"),
        ("GENHOOK_SECRET_KEYS", "a" * 40, "settings", "fail"),
        ("GENHOOK_SECRET_KEYS", f"{SECRET_KEY},{SECRET_KEY}", "keys", "warn"),
        ("GENHOOK_SECRET_KEYS", "short", "settings", "fail"),
        ("GENHOOK_ADMIN_KEY", "ghk_" + "a" * 40, "settings", "fail"),
        ("GENHOOK_ADMIN_KEY", "", "admin key", "warn"),
        ("GENHOOK_PUBLIC_URL", "", "public url", "warn"),
        ("GENHOOK_PUBLIC_URL", "http://127.0.0.1:8000", "public url", "warn"),
        ("GENHOOK_PUBLIC_URL", "https://genhook.example", "public url", "ok"),
        ("GENHOOK_UPSTREAM_API_KEY", "", "upstream", "fail"),
        ("GENHOOK_UPSTREAM_API_KEY", "aio_xxxx", "upstream", "ok"),
        ("GENHOOK_UPSTREAM_APIKEY", "aio_x", "settings", "warn"),
        ("GENHOOK_DATABASE_URL", "sqlite:////nowhere/genhook.db", "disk", "fail"),
    ],
)
def test_the_doctor_judges_a_setting(
    name: str, value: str, about: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert level in levels_of(**{name: value})(monkeypatch)[about]


def test_of_a_folder_that_cannot_be_used_the_doctor_says_whether_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = doctor._disk(tmp_path / "none")
    assert missing.message == f"{tmp_path}/none cannot be used: No such file or directory."
    monkeypatch.setattr(os, "access", lambda *_: False)  # For root it never is.
    read_only = doctor._disk(tmp_path)
    assert read_only.message == f"{tmp_path} cannot be written to."
    assert (missing.level, read_only.level) == ("fail", "fail")


def test_an_intact_database_is_ok(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert levels_of()(monkeypatch)["database"] == {"warn"}
    run("keys create --name x --scopes read")
    levels = levels_of()(monkeypatch)
    assert (levels["database"], levels["schema"], levels["seals"]) == ({"ok"}, {"ok"}, {"ok"})
    assert database.exists()


@pytest.mark.parametrize(
    ("statement", "about", "level"),
    [
        ("PRAGMA user_version=0", "schema", "fail"),
        ("PRAGMA user_version=999", "schema", "fail"),
        ("UPDATE tenants SET sealed_secrets=x'00'", "seals", "fail"),
        (
            "CREATE TRIGGER full BEFORE UPDATE ON revisions BEGIN SELECT raise(FAIL, 'full'); END",
            "database",
            "fail",
        ),
    ],
)
def test_the_doctor_finds_faults_of_a_database(
    statement: str, about: str, level: str, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("keys create --name x --scopes read")
    connection = sqlite3.connect(database)
    connection.execute(statement)
    connection.commit()
    connection.close()
    assert levels_of()(monkeypatch)[about] == {level}


@pytest.mark.parametrize("index", ["deliveries_due", "replays_running"])
def test_the_doctor_names_a_missing_index_with_the_statement_that_creates_it(
    database: Path, capsys: pytest.CaptureFixture[str], index: str
) -> None:
    run("migrate")
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute(f"DROP INDEX {index}")
        [message] = messages_of("indexes", "fail", capsys)
        assert message.startswith(f"{index} is missing")
        connection.execute(message.split("`")[1])
    assert messages_of("indexes", "ok", capsys) == ["None is missing."]


@pytest.mark.parametrize("table", ["deliveries", "tenants", "revisions"])
def test_the_doctor_names_a_missing_table_and_not_what_belonged_to_it(
    database: Path, capsys: pytest.CaptureFixture[str], table: str
) -> None:
    run("migrate")
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute(f"DROP TABLE {table}")
    capsys.readouterr()
    assert run("doctor --json") == 1
    findings = json.loads(capsys.readouterr().out)
    assert [each["about"] for each in findings if each["level"] == "fail"] == ["upstream", "tables"]
    assert findings[-1]["message"] == f"The table {table} is missing: restore a backup."


def messages_of(about: str, level: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    capsys.readouterr()
    run("doctor --json")
    findings = json.loads(capsys.readouterr().out)
    found = [each for each in findings if each["about"] == about]
    assert {each["level"] for each in found} == {level}
    return [each["message"] for each in found]


async def test_the_doctor_says_for_how_long_work_has_been_due(
    database: Path, tmp_path: Path
) -> None:
    async with opened(tmp_path, database_path=str(database)) as world:
        subscriber = await world.subscribe()
        await world.generate()
        await world.call_back()
        at = world.clock.now

        def due(seconds: int) -> list[Finding]:
            findings = doctor.examine(at + seconds * 1_000, online=False)
            return [each for each in findings if each.about == "due"]

        kinds = ("delivery", "submission", "confirmation of a callback", "poll", "replay")
        [young] = due(119)
        assert young.level == "ok"
        assert "delivery 119 seconds" in young.message
        assert "confirmation of a callback 119 seconds" in young.message
        await world.app.database.write(make_due, at)
        assert {each.level for each in due(300)} == {"ok"}
        late = due(9_000)
        assert {each.level for each in late} == {"warn"}
        told = {each.message.partition(":")[0] for each in late}
        assert told == {f"A {kind} has been due for 2 hours" for kind in kinds}
        await world.client.patch(f"/v1/subscribers/{subscriber['id']}", json={"status": "paused"})
        assert not [each for each in due(9_000) if "delivery" in each.message]


async def make_due(tx: Any, at: int) -> None:
    """Make a poll, a submission and a replay due, too."""
    connection = tx._connection
    connection.execute("UPDATE generations SET next_poll_at = ?", [at])
    connection.execute(
        "INSERT INTO generations (id, tenant, model, status, route, deadline_at, nonce, submission,"
        " submit_at) VALUES ('gen_1', 'a', 'm', 'queued', 'poll', 0, '', 'waiting', ?)",
        [at],
    )
    connection.execute(
        "INSERT INTO replays VALUES ('rpl_1', 'a', 'sub_1', 0, 0, '[]', 0, NULL, 0, 'running', 0,"
        " 0, 0, 0, ?, 0, NULL)",
        [at],
    )


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ((3, 40, 1), "warn"),
        ((3, 44, 5), "warn"),
        ((3, 44, 6), "ok"),
        ((3, 45, 0), "warn"),
        ((3, 50, 7), "ok"),
        ((3, 51, 2), "warn"),
        ((3, 51, 3), "ok"),
        ((4, 0, 0), "ok"),
    ],
)
def test_the_doctor_names_an_sqlite_that_may_lose_commits(
    version: tuple[int, int, int], level: str
) -> None:
    finding = doctor._sqlite(version)
    assert finding.level == level
    assert ("3.51.3" in finding.message) == (level == "warn" or version == (3, 51, 3))


def test_the_doctor_finds_a_database_of_other_keys(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("keys create --name x --scopes read")
    assert levels_of(GENHOOK_SECRET_KEYS=SECRET_KEY[::-1])(monkeypatch)["seals"] == {"fail"}
    assert database.exists()


@pytest.mark.parametrize("column", ["sealed_secrets", "sealed_headers"])
def test_the_doctor_finds_a_subscriber_whose_secrets_other_keys_sealed(
    database: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    run("keys create --name x --scopes read")
    with closing(sqlite3.connect(database)) as connection, connection:
        names = [row[1] for row in connection.execute("PRAGMA table_info(subscribers)")]
        kinds = dict.fromkeys(names, "0") | {"id": "'sub_1'", column: "zeroblob(40)"}
        kinds |= dict.fromkeys({"sealed_secrets", "sealed_headers"} - {column}, "NULL")
        values = ", ".join(kinds.values())
        connection.execute(f"INSERT INTO subscribers VALUES ({values})")  # noqa: S608
    assert levels_of()(monkeypatch)["seals"] == {"fail"}


def test_the_doctor_finds_a_file_that_is_no_database(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database.write_text("a diary, not a database, and long enough to be read as one\n" * 100)
    assert levels_of()(monkeypatch)["database"] == {"fail"}


def test_the_doctor_finds_an_index_that_lacks_rows(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("keys create --name x --scopes read")
    connection = sqlite3.connect(database)
    connection.execute("PRAGMA writable_schema=ON")
    connection.execute("CREATE TABLE spare (id INTEGER); ")
    connection.execute("INSERT INTO spare VALUES (1)")
    connection.execute("CREATE INDEX spare_id ON spare (id) WHERE id > 5")
    connection.execute(
        "UPDATE sqlite_schema SET sql = 'CREATE INDEX spare_id ON spare (id)' "
        "WHERE name = 'spare_id'"
    )
    connection.commit()
    connection.close()
    assert levels_of()(monkeypatch)["database"] == {"fail"}


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
    @contextmanager
    def stream(*_: object, **__: object) -> Iterator[httpx.Response]:
        if isinstance(answer, Exception):
            raise answer
        answer.headers["date"] = "Sun, 22 Nov 2026 18:20:00 GMT"
        yield answer

    monkeypatch.setattr(httpx, "stream", stream)
    assert [f.level for f in doctor._online(read_settings(), at)] == levels


@pytest.mark.usefixtures("database")
def test_a_failure_is_the_doctors_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("doctor --json") == 1
    findings = json.loads(capsys.readouterr().out)
    assert {"level": "fail", "about": "upstream"}.items() <= findings[4].items()
