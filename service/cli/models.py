"""`genhook models` and `genhook usage`: the catalogue, and the credits that were used."""

import argparse
from typing import Any, get_args

from service.cli import answers, client, output
from service.cli.arguments import parse_model
from service.cli.command import PAGING, Argument, Command, argument
from service.model.errors import UsageError
from service.upstream.catalogue import Kind

SHOWN = ("id", "family", "provider", "kind", "path", "credits", "callbacks")


def show_models(command: Command, options: argparse.Namespace) -> int:
    """List the models, or show one with its parameters."""
    words: list[str] = options.argument_id
    if words == ["list"] or (words[:1] == ["get"] and len(words) > 1):  # As with other nouns.
        words = words[1:]
    if words == ["get"]:
        raise UsageError("name the model to show, as in genhook models imagen4-fast.")
    if len(words) > 1:
        raise UsageError("name one model, or none to list them all.")
    if words and client.values_of(command, options, "query"):
        raise UsageError("name a model, or filter the list of models: not both.")
    if words:
        [options.argument_id] = words
        command = command._replace(
            path=f"{command.path}/{{id}}",
            arguments=(Argument("id", "path", "id", {}),),
            answer="item",
            shows=SHOWN,
            shape=answers.Model,
            details=_format_parameters,
        )
    return client.run(command, options)


def _format_parameters(model: answers.Model) -> list[str]:
    """Return a line for each parameter of a model: its type or values, and its default."""
    schema = model["parameters"]
    required = schema.get("required", [])
    rows = [("", "PARAMETER", "", "VALUES", "DEFAULT")]
    for name, rule in schema.get("properties", {}).items():
        need = "required" if name in required else ""
        rows.append(("", name, need, _values(rule), rule.get("default", "")))
    return ["", *output.table(rows)] if len(rows) > 1 else []


def _values(rule: dict[str, Any]) -> str:
    if isinstance(rule.get("enum"), list):
        return ", ".join(map(str, rule["enum"]))
    limits = [
        f"{rule.get(low, '')} to {rule.get(high, '')}{unit}".strip()
        for low, high, unit in (
            ("minimum", "maximum", ""),
            ("minLength", "maxLength", " characters"),
            ("minItems", "maxItems", " items"),
        )
        if low in rule or high in rule
    ]
    return " ".join([str(rule.get("type", "")), *limits]).strip()


MODELS = Command(
    "list the models of the catalogue, or show one with its parameters",
    "--kind image --callbacks --sort credits",
    *("GET", "/v1/models"),
    (
        argument("own", "id", "the model to show", nargs="*", metavar="MODEL", type=parse_model),
        argument("query", "--kind", "only models of this kind", choices=get_args(Kind)),
        argument(
            *("query", "--callbacks", "only models that call back; false: only the others"),
            nargs="?",
            const="true",
            choices=("true", "false"),
        ),
        argument("query", "--sort", "the cheapest first", choices=("credits",)),
        *(each for each in PAGING if each.field != "order"),
    ),
    "page",
    ("id", "kind", "credits", "callbacks", "provider"),
    run=show_models,
)

USAGE = Command(
    "show credits and counts by model and day",
    "--since 2026-11-01 --until 2026-11-30",
    *("GET", "/v1/usage"),
    (
        argument("query", "--since", "the first day (29 days ago)", metavar="DAY"),
        argument("query", "--until", "the last day (today, UTC)", metavar="DAY"),
        argument("query", "--model", "only this model"),
        argument("query", "--tenant", "another tenant, for operators"),
    ),
    "page",
    ("day", "model", "generations", "succeeded", "failed", "timed_out", "canceled", "credits"),
)
