"""A program that is not installed: tests are skipped without it, but fail in CI."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import programs

PROGRAM = re.compile(r'programs\.find\("([^"]+)"(?:, "[^"]+")*(?:, package="([^"]+)")?')


@pytest.mark.parametrize(
    ("environment", "outcome"), [({}, pytest.skip.Exception), ({"CI": "1"}, pytest.fail.Exception)]
)
def test_a_missing_program_skips_a_test_and_fails_it_in_ci(
    environment: dict[str, str], outcome: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "ENVIRONMENT", environment)
    with pytest.raises(outcome, match="apt-get install no-such-package"):
        programs.find("no-such-program", package="no-such-package")


def run_ci(tmp_path: Path, **environ: str) -> str:
    """Run `.ci/run` without the programs; what it runs is replaced, and nothing is installed."""
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    fakes = {"sudo": f'printf "%s " "$@" > {tmp_path}/asked', "env": "exit 1", "make": "exit 1"}
    for name, body in fakes.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    script = Path(__file__).parents[1] / ".ci/run"
    done = subprocess.run(  # noqa: S603  our own script
        [tmp_path / "bash", script],
        env={"PATH": str(tmp_path), **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr  # From `make`.
    return done.stdout


def test_ci_changes_no_machine_of_a_user(tmp_path: Path) -> None:
    assert "not all could be installed of: " in run_ci(tmp_path)
    assert not (tmp_path / "asked").exists()


def test_ci_installs_what_tests_need_on_the_machines_of_github(tmp_path: Path) -> None:
    assert "not all could be installed" not in run_ci(tmp_path, GITHUB_ACTIONS="true")
    command, packages = (tmp_path / "asked").read_text().split(" - ")
    assert command.startswith("-n env RUNLEVEL=1 timeout 300 bash -c apt-get update;")
    needed = {
        package or name
        for path in Path(__file__).parent.glob("*/*.py")
        for name, package in PROGRAM.findall(path.read_text("utf-8"))
        if shutil.which(name, path="/usr/sbin") is None  # There `.ci/run` looks, too.
    }
    assert "caddy" in needed
    assert needed <= set(packages.split())


def test_a_program_is_found_under_any_of_its_names() -> None:
    assert programs.find("no-such-program", "sh").endswith("/sh")
