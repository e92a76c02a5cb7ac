"""`genhook keys`: through the API of a service, or in the database where there is no key yet."""

import argparse
from functools import partial
from typing import TYPE_CHECKING, Any

from service.cli import client, nouns
from service.cli.arguments import parse_name, parse_scopes
from service.cli.calls import KEY_VARIABLES
from service.cli.command import IDEMPOTENCY, PAGING, Command, argument
from service.model.errors import UsageError
from service.model.key import SCOPES
from service.settings import ENVIRONMENT

if TYPE_CHECKING:
    from service.cli.admin import Show


def act(command: Command, options: argparse.Namespace) -> int:
    """Call the service, or open the database of the settings if the options want that."""
    show = partial(_show, command, options)
    if _is_offline(options):
        _open(command, options, show)
    else:
        show(client.fetch(command, options))
    return 0


def _is_offline(options: argparse.Namespace) -> bool:
    """Whether to open the database: with `--offline`, or where no key and no service is named.

    So it is for the first key. GENHOOK_PUBLIC_URL names no service here: it is a setting.
    """
    named = [options.key, options.url, *map(ENVIRONMENT.get, (*KEY_VARIABLES, "GENHOOK_URL"))]
    return options.argument_offline or not any(named)


def _open(command: Command, options: argparse.Namespace, show: "Show") -> None:
    from service.cli import admin

    own = {name.removeprefix("argument_"): value for name, value in vars(options).items()}
    for name in ("url", "key", "idempotency_key"):  # Only the API stores answers.
        if own.get(name):
            remedy = "leave out --offline" if own["offline"] else "give --key"
            raise UsageError(f"--{name.replace('_', '-')} needs a service: {remedy}.")
    arguments = argparse.Namespace(**own)
    if command.method == "DELETE":
        answer = admin.revoke_key(arguments)
        options.done = client.describe_done(command, options, answer)
        show(answer)
    elif command.method == "POST":
        admin.create_key(arguments, show)  # It shows the key first: nothing is done before.
    else:
        show(admin.list_keys(arguments))


def _show(command: Command, options: argparse.Namespace, answer: Any) -> None:
    if command.answer == "page" and not options.json:
        keys = [k | {"state": "revoked" if k.get("revoked_at") else "live"} for k in answer["data"]]
        answer = {**answer, "data": keys}
    client.show_answer(command, options, answer)


_OFFLINE = argument(
    *("own", "--offline", "open the database of the settings, without a service"),
    action="store_true",
)
_CREATE = (
    argument("body", "--name", "what the key is for", required=True, type=parse_name),
    argument(
        *("body", "--scopes", f"one or more of {', '.join(SCOPES)}, separated by commas"),
        required=True,
        type=parse_scopes,
    ),
    argument("body", "--tenant", "whose data it gives access to (your key's; offline: default)"),
    *(IDEMPOTENCY, _OFFLINE),
)
KEYS = {
    "create": Command(
        "create an API key and print it; it cannot be shown again",
        "--name 'web shop' --scopes submit,read",
        *("POST", nouns.KEY.path, _CREATE),
        shows=("id", "name", "tenant", "scopes", "created_at", "key"),
        says="The key is shown only this once: genhook stores its SHA-256.",
        lost="Nobody has seen the key: genhook keys revoke {id} revokes it.",
        run=act,
    ),
    "list": Command(
        "list API keys; offline those of every tenant, or of --tenant",
        "",
        *("GET", nouns.KEY.path),
        (argument("query", "--tenant", "keys of another tenant, for operators"), *PAGING, _OFFLINE),
        "page",
        ("id", "state", "tenant", "scopes", "name"),
        run=act,
    ),
    "get": nouns.KEY.one(
        "show the record of a key, without the key itself",
        "GET",
        shows=("id", "name", "tenant", "scopes", "created_at", "last_used_at", "revoked_at"),
    ),
    "revoke": nouns.KEY.one(
        "revoke a key: every request with it is refused",
        "DELETE",
        _OFFLINE,
        says="{id} is revoked.",
        run=act,
    ),
}
