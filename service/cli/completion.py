"""`genhook completion`: prints what completes the commands and options in a shell."""

import argparse

from service.cli import streams
from service.cli.arguments import define
from service.model.errors import CommandError

SHELLS = ("bash", "zsh", "fish")


def add_completion(parser: argparse.ArgumentParser) -> None:
    """Add the options of `genhook completion`."""
    define(
        parser,
        print_completion,
        "genhook completion bash > ~/.local/share/bash-completion/completions/genhook",
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell")


def print_completion(options: argparse.Namespace) -> int:
    """Print the script for a shell, made from the parsers of all commands."""
    import shtab  # It is large, and no other command needs it.

    from service.cli import main

    try:
        script = shtab.complete(main.parser(*main.COMMANDS), shell=options.shell)
    except NotImplementedError as error:
        raise CommandError(f"shtab knows no {options.shell}: {error}.") from error
    streams.echo(script.rstrip("\n"))
    return 0
