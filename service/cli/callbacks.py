"""`genhook callbacks`: the callbacks that upstream sent, with their verdicts."""

from service.cli import answers, output
from service.cli.command import ID, PAGING, Command, argument
from service.model.callback import VERDICTS

ALL = "/v1/callbacks"
_FIELDS = ("id", "generation_id", "upstream", "received_at", "verdict", "reason", "trust")


def _format_request(callback: answers.Callback) -> list[str]:
    """Return the lines of the headers, then those of the body, each after an empty line."""
    headers = output.fields(callback["headers"])
    body = [output.plain(line) for line in callback["body"].splitlines()]
    return [line for part in (headers, body) if part for line in ("", *part)]


CALLBACKS = {
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
        shape=answers.Callback,
        details=_format_request,
    ),
}
