"""The command line: every way to run genhook, and thin clients of its API."""

import argparse
import gc
import importlib
import os
import sys
from collections.abc import Sequence

from service import __version__
from service.cli import options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; its exit status: 0 done, 1 failed, 2 asked for wrongly, 130 interrupted."""
    words = sys.argv[1:] if arguments is None else arguments
    parser = options.parser(words[0] if words else None)
    given = parser.parse_args(words)
    if given.version:
        _say(f"genhook {__version__}")
        return 0
    if given.run is None:
        parser.print_help()
        return 2
    return _run(given)


def _run(given: argparse.Namespace) -> int:
    """Run the command; an error whose message is for people is told in one sentence."""
    module, _, name = given.run.partition(":")
    try:
        gc.disable()  # Imports make much that stays, and nothing to collect.
        command = getattr(importlib.import_module(f"service.cli.{module}"), name)
        gc.enable()
        return int(command(given, _say))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # Whoever read has seen enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        status = _status(error)
        if status is None:
            raise
        print(f"genhook: {str(error).rstrip('.')}.", file=sys.stderr)
        return status


def _status(error: Exception) -> int | None:
    """The exit status of an error whose message is for people; None for any other."""
    from service.model import errors  # noqa: PLC0415  cold start

    if isinstance(error, errors.SettingsError):
        return 2
    return 1 if isinstance(error, errors.CommandError | errors.StorageError) else None


def _say(text: str) -> None:
    print(text, flush=True)
