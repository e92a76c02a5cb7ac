"""A client that pages a list goes on with its cursor after the database was moved."""

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import asyncpg
import pytest

from service.cli import main
from tests import engine
from tests.harness import Harness, opened

LISTS: list[tuple[str, dict[str, str]]] = [
    ("generations", {}),
    ("generations", {"order": "asc"}),
    ("generations", {"status": "succeeded"}),
    ("events", {}),
    ("events", {"order": "asc"}),
    ("events", {"order": "asc", "type": "generation.succeeded"}),
    ("deliveries", {}),
    ("callbacks", {}),
    ("subscribers", {"order": "asc"}),
]
Page = dict[str, Any]


class Place(NamedTuple):
    """A database: what a command calls it."""

    folder: Path
    url: str

    @property
    def path(self) -> str:
        return self.url.removeprefix("sqlite:///")


async def fill(world: Harness) -> None:
    for number in range(4):
        await world.subscribe(f"http://127.0.0.1:7/{number}")
    for _ in range(9):
        await world.generate()
        assert (await world.call_back()).status_code == 200
    await world.run()


async def first_pages(place: Place) -> list[Page]:
    """Fill the database; return the first page of each list."""
    async with opened(place.folder, database_path=place.path, callback_trust="body") as world:
        await fill(world)
        pages = [await world.get(f"/v1/{name}", limit="2", **query) for name, query in LISTS]
        assert all(page["next"] for page in pages)
        return pages


async def all_rows(place: Place, pages: list[Page]) -> list[tuple[list[str], list[str]]]:
    """Go on from each page to the end; return the ids so seen, and those of the whole list."""
    found = []
    async with opened(place.folder, database_path=place.path, callback_trust="body") as world:
        for (name, query), first in zip(LISTS, pages, strict=True):
            whole = (await world.get(f"/v1/{name}", limit="250", **query))["data"]
            seen, page = list(first["data"]), first
            while page["next"]:
                page = await world.get(f"/v1/{name}", limit="3", after=page["next"], **query)
                seen += page["data"]
            found.append(([row["id"] for row in seen], [row["id"] for row in whole]))
        # What is stored from now on has its place behind everything that was moved.
        last = (await world.get("/v1/events", limit="1"))["data"][0]["id"]
        await world.generate()
        new = await world.get("/v1/events", order="asc", after=last)
        assert [row["type"] for row in new["data"]] == ["generation.submitted"]
    return found


def check(source: Place, target: Place, move: Callable[[], None]) -> None:
    pages = asyncio.run(first_pages(source))
    move()
    for seen, whole in asyncio.run(all_rows(target, pages)):
        assert len(whole) >= 4
        assert seen == whole


@pytest.mark.parametrize(
    ("source", "target"),
    [("sqlite", "postgres"), ("postgres", "sqlite"), ("postgres", "postgres")],
)
def test_a_cursor_goes_on_after_a_copy(
    tmp_path: Path, postgres: engine.Schemas, source: str, target: str
) -> None:
    def place(kind: str, name: str) -> Place:
        folder = tmp_path / name
        folder.mkdir()
        url = f"sqlite:///{folder / 'genhook.db'}"
        if kind == "postgres":
            url = postgres.database_of(folder, is_new=True)
        return Place(folder, url)

    one, other = place(source, "source"), place(target, "target")

    def copy() -> None:
        assert main.main(["copy", "--from", one.url, "--to", other.url]) == 0

    check(one, other, copy)


def test_a_cursor_goes_on_after_a_dump_and_its_restoration(
    tmp_path: Path, postgres: engine.Schemas
) -> None:
    """Into another database, as after a loss of the server."""
    url = postgres.database_of(tmp_path, is_new=True)
    parts = urlsplit(url)
    name = f"{parts.path[1:]}_restored"
    server, schema = url.rpartition("&")[0], url.rpartition("=")[2]
    restored = url.replace(parts.path, f"/{name}", 1)
    file = tmp_path / "dump"

    async def execute(sql: str) -> None:
        connection = await asyncpg.connect(server)
        await connection.execute(sql)
        await connection.close()

    def run(program: str, *line: str) -> None:
        command = [str(engine.program(program)), *line]
        subprocess.run(command, check=True, capture_output=True)  # noqa: S603

    def dump_and_restore() -> None:
        run("pg_dump", "--format=custom", f"--schema={schema}", f"--file={file}", server)
        asyncio.run(execute(f"CREATE DATABASE {name}"))
        run(
            "pg_restore",
            "--exit-on-error",
            f"--dbname={server.replace(parts.path, f'/{name}')}",
            str(file),
        )

    try:
        check(Place(tmp_path, url), Place(tmp_path, restored), dump_and_restore)
    finally:
        asyncio.run(execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)"))
