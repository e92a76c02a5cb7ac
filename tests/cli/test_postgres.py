"""Commands on PostgreSQL: what they print, and sentences for what keeps them from working."""

import asyncio
import json
import re
import secrets
import sys
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest

from service.cli import main, server_checks
from service.cli.database_checks import Finding
from service.settings import Settings, read_settings
from service.store.postgres import Database, ShardLocks, schema
from tests import engine
from tests.conftest import SECRET_KEY

PASSWORD = "a-password-of-the-database"


@pytest.fixture
def url(
    bare_environment: None,
    postgres: engine.Schemas,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> str:
    """Set the variables that commands need, with a URL that has a password; return it."""
    url = postgres.database_of(tmp_path, is_new=True).replace("postgres:@", f"postgres:{PASSWORD}@")
    assert PASSWORD in url
    monkeypatch.setenv("GENHOOK_DATABASE_URL", url)
    monkeypatch.setenv("GENHOOK_SECRET_KEYS", SECRET_KEY)
    monkeypatch.setenv("GENHOOK_UPSTREAM_API_KEY", "aio_upstream_key")
    return url


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert PASSWORD not in out + err
    return out + err


def doctor(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    main.main(["doctor", "--json"])
    return {each["about"]: each for each in json.loads(printed(capsys))}


def test_migrate_creates_the_schema_once(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["migrate"]) == 0
    name = f"postgresql:///{urlsplit(url).path[1:]}"
    last = f"{name} has schema 1, the one that this genhook needs.\n"
    assert printed(capsys) == f"applied 0001_initial\n{last}"
    assert main.main(["migrate"]) == 0
    assert printed(capsys) == last


def test_commands_work_and_no_secret_is_shown(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["keys", "create", "--name", "first", "--scopes", "read"]) == 0
    assert main.main(["keys", "list"]) == 0
    assert "first" in printed(capsys)
    assert main.main(["tick", "--seconds", "60"]) == 0
    assert "nothing was due" in printed(capsys)
    assert PASSWORD in read_settings().secrets
    assert PASSWORD not in repr(read_settings())


def test_the_doctor_finds_a_database_that_works(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main.main(["migrate"])
    printed(capsys)
    findings = doctor(capsys)
    assert findings["database"]["level"] == "ok"
    assert findings["schema"]["message"] == "The schema is 1, which is the latest."
    assert findings["worker"]["message"] == "No process works on it now."
    assert findings["seals"]["level"] == "ok"
    assert findings["server"]["message"].startswith("PostgreSQL ")
    # The server of the tests does without.
    assert findings["durability"]["level"] == "fail"


def test_the_doctor_says_that_the_schema_is_missing(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    schema = doctor(capsys)["schema"]
    assert schema["level"] == "warn"
    assert "run genhook migrate" in schema["message"]


def test_the_doctor_fails_where_the_role_may_not_create_what_is_missing(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [[schema]] = execute(url, "SELECT quote_ident(current_schema())")
    role = f"weak_{secrets.token_hex(4)}"
    execute(url, f"CREATE ROLE {role} LOGIN")
    execute(url, f"GRANT USAGE ON SCHEMA {schema} TO {role}")
    monkeypatch.setenv("GENHOOK_DATABASE_URL", url.replace(f"postgres:{PASSWORD}@", f"{role}@"))
    try:
        assert main.main(["migrate"]) == 1
        assert "permission denied for schema" in printed(capsys)
        found = doctor(capsys)["schema"]
        assert found["level"] == "fail"
        assert f"`GRANT CREATE ON SCHEMA {schema} TO {role}`" in found["message"]
    finally:
        execute(url, f"REVOKE ALL ON SCHEMA {schema} FROM {role}")
        execute(url, f"DROP ROLE {role}")


def test_the_doctor_fails_where_the_search_path_names_no_schema(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = re.sub(r"search_path=\w+", "search_path=nowhere", url)
    monkeypatch.setenv("GENHOOK_DATABASE_URL", elsewhere)
    found = doctor(capsys)["schema"]
    assert found["level"] == "fail"
    assert "names no schema that is there" in found["message"]


@pytest.mark.parametrize(
    ("version", "reason"), [(999, "made by a newer genhook"), (-1, "a copy to the database has")]
)
def test_the_doctor_fails_where_no_process_would_start(
    url: str,
    postgres: engine.Schemas,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    version: int,
    reason: str,
) -> None:
    postgres.use_up(tmp_path)
    main.main(["migrate"])
    execute(url, f"UPDATE schema_version SET number = {version}")  # noqa: S608  of this test
    assert main.main(["migrate"]) == 1
    assert reason in printed(capsys)
    schema = doctor(capsys)["schema"]
    assert schema["level"] == "fail"
    assert reason in schema["message"].lower()


@pytest.mark.parametrize(("worker", "level"), [("embedded", "fail"), ("off", "warn")])
def test_a_pooler_is_a_failure_only_for_a_process_that_works(
    worker: Literal["embedded", "off"], level: str
) -> None:
    found = judged({}, worker, is_pooled=True)["pooler"]
    assert found[0] == level
    assert found[2].startswith("A pooler such as PgBouncer stands before the database")


def execute(url: str, sql: str) -> list[Any]:
    async def run() -> list[Any]:
        connection = await asyncpg.connect(url)
        try:
            return list(await connection.fetch(sql))
        finally:
            await connection.close()

    return asyncio.run(run())


def test_the_doctor_names_a_missing_index_with_the_statement_that_creates_it(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main.main(["migrate"])
    printed(capsys)
    assert doctor(capsys)["indexes"]["level"] == "ok"
    for sql in ("DROP INDEX deliveries_due", "ALTER TABLE events DROP CONSTRAINT events_seq_key"):
        execute(url, sql)
        found = doctor(capsys)["indexes"]
        assert found["level"] == "fail"
        assert sql.split()[-1] in found["message"]
        execute(url, found["message"].split("`")[1])
        assert doctor(capsys)["indexes"]["level"] == "ok"


def test_the_doctor_names_a_missing_table_and_not_what_belonged_to_it(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main.main(["migrate"])
    execute(url, "ALTER TABLE deliveries RENAME TO mislaid")
    printed(capsys)
    findings = doctor(capsys)
    execute(url, "ALTER TABLE mislaid RENAME TO deliveries")  # The schema is that of other tests.
    assert findings["tables"]["level"] == "fail"
    assert findings["tables"]["message"] == "The table deliveries is missing: restore a backup."
    assert not findings.keys() & {"indexes", "schema"}


def test_every_table_and_index_of_a_migrated_schema_can_be_missed(url: str) -> None:
    main.main(["migrate"])
    rows = execute(url, "SELECT indexname FROM pg_indexes WHERE schemaname = current_schema()")
    assert set(schema.indexes()) == {row[0] for row in rows}
    rows = execute(url, "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()")
    assert {*schema.tables(), "schema_version"} == {row[0] for row in rows}


def test_the_doctor_says_for_how_long_work_has_been_due(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    main.main(["migrate"])
    printed(capsys)
    assert doctor(capsys)["due"]["message"] == "Nothing is due now."
    execute(url, "INSERT INTO confirmations VALUES ('gen_1', 0)")
    found = doctor(capsys)["due"]
    assert found["level"] == "warn"
    assert found["message"].startswith("A confirmation of a callback has been due for ")


def test_commands_find_the_server_among_several_and_show_no_password(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    [folder] = parse_qs(urlsplit(url).query)["host"]
    monkeypatch.setenv("GENHOOK_DATABASE_URL", url.replace(folder, f"/nowhere,{folder}"))
    assert main.main(["migrate"]) == 0
    assert "applied 0001_initial" in printed(capsys)
    assert doctor(capsys)["database"]["level"] == "ok"
    nowhere = url.replace(f"host={folder}", "").replace("@/", "@127.0.0.1:1,127.0.0.2:1/")
    monkeypatch.setenv("GENHOOK_DATABASE_URL", nowhere)
    assert main.main(["migrate"]) == 1
    assert printed(capsys).startswith("genhook: cannot connect to the database: ")
    assert doctor(capsys)["database"]["level"] == "fail"


@pytest.mark.parametrize("command", ["migrate", "tick", "serve --port 0", "work"])
def test_a_server_that_is_too_old_is_refused(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    old = asyncpg.types.ServerVersion(14, 9, 0, "final", 0)
    monkeypatch.setattr(asyncpg.Connection, "get_server_version", lambda _self: old)
    said = "the server is PostgreSQL 14.9, and genhook needs 15 or newer"
    assert main.main(command.split()) == 1
    assert said in printed(capsys)
    found = doctor(capsys)["database"]
    assert (found["level"], found["message"]) == ("fail", f"{said}.")
    rows = execute(url, "SELECT 1 FROM pg_tables WHERE schemaname = current_schema()")
    assert rows == [], "it was not migrated"


STATE: dict[str, Any] = {
    "version": "18.1",
    "now": 0,
    "bytes": 5 << 20,
    "is_durable": True,
    "has_standby": True,
    "lacks_standby": False,
    "schema": "public",
    "role": "genhook",
    "may_create": True,
    "oldest_seconds": 0,
}


def judged(
    state: dict[str, Any], worker: Literal["embedded", "off"] = "embedded", **found: Any
) -> dict[str, Finding]:
    server = server_checks.Server(state={**STATE, **state}, **found)
    return {each[1]: each for each in server_checks.judge(server, Settings(worker=worker), 0)}


def test_the_doctor_judges_what_it_saw_of_the_server() -> None:
    well = judged({}, largest=[("events", 3 << 20)])
    assert {level for level, _, _ in well.values()} == {"ok"}
    assert "events 3 MiB" in well["tables"][2]
    assert judged({"has_standby": False})["durability"][0] == "warn"
    assert judged({"lacks_standby": True})["durability"][0] == "fail"
    assert judged({"now": 120_001})["clock"][2].startswith("The server's clock differs")
    assert judged({"oldest_seconds": 301})["transactions"][0] == "warn"
    bloated = judged({}, bloated=[("deliveries", 200_000)])["tables"]
    assert bloated[0] == "warn"
    assert "deliveries has 200,000 dead rows" in bloated[2]


async def test_each_query_of_the_documentation_has_one_row(url: str) -> None:
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text("utf-8")
    queries = re.findall(r"(?s)```sql\n(.*?)```", page)
    assert len(queries) == 6
    database = Database(url)
    await database.open()
    await database.migrate()
    await database.close()
    connection = await asyncpg.connect(url)
    try:
        for query in queries:
            assert len(await connection.fetch(query)) == 1, query
    finally:
        await connection.close()


async def test_the_doctor_says_who_holds_how_many_shards(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def worker() -> dict[str, str]:
        found: dict[str, str] = (await asyncio.to_thread(doctor, capsys))["worker"]
        return found

    database = Database(url)
    await database.open()
    await database.migrate()
    lock = ShardLocks(database)
    await lock.acquire({1, 2})
    found = await worker()
    assert found["level"] == "warn"
    assert found["message"].startswith("62 of 64 shards are held by nobody")
    await lock.acquire()
    found = await worker()
    assert found["message"] == f"Every shard is held: {database.name} 64."
    await lock.release()
    await database.close()


@pytest.mark.parametrize("command", ["migrate", "tick"])
def test_a_server_that_is_not_there_is_one_sentence(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    away = f"postgresql://genhook:{PASSWORD}@127.0.0.1:1/genhook"
    monkeypatch.setenv("GENHOOK_DATABASE_URL", away)
    assert main.main([command]) == 1
    assert printed(capsys).startswith("genhook: cannot connect to the database: ")
    assert doctor(capsys)["database"]["level"] == "fail"


@pytest.mark.parametrize("command", ["migrate", "tick"])
def test_a_server_that_takes_no_writes_is_named(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("GENHOOK_DATABASE_URL", f"{url}&default_transaction_read_only=on")
    assert main.main([command]) == 1
    assert "the server is read-only, or a standby in recovery" in printed(capsys)


@pytest.mark.parametrize("command", ["migrate", "tick"])
def test_without_the_driver_it_says_what_to_install(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    for name in [name for name in sys.modules if name.startswith("service.store.postgres")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(sys.modules["service.store"], "postgres", raising=False)
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    assert main.main([command]) == 2
    assert "pip install 'genhook[postgres]'" in printed(capsys)
    assert "pip install" in doctor(capsys)["database"]["message"]


@pytest.mark.parametrize("wrong", ["postgresql://host:port/genhook", "postgresql://[::1/genhook"])
def test_a_url_that_cannot_be_read_is_not_quoted(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    monkeypatch.setenv("GENHOOK_DATABASE_URL", wrong)
    assert main.main(["migrate"]) == 2
    assert printed(capsys).startswith("genhook: GENHOOK_DATABASE_URL must be a URL such as")


def test_a_backup_is_the_servers_own(
    url: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main.main(["backup", str(tmp_path / "copy")]) == 1
    assert "use its own pg_dump" in printed(capsys)


def outcomes(capsys: pytest.CaptureFixture[str], *commands: str) -> dict[str, str]:
    """Run commands that fail; return the last line of each, without the name of the program."""
    said = {}
    for command in commands:
        assert main.main([command]) == 1
        said[command] = printed(capsys).splitlines()[-1].removeprefix("genhook: ")
    return said


OTHERS = "another program made {}: name an empty database or schema for genhook."


@pytest.mark.parametrize(
    ("made", "name"),
    [
        ("TABLE subscribers (id INT)", "subscribers"),
        ("VIEW events AS SELECT 1 AS id", "events"),
        ("SEQUENCE deliveries_due", "deliveries_due"),
        ("DOMAIN attempts AS INT", "attempts"),
        ("FUNCTION is_json (text TEXT) RETURNS INT LANGUAGE sql AS 'SELECT 1'", "is_json"),
        ("TABLE schema_version (version INT)", "schema_version"),
    ],
)
def test_what_another_program_made_is_a_sentence(
    url: str,
    postgres: engine.Schemas,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    made: str,
    name: str,
) -> None:
    postgres.use_up(tmp_path)
    execute(url, f"CREATE {made}")
    message = OTHERS.format(name)
    said = outcomes(capsys, "migrate", "tick", "serve", "work")
    assert said == dict.fromkeys(said, message)
    found = doctor(capsys)["schema"]
    assert (found["level"], found["message"].lower()) == ("fail", message.lower())


@pytest.mark.parametrize(
    "made",
    [
        "TABLE songs (title TEXT)",
        "FUNCTION is_json (text VARCHAR) RETURNS INT LANGUAGE sql AS 'SELECT 1'",
        "TYPE deliveries_due AS ENUM ('a')",
    ],
)
def test_what_another_program_made_stays_beside_genhook_unless_both_need_its_name(
    url: str, postgres: engine.Schemas, tmp_path: Path, made: str
) -> None:
    postgres.use_up(tmp_path)
    execute(url, f"CREATE {made}")
    assert main.main(["migrate"]) == 0


@pytest.mark.usefixtures("capsys")
def test_genhook_works_in_the_first_schema_of_its_search_path_whatever_the_others_have(
    url: str, postgres: engine.Schemas, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    postgres.use_up(tmp_path)
    assert main.main(["migrate"]) == 0
    schema = url.rpartition("=")[2]
    execute(url, f'CREATE SCHEMA "{schema} First"')
    try:
        first = f"{url.removesuffix(schema)}%22{schema} First%22"
        monkeypatch.setenv("GENHOOK_DATABASE_URL", f"{first},{schema}")
        assert main.main(["migrate"]) == 0
        execute(first, "DELETE FROM tenants")
    finally:
        execute(url, f'DROP SCHEMA "{schema} First" CASCADE')


@pytest.mark.parametrize(
    ("done", "said"),
    [
        ("DELETE FROM schema_version", "schema_version has 0 rows, and needs one"),
        ("INSERT INTO schema_version VALUES (1)", "schema_version has 2 rows, and needs one"),
        ("DROP TABLE schema_version", "schema_version is missing beside genhook's own tables"),
    ],
)
def test_a_schema_without_its_number_or_with_two_is_a_sentence(
    url: str,
    postgres: engine.Schemas,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    done: str,
    said: str,
) -> None:
    postgres.use_up(tmp_path)
    main.main(["migrate"])
    execute(url, done)
    printed(capsys)
    message = f"{said}: restore a backup into an empty schema."
    outcome = outcomes(capsys, "migrate", "tick", "serve", "work")
    assert outcome == dict.fromkeys(outcome, message)
    found = doctor(capsys)["schema"]
    assert (found["level"], found["message"].lower()) == ("fail", message)
