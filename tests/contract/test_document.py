"""The contract itself: openapi.yaml is valid, complete, closed and bounded."""

import re
from collections.abc import Iterator
from typing import Any

import openapi_spec_validator
import pytest
import yaml

from service.api.routes import OPERATIONS
from tests.contract.contract import (
    COMPONENTS,
    DOCUMENT,
    SCHEMAS,
    TEXT,
    accepts,
    examples_of,
    operations,
    parameters_of,
    resolve,
)

OPEN = {"open", "token"}

ROUTES = """
    submit  POST    /v1/generations
    read    GET     /v1/generations
    read    GET     /v1/generations/{id}
    read    GET     /v1/generations/{id}/timeline
    submit  POST    /v1/generations/{id}/refresh
    submit  POST    /v1/generations/{id}/cancel
    submit  POST    /v1/generations/{id}/retry
    manage  DELETE  /v1/generations/{id}
    read    GET     /v1/models
    read    GET     /v1/models/{id}
    token   POST    /callbacks/{upstream}/{token}
    read    GET     /v1/callbacks
    read    GET     /v1/callbacks/{id}
    manage  POST    /v1/subscribers
    manage  GET     /v1/subscribers
    manage  GET     /v1/subscribers/{id}
    manage  PATCH   /v1/subscribers/{id}
    manage  DELETE  /v1/subscribers/{id}
    manage  GET     /v1/subscribers/{id}/secret
    manage  POST    /v1/subscribers/{id}/rotate-secret
    manage  POST    /v1/subscribers/{id}/test
    read    GET     /v1/subscribers/{id}/stats
    manage  GET     /v1/signing-secret
    manage  POST    /v1/signing-secret/rotate
    read    GET     /v1/events
    read    GET     /v1/events/{id}
    read    GET     /v1/deliveries
    read    GET     /v1/deliveries/{id}
    manage  POST    /v1/deliveries/{id}/retry
    manage  POST    /v1/replays
    manage  GET     /v1/replays
    manage  GET     /v1/replays/{id}
    manage  POST    /v1/replays/{id}/cancel
    read    GET     /v1/usage
    admin   POST    /v1/keys
    admin   GET     /v1/keys
    admin   GET     /v1/keys/{id}
    admin   DELETE  /v1/keys/{id}
    operator POST    /v1/tick
    operator GET     /v1/workers
    open    GET     /healthz
    open    GET     /readyz
    open    GET     /metrics
    open    GET     /openapi.yaml
    open    GET     /docs
    open    GET     /docs/{file}
"""

FIELDS = {
    "Generation": "id model status route input metadata notify_url retry_of task_id output error "
    "credits created_at submitted_at completed_at deadline_at",
    "GenerationEvent": "id type timestamp data",
    "Subscriber": "id url description event_types filter headers status disabled_reason "
    "max_in_flight rate_per_second retry_schedule_seconds ordered payload signature "
    "for_notify_url created_at updated_at",
    "Model": "id family provider kind path credits parameters callbacks",
    "Callback": "id generation_id upstream received_at verdict reason trust",
    "CallbackReceived": "id generation_id upstream received_at verdict reason trust "
    "headers body body_encoding",
    "Delivery": "id event_id event_type generation_id subscriber_id status attempt_count "
    "next_attempt_at created_at delivered_at last_error",
    "Attempt": "id number trigger started_at duration_ms status_code error response_headers "
    "response_body",
    "Key": "id name tenant scopes created_at last_used_at revoked_at",
    "Replay": "id subscriber_id status total done dry_run created_at finished_at",
    "Problem": "type title status code detail errors request_id",
    "Tick": "submitted polled attempted replayed deleted more",
    "Worker": "name shards is_answering",
    "Usage": "day model generations succeeded failed timed_out canceled credits",
}

# Fields that an answer may leave out; the others are always there, null where unknown.
OPTIONAL = {"errors", "expires_at", "kept"}

# What describes an event in CloudEvents' binary mode.
CE_HEADERS = {f"ce-{word}" for word in ("specversion", "id", "source", "type", "time", "subject")}

