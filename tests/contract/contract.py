"""The contract as data: the operations of openapi.yaml, and whether an answer keeps it."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import msgspec
import yaml

TEXT = (Path(__file__).parents[2] / "openapi.yaml").read_text(encoding="utf-8")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DOCUMENT: dict[str, Any] = yaml.load(TEXT, Loader=LOADER)  # noqa: S506  both are safe loaders
COMPONENTS: dict[str, Any] = DOCUMENT["components"]
SCHEMAS: dict[str, Any] = COMPONENTS["schemas"]
METHODS = ("get", "post", "put", "patch", "delete", "head", "options", "trace")
PROBLEM = "application/problem+json"


def operations(section: str = "paths") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every operation by its name, such as `GET /v1/events`."""
    for path, item in DOCUMENT[section].items():
        for method, operation in item.items():
            if method in METHODS:
                yield f"{method.upper()} {path}", operation


def parameters_of(name: str, operation: dict[str, Any]) -> list[dict[str, Any]]:
    """The parameters of an operation, with those that its path gives to all methods."""
    shared = DOCUMENT["paths"][name.split()[1]].get("parameters", [])
    return [resolve(parameter) for parameter in [*shared, *operation.get("parameters", [])]]


def resolve(node: dict[str, Any]) -> dict[str, Any]:
    """What a `$ref` into this document names; anything else is itself."""
    if "$ref" not in node:
        return node
    target: Any = DOCUMENT
    for part in node["$ref"].removeprefix("#/").split("/"):
        target = target[part]
    return resolve(target)


def examples_of(node: dict[str, Any]) -> Iterator[Any]:
    """The examples of a media type, a parameter or a schema."""
    if "example" in node:
        yield node["example"]
    many = node.get("examples", [])
    yield from (
        (resolve(each)["value"] for each in many.values()) if isinstance(many, dict) else many
    )


def accepts(schema: dict[str, Any], instance: Any) -> bool:
    """Whether the instance fits a schema of the document."""
    return _validator(msgspec.json.encode(schema)).is_valid(instance)


def faults(schema: dict[str, Any], instance: Any) -> list[str]:
    """Where and why the instance does not fit a schema of the document."""
    errors = _validator(msgspec.json.encode(schema)).iter_errors(instance)
    return [f"/{'/'.join(map(str, error.instance_path))}: {error.message}" for error in errors]


@cache
def _validator(schema: bytes) -> jsonschema_rs.Draft202012Validator:
    document = {"components": COMPONENTS, "allOf": [msgspec.json.decode(schema)]}
    return jsonschema_rs.Draft202012Validator(document, validate_formats=True)


def name_of(method: str, path: str) -> str | None:
    """The operation that a request is for; what has fewer parameters goes first."""
    names = sorted((name for name, _ in operations()), key=lambda name: name.count("{"))
    for name in names:
        verb, template = name.split()
        step = ".+" if template == "/v1/models/{id}" else "[^/]+"
        if verb == method and re.fullmatch(re.sub(r"\{\w+\}", step, template), path):
            return name
    return None


def breaches(response: httpx.Response) -> list[str]:
    """How an answer breaks the contract; empty if it keeps it."""
    request = response.request
    name = name_of(request.method, request.url.path)
    if name is None:
        return _without_operation(response)
    documented = dict(operations())[name]["responses"].get(str(response.status_code))
    if documented is None:
        return [f"{name} answered {response.status_code}: {response.text[:300]}"]
    documented = resolve(documented)
    all_faults = [*_headers(documented, response), *_content(documented, response)]
    return [f"{name} {response.status_code} {fault}" for fault in all_faults]


def _without_operation(response: httpx.Response) -> list[str]:
    """The faults of an answer to a path or method of no operation: it must be 404 or 405."""
    wrong = [] if response.status_code in (404, 405) else ["answers without an operation"]
    if response.headers.get("content-type") != PROBLEM:
        return [*wrong, "is not a problem"]
    wrong += [] if "x-request-id" in response.headers else ["has no X-Request-Id"]
    return wrong + faults(SCHEMAS["Problem"], response.json())


def _headers(documented: dict[str, Any], response: httpx.Response) -> Iterator[str]:
    undocumented = COMPONENTS["headers"].keys() - documented.get("headers", {}).keys()
    yield from (f"has {name}" for name in sorted(undocumented) if name in response.headers)
    for name, node in documented.get("headers", {}).items():
        header = resolve(node)
        value: Any = response.headers.get(name)
        if value is None:
            if header.get("required"):
                yield f"lacks {name}"
            continue
        if header["schema"].get("type") == "integer":
            value = int(value)
        yield from (f"{name}: {fault}" for fault in faults(header["schema"], value))


def _content(documented: dict[str, Any], response: httpx.Response) -> list[str]:
    if "content" not in documented:
        return ["has a body"] if response.content else []
    media_type = response.headers.get("content-type", "").partition(";")[0]
    media = documented["content"].get(media_type)
    if media is None:
        return [f"has the content type {media_type!r}"]
    body = response.json() if media_type.endswith("json") else response.text
    return faults(media.get("schema", {}), body)
