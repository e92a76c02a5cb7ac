"""What PostgreSQL refuses: a sentence for people, and no harm to others."""

import asyncio
import contextlib
import re
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import trustme

from service.cli import main
from service.model.errors import SearchTooLongError, StorageError
from service.store import writes
from service.store.postgres import Database, reads
from tests import engine
from tests.cli.test_serve import KEYS
from tests.store.test_postgres import connected, database

__all__ = ["database"]  # The fixture.


async def test_a_database_that_cannot_hold_every_text_is_refused(
    postgres: engine.Schemas, tmp_path: Path
) -> None:
    postgres.database_of(tmp_path)
    owner = await asyncpg.connect(postgres.url)
    latin = "LOCALE 'C' TEMPLATE template0"
    await owner.execute(f"CREATE DATABASE latin ENCODING 'LATIN1' {latin}")
    try:
        name = (await owner.fetchval("SELECT current_database()")) + "?"
        database = Database(postgres.url.replace(f"/{name}", "/latin?"), clock=lambda: 7)
        with pytest.raises(StorageError, match="has the encoding LATIN1, and needs UTF8"):
            await database.open()
    finally:
        await owner.execute("DROP DATABASE latin WITH (FORCE)")
        await owner.close()


def test_a_schema_that_is_not_there_is_a_sentence(
    postgres: engine.Schemas, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GENHOOK_DATABASE_URL", f"{postgres.url}&search_path=nowhere")
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    assert main.main(["migrate"]) == 1
    said = capsys.readouterr().err
    assert "no schema has been selected to create in" in said
    assert "Traceback" not in said


async def test_a_statement_that_is_wrong_is_the_units_own_failure(database: Database) -> None:
    async def unit(tx: Any) -> None:
        await tx._connection.fetchval("SELECT 1 FROM FROM generations")

    with pytest.raises(asyncpg.PostgresSyntaxError):
        async with asyncio.timeout(60):
            await database.write_always(unit)
    assert await database.write_problem() is None


async def test_what_is_too_large_for_the_server_is_the_units_own_failure(
    database: Database,
) -> None:
    async def unit(tx: Any) -> None:
        raise asyncpg.ProgramLimitExceededError("index row size 5752 exceeds maximum 2704")

    with pytest.raises(asyncpg.ProgramLimitExceededError):
        await database.write(unit)
    assert await database.write_problem() is None


@pytest.mark.parametrize(
    ("change", "undo"),
    [
        ("TABLE exchanges RENAME TO gone", "TABLE gone RENAME TO exchanges"),
        (
            "TABLE exchanges RENAME generation_id TO gone",
            "TABLE exchanges RENAME gone TO generation_id",
        ),
        ("FUNCTION shard_of RENAME TO gone", "FUNCTION gone RENAME TO shard_of"),
    ],
)
async def test_what_the_schema_lacks_is_its_fault_and_upstreams_answer_waits_for_it(
    database: Database, monkeypatch: pytest.MonkeyPatch, change: str, undo: str
) -> None:
    async def unit(tx: Any) -> Any:
        await tx.all("replays_due", now=0, limit=1)
        return await tx.run("exchanges_delete", id="gen_1", most=1)

    monkeypatch.setattr(writes, "RETRY_SECONDS", 0.01)
    async with connected(database) as connection:
        await connection.execute(f"ALTER {change}")
        try:
            for call in (database.write, database.read):
                with pytest.raises(StorageError, match="does not exist"):
                    await call(unit)
            always = database.write_always(unit)
            with pytest.raises(StorageError):
                await database.write(unit)
        finally:
            await connection.execute(f"ALTER {undo}")
        async with asyncio.timeout(60):
            assert await always == 0


async def test_a_search_that_waits_for_a_lock_is_not_said_to_look_at_too_much(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unit(tx: Any) -> Any:
        return await tx.select("SELECT id FROM events LIMIT 1", {})

    async with connected(database) as other, other.transaction():
        await other.execute("LOCK TABLE events")
        with monkeypatch.context() as patched:
            patched.setattr(reads, "LOCK_SECONDS", 0.1)
            patched.setattr(reads, "SEARCH_SECONDS", 4)
            with pytest.raises(StorageError) as caught:
                await database.search("default", unit)
    assert not isinstance(caught.value, SearchTooLongError)
    assert await database.search("default", unit) == []


async def test_a_search_of_a_server_that_hangs_ends_in_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unit(tx: Any) -> Any:
        return await tx.select("SELECT pg_sleep(60)", {})

    monkeypatch.setattr(reads, "READ_SECONDS", 0.05)
    with pytest.raises(StorageError, match="did not answer in time"):
        await database.search("default", unit)


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ('["a\\u0000b"]', ["a\ufffdb"]),
        ('["a\\\\u0000b"]', ["a\\u0000b"]),
        ('["\\\\\\u0000"]', ["\\\ufffd"]),
    ],
)
async def test_nul_in_a_list_of_ids_is_replaced(
    database: Database, text: str, stored: list[str]
) -> None:
    async def unit(tx: Any) -> Any:
        return await tx.select("SELECT value FROM json_rows(:ids)", {"ids": text})

    assert [row["value"] for row in await database.read(unit)] == stored


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("sslmode=verify-full&sslrootcert=/gone", "sslrootcert=/gone"),
        ("sslmode=verify-full&sslrootcert=system", "sslrootcert=system"),
        ("sslmode=require&sslcert=/gone", "sslcert=/gone"),
        ("host=localhost&sslmode=require&sslcert=/gone", "directory: sslcert=/gone"),
        ("sslmode=verify-ca&sslrootcert={text}", "sslrootcert={text}"),
        ("sslmode=verify-ca&sslrootcert={folder}&sslcrl=/gone", "sslrootcert={folder}"),
        ("host=/gone", "host=/gone"),
    ],
)
async def test_an_error_about_a_file_names_the_option(
    tmp_path: Path, options: str, named: str
) -> None:
    names = {"folder": tmp_path, "text": tmp_path / "text"}
    names["text"].write_text("no certificate")
    server = "" if "host=" in options else "127.0.0.1:1"  # Nothing is sent to it.
    url = f"postgresql://genhook@{server}/genhook?{options.format(**names)}"
    with pytest.raises(StorageError, match=re.escape(named.format(**names))) as caught:
        await Database(url).open()
    assert "in GENHOOK_DATABASE_URL" in str(caught.value)


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    """A certificate authority, whose own certificate is in a file named `root`."""
    made = trustme.CA()
    made.cert_pem.write_to_path(tmp_path / "root")
    return made


