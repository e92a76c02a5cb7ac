"""What may be written on the command line: every command, its options and an example."""

import argparse
from collections.abc import Callable
from typing import Any

EPILOG = "Settings come from the environment; docs/settings.md has the table."
EVENT_TYPES = (
    "generation.submitted, generation.succeeded, generation.failed, generation.timed_out, "
    "subscriber.disabled or ping"
)

Commands = Any  # argparse keeps the name of this type to itself.


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of the command line; if `command` is one, it knows no other.

    Options have `run`, as `module:function` below service, so that no command waits for the
    imports or the parser of another. A command line without a command has None.
    """
    made = argparse.ArgumentParser(
        prog="genhook",
        description="Webhook receiver for asynchronous generation APIs.",
        epilog=EPILOG,
    )
    made.add_argument("--version", action="store_true", help="print the version and stop")
    made.set_defaults(run=None)
    commands = made.add_subparsers(title="commands", metavar="COMMAND")
    adders = [COMMANDS[command]] if command in COMMANDS else COMMANDS.values()
    for add in adders:
        add(commands)
    return made


def _add(
    commands: Commands, name: str, where: str, does: str, example: str
) -> argparse.ArgumentParser:
    """A command: where its function is, what it does, and how it is used."""
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=does,
        description=f"{does[0].upper()}{does[1:]}.",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=where)
    return command


def _group(commands: Commands, name: str, does: str) -> Commands:
    """A command of commands."""
    group = commands.add_parser(name, help=does, description=f"{does[0].upper()}{does[1:]}.")
    return group.add_subparsers(title="commands", metavar="COMMAND", required=True)


def _add_serve(commands: Commands) -> None:
    serve = _add(
        commands,
        "serve",
        "serve:serve",
        "run the API, the receiver of callbacks and the worker",
        "genhook serve --dev --sandbox",
    )
    serve.add_argument("--host", help="address to listen on (GENHOOK_HOST, 127.0.0.1)")
    serve.add_argument("--port", type=_port, help="port to listen on (PORT, 8000); 0: any")
    serve.add_argument(
        "--dev", action="store_true", help="throwaway keys, http and this machine allowed"
    )
    serve.add_argument("--sandbox", action="store_true", help="with --dev: a sandbox as upstream")


def _add_work(commands: Commands) -> None:
    _add(commands, "work", "serve:work", "run the worker alone", "GENHOOK_WORKER=off genhook work")


def _add_sandbox(commands: Commands) -> None:
    sandbox = _add(
        commands,
        "sandbox",
        "serve:sandbox",
        "run a pretended API in One on this machine",
        "genhook sandbox --port 9000 --speed 10",
    )
    sandbox.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    sandbox.add_argument("--port", type=_port, default=9000, help="port to listen on (9000)")
    sandbox.add_argument("--api-key", help="the one key that opens it (any that starts with aio_)")
    sandbox.add_argument("--speed", type=_speed, default=1.0, help="times faster than life (1)")


def _add_demo(commands: Commands) -> None:
    demo = _add(
        commands,
        "demo",
        "demo:demo",
        "show callback, polling and a lost callback, on this machine alone",
        "genhook demo --output pictures",
    )
    demo.add_argument("--output", default="demo-output", help="where pictures go (demo-output)")


def _add_migrate(commands: Commands) -> None:
    _add(
        commands,
        "migrate",
        "admin:migrate",
        "bring the database to the schema of this version",
        "GENHOOK_DATABASE_URL=sqlite:////var/lib/genhook.db genhook migrate",
    )


def _add_tick(commands: Commands) -> None:
    tick = _add(
        commands,
        "tick",
        "admin:tick",
        "do what is due once, where no worker runs",
        "* * * * * genhook tick --seconds 50",
    )
    tick.add_argument("--seconds", type=_seconds, default=10.0, help="at most this long (10)")
    _add_json(tick)


def _add_keys(commands: Commands) -> None:
    keys = _group(commands, "keys", "make, list and revoke API keys, in the database itself")
    create = _add(
        keys,
        "create",
        "admin:create_key",
        "make an API key and show it, this once",
        "genhook keys create --name 'web shop' --scopes submit,read",
    )
    create.add_argument("--name", required=True, type=_name, help="what it is for")
    create.add_argument(
        "--scopes", required=True, type=_scopes, help="of submit, read, manage and admin"
    )
    create.add_argument("--tenant", default="default", help="whose rows it opens (default)")
    _add_json(create)
    listing = _add(keys, "list", "admin:list_keys", "list every key", "genhook keys list")
    _add_json(listing)
    revoke = _add(
        keys,
        "revoke",
        "admin:revoke_key",
        "revoke a key",
        "genhook keys revoke key_01a1f83ac6f470008f5b21d7c0e394a6",
    )
    revoke.add_argument("id", type=_id, metavar="ID")


def _add_subscribers(commands: Commands) -> None:
    group = _group(commands, "subscribers", "look after the URLs that want events")
    listing = _add(
        group, "list", "client:list_subscribers", "list subscribers", "genhook subscribers list"
    )
    _add_paging(listing)
    create = _add(
        group,
        "create",
        "client:create_subscriber",
        "subscribe a URL",
        "genhook subscribers create https://shop.example/hooks --event-types generation.succeeded",
    )
    create.add_argument("target", metavar="URL")
    create.add_argument("--event-types", nargs="+", default=[], metavar="TYPE", help=EVENT_TYPES)
    test = _add(
        group,
        "test",
        "client:test_subscriber",
        "send a ping now",
        "genhook subscribers test sub_01a1f83ac6f470008f5b21d7c0e394a6",
    )
    delete = _add(
        group,
        "delete",
        "client:delete_subscriber",
        "delete a subscriber",
        "genhook subscribers delete sub_01a1f83ac6f470008f5b21d7c0e394a6",
    )
    for one in (test, delete):
        one.add_argument("id", type=_id, metavar="ID")
    for one in (listing, create, test, delete):
        _add_remote(one)


def _add_generations(commands: Commands) -> None:
    group = _group(commands, "generations", "ask for generations and look at them")
    create = _add(
        group,
        "create",
        "client:create_generation",
        "ask for a generation",
        "genhook generations create --model imagen4-fast --prompt 'A lighthouse at dusk' --wait",
    )
    create.add_argument("--model", required=True)
    create.add_argument("--prompt")
    create.add_argument(
        "--input", type=_object, metavar="JSON", help="the model's parameters, as a JSON object"
    )
    create.add_argument("--wait", action="store_true", help="until there is an outcome")
    example = "gen_01a1f83ac6f470008f5b21d7c0e394a6"
    get = _add(
        group,
        "get",
        "client:get_generation",
        "show a generation",
        f"genhook generations get {example}",
    )
    listing = _add(
        group,
        "list",
        "client:list_generations",
        "list generations",
        "genhook generations list --status failed",
    )
    listing.add_argument(
        "--status", choices=("queued", "processing", "succeeded", "failed", "timed_out")
    )
    _add_paging(listing)
    timeline = _add(
        group,
        "timeline",
        "client:show_timeline",
        "show what happened to a generation",
        f"genhook generations timeline {example}",
    )
    for one in (get, timeline):
        one.add_argument("id", type=_id, metavar="ID")
    for one in (create, get, listing, timeline):
        _add_remote(one)


def _add_listen(commands: Commands) -> None:
    listen = _add(
        commands,
        "listen",
        "follow:listen",
        "print events as they come, and send them to a local URL",
        "genhook listen --forward-to http://127.0.0.1:3000/hooks",
    )
    listen.add_argument("--forward-to", metavar="URL", help="POST each event there, signed")
    listen.add_argument("--secret", help="whsec_… to sign with (made up and shown)")
    listen.add_argument("--after", metavar="EVENT_ID", help="start after this event (the newest)")
    listen.add_argument(
        "--once", action="store_true", help="start at the first event, stop after the newest"
    )
    _add_remote(listen)


def _add_replay(commands: Commands) -> None:
    replay = _add(
        commands,
        "replay",
        "follow:replay",
        "send stored events to a subscriber again",
        "genhook replay sub_01a1f83ac6f470008f5b21d7c0e394a6 --since 24h --only all",
    )
    replay.add_argument("id", type=_id, metavar="SUBSCRIBER")
    replay.add_argument(
        "--since", required=True, type=_moment, help="an age (90m, 24h, 7d) or an RFC 3339 time"
    )
    replay.add_argument("--until", type=_moment, help="the same (now)")
    replay.add_argument("--only", choices=("dead", "all"), default="dead", help="(dead)")
    replay.add_argument("--event-types", nargs="+", default=[], metavar="TYPE", help=EVENT_TYPES)
    replay.add_argument("--dry-run", action="store_true", help="count, and send nothing")
    _add_remote(replay)


def _add_doctor(commands: Commands) -> None:
    doctor = _add(
        commands,
        "doctor",
        "doctor:doctor",
        "check settings, database, keys and clock",
        "genhook doctor --online",
    )
    doctor.add_argument("--online", action="store_true", help="ask upstream too")
    _add_json(doctor)


COMMANDS: dict[str, Callable[[Commands], None]] = {
    "serve": _add_serve,
    "work": _add_work,
    "sandbox": _add_sandbox,
    "demo": _add_demo,
    "migrate": _add_migrate,
    "tick": _add_tick,
    "keys": _add_keys,
    "subscribers": _add_subscribers,
    "generations": _add_generations,
    "listen": _add_listen,
    "replay": _add_replay,
    "doctor": _add_doctor,
}


def _add_json(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON")


def _add_remote(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--url", help="the service (GENHOOK_PUBLIC_URL, or this machine at PORT or 8000)"
    )
    command.add_argument("--key", help="an API key (GENHOOK_ADMIN_KEY)")
    _add_json(command)


def _add_paging(command: argparse.ArgumentParser) -> None:
    command.add_argument("--limit", type=int, help="at most this many (50)")
    command.add_argument("--after", metavar="ID", help="only what is older")


# How options are read: argparse tells people what the errors say.


def _checked(ok: bool, said: str) -> None:  # noqa: FBT001  read aloud: checked that
    if not ok:
        raise argparse.ArgumentTypeError(said)


def _id(text: str) -> str:
    """An id is a step of a path: nothing that leads elsewhere may stand in it."""
    harmless = text.replace("_", "").isalnum() and text.isascii() and len(text) <= 64
    _checked(harmless, "an id looks like gen_01a1f83ac6f470008f5b21d7c0e394a6")
    return text


def _port(text: str) -> int:
    _checked(text.isdecimal() and int(text) <= 65_535, "a port is from 0 to 65535")
    return int(text)


def _speed(text: str) -> float:
    _checked(0.01 <= float(text) <= 1_000, "from 0.01 to 1000")
    return float(text)


def _seconds(text: str) -> float:
    _checked(0 < float(text) <= 3_600, "above 0, at most 3600")
    return float(text)


def _name(text: str) -> str:
    _checked(1 <= len(text) <= 100 and text.isprintable(), "1 to 100 printable characters")
    return text


def _scopes(text: str) -> list[str]:
    from service.model.key import SCOPES  # noqa: PLC0415  cold start

    scopes = list(dict.fromkeys(text.split(",")))
    _checked(set(scopes) <= set(SCOPES), f"scopes, separated by commas, of: {', '.join(SCOPES)}")
    return scopes


def _object(text: str) -> dict[str, Any]:
    import json  # noqa: PLC0415  cold start

    try:
        found = json.loads(text)
    except ValueError:
        found = None
    _checked(isinstance(found, dict), "a JSON object, such as '{\"num_images\": 2}'")
    return dict(found)


def _moment(text: str) -> str:
    from service.cli.follow import moment  # noqa: PLC0415  the same
    from service.model.clock import now_ms  # noqa: PLC0415  cold start

    try:
        return moment(text, now_ms())
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
