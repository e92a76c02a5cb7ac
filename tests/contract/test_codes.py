"""Every code that the source of the service gives a problem is told to clients, with its status."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.cli import refusals
from tests.contract.contract import DOCUMENT, PROBLEM, SCHEMAS, operations, resolve

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"[a-z][a-z_]+")
# A router makes it of what it raises: a wrong method belongs to no operation.
OF_NO_OPERATION = {"method_not_allowed"}


def problems_in(source: str) -> Iterator[tuple[int, str]]:
    """Yield the status and the code of every problem that the source makes.

    Where a problem is made of variables, their values stand in a table of the same module: then
    every pair of a status and a code counts.
    """
    tree = ast.parse(source)
    made = [node.args for node in ast.walk(tree) if isinstance(node, ast.Call) and _makes(node)]
    made = [arguments[1:] if _is_problem(arguments[0]) else arguments for arguments in made]
    pairs = [pair for arguments in made if (pair := _read_pair(arguments))]
    yield from pairs
    if len(pairs) < len(made):
        tables = [node.elts for node in ast.walk(tree) if isinstance(node, ast.Tuple)]
        found = [pair for elements in tables if (pair := _read_pair(elements))]
        assert found, "a problem whose code cannot be read"
        yield from found


def _is_problem(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "Problem"


def _makes(call: ast.Call) -> bool:
    is_partial = isinstance(call.func, ast.Name) and call.func.id == "partial"
    return bool(call.args) and (
        _is_problem(call.func) or (is_partial and _is_problem(call.args[0]))
    )


def _read_pair(nodes: list[ast.expr]) -> tuple[int, str] | None:
    match nodes[:2]:
        case [ast.Constant(int(status)), ast.Constant(str(code))] if CODE.fullmatch(code):
            return status, code
    return None


MADE = {
    pair
    for path in sorted((ROOT / "service").rglob("*.py"))
    if "Problem" in (source := path.read_text("utf-8"))
    for pair in problems_in(source)
}


def documented(operation: dict[str, Any], status: int) -> list[str]:
    """Return the codes that an operation documents for a status."""
    content = resolve(operation["responses"].get(str(status), {})).get("content", {})
    return content[PROBLEM]["schema"]["properties"]["code"]["enum"] if PROBLEM in content else []


def codes_of_rows(text: str) -> set[tuple[int, str]]:
    """Return the pairs of the rows of a table: each status in the first cell, each code after."""
    pairs = set()
    for line in text.splitlines():
        cells = line.strip().split("|")
        if len(cells) > 2:
            statuses = [int(status) for status in re.findall(r"\b[45]\d\d\b", cells[1])]
            codes = re.findall(r"`([a-z_]{8,})`", "|".join(cells[2:]))
            pairs |= {(status, code) for status in statuses for code in codes}
    return pairs


def test_every_code_in_the_source_is_in_the_contract_and_the_contract_has_no_other() -> None:
    assert {code for _, code in MADE} == set(SCHEMAS["Problem"]["properties"]["code"]["enum"])


def test_every_code_in_the_source_is_documented_where_it_can_occur() -> None:
    for status, code in MADE:
        if code not in OF_NO_OPERATION:
            assert any(code in documented(each, status) for _, each in operations()), (status, code)


@pytest.mark.parametrize("where", ["openapi.yaml", "docs/decisions/0006-status-codes.md"])
def test_every_code_in_the_source_stands_in_the_tables_beside_its_status(where: str) -> None:
    is_contract = where == "openapi.yaml"
    text = DOCUMENT["info"]["description"] if is_contract else (ROOT / where).read_text("utf-8")
    assert MADE - codes_of_rows(text) == set()


def test_every_operation_documents_what_the_entrance_may_answer() -> None:
    for name, operation in operations():
        for problem in refusals._PROBLEMS.values():
            assert problem.code in documented(operation, problem.status), (name, problem.code)


def test_every_operation_but_that_of_health_documents_that_the_process_stops() -> None:
    """App answers `GET /healthz` at once, so that a stop cannot cancel it."""
    lack = {name for name, each in operations() if "stopping" not in documented(each, 503)}
    assert lack == {"GET /healthz"}


def test_every_operation_that_may_need_a_key_documents_that_the_database_is_gone() -> None:
    """The keys are in the database: no operation checks one without it."""
    by_key = {n: each for n, each in operations() if {"bearer": []} in _security_of(each)}
    assert {"GET /metrics", "GET /openapi.yaml", "GET /docs"} < set(by_key)
    for name, operation in by_key.items():
        assert "storage_unavailable" in documented(operation, 503), name


def _security_of(operation: dict[str, Any]) -> list[dict[str, Any]]:
    security: list[dict[str, Any]] = operation.get("security", DOCUMENT["security"])
    return security


@pytest.mark.parametrize(
    "source",
    [
        "raise Problem(418, 'too_hot', 'It is.', headers={})",
        "too_hot = partial(Problem, 418, 'too_hot')",
        "CODES = {1: (418, 'too_hot')}\nproblem = Problem(status, code, detail)",
    ],
)
def test_a_code_is_found_however_the_problem_is_made(source: str) -> None:
    assert list(problems_in(source)) == [(418, "too_hot")]


def test_a_problem_whose_code_cannot_be_read_is_found() -> None:
    with pytest.raises(AssertionError):
        list(problems_in("Problem(status, code, detail)"))
