"""The OpenAPI document, as it is and as a page: operations by tag, with scope and parameters."""

import asyncio
from collections.abc import Sequence
from functools import lru_cache, partial, reduce
from html import escape
from importlib.resources import files
from operator import getitem
from pathlib import Path
from string import Template
from typing import Any

from service.api.call import Answer, Call


def document() -> bytes:
    """Read openapi.yaml, from the package or the checkout."""
    packaged = Path(str(files("service"))) / "openapi.yaml"
    return (packaged if packaged.exists() else packaged.parents[1] / "openapi.yaml").read_bytes()


async def get_document(_call: Call) -> Answer:
    """GET /openapi.yaml."""
    return Answer(document(), media_type="application/yaml")


async def get(_call: Call) -> Answer:
    """GET /docs: the document as a page that loads nothing else."""
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"content-security-policy": policy}
    body = await asyncio.to_thread(render, document())
    return Answer(body, 200, headers, "text/html; charset=utf-8")


@lru_cache(maxsize=1)
def render(document: bytes) -> bytes:
    """Return the page as HTML that loads nothing else. Slow: call it on a thread."""
    import yaml  # noqa: PLC0415  only this reads YAML

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # Ten times faster, if installed.
    contract = yaml.load(document, Loader=loader)  # noqa: S506  both are safe loaders
    info = contract["info"]
    template = (files("service") / "api/docs.html").read_text().rstrip()
    page = Template(template).substitute(
        title=f"{escape(info['title'])} {escape(info['version'])}",
        summary=escape(info.get("summary", "")),
        description=escape(info.get("description", "")),
        sections="".join(_render_section(contract, tag) for tag in contract["tags"]),
    )
    return page.encode()


def _render_section(contract: dict[str, Any], tag: dict[str, str]) -> str:
    operations = [
        _render_operation(contract, where, methods, method)
        for where, methods in (*contract["paths"].items(), *contract["webhooks"].items())
        for method, item in methods.items()
        if isinstance(item, dict) and tag["name"] in item.get("tags", ())
    ]
    name, intro = escape(tag["name"]), escape(tag.get("description", ""))
    return f"<h2>{name}</h2><p>{intro}</p>{''.join(operations)}"


def _render_operation(
    contract: dict[str, Any], where: str, methods: dict[str, Any], method: str
) -> str:
    """Show an operation; `where` is its path, or the type of the event that a webhook sends."""
    item, resolve = methods[method], partial(_resolve, contract)
    parameters = map(resolve, (*methods.get("parameters", ()), *item.get("parameters", ())))
    inputs = [(each["name"], each["in"], each) for each in parameters]
    content = resolve(item.get("requestBody", {})).get("content", {})
    schema = content.get("application/json", {}).get("schema", {})
    fields = {} if "oneOf" in schema else resolve(schema).get("properties", {})
    inputs += [(name, "body", resolve(field)) for name, field in fields.items()]
    answers = [(status, "", resolve(node)) for status, node in item["responses"].items()]
    scope = item.get("x-scope", "sent to subscribers")
    return (
        f"<details><summary><b class={method}>{method.upper()}</b> <code>{escape(where)}</code> "
        f"{escape(item['summary'])} <small>{escape(scope)}</small></summary>"
        f"<p>{escape(item.get('description', ''))}</p>"
        f"{_render_table(inputs)}{_render_table(answers)}</details>"
    )


def _render_table(rows: Sequence[tuple[str, str, dict[str, Any]]]) -> str:
    cells = [
        f"<tr><td><code>{escape(name)}</code><td>{kind}<td>{escape(node.get('description', ''))}"
        for name, kind, node in rows
    ]
    return f"<table>{''.join(cells)}</table>"


def _resolve(contract: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """Follow a `$ref` within the document."""
    while "$ref" in node:
        node = reduce(getitem, node["$ref"].removeprefix("#/").split("/"), contract)
    return node