# Schemas that only ever appear in requests.
REQUESTS = ("GenerationCreate", "SubscriberCreate", "SubscriberUpdate", "ReplayCreate", "KeyCreate")


def guarded() -> Iterator[tuple[str, dict[str, Any]]]:
    return ((name, each) for name, each in operations() if each["x-scope"] not in OPEN)


def walk(node: Any, at: str = "#") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping below `node` and where it is, but not the data of examples."""
    if isinstance(node, dict):
        yield at, node
        for key, value in node.items():
            if key not in {"example", "examples"}:
                yield from walk(value, f"{at}/{key}")
            elif isinstance(value, dict) and key == "examples":
                named = ((f"{at}/{key}/{name}", each) for name, each in value.items())
                yield from ((where, each) for where, each in named if "$ref" in each)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from walk(value, f"{at}/{index}")


def repeated_keys(node: yaml.Node | None) -> Iterator[str]:
    """Keys that a mapping has more than once; the parser would keep the last one silently."""
    if isinstance(node, yaml.MappingNode):
        names = [key.value for key, _ in node.value]
        yield from (name for name in set(names) if names.count(name) > 1)
    for child in node.value if isinstance(node, yaml.CollectionNode) else []:
        for each in child if isinstance(child, tuple) else [child]:
            yield from repeated_keys(each)


def schemas(node: Any, at: str = "#") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every JSON Schema below `node`: the mappings that are not a mapping of names to schemas."""
    for where, schema in walk(node, at):
        if not where.endswith("/properties"):
            yield where, schema


def properties(schema: dict[str, Any]) -> dict[str, Any]:
    """The properties of an object schema, those of what it builds on included."""
    inherited: dict[str, Any] = {}
    for base in schema.get("allOf", []):
        inherited |= properties(resolve(base))
    own: dict[str, Any] = schema.get("properties", {})
    return inherited | own


def closed(schema: dict[str, Any]) -> bool:
    """Whether an object schema refuses unknown fields, types its values, or says why it is open."""
    is_object = "object" in schema.get("type", "") or "properties" in schema
    builds_on = "allOf" in schema or "oneOf" in schema or "$ref" in schema
    if not is_object or "x-open" in schema:
        return True
    if builds_on and "unevaluatedProperties" not in schema:
        # Narrowing what is closed elsewhere: every name must be one that the base knows.
        known = [
            set(schema.get("properties", {})) <= set(properties(resolve(base)))
            for base in schema.get("allOf", schema.get("oneOf", []))
        ]
        return all(known) if "allOf" in schema else not known or any(known)
    rule = schema.get("unevaluatedProperties", schema.get("additionalProperties", True))
    return rule is False or isinstance(rule, dict)


def bounded(schema: dict[str, Any]) -> bool:
    """Whether a schema limits the size of every value that it allows."""
    kinds = schema.get("type", [])
    for kind in [kinds] if isinstance(kinds, str) else kinds:
        has = schema.keys()
        if kind == "string" and not ("maxLength" in has or closed_pattern(schema.get("pattern"))):
            return False
        if kind == "array" and "maxItems" not in has:
            return False
        if kind in {"integer", "number"} and not {"minimum", "maximum"} <= has:
            return False
        is_map = kind == "object" and schema.get("additionalProperties") is not False
        if is_map and not has & {"maxProperties", "x-open"}:
            return False
    return True


def closed_pattern(pattern: str | None) -> bool:
    """Whether a pattern is anchored at both ends and repeats nothing without a limit."""
    if pattern is None or not (pattern.startswith("^") and pattern.endswith("$")):
        return False
    return not re.search(r"[*+]|,\}", re.sub(r"\[[^\]]*\]", "", pattern))


