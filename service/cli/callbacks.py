"""`genhook callbacks`: the callbacks that upstream sent, with their verdicts."""

from service.cli import answers, nouns, output
from service.cli.command import argument
from service.model.callback import VERDICTS

_FIELDS = ("id", "generation_id", "upstream", "received_at", "verdict", "reason", "trust")


def _format_request(callback: answers.Callback) -> list[str]:
    """Return the lines of the headers, then those of the body, each after an empty line."""
    headers = output.fields(callback["headers"])
    body = [output.plain(line) for line in callback["body"].splitlines()]
    return [line for part in (headers, body) if part for line in ("", *part)]


CALLBACKS = {
    "list": nouns.CALLBACK.page(
        "list callbacks, each with its verdict",
        "--verdict rejected",
        argument("query", "--verdict", "only callbacks with this verdict", choices=VERDICTS),
        nouns.GENERATION.filter("--generation-id", "only callbacks of this generation"),
        shows=("id", "verdict", "reason", "received_at", "generation_id"),
    ),
    "get": nouns.CALLBACK.one(
        "show a callback as it was received, with secrets redacted",
        "GET",
        shows=(*_FIELDS, "body_encoding"),
        shape=answers.Callback,
        details=_format_request,
    ),
}
