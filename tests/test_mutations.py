"""Every mutation of chaos/mutants.toml can be made, so that `make mutants` proves something."""

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "chaos" / "mutants.toml"
KEYS = {"name", "breaks", "tests", "edits"}


def faults(mutation: dict[str, Any]) -> Iterator[str]:
    """Say why a mutation cannot be made."""
    name, edits = mutation["name"], mutation.get("edits", [])
    if set(mutation) != KEYS or any(set(edit) != {"file", "old", "new"} for edit in edits):
        yield f"{name} has too many keys or too few, as after a merge"
        return
    for edit in edits:
        path = ROOT / edit["file"]
        text = path.read_text("utf-8") if path.is_file() else ""
        if (count := text.count(edit["old"])) != 1:
            yield f"{name}: {edit['file']} contains the text {count} times"
        elif path.suffix == ".py":
            try:
                compile(text.replace(edit["old"], edit["new"]), edit["file"], "exec")
            except SyntaxError as error:
                yield f"{name}: {edit['file']} would be no Python: {error}"
    for test in mutation["tests"]:
        if not (ROOT / test.partition("::")[0]).exists():
            yield f"{name}: there is no {test}"


def test_every_mutation_can_be_made() -> None:
    mutations = tomllib.loads(TABLE.read_text("utf-8"))["mutation"]
    found = [fault for mutation in mutations for fault in faults(mutation)]
    assert not found, "\n".join(found)
    names = [mutation["name"] for mutation in mutations]
    assert len(set(names)) == len(names)


def test_no_mutation_breaks_only_a_name(tmp_path: Path) -> None:
    """A NameError fails any test: such a mutation would be caught whatever the tests ask."""
    for mutation in tomllib.loads(TABLE.read_text("utf-8"))["mutation"]:
        for edit in mutation["edits"]:
            copy = tmp_path / mutation["name"] / edit["file"]
            before = copy if copy.exists() else ROOT / edit["file"]
            text = before.read_text("utf-8").replace(edit["old"], edit["new"])
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(text, "utf-8")
    options = ["--isolated", "--no-cache", "--select=F821,F823", "--output-format=concise"]
    ruff = [sys.executable, "-m", "ruff", "check", *options, str(tmp_path)]
    checked = subprocess.run(ruff, capture_output=True, text=True, check=False)  # noqa: S603
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"edits": [{"file": "Makefile", "old": "no such text", "new": ""}]},
        {"edits": [{"file": "tests/__init__.py", "old": "", "new": "", "name": "next"}]},
        {"edits": [{"file": "service/app.py", "old": "class App:", "new": "class:"}]},
        {"tests": ["tests/test_nothing.py"]},
    ],
)
def test_a_mutation_that_cannot_be_made_is_found(change: dict[str, Any]) -> None:
    edit = {"file": "service/app.py", "old": "class App:", "new": "class Other:"}
    good = {"name": "x", "breaks": "y", "tests": ["tests/test_tidy.py"], "edits": [edit]}
    assert not list(faults(good))
    assert len(list(faults({**good, **change}))) == 1
