"""Runs the commands that call the API: sends a request made of the options, shows the answer."""

import argparse
from collections import defaultdict
from functools import partial
from typing import TYPE_CHECKING, Any

from service.cli import answers, calls, output
from service.cli.arguments import NULL, add_json, define, to_sentence
from service.cli.command import Argument, Command, Commands, Place

if TYPE_CHECKING:
    import httpx

NO_CONTENT = 204


def add_commands(parser: argparse.ArgumentParser, commands: Commands | Command) -> None:
    """Add the commands of a group, or the options of the only command of its word."""
    if isinstance(commands, Command):
        _add_options(parser, commands)
        return
    group = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in commands.items():
        summary = command.summary
        each = group.add_parser(name, help=summary, description=to_sentence(summary))
        _add_options(each, command)


def _add_options(parser: argparse.ArgumentParser, command: Command) -> None:
    define(
        parser, partial(command.run or run, command), f"{parser.prog} {command.example}".rstrip()
    )
    for argument in command.arguments:
        if argument.flag.startswith("-"):
            names = {"dest": argument.dest, **_metavar(argument)}
            parser.add_argument(argument.flag, **names, **argument.options)
        elif argument.flag:
            parser.add_argument(argument.dest, **argument.options)
    add_remote(parser)


def _metavar(argument: Argument) -> dict[str, Any]:
    """Name the value of an option after its flag; argparse would take `dest`."""
    if {"action", "choices", "metavar"} & argument.options.keys():
        return {}
    return {"metavar": argument.flag.lstrip("-").replace("-", "_").upper()}


def add_remote(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the service and the key."""
    parser.add_argument(
        "--url",
        metavar="SERVICE",
        help="URL of the service (GENHOOK_URL, GENHOOK_PUBLIC_URL, or this machine and PORT)",
    )
    parser.add_argument("--key", help="an API key (GENHOOK_API_KEY, GENHOOK_ADMIN_KEY)")
    add_json(parser)


def run(command: Command, options: argparse.Namespace) -> int:
    """Send the request of a command and show the answer."""
    show_answer(command, options, fetch(command, options))
    return 0


def fetch(command: Command, options: argparse.Namespace, **more: Any) -> Any:
    """Connect to the service, and send the one request of a command as `send` does."""
    with calls.connect(options) as client:
        return send(client, command, options, **more)


def send(client: "httpx.Client", command: Command, options: argparse.Namespace, **more: Any) -> Any:
    """Send the request of a command; return the decoded answer, checked to be one of genhook.

    `more` are further arguments for httpx. CommandError if the answer does not have the command's
    shape.
    """
    path = command.path.format_map(values_of(command, options, "path"))
    query, body = (values_of(command, options, place) for place in ("query", "body"))
    request: dict[str, Any] = {"params": query} if query else {}
    if any(argument.place == "body" for argument in command.arguments):
        request["json"] = body
    request |= more
    if key := getattr(options, "argument_idempotency_key", None):
        request["headers"] = {**request.get("headers", {}), "Idempotency-Key": key}
    if command.method == "DELETE":
        if calls.call(client, command.method, path, **request).status_code != NO_CONTENT:
            raise calls.not_genhook(client)
        options.done = describe_done(command, options, {})
        return values_of(command, options, "path")
    general = answers.Page if command.answer == "page" else dict[str, Any]
    answer = calls.ask(client, command.method, path, command.shape or general, **request)
    views = answer["data"] if command.answer == "page" else [answer]
    # One field shows that the server is genhook; later versions may leave out others.
    if command.shows and not all(command.shows[0] in view for view in views):
        raise calls.not_genhook(client)
    if command.method != "GET":
        options.done = describe_done(command, options, answer)
    return answer


def describe_done(command: Command, options: argparse.Namespace, answer: dict[str, Any]) -> str:
    """Say what the service has done: whoever cannot see the answer needs it, but no secret."""
    values = {**values_of(command, options, "path"), **answer}
    sentences = ["The request was carried out" + (f": {values['id']}." if "id" in values else ".")]
    if command.lost:
        sentences.append(command.lost.format_map(defaultdict(str, values)))
    if key := getattr(options, "argument_idempotency_key", None):
        sentences.append(f"A repeat with --idempotency-key {key} gets the same answer.")
    return output.plain(" ".join(sentences))


def values_of(command: Command, options: argparse.Namespace, place: Place) -> dict[str, Any]:
    """Return the values for a place of the request, by the names of the API."""
    values: dict[str, Any] = {}
    for argument in command.arguments:
        value = argument.value_of(options) if argument.place == place else None
        if value is None:
            continue
        value = None if value is NULL else value
        outer, _, inner = argument.field.partition(".")
        if inner:
            values.setdefault(outer, {})[inner] = value
        else:
            values[outer] = value
    return values


def show_answer(command: Command, options: argparse.Namespace, answer: Any) -> None:
    """Print the answer to a command."""
    if command.answer == "page":
        lines = output.page(answer, command.shows)
    else:
        lines = output.fields({name: answer.get(name) for name in command.shows})
        lines += command.details(answer) if command.details else []
        if command.says:  # A field that the answer lacks is empty.
            lines.append(output.plain(command.says.format_map(defaultdict(str, answer))))
    content = {**answer, "deleted": True} if command.method == "DELETE" else answer
    output.show(options, content, lines)
