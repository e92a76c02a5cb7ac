"""`genhook callbacks`: the callbacks that upstream sent, with their verdicts."""

import argparse

from service.cli import answers, calls, client, output
from service.cli.arguments import Echo
from service.cli.command import ID, PAGING, Command, argument
from service.model.callback import VERDICTS

ALL = "/v1/callbacks"
_FIELDS = ("id", "generation_id", "upstream", "received_at", "verdict", "reason", "trust")


def add_callbacks(parser: argparse.ArgumentParser) -> None:
    """Add the commands of `genhook callbacks`."""
    client.add_commands(parser, COMMANDS)


def get(command: Command, options: argparse.Namespace, echo: Echo) -> int:
    """Show a callback, then its headers, then its body line by line."""
    with calls.connect(options) as connection:
        callback = client.send(connection, command, options, answers.Callback)
    lines = output.fields({name: callback.get(name) for name in command.shows})
    headers = output.fields(callback["headers"])
    body = [output.plain(line) for line in callback["body"].splitlines()]
    for part in (headers, body):
        lines += [*[""][: len(part)], *part]
    output.show(options, echo, callback, lines)
    return 0


COMMANDS = {
    "list": Command(
        "list callbacks, each with its verdict",
        "callbacks list --verdict rejected",
        *("GET", ALL),
        (
            argument("query", "--verdict", "only callbacks with this verdict", choices=VERDICTS),
            argument("query", "--generation-id", "only callbacks of this generation", metavar="ID"),
            *PAGING,
        ),
        "page",
        ("id", "verdict", "reason", "received_at", "generation_id"),
    ),
    "get": Command(
        "show a callback as it was received, with secrets redacted",
        "callbacks get cb_01a1f83ac6f470008f5b21d7c0e394a6",
        *("GET", f"{ALL}/{{id}}", (ID,)),
        shows=(*_FIELDS, "body_encoding"),
        run=get,
    ),
}