async def refusal(answer: Callable[..., Any], root: Path) -> str:
    """Return the error of a connection to a server that agrees to TLS, and then does this."""

    async def agree(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)
        writer.write(b"S")
        with contextlib.suppress(OSError):
            await answer(reader, writer)
        writer.close()

    async with await asyncio.start_server(agree, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        options = f"sslmode=verify-full&sslrootcert={root}"
        with pytest.raises(StorageError) as caught:
            await Database(f"postgresql://genhook@127.0.0.1:{port}/genhook?{options}").open()
    return str(caught.value)


@pytest.mark.usefixtures("authority")
async def test_an_answer_that_is_no_tls_is_not_said_to_be_about_a_file(tmp_path: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    said = await refusal(answer, tmp_path / "root")
    assert "WRONG_VERSION_NUMBER" in said
    assert "GENHOOK_DATABASE_URL" not in said


@pytest.mark.parametrize(
    ("name", "is_known", "about_a_file"),
    [
        ("127.0.0.2", True, False),
        ("other.example", True, False),
        ("127.0.0.1", False, True),
    ],
)
async def test_a_certificate_of_another_name_is_not_said_to_be_about_a_file(
    tmp_path: Path, authority: trustme.CA, name: str, *, is_known: bool, about_a_file: bool
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (authority if is_known else trustme.CA()).issue_cert(name).configure_cert(context)

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await writer.start_tls(context)

    said = await refusal(answer, tmp_path / "root")
    assert "certificate verify failed" in said
    assert ("sslrootcert" in said) == about_a_file