def examples() -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Every example in the document with the schema that it illustrates."""
    for where, node in walk(DOCUMENT):
        if where == "#/components":
            continue  # What the members of its `examples` illustrate, those who refer to them say.
        for instance in examples_of(node):
            yield where, node.get("schema", node), instance


def test_the_document_is_valid_openapi_3_1() -> None:
    assert DOCUMENT["openapi"].startswith("3.1.")
    openapi_spec_validator.validate(DOCUMENT)


def test_no_mapping_of_the_document_has_a_key_twice() -> None:
    assert list(repeated_keys(yaml.compose(TEXT))) == []
    assert list(repeated_keys(yaml.compose("{a: [{b: 1, c: 2, b: 3}]}"))) == ["b"]


def test_every_route_of_the_design_is_there_with_its_scope_and_no_other() -> None:
    expected = {tuple(line.split()) for line in ROUTES.strip().splitlines()}
    assert {(each["x-scope"], *name.split()) for name, each in operations()} == expected


def test_every_operation_has_an_id_a_summary_a_description_and_a_declared_tag() -> None:
    declared = {tag["name"] for tag in DOCUMENT["tags"]}
    used = set()
    for name, operation in [*operations(), *operations("webhooks")]:
        assert re.fullmatch(r"[a-z][A-Za-z]+", operation["operationId"]), name
        assert operation["summary"], name
        assert operation["description"], name
        assert len(operation["tags"]) == 1, name
        used |= set(operation["tags"])
    assert used == declared


def test_no_two_operations_share_an_id() -> None:
    ids = [each["operationId"] for _, each in [*operations(), *operations("webhooks")]]
    assert len(ids) == len(set(ids))


def test_every_description_names_the_scope() -> None:
    for name, operation in operations():
        scope = operation["x-scope"]
        sentence = "Scope: none" if scope in OPEN else f"Scope: `{scope}`."
        assert sentence in operation["description"], name


def test_only_open_routes_and_callbacks_go_without_a_key() -> None:
    assert DOCUMENT["security"] == [{"bearer": []}]
    for name, operation in operations():
        assert ("security" in operation) == (operation["x-scope"] in OPEN), name


def test_every_guarded_operation_documents_the_problems_that_all_share() -> None:
    for name, operation in guarded():
        assert {"400", "401", "403", "500", "503"} <= operation["responses"].keys(), name


def test_every_operation_that_may_need_a_key_documents_two_of_them() -> None:
    for name, operation in operations():
        if operation.get("security") != [] and "401" in operation["responses"]:
            problem = resolve(operation["responses"]["400"])["content"]["application/problem+json"]
            codes = problem["schema"]["properties"]["code"]["enum"]
            assert "invalid_header" in codes, name


def test_every_operation_documents_the_fault_of_ours() -> None:
    for name, operation in operations():
        assert "500" in operation["responses"], name


def test_an_operation_on_one_thing_documents_404() -> None:
    for name, operation in operations():
        if "{" in name:
            assert "404" in operation["responses"], name


def test_an_operation_that_takes_a_body_documents_415_and_all_but_a_get_413() -> None:
    for name, operation in guarded():
        assert ("requestBody" in operation) == ("415" in operation["responses"]), name
        assert name.startswith("GET ") != ("413" in operation["responses"]), name


def test_every_answer_over_399_is_a_problem_but_that_of_readiness() -> None:
    for name, operation in operations():
        for status, response in operation["responses"].items():
            if int(status) >= 400 and (name, status) != ("GET /readyz", "503"):
                assert set(resolve(response)["content"]) == {"application/problem+json"}, name


def test_a_problem_response_stands_under_its_own_status() -> None:
    for name, operation in operations():
        for status, response in operation["responses"].items():
            media = resolve(response).get("content", {}).get("application/problem+json")
            if media:
                assert media["schema"]["properties"]["status"] == {"const": int(status)}, name


def test_each_code_has_one_status_and_is_documented_where_it_occurs() -> None:
    statuses: dict[str, set[int]] = {}
    for response in COMPONENTS["responses"].values():
        if "content" in response:
            narrowed = response["content"]["application/problem+json"]["schema"]["properties"]
            for code in narrowed["code"]["enum"]:
                statuses.setdefault(code, set()).add(narrowed["status"]["const"])
    assert all(len(each) == 1 for each in statuses.values()), statuses
    # No operation can document it: a wrong method belongs to none.
    known = set(SCHEMAS["Problem"]["properties"]["code"]["enum"])
    assert statuses.keys() == known - {"method_not_allowed"}


def test_every_problem_that_asks_to_come_again_documents_when() -> None:
    for name, response in COMPONENTS["responses"].items():
        content = response.get("content", {}).get("application/problem+json")
        codes = content["schema"]["properties"]["code"]["enum"] if content else []
        comes_again = {"idempotency_key_in_use", "too_many_tests", "overloaded"}
        assert comes_again.isdisjoint(codes) or "Retry-After" in response["headers"], name


def test_the_table_of_codes_is_the_list_of_codes() -> None:
    table = [line for line in DOCUMENT["info"]["description"].splitlines() if line.startswith("|")]
    codes = set(re.findall(r"`([a-z_]{8,})`", "\n".join(table)))
    assert codes == set(SCHEMAS["Problem"]["properties"]["code"]["enum"])


def test_every_response_carries_the_request_id() -> None:
    for name, operation in operations():
        for status, response in operation["responses"].items():
            assert "X-Request-Id" in resolve(response)["headers"], (name, status)


def test_every_post_that_creates_takes_an_idempotency_key_and_documents_what_it_does() -> None:
    takers = set()
    for name, operation in operations():
        if any(each["name"] == "Idempotency-Key" for each in parameters_of(name, operation)):
            takers.add(name)
            [done] = [each for status, each in operation["responses"].items() if status < "300"]
            assert "Idempotency-Replayed" in resolve(done)["headers"], name
            assert {"409", "422"} <= operation["responses"].keys(), name
    creators = ("generations", "generations/{id}/retry", "subscribers", "replays", "keys")
    rotators = ("subscribers/{id}/rotate-secret", "signing-secret/rotate")
    assert takers == {f"POST /v1/{noun}" for noun in (*creators, *rotators)}
    made = {f"{each.method} {each.path}" for each in OPERATIONS if each.creates}
    assert takers == {name.replace("{id:path}", "{id}") for name in made}


def test_every_list_has_the_same_envelope() -> None:
    lists = [name for name in SCHEMAS if name.endswith("List") or name == "Timeline"]
    assert len(lists) == 11
    for name in lists:
        schema = SCHEMAS[name]
        assert schema["required"] == ["data", "next"] == list(schema["properties"]), name
        assert schema["properties"]["data"]["maxItems"], name


def test_every_list_that_has_pages_takes_limit_after_and_order() -> None:
    for name, operation in operations():
        schema = resolve(operation["responses"].get("200", {})).get("content", {})
        answer = resolve(schema.get("application/json", {}).get("schema", {}))
        if answer.get("properties", {}).get("next", {}).get("$ref"):
            names = [each["name"] for each in parameters_of(name, operation)]
            assert names[:3] == ["limit", "after", "order"], name


def test_every_object_is_closed_or_says_why_it_is_open() -> None:
    for where, schema in schemas(DOCUMENT):
        assert closed(schema), where


def test_an_open_base_is_used_only_by_schemas_that_close_it() -> None:
    bases = {f"#/components/schemas/{name}" for name in SCHEMAS if name.endswith("Fields")}
    assert len(bases) == 4
    closed_by = [
        base["$ref"]
        for _, node in walk(DOCUMENT)
        if node.get("unevaluatedProperties") is False
        for base in node["allOf"]
        if "$ref" in base
    ]
    used = [node["$ref"] for _, node in walk(DOCUMENT) if node.get("$ref") in bases]
    assert sorted(used) == sorted(closed_by)


def test_what_is_open_says_why_in_words() -> None:
    reasons = [node["x-open"] for _, node in walk(DOCUMENT) if "x-open" in node]
    assert reasons
    assert all(len(reason.split()) >= 3 for reason in reasons)


def test_every_answer_always_has_all_its_fields() -> None:
    for name in SCHEMAS.keys() - {*REQUESTS, "Rotation", "Filter"}:
        for where, schema in schemas(SCHEMAS[name], name):
            if schema.get("type") == "object":
                optional = schema.get("properties", {}).keys() - set(schema.get("required", []))
                assert optional <= OPTIONAL, where


@pytest.mark.parametrize("name", FIELDS)
def test_the_nouns_have_the_fields_of_the_design(name: str) -> None:
    assert list(properties(SCHEMAS[name])) == FIELDS[name].split()


@pytest.mark.parametrize("name", [*REQUESTS, "Rotation"])
def test_every_field_of_a_request_is_bounded(name: str) -> None:
    for field, schema in SCHEMAS[name]["properties"].items():
        for where, part in schemas(schema):
            assert bounded(resolve(part)), f"{name}.{field}{where}"


def test_every_parameter_is_bounded() -> None:
    for name, operation in operations():
        for parameter in parameters_of(name, operation):
            if parameter["name"] == "Prefer":
                continue  # What is no preference of ours is ignored, and the head is bounded.
            for where, part in schemas(parameter["schema"]):
                assert bounded(resolve(part)), f"{name} {parameter['name']}{where}"


def test_secrets_are_in_the_answers_that_are_meant_to_hold_them_and_in_no_other() -> None:
    holders = {
        name
        for name, schema in SCHEMAS.items()
        if name not in REQUESTS and {"secret", "key"} & properties(schema).keys()
    }
    assert holders == {"SubscriberCreated", "KeyCreated", "Secret", "Rotation"}


def test_the_webhooks_are_the_event_types() -> None:
    assert list(DOCUMENT["webhooks"]) == SCHEMAS["EventType"]["enum"]
    for name, operation in operations("webhooks"):
        names = [resolve(each)["name"] for each in operation["parameters"]]
        assert names[:3] == ["webhook-id", "webhook-timestamp", "webhook-signature"], name
        assert {each["name"] for each in map(resolve, operation["parameters"][3:])} == CE_HEADERS


def test_a_webhook_accepts_its_own_event_and_no_other() -> None:
    for name, operation in operations("webhooks"):
        media = operation["requestBody"]["content"]["application/json"]
        shown = next(examples_of(media))
        assert shown["type"] == name.split()[1]
        assert accepts(media["schema"], shown), name
        assert accepts(SCHEMAS["Event"], shown), name
        for other in SCHEMAS["EventType"]["enum"]:
            assert (other == shown["type"]) == accepts(media["schema"], shown | {"type": other})


def test_every_example_fits_its_schema() -> None:
    checked = 0
    for where, schema, instance in examples():
        assert accepts(schema, instance), f"{where}: {instance}"
        checked += 1
    assert checked > 30


def test_every_reference_leads_somewhere_and_every_component_is_used() -> None:
    used = {node["$ref"] for _, node in walk(DOCUMENT) if "$ref" in node}
    for section, members in COMPONENTS.items():
        for name in members:
            at = f"#/components/{section}/{name}"
            assert at in used or section == "securitySchemes", f"{at} is used by nothing"
            used.discard(at)
    assert used == set()


@pytest.mark.parametrize("size", [23, 24, 25, 26, 27, 62, 63, 64, 65])
def test_a_given_secret_holds_24_to_64_bytes(size: int) -> None:
    digits = -(-size * 4 // 3)
    secret = "whsec_" + "A" * digits + "=" * (-digits % 4)
    assert accepts({"$ref": "#/components/schemas/SigningSecret"}, secret) == (24 <= size <= 64)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object"},
        {"type": "object", "properties": {"a": {}}},
        {"properties": {"a": {}}},
        {"type": "object", "additionalProperties": True},
        {
            "allOf": [{"$ref": "#/components/schemas/Ok"}],
            "properties": {"status": {}, "new": {}},
        },
    ],
)
def test_an_open_object_without_a_reason_is_found(schema: dict[str, Any]) -> None:
    assert not closed(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string"},
        {"type": ["string", "null"]},
        {"type": "string", "pattern": "^[a-z]+$"},
        {"type": "string", "pattern": "[a-z]{3}"},
        {"type": "string", "pattern": "^[a-z]{3,}$"},
        {"type": "array", "items": {"type": "boolean"}},
        {"type": "integer", "minimum": 1},
        {"type": "object", "additionalProperties": {"type": "boolean"}},
    ],
)
def test_a_boundless_schema_is_found(schema: dict[str, Any]) -> None:
    assert not bounded(schema)
