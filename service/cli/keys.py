"""`genhook keys`: through the API of a service, or in the database where there is no key yet."""

import argparse

from service.cli import calls, client
from service.cli.arguments import KEY_VARIABLES, Echo, parse_name, parse_scopes
from service.cli.command import ID, IDEMPOTENCY, PAGING, Command, argument
from service.model.errors import UsageError
from service.model.key import SCOPES
from service.settings import ENVIRONMENT


def add_keys(parser: argparse.ArgumentParser) -> None:
    """Add the commands of `genhook keys`."""
    client.add_commands(parser, COMMANDS)


def act(command: Command, options: argparse.Namespace, echo: Echo) -> int:
    """Call the service, or open the database of the settings with `--offline`.

    Without any key to call the service with, as for the first key, the database is opened too.
    """
    if not (options.argument_offline or not _has_key(options)):
        return _call(command, options, echo)
    if getattr(options, "argument_idempotency_key", None):  # Only the API stores answers.
        raise UsageError("--idempotency-key needs a service: give --key, and not --offline.")
    from service.cli import admin

    run = {"POST": admin.create_key, "GET": admin.list_keys, "DELETE": admin.revoke_key}
    values = {name.removeprefix("argument_"): value for name, value in vars(options).items()}
    return run[command.method](argparse.Namespace(**values), echo)


def _has_key(options: argparse.Namespace) -> bool:
    return bool(options.key or any(ENVIRONMENT.get(name) for name in KEY_VARIABLES))


def _call(command: Command, options: argparse.Namespace, echo: Echo) -> int:
    if command.answer != "page":
        return client.run(command, options, echo)
    with calls.connect(options) as connection:
        page = client.send(connection, command, options)
    states = [{"state": "revoked" if key.get("revoked_at") else "live"} for key in page["data"]]
    if not options.json:
        keys = [key | state for key, state in zip(page["data"], states, strict=True)]
        page = {**page, "data": keys}
    client.show_answer(command, options, echo, page)
    return 0


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
COMMANDS = {
    "create": Command(
        "create an API key and print it; it cannot be shown again",
        "keys create --name 'web shop' --scopes submit,read",
        *("POST", "/v1/keys", _CREATE),
        shows=("id", "name", "tenant", "scopes", "created_at", "key"),
        says="The key is shown only this once: genhook stores its SHA-256.",
        run=act,
    ),
    "list": Command(
        "list API keys; offline those of every tenant",
        "keys list",
        *("GET", "/v1/keys"),
        (argument("query", "--tenant", "keys of another tenant, for operators"), *PAGING, _OFFLINE),
        "page",
        ("id", "state", "tenant", "scopes", "name"),
        run=act,
    ),
    "get": Command(
        "show the record of a key, without the key itself",
        "keys get key_01a1f83ac6f470008f5b21d7c0e394a6",
        *("GET", "/v1/keys/{id}", (ID,)),
        shows=("id", "name", "tenant", "scopes", "created_at", "last_used_at", "revoked_at"),
    ),
    "revoke": Command(
        "revoke a key: every request with it is refused",
        "keys revoke key_01a1f83ac6f470008f5b21d7c0e394a6",
        *("DELETE", "/v1/keys/{id}", (ID, _OFFLINE), "none"),
        says="{id} is revoked.",
        run=act,
    ),
}
