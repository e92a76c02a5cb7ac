"""The command line: `genhook COMMAND`, its help, and how errors end it."""

import argparse
import importlib
import os
import re
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from service import __version__
from service.cli import streams
from service.cli.arguments import StoreOnce, StoreTrueOnce, to_sentence
from service.model.errors import CommandError, SettingsError, StorageError

# The module in service.cli that has the command, and a summary. A command that calls the API is a
# table there, which has the command's name; the options of another one are added by `add_NAME`.
COMMANDS = {
    "serve": ("serve", "serve the API and callbacks; run the worker unless GENHOOK_WORKER=off"),
    "work": ("serve", "run only the worker, which polls, delivers and repeats submissions"),
    "sandbox": ("serve", "run a simulated API in One on this machine"),
    "demo": (
        "demo",
        "show a generation by callback, one by polling, and one whose callback is lost",
    ),
    "migrate": ("admin", "migrate the database to the schema of this version"),
    "backup": ("backup", "copy the database to a file; the service may run meanwhile"),
    "copy": ("transfer", "copy a stopped service's database to another one, SQLite or PostgreSQL"),
    "tick": ("tick", "do the due work once, or every few seconds, where no worker runs"),
    "keys": ("keys", "create, list and revoke API keys"),
    "models": ("models", "list the models of the catalogue, or show one with its parameters"),
    "generations": ("generations", "create generations, look at them, end them, save their files"),
    "subscribers": ("subscribers", "manage the URLs that receive events"),
    "signing-secret": ("subscribers", "show or rotate the secret that signs for --notify-url"),
    "deliveries": ("deliveries", "look at deliveries with their attempts, and retry them"),
    "events": ("deliveries", "look at events"),
    "callbacks": ("callbacks", "look at upstream's callbacks, as they came"),
    "usage": ("models", "show credits and counts by model and day"),
    "listen": ("listen", "print new events, and send them to a local URL if you name one"),
    "replay": ("replay", "send stored events to a subscriber again"),
    "replays": ("replay", "look at replays, and cancel them"),
    "doctor": ("doctor", "check settings, database, keys and clock"),
    "completion": ("completion", "print the completion of the commands for a shell"),
}

EMPTY_ALLOWED = ("argument_description", "argument_prompt")  # Their texts may be empty.
PATHS = ("argument_directory", "argument_save")  # They are opened in the encoding of the locale.


class _Parser(argparse.ArgumentParser):
    """A parser that says of each argument what it must be.

    It refuses an empty text, such as that of a shell variable that is not set: the command would
    use another service, key or folder than was meant. It prints its help with `echo`: argparse
    would hide that it cannot be written.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.register("action", None, StoreOnce)
        self.register("action", "store_true", StoreTrueOnce)
        self._negative_number_matcher = re.compile(r"-\d")  # `-1h` is a value, and no option.

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse what is left over here: the parser of all commands would show its own usage."""
        options, others = super().parse_known_args(args, namespace)
        if others:
            self.error(f"unrecognized arguments: {' '.join(others)}")
        return options, others

    def _match_argument(self, action: argparse.Action, arg_strings_pattern: str) -> int:
        try:
            return super()._match_argument(action, arg_strings_pattern)
        except argparse.ArgumentError:
            flag = "/".join(action.option_strings)
            rule = f"must have a value: one that begins with a dash is given as {flag}=-…"
            raise argparse.ArgumentError(action, rule) from None

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(action, f"must be one of: {choices}")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        if action.nargs != argparse.PARSER:  # A command, whose values its own parser reads.
            if not arg_string and action.dest not in EMPTY_ALLOWED:
                raise argparse.ArgumentError(action, "must not be empty")
            if action.dest.startswith("argument_") and action.dest not in PATHS:
                arg_string = _mend(arg_string)
            if _is_broken(arg_string):
                raise argparse.ArgumentError(action, "must be UTF-8")
        return super()._get_value(action, arg_string)

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stdout:
            streams.echo(message.removesuffix("\n"))
        else:
            super()._print_message(message, file)


def parser(*names: str | None) -> argparse.ArgumentParser:
    """Return the parser of the command line, with the options of the commands of these names.

    Only their modules are imported. Without a name of a command the parser lists every command.
    """
    root = _Parser(
        prog="genhook",
        description="Webhook receiver for asynchronous generation APIs.",
        epilog="Settings are environment variables; docs/settings.md lists them.",
    )
    root.add_argument("--version", action="store_true", help="print the version and exit")
    root.set_defaults(run=None)
    group = root.add_subparsers(title="commands", metavar="COMMAND")
    for each in [name for name in names if name in COMMANDS] or COMMANDS:
        module, summary = COMMANDS[each]
        command = group.add_parser(each, help=summary, description=to_sentence(summary))
        if each in names:
            _add_options(command, importlib.import_module(f"service.cli.{module}"), each)
    return root


def _add_options(command: argparse.ArgumentParser, module: ModuleType, name: str) -> None:
    name = name.replace("-", "_")
    if table := getattr(module, name.upper(), None):
        client = importlib.import_module("service.cli.client")  # `serve` needs none of it.
        client.add_commands(command, table)
    else:
        getattr(module, f"add_{name}")(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status, as docs/cli.md says."""
    streams.fill_closed()  # Before anything else opens a descriptor.
    words = sys.argv[1:] if arguments is None else arguments
    streams.escape_output()
    streams.Output.is_begun = False
    options = argparse.Namespace()
    try:
        root = parser(next((word for word in words if not word.startswith("-")), None))
        options = root.parse_args(words)
        if options.version:
            streams.echo(f"genhook {__version__}")
            return 0
        if options.run is None:
            root.print_help()
            return 2
        return int(options.run(options))
    except BrokenPipeError:  # The reader of our output has closed it.
        streams.drop_output()
        if hasattr(options, "done") and not streams.Output.is_begun:
            streams.note(f"genhook: nobody reads the output. {options.done}")
        return 1
    except (CommandError, SettingsError, StorageError) as error:
        is_lost = isinstance(error, streams.OutputError) and hasattr(options, "done")
        done = f" {options.done}" if is_lost else ""
        streams.note(f"genhook: {str(error).rstrip('.')}.{done}")
        return 2 if isinstance(error, SettingsError) else getattr(error, "status", 1)


def _mend(text: str) -> str:
    """Return a text as it is in UTF-8, whatever the locale; the same text if it is none."""
    try:
        return os.fsencode(text).decode()
    except UnicodeError:
        return text


def _is_broken(text: str) -> bool:
    """Whether a text has surrogates, as which Python keeps bytes that are not UTF-8 (PEP 383)."""
    return any("\ud800" <= character <= "\udfff" for character in text)
