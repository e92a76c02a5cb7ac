"""The entry point: Ctrl-C ends it quietly, whatever Python does at that moment."""

import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.cli.test_serve import KEYS, surroundings

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]
ENTRY = "{}\nfrom {} import {}\nraise SystemExit({}())"
NOW = """
import os, signal, sys
class Finder:
    def find_spec(name, path, target=None):
        if name == {!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder)
"""
# In the callback of a weak reference, as Python calls one after each import.
CALLED_BACK = """
import os, signal, sys, weakref
class Finder:
    def find_spec(name, path, target=None):
        if name == {!r}:
            gone = lambda _: os.kill(os.getpid(), signal.SIGINT)
            reference = weakref.ref(type("Thing", (), {{}})(), gone)
sys.meta_path.insert(0, Finder)
"""
# While msgspec prepares a struct for a decoder of a module: an exception crashes it.
PREPARING = """
import os, signal, sys
def interrupt(frame, event, _):
    if event == "call" and frame.f_code.co_name == "get_class_annotations":
        sys.setprofile(None)
        os.kill(os.getpid(), signal.SIGINT)
sys.setprofile(interrupt)
"""
EXITING = """
import atexit, os, signal
atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))
"""


def ended(folder: Path, preparation: str, line: str) -> "subprocess.CompletedProcess[str]":
    """Run the console script of pyproject.toml after other code."""
    module, name = SCRIPT["genhook"].split(":")
    return subprocess.run(  # noqa: S603  our own code
        [sys.executable, "-c", ENTRY.format(preparation, module, name, name), *line.split()],
        cwd=folder,
        env={**surroundings(), **KEYS, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("preparation", [NOW, CALLED_BACK])
@pytest.mark.parametrize(
    ("line", "module"),
    [
        ("serve --port 0", "argparse"),
        ("serve --port 0", "service.cli.main"),
        ("serve --port 0", "service.cli.serve"),
        ("serve --port 0", "service.settings"),
        ("serve --port 0", "starlette"),
        ("serve --port 0", "uvicorn"),
        ("work", "service.app"),
        ("keys list --offline", "service.cli.admin"),
        ("subscribers list --key ghk_x --url http://127.0.0.1:1", "httpx"),
    ],
)
def test_ctrl_c_during_an_import_ends_with_130_and_no_traceback(
    tmp_path: Path, preparation: str, line: str, module: str
) -> None:
    done = ended(tmp_path, preparation.format(module), line)
    assert (done.returncode, done.stderr) == (130, "")
    assert "serving" not in done.stdout


def test_ctrl_c_while_a_struct_is_prepared_does_not_crash(tmp_path: Path) -> None:
    done = ended(tmp_path, PREPARING, "serve --port 0")
    assert (done.returncode, done.stderr) == (130, "")


def test_ctrl_c_while_a_command_works_is_raised_in_it(tmp_path: Path) -> None:
    preparation = """
import os, signal
from service.cli import doctor
def work(*_):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        print("cleared up", flush=True)
doctor.doctor = work
"""
    done = ended(tmp_path, preparation, "doctor")
    assert (done.returncode, done.stdout, done.stderr) == (130, "cleared up\n", "")


def test_ctrl_c_while_a_loop_runs_cancels_what_runs_in_it(tmp_path: Path) -> None:
    preparation = """
import asyncio, os, signal
from service.cli import admin
async def migrate(_):
    os.kill(os.getpid(), signal.SIGINT)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        print("canceled", flush=True)
        raise
admin._migrate = migrate
"""
    done = ended(tmp_path, preparation, "migrate")
    assert (done.returncode, done.stdout, done.stderr) == (130, "canceled\n", "")


def test_ctrl_c_while_the_process_ends_leaves_no_traceback(tmp_path: Path) -> None:
    done = ended(tmp_path, EXITING, "--version")
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
    assert done.stdout.startswith("genhook ")


def test_ctrl_c_that_the_shell_ignores_stays_ignored(tmp_path: Path) -> None:
    preparation = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    done = ended(tmp_path, preparation + NOW.format("argparse") + EXITING, "--version")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_server_imports_no_other_command_line_and_leaves_its_package_whole() -> None:
    code = (
        "import sys\nfrom service.cli import server\n"
        "config = server.new_server(None).config\nconfig.load()\n"
        "print(*{'click', 'uvicorn.main'} & {*sys.modules})\n"
        "import uvicorn\nprint(callable(uvicorn.run), uvicorn.Config is type(config))"
    )
    done = subprocess.run(  # noqa: S603  our own code
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    assert done.stdout.splitlines() == ["", "True True"]
