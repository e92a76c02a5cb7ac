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


def test_ci_installs_what_tests_need_where_it_is_not_root(tmp_path: Path) -> None:
    """As on GitHub's machines. What it runs is replaced; nothing is installed here."""
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    fakes = {"id": "echo 1000", "sudo": f'printf "%s " "$@" > {tmp_path}/asked', "make": "exit 1"}
    for name, body in fakes.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    script = Path(__file__).parents[1] / ".ci/run"
    done = subprocess.run([script], env={"PATH": str(tmp_path)}, check=False, capture_output=True)  # noqa: S603
    assert done.returncode == 1, done.stderr  # From `make`.
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
