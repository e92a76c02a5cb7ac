"""The running service against its contract, with requests that schemathesis generates."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import httpx
import pytest
import requests
import schemathesis
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, settings
from schemathesis import checks
from schemathesis.specs.openapi import checks as contract

from tests.contract.contract import DOCUMENT
from tests.contract.scenes import SPAN, Ids, id_name_of, populate
from tests.harness import ADMIN_KEY, SUBSCRIBER_URL, Harness, opened

# Loading this plugin takes seconds, so pyproject.toml keeps it out of every other test run.
pytest_plugins = ["schemathesis.pytest.plugin"]

Case: TypeAlias = schemathesis.Case[Any]

# Valid by its schema and still refused, because a schema cannot express the rule.
REFUSABLE = {
    "POST /v1/generations": "a known model's input has a schema of its own",
    "GET /v1/usage": "the span of two days has an order and a limit",
}
CHECKS = [
    checks.not_a_server_error,
    contract.status_code_conformance,
    contract.content_type_conformance,
    contract.response_headers_conformance,
    contract.response_schema_conformance,
    contract.negative_data_rejection,
    contract.positive_data_acceptance,
    contract.missing_required_header,
    contract.unsupported_method,
]

schema = schemathesis.openapi.from_dict(DOCUMENT)
schema.config.generation.update(with_security_parameters=False)


class Service:
    """Runs the service on a loop of its own, for tests that are not async."""

    def __init__(self, portal: BlockingPortal, world: Harness, ids: Ids) -> None:
        self.portal, self.world, self.ids = portal, world, ids
        self.succeeded = False

    def send(self, case: Case) -> httpx.Response:
        headers = {"authorization": f"Bearer {ADMIN_KEY}"}
        options = case.as_transport_kwargs(base_url="http://genhook", headers=headers)
        names = ("method", "url", "headers", "params", "json", "data", "files", "cookies")
        prepared = requests.Request(**{n: options[n] for n in names if n in options}).prepare()
        body: Any = prepared.body
        lines = [
            (name.encode(), value.encode("latin-1") if isinstance(value, str) else value)
            for name, value in prepared.headers.items()
        ]
        request = httpx.Request(case.method, prepared.url or "", headers=lines, content=body)
        response = self.portal.call(self.world.client.send, request)
        self.succeeded |= response.is_success
        return response


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(opened(tmp_path)) as world,
    ):
        service = Service(portal, world, portal.call(populate, world))
        yield service
    assert service.succeeded, "no request succeeded, so the test shows nothing"


def aim(case: Case, service: Service) -> None:
    """Let valid data name rows that exist and addresses that webhooks may go to."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    noun = id_name_of(case.path)
    if "id" in (case.path_parameters or {}) and noun:
        case.path_parameters["id"] = service.ids[noun]
    if "file" in (case.path_parameters or {}):
        case.path_parameters["file"] = "start.js"
    if "token" in (case.path_parameters or {}):
        url = service.world.upstream.callback_url()
        case.path_parameters.update(upstream="apiinone", token=url.rpartition("/")[2])
    if "after" in (case.query or {}):
        case.query["after"] = service.ids.get(noun, "imagen4-fast")  # A model has its own id.
    if "Idempotency-Key" in (case.headers or {}):
        case.headers["Idempotency-Key"] = str(uuid4())
    if isinstance(case.body, dict):
        values: dict[str, Any] = {"subscriber_id": service.ids["sub"], **SPAN}
        values |= dict.fromkeys(("url", "notify_url"), SUBSCRIBER_URL)
        if isinstance(headers := case.body.get("headers"), dict):
            # A JSON Schema cannot say that names are the same in any case.
            values["headers"] = {name.lower(): value for name, value in headers.items()}
        case.body = whole({**case.body, **{n: values[n] for n in case.body.keys() & values}})


def whole(value: Any) -> Any:
    """Replace 5.0 by 5: a JSON Schema accepts both as integers, the service only the second."""
    if isinstance(value, dict):
        return {name: whole(each) for name, each in value.items()}
    if isinstance(value, list):
        return [whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@schema.parametrize()
@settings(max_examples=12, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_keeps_the_contract(case: Case, service: Service) -> None:
    aim(case, service)
    selected = [
        check
        for check in CHECKS
        if check is not contract.positive_data_acceptance or case.operation.label not in REFUSABLE
    ]
    case.validate_response(service.send(case), checks=selected)
