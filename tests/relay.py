"""A relay between the service and PostgreSQL, which loses what a network can lose."""

import asyncio
import re
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlencode, urlsplit

# As asyncpg sends them. Reads have another level.
_BEGIN, _COMMIT = b"BEGIN ISOLATION LEVEL READ COMMITTED", b"COMMIT;\0"
_END = b"ROLLBACK;\0"
_UNIT = re.compile(rb"unit:(\w+)")  # A value that a test sends, to name the unit that runs.
Lost = Literal["message", "answer"] | None


class _Link:
    """A connection of a client, by way of the relay."""

    def __init__(self, speaking: asyncio.Event) -> None:
        self.speaking = speaking
        self.is_heard = True  # Else the next answer of the server is lost.


class Relay:
    """Forwards connections. It may cut one at a COMMIT, or keep all open and forward nothing."""

    def __init__(self, server_path: str) -> None:
        self.url = ""  # Of the database, by way of the relay.
        # What is lost of the COMMIT of a unit: the message, or only its answer.
        self.loses: Callable[[str], Lost] = lambda _unit: None
        self._server_path = server_path
        self._links: set[asyncio.Task[None]] = set()
        self._speaking = asyncio.Event()
        self._speaking.set()

    def fall_silent(self) -> None:
        """Forward nothing from now on, not even that one side has ended a connection."""
        self._speaking.clear()

    def speak(self, *, only_anew: bool = False) -> None:
        """Forward again, first what was held back; or only connections that are opened from now on.

        The second is what a device does that forgot its connections.
        """
        if only_anew:
            self._speaking = asyncio.Event()
        self._speaking.set()

    async def accept(self, client: StreamReader, to_client: StreamWriter) -> None:
        """Forward a connection until either side ends it."""
        link = asyncio.create_task(self._link(client, to_client), name="relayed connection")
        self._links.add(link)
        link.add_done_callback(self._links.discard)

    async def close(self) -> None:
        """End all connections."""
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)

    async def _link(self, client: StreamReader, to_client: StreamWriter) -> None:
        server, to_server = await asyncio.open_unix_connection(self._server_path)
        link = _Link(self._speaking)
        ways = self._ask(client, to_server, link), self._answer(server, to_client, link)
        tasks = [asyncio.ensure_future(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await link.speaking.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            to_client.transport.abort()
            to_server.transport.abort()

    async def _ask(self, client: StreamReader, to_server: StreamWriter, link: "_Link") -> None:
        is_unit, unit = False, ""
        while data := await client.read(1 << 16):
            await link.speaking.wait()
            is_unit = (is_unit or _BEGIN in data) and _END not in data
            for name in _UNIT.findall(data):
                unit = name.decode()
            if is_unit and _COMMIT in data:
                lost, is_unit, unit = self.loses(unit), False, ""
                if lost == "message":
                    return
                if lost == "answer":
                    link.is_heard = False
            to_server.write(data)

    async def _answer(self, server: StreamReader, to_client: StreamWriter, link: "_Link") -> None:
        while data := await server.read(1 << 16):
            await link.speaking.wait()
            if not link.is_heard:
                return
            to_client.write(data)


@asynccontextmanager
async def relayed(url: str) -> AsyncIterator[Relay]:
    """Run a relay to the server of a URL, which has a socket in a folder."""
    parts = urlsplit(url)
    options = parse_qs(parts.query)
    [folder] = options.pop("host")
    [path] = [path for path in Path(folder).iterdir() if path.is_socket()]  # noqa: ASYNC240  a test
    relay = Relay(str(path))
    server = await asyncio.start_server(relay.accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    query = urlencode({**options, "sslmode": "disable"}, doseq=True)
    relay.url = f"postgresql://{parts.username}@127.0.0.1:{port}{parts.path}?{query}"
    try:
        yield relay
    finally:
        server.close()
        await relay.close()
