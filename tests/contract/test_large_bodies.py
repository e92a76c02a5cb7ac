"""Large wrong bodies to every route that takes one: few errors are built, and answers are short."""

import difflib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.api import checks
from service.api.problem import ERRORS_MAX, FieldError, Problem
from service.api.routes import OPERATIONS
from service.model import json_input
from service.upstream import catalogue
from tests.contract.contract import SCHEMAS, breaches
from tests.harness import Harness, opened

MANY = 4_000  # Fewer values than any body may have, so that the checks of fields see them.
ANSWER_BYTES = 128 * 1024
LONG = "~/" * 50_000
ID = "0" * 32
# The bodies that are right, by route: each field of their schemas is made wrong in turn.
ROUTES: dict[str, tuple[str, dict[str, Any]]] = {
    "POST /v1/generations": (
        "GenerationCreate",
        {"model": "imagen4", "input": {"prompt": "a small harbour"}},
    ),
    "POST /v1/subscribers": ("SubscriberCreate", {"url": "http://127.0.0.1:7/inbox"}),
    "PATCH /v1/subscribers/{id}": ("SubscriberUpdate", {}),
    "POST /v1/subscribers/{id}/rotate-secret": ("Rotation", {}),
    "POST /v1/signing-secret/rotate": ("Rotation", {}),
    "POST /v1/replays": (
        "ReplayCreate",
        {
            "subscriber_id": f"sub_{ID}",
            "since": "2026-11-01T00:00:00Z",
            "until": "2026-11-02T00:00:00Z",
        },
    ),
    "POST /v1/keys": ("KeyCreate", {"name": "shop", "scopes": ["read"]}),
}
WRONG: dict[str, Any] = {
    "texts": [""] * MANY,
    "scopes": ["read"] * MANY,
    "types": ["ping"] * MANY,
    "numbers": [-1] * MANY,
    "lists": [[]] * MANY,
    "names": {f"n {number}": "[redacted]" for number in range(MANY)},
    "a long name": {LONG: "x"},
    "a long text": LONG,
    "models": {"models": [""] * MANY},
    "metadata": {"metadata": {f"n {number}": "" for number in range(MANY)}},
}
INPUTS: list[tuple[str, dict[str, Any]]] = [
    ("elevenlabs-v3", {"dialogue": [{"x": 1}] * MANY}),
    ("imagen4-fast", {"prompt": "abc", **{f"{n:x}": 1 for n in range(MANY)}}),
    ("ideogram-v3-turbo", {"prompt": "abc", "reference_images": [""] * MANY}),
    ("kling-3", {"prompt": "abc", "kling_elements": [[[1]] * 900] * 3}),
]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Harness]:
    async with opened(tmp_path) as harness:
        yield harness


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[FieldError]:
    """The errors that the checks built, whether they were sent or not."""
    errors: list[FieldError] = []

    def build(pointer: str, message: str) -> FieldError:
        errors.append(FieldError(pointer, message))
        return errors[-1]

    monkeypatch.setattr(checks, "FieldError", build)
    return errors


def test_every_route_that_takes_a_body_is_swept() -> None:
    taking = {f"{row.method} {row.path}" for row in OPERATIONS if row.reads_body}
    assert taking == ROUTES.keys()


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("route", ROUTES)
async def test_a_large_wrong_body_gets_a_short_answer(
    world: Harness, built: list[FieldError], route: str, wrong: str
) -> None:
    (method, path), (schema, base) = route.split(), ROUTES[route]
    for field in (*SCHEMAS[schema]["properties"], LONG):
        built.clear()
        body = {**base, field: WRONG[wrong]}
        answer = await world.client.request(method, path.format(id=f"sub_{ID}"), json=body)
        assert answer.status_code in (404, 422)
        assert json_input.TOO_MANY not in answer.text  # It is refused for what the field is.
        assert breaches(answer) == []  # The contract limits the number of errors.
        assert len(answer.content) < ANSWER_BYTES
        assert len(built) <= ERRORS_MAX


@pytest.mark.parametrize(("model", "input_"), INPUTS)
async def test_an_input_with_very_many_values_is_refused_before_the_validator_sees_it(
    world: Harness, monkeypatch: pytest.MonkeyPatch, model: str, input_: dict[str, Any]
) -> None:
    monkeypatch.setattr(catalogue, "_validator", None)
    answer = await world.client.post("/v1/generations", json={"model": model, "input": input_})
    assert breaches(answer) == []
    [error] = answer.json()["errors"]
    assert (error["pointer"], answer.status_code) == ("/input", 422)
    assert error["message"].startswith("must have at most 1000 values")


async def test_few_unknown_names_and_no_long_one_are_compared_with_the_parameters(
    world: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []

    def compare(name: str, *_: object, **__: object) -> list[str]:
        compared.append(name)
        return []

    monkeypatch.setattr(difflib, "get_close_matches", compare)
    unknown = {LONG: 1} | {f"name{number}": 1 for number in range(900)}
    request = {"model": "imagen4", "input": {"prompt": "abc", **unknown}}
    answer = await world.client.post("/v1/generations", json=request)
    assert breaches(answer) == []
    assert len(answer.json()["errors"]) == catalogue.MAX_PROBLEMS
    assert 0 < len(compared) <= catalogue.MAX_PROBLEMS
    assert LONG not in compared


def test_a_problem_shows_its_first_errors_and_cuts_long_texts() -> None:
    errors = [FieldError(f"/input/{'x' * 1000}", "is wrong"), FieldError("/a", "b" * 1000)]
    shown = Problem(422, "invalid_request", "", errors * 100).body("").decode()
    assert shown.count('"pointer"') == ERRORS_MAX
    assert '"/input","message":"has an entry with a long name that is wrong"' in shown
    assert '"message":"' + "b" * 511 + '…"' in shown
