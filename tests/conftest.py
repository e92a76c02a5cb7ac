"""Fixtures that every test may use."""

import logging
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings

from service.model import ids
from service.settings import CLIENT_VARIABLES, VARIABLES
from service.telemetry import log
from tests import engine, limits
from tests.logs import Console

SECRET_KEY = "0123456789abcdef0123456789abcdef"
MEMORY = Path("/dev/shm")  # noqa: S108  pytest makes a folder in it that is the user's own
MEMORY_BYTES_MIN = 1 << 30
ON_BOTH = ("journeys",)  # Folders whose tests run on both databases.

# A shell that runs the tests in the background has it ignored, and so would every process here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no reason for a property to fail.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")
limits.raise_all()  # Nor is it one for the service to give up what it waits for.

# Most of a test's time went into waiting for the disk. Databases in memory make every sync quick;
# chaos/ attacks durability on a real disk.
if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_BYTES_MIN:
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))  # noqa: TID251  pytest reads it
TEMP_ROOT = os.environ.get("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # noqa: TID251


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of these folders on both databases, unless one is marked `sqlite_only`."""
    folder = Path(metafunc.definition.path).parent.name
    if folder in ON_BOTH and not metafunc.definition.get_closest_marker("sqlite_only"):
        metafunc.parametrize("database_engine", engine.ENGINES, indirect=True)


@pytest.fixture(scope="session")
def postgres(testrun_uid: str, worker_id: str) -> Iterator[engine.Schemas]:
    """A database on the PostgreSQL server of this run. A test that needs it fails without it."""
    # The server has a user of its own if pytest is root's, whose folders pytest closes to others.
    folder = Path(TEMP_ROOT) / f"genhook-postgres-{testrun_uid}"
    schemas, leave = engine.start(folder, f"tests_{worker_id}")
    yield schemas
    deadlocks = schemas.count_deadlocks()
    leave()
    assert deadlocks == 0, f"the server broke {deadlocks} deadlocks of tests in this process"


@pytest.fixture(autouse=True)
def database_engine(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The database that tests/harness.py opens: `sqlite` or `postgres`."""
    uses_postgres = "postgres" in request.fixturenames
    name = getattr(request, "param", "postgres" if uses_postgres else "sqlite")
    is_on_both = hasattr(request, "param") or request.node.path.parent.name in ON_BOTH
    if uses_postgres or is_on_both:
        request.node.user_properties.append(("engine", name))
    if name == "postgres":
        schemas = request.getfixturevalue("postgres")
        engine.schemas = schemas
        engine.reverse_unordered_rows(monkeypatch)
        yield name
        engine.schemas = None
        schemas.release()
    else:
        yield name


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print how many tests ran on each database, and after a failure the seed of the order."""
    counts = Counter(
        value
        for outcome in ("passed", "failed", "xfailed")
        for report in terminalreporter.stats.get(outcome, ())
        for name, value in report.user_properties
        if name == "engine"
    )
    if counts:
        terminalreporter.write_line(
            f"Tests with a database: {counts['sqlite']} on SQLite, "
            f"{counts['postgres']} on PostgreSQL."
        )
    if terminalreporter.stats.keys() & {"failed", "error"}:
        seed = config.getoption("randomly_seed", "none")
        terminalreporter.write_line(f"To repeat this order: --randomly-seed={seed}")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _own_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start ids anew: they never go back in time, and each test has its own time."""
    monkeypatch.setattr(ids, "_state", {"ms": 0, "counter": 0})


@pytest.fixture
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove genhook's variables from the environment, and keep the log as it is."""
    for name in (*VARIABLES, *CLIENT_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(log, "configure", lambda *_, **__: None)


@pytest.fixture
def database(bare_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set the variables that commands on the database need; return its path."""
    path = tmp_path / "genhook.db"
    monkeypatch.setenv("GENHOOK_DATABASE_URL", f"sqlite:///{path}")
    monkeypatch.setenv("GENHOOK_SECRET_KEYS", SECRET_KEY)
    return path


@pytest.fixture(autouse=True)
def log_as_it_was() -> Iterator[None]:
    """Put the log back as it was: commands that a test runs configure it for a whole process."""
    config = structlog.get_config()
    root, handlers, level = logging.root, list(logging.root.handlers), logging.root.level
    yield
    structlog.configure(**config)
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def console(capsys: pytest.CaptureFixture[str]) -> Console:
    """The log as a process has it, once it is configured."""
    return Console(capsys)
