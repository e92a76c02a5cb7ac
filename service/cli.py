"""The command line: every way to run genhook, and thin clients of its API."""

import argparse
import asyncio
import os
import secrets
import sys
from collections.abc import Callable, Sequence

from service.errors import SettingsError, StorageError
from service.settings import Settings, read_settings, unknown

EPILOG = "Settings come from the environment; docs/settings.md has the table."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status: 0 done, 1 failed, 2 asked for wrongly."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        run: Callable[[argparse.Namespace], int] = options.run
        return run(options)
    except SettingsError as error:
        print(f"genhook: {error}", file=sys.stderr)
        return 2
    except StorageError as error:
        print(f"genhook: {error}.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="genhook", description=__doc__, epilog=EPILOG)
    parser.add_argument("--version", action="store_true", help="print the version and stop")
    parser.set_defaults(run=_version_or_help(parser))
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_serve(commands)
    return parser


def _version_or_help(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    def run(options: argparse.Namespace) -> int:
        if options.version:
            from service import __version__  # noqa: PLC0415  asked for rarely

            print(f"genhook {__version__}")
            return 0
        parser.print_help()
        return 2

    return run


def _add_serve(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    serve = commands.add_parser("serve", help="run the API, the receiver and the worker")
    serve.add_argument("--host", help="address to listen on (GENHOOK_HOST, 127.0.0.1)")
    serve.add_argument("--port", type=int, help="port to listen on (PORT, 8000)")
    serve.add_argument(
        "--dev", action="store_true", help="throwaway keys, http and this machine allowed"
    )
    serve.add_argument("--sandbox", action="store_true", help="with --dev: the sandbox as upstream")
    serve.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    from service.serve import serve  # noqa: PLC0415  cold start

    return serve(options)
