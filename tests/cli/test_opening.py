"""Databases that nobody may open: every command refuses them with a reason, and changes nothing."""

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from service.store.sqlite import byte_locks
from tests.cli.test_doctor import run

pytestmark = pytest.mark.usefixtures("bare_environment")
ON_LINUX = pytest.mark.skipif(
    sys.platform != "linux", reason="other systems do not tell of locks like this"
)
COMMANDS = (
    "keys create --name y --scopes read",
    "keys list --offline",
    "migrate",
    "tick",
    "serve --port 0",
    "backup copy",
)


@pytest.fixture(autouse=True)
def _folder(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command works in the folder of the database."""
    monkeypatch.chdir(database.parent)


def check_refused(path: Path, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command names the reason, and leaves all files in the folder as they are."""
    before = files_of(path)
    capsys.readouterr()
    assert run("doctor") == 1
    findings = capsys.readouterr().out.splitlines()
    assert any(line.startswith("fail  database") and reason in line for line in findings)
    for line in COMMANDS:
        assert run(line) == 1, line
        assert reason in capsys.readouterr().err, line
    assert files_of(path) == before


def files_of(path: Path) -> dict[str, bytes]:
    """The files in the folder of the database, with their content, but for that of `-shm`."""
    return {
        each.name: each.read_bytes() if each.is_file() and each.suffix != ".db-shm" else b""
        for each in (path.parent.iterdir() if path.parent.exists() else ())
    }


def put_fifo(path: Path) -> None:
    os.mkfifo(path)


def put_folder(path: Path) -> None:
    path.mkdir()


def put_endless_links(path: Path) -> None:
    path.symlink_to(path)


def put_second_name(path: Path) -> None:
    run("migrate")
    os.link(path, path.with_name("other.db"))


@pytest.mark.parametrize(
    ("put", "reason"),
    [
        (put_fifo, "it is no regular file"),
        (put_folder, "it is no regular file"),
        (put_endless_links, "Too many levels of symbolic links"),
        (put_second_name, "it has 2 names (hard links); remove all but one"),
    ],
)
def test_what_is_at_the_path_is_looked_at_before_it_is_opened(
    put: Callable[[Path], None],
    reason: str,
    database: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    put(database)
    check_refused(database, reason, capsys)


def test_the_log_says_that_a_database_was_created_in_an_empty_file(
    database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database.touch()
    assert run("migrate") == 0
    assert "database.created" in capsys.readouterr().err


@pytest.mark.parametrize("do", [lambda path: os.truncate(path, 0), Path.unlink])
def test_a_log_without_its_database_is_left_alone(
    do: Callable[[Path], None], database: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("keys create --name x --scopes read")
    log = Path(f"{database}-wal")
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE spare (id INTEGER)")
        commits = log.read_bytes()
    log.write_bytes(commits)  # As after `kill -9`; the end of the connection has deleted it.
    run("doctor")
    assert "intact" in capsys.readouterr().out
    log.write_bytes(commits)
    do(database)
    check_refused(database, f"it is empty or missing, but {log} is not: stop genhook", capsys)
    log.rename(f"{log}-away")
    assert run("migrate") == 0


@pytest.fixture
def user(database: Path, process: subprocess.Popen[bytes]) -> Path:
    """The path of a database that another process uses."""
    assert process.poll() is None
    return database


@pytest.fixture
def process(database: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has the database open."""
    run("keys create --name x --scopes read")
    code = (
        "import sqlite3, sys; connection = sqlite3.connect(sys.argv[1]);"
        "connection.execute('SELECT * FROM keys').fetchall(); print(flush=True); sys.stdin.read()"
    )
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code, str(database)]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe) as process:  # noqa: S603  our own code
        assert process.stdout
        process.stdout.readline()
        yield process
        process.communicate()


def delete(*suffixes: str) -> Callable[[Path], None]:
    def do(path: Path) -> None:
        for suffix in suffixes:
            Path(f"{path}{suffix}").unlink()

    return do


def delete_folder(path: Path) -> None:
    shutil.rmtree(path.parent)
    os.chdir(path.parent.parent)


def empty_folder(path: Path) -> None:
    delete_folder(path)
    path.parent.mkdir()


@ON_LINUX
@pytest.mark.parametrize(
    ("do", "reason"),
    [
        (delete("", "-wal", "-shm"), "it was deleted or replaced while process {}"),
        (empty_folder, "it was deleted or replaced while process {}"),
        (delete_folder, "it was deleted or replaced while process {}"),
        (delete("-wal", "-shm"), "-wal was deleted or replaced while process {}"),
    ],
    ids=["all deleted", "folder made anew", "folder deleted", "log and index deleted"],
)
def test_files_that_a_process_has_open_are_found_where_nothing_is_left_of_them(
    do: Callable[[Path], None],
    reason: str,
    user: Path,
    capsys: pytest.CaptureFixture[str],
    process: subprocess.Popen[bytes],
) -> None:
    do(user)
    check_refused(user, reason.format(process.pid), capsys)


@ON_LINUX
@pytest.mark.parametrize(
    ("do", "reason"),
    [
        (Path.unlink, "was deleted or replaced while"),
        (lambda path: Path(shutil.copy(path, f"{path}-")).rename(path), "replaced"),
        (lambda path: Path(f"{path}-wal").unlink(), "-wal was deleted or replaced while"),
        (lambda path: Path(f"{path}-shm").unlink(), "-shm was deleted or replaced while"),
        (lambda path: os.truncate(path, 0), "it was cut short or overwritten: stop genhook"),
        (lambda path: path.write_bytes(b"a diary" * 2_000), "it was cut short or overwritten"),
    ],
    ids=["deleted", "replaced", "log deleted", "index deleted", "emptied", "overwritten"],
)
def test_files_that_were_taken_from_under_a_process_are_found_and_nobody_opens_what_is_left(
    do: Callable[[Path], object],
    reason: str,
    user: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As if the process ran in another container.
    monkeypatch.setattr(byte_locks, "LOCKS", Path("nothing"))
    run("doctor")
    assert "intact" in capsys.readouterr().out
    do(user)
    files = sorted(user.parent.iterdir())
    assert run("doctor") == 1
    assert reason in capsys.readouterr().out
    for line in ("keys create --name y --scopes read", "migrate", "tick", "serve --port 0"):
        assert run(line) == 1
        assert reason in capsys.readouterr().err
    assert run(f"backup {user}-copy") == 1
    assert reason in capsys.readouterr().err or not user.exists()
    assert sorted(user.parent.iterdir()) == files


@ON_LINUX
@pytest.mark.parametrize("prepare", ["", 'mount --bind "$1" "$2" && '], ids=["same", "other"])
def test_files_that_a_process_of_another_mount_namespace_has_open_are_found(
    prepare: str,
    database: Path,
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As those of a unit of systemd, or of a container that has the folder at another path."""
    run("keys create --name x --scopes read")
    inside = tmp_path_factory.mktemp("inside") if prepare else database.parent
    code = (
        "import pathlib, sqlite3, sys; path = pathlib.Path(sys.argv[1]);"
        "connection = sqlite3.connect(path);"
        "connection.execute('SELECT * FROM keys').fetchall();"
        "[each.unlink() for each in path.parent.iterdir()]; print('deleted', flush=True);"
        "sys.stdin.read()"
    )
    shell = f'{prepare}exec "$3" -c "$4" "$5"'
    paths = (str(database.parent), str(inside), sys.executable, code, str(inside / database.name))
    with unshared(shell, *paths) as process:
        reason = f"it was deleted or replaced while process {process.pid}"
        check_refused(database, reason, capsys)


@contextlib.contextmanager
def unshared(shell: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a mount namespace of its own, which prints `deleted` and reads its input."""
    if shutil.which("unshare") is None:
        pytest.skip("no mount namespace can be made: there is no unshare")
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", shell, "sh", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe) as process:  # noqa: S603  our own code
        assert process.stdout
        assert process.stderr
        if process.stdout.readline() != b"deleted\n":
            pytest.skip(f"no mount namespace can be made: {process.stderr.read()!r}")
        yield process
        process.communicate()


@ON_LINUX
def test_what_a_container_deletes_at_the_same_path_keeps_nobody_from_a_database_outside(
    database: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = tmp_path_factory.mktemp("inside")
    code = (
        "import pathlib, sqlite3, sys; path = pathlib.Path(sys.argv[1]);"
        "connection = sqlite3.connect(path); connection.execute('PRAGMA journal_mode=WAL');"
        "connection.execute('CREATE TABLE x (y)');"
        "[each.unlink() for each in path.parent.iterdir()]; print('deleted', flush=True);"
        "sys.stdin.read()"
    )
    # A mount namespace of its own is what makes a container here.
    shell = 'mount --bind "$1" "$2" && exec "$3" -c "$4" "$5"'
    paths = (str(inside), str(database.parent), sys.executable, code, str(database))
    with unshared(shell, *paths):
        assert not list(inside.iterdir())
        assert run("migrate") == 0, capsys.readouterr().err
