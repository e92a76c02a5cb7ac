"""The command line against openapi.yaml: each operation has a command, but for those named here."""

import argparse
from collections.abc import Iterator
from typing import Any

import pytest

from service.cli.command import Command
from tests.cli.test_main import COMMANDS
from tests.contract.contract import operations, parameters_of, resolve

# Operations that no command calls.
ELSEWHERE = {
    "POST /callbacks/{upstream}/{token}": "upstream calls it",
    "POST /v1/tick": "`genhook tick` works on the database itself; schedules call it by curl",
    "GET /healthz": "platforms call it",
    "GET /readyz": "platforms call it; `genhook doctor` says more",
    "GET /metrics": "Prometheus reads it",
    "GET /openapi.yaml": "browsers and generators read it",
    "GET /docs": "browsers show it",
    "GET /docs/{file}": "browsers load it",
}
# The option that sends what a request may have, where it is not named after it.
ALIASES = {
    "POST /v1/generations Prefer": "no_wait",  # Without it the command waits by itself.
    "POST /v1/generations/{id}/retry Prefer": "no_wait",
    "POST /v1/subscribers headers": "header",
    "PATCH /v1/subscribers/{id} headers": "header",
    "PATCH /v1/subscribers/{id} url": "target",
    "POST /v1/subscribers url": "target",
    "POST /v1/subscribers filter": "models",  # And `metadata`.
    "PATCH /v1/subscribers/{id} filter": "models",
    "POST /v1/replays subscriber_id": "id",
}


def command_of(parser: argparse.ArgumentParser) -> Command | None:
    """The request that a command makes, where it is data."""
    run = parser.get_default("run")
    return next((one for one in getattr(run, "args", ()) if isinstance(one, Command)), None)


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    return {action.dest.removeprefix("argument_") for action in parser._actions}


def commands() -> Iterator[tuple[str, set[str]]]:
    """Each operation that a command calls, with the names of the command's options."""
    yield "POST /v1/replays", options_of(COMMANDS["genhook replay"])
    yield "GET /v1/models/{id}", options_of(COMMANDS["genhook models"])
    for parser in COMMANDS.values():
        if command := command_of(parser):
            yield f"{command.method} {command.path}", options_of(parser)


def inputs_of(name: str, operation: dict[str, Any]) -> Iterator[str]:
    """The parameters of an operation and the fields of its body."""
    yield from (parameter["name"] for parameter in parameters_of(name, operation))
    body = resolve(operation.get("requestBody", {}))
    for media in body.get("content", {}).values():
        yield from fields_of(resolve(media["schema"]))


def fields_of(schema: dict[str, Any]) -> Iterator[str]:
    yield from schema.get("properties", {})
    for part in schema.get("allOf", []):
        yield from fields_of(resolve(part))


OPERATIONS = dict(operations())
OPTIONS: dict[str, set[str]] = {}
for _name, _options in commands():
    OPTIONS[_name] = OPTIONS.get(_name, set()) | _options


def test_every_operation_has_a_command_or_a_reason() -> None:
    assert OPERATIONS.keys() - OPTIONS.keys() == ELSEWHERE.keys()
    assert OPTIONS.keys() <= OPERATIONS.keys()


@pytest.mark.parametrize("name", sorted(OPTIONS))
def test_a_command_takes_all_that_its_operation_takes(name: str) -> None:
    for each in inputs_of(name, OPERATIONS[name]):
        option = each.lower().replace("-", "_")
        assert ALIASES.get(f"{name} {each}", option) in OPTIONS[name], each


def test_the_exceptions_are_of_what_there_is() -> None:
    there = {f"{name} {each}" for name in OPTIONS for each in inputs_of(name, OPERATIONS[name])}
    assert ALIASES.keys() <= there
