"""The examples of the contract: every operation has them, and the service does what they show."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.contract import (
    PROBLEM,
    breaches,
    examples_of,
    operations,
    parameters_of,
    resolve,
)
from tests.contract.scenes import Ids, id_name_of, populate
from tests.harness import Harness, opened

# Whole files, which nobody needs to see an example of: each is at its path.
FILES = {"application/yaml", "text/html", "text/css", "text/javascript"}


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[Harness]:
    async with opened(tmp_path) as harness:
        yield harness


def bodies() -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Every operation with a body, by its name, and each example of the body."""
    for name, operation in operations():
        content = resolve(operation.get("requestBody", {})).get("content", {})
        for example in examples_of(content.get("application/json", {})):
            yield name, operation, example


def answers_of(operation: dict[str, Any]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Every status, media type and media type object of an operation's answers."""
    for status, response in operation["responses"].items():
        for media_type, media in resolve(response).get("content", {}).items():
            yield int(status), media_type, media


def success_of(operation: dict[str, Any]) -> tuple[int, Any]:
    """The one status of success of an operation, and the first example of its answer."""
    [(status, media)] = [(s, media) for s, _, media in answers_of(operation) if s < 300]
    return status, next(examples_of(media))


BODIES = list(bodies())


def test_every_request_body_and_every_answer_has_an_example() -> None:
    with_bodies = {name for name, operation in operations() if "requestBody" in operation}
    assert {name for name, _, _ in BODIES} == with_bodies
    for name, operation in operations():
        for status, media_type, media in answers_of(operation):
            has_one = next(examples_of(media), None) is not None
            assert has_one != (media_type in FILES), (name, status, media_type)


def test_every_problem_shows_each_of_its_codes_and_no_other() -> None:
    for name, operation in operations():
        for status, media_type, media in answers_of(operation):
            if media_type == PROBLEM:
                codes = media["schema"]["properties"]["code"]["enum"]
                shown = {key: resolve(each)["value"] for key, each in media["examples"].items()}
                assert list(shown) == codes, (name, status)
                assert [each["code"] for each in shown.values()] == codes, (name, status)


def test_every_parameter_that_must_be_given_has_an_example() -> None:
    for name, operation in operations():
        for parameter in parameters_of(name, operation):
            if parameter.get("required"):
                node = resolve(parameter["schema"])
                assert [*examples_of(parameter), *examples_of(node)], (name, parameter["name"])


def test_an_answer_shows_what_came_of_the_request_that_is_shown() -> None:
    compared = set()
    for name, operation, body in BODIES:
        answer = success_of(operation)[1]
        for field in (body.keys() & answer.keys()) - {"status"}:
            assert answer[field] == body[field], (name, field)
            compared.add(f"{name} {field}")
    assert {"POST /v1/generations input", "POST /v1/keys scopes"} <= compared
    paused = dict(operations())["PATCH /v1/subscribers/{id}"]
    assert success_of(paused)[1]["status"] == "paused"


@pytest.mark.parametrize(("name", "operation", "body"), BODIES, ids=[name for name, *_ in BODIES])
async def test_a_request_that_is_shown_is_answered_as_documented(
    world: Harness, name: str, operation: dict[str, Any], body: Any
) -> None:
    ids = await populate(world)
    method, path = aim(world, name, ids)
    headers = headers_of(name, operation)
    if "subscriber_id" in body:
        await world.client.post(f"/v1/replays/{ids['rpl']}/cancel")  # One runs at a time.
        body = {**body, "subscriber_id": ids["sub"]}
    client = world.anonymous if "callbacks" in name else world.client
    answer = await client.request(method, path, json=body, headers=headers)
    assert breaches(answer) == []
    status, shown = success_of(operation)
    assert answer.status_code == status
    assert answer.json().keys() == shown.keys()
    assert {field: answer.json().get(field) for field in body.keys() & shown.keys()} == {
        field: body[field] for field in body.keys() & shown.keys()
    }


async def test_every_parameter_that_is_shown_is_taken(world: Harness) -> None:
    ids = await populate(world)
    world.clock.advance(7 * 86_400)  # The days that are shown have come.
    sent = 0
    for name, operation in operations():
        method, path = aim(world, name, ids)
        for parameter in parameters_of(name, operation):
            if parameter["in"] != "query" or method != "GET":
                continue
            for shown in [*examples_of(parameter), *examples_of(resolve(parameter["schema"]))]:
                query = shown if isinstance(shown, dict) else {parameter["name"]: shown}
                answer = await world.client.get(path, params=query)
                assert (answer.status_code, breaches(answer)) == (200, []), (name, query)
                sent += 1
    assert sent >= 10


async def test_the_model_that_is_shown_is_the_one_of_the_catalogue(world: Harness) -> None:
    _, shown = success_of(dict(operations())["GET /v1/models/{id}"])
    assert await world.get(f"/v1/models/{shown['id']}") == shown


def aim(world: Harness, name: str, ids: Ids) -> tuple[str, str]:
    """The method and the path of an operation, for a row that is there."""
    method, path = name.split()
    if path.startswith("/callbacks/"):
        return method, world.upstream.callback_url()
    return method, path.replace("{id}", ids.get(id_name_of(path), "imagen4"))


def headers_of(name: str, operation: dict[str, Any]) -> dict[str, str]:
    """The headers that an operation shows."""
    headers = {}
    for parameter in parameters_of(name, operation):
        if parameter["in"] == "header":
            shown = [*examples_of(parameter), *examples_of(parameter["schema"])]
            headers[parameter["name"]] = shown[0]
    return headers
