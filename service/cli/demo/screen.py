"""What the demo shows: colours and a spinner on a terminal, plain lines elsewhere."""

import contextlib
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from service.cli import output


def new_console() -> Console:
    """A console on standard output that never wraps a line."""
    return Console(highlight=False, soft_wrap=True)


@contextlib.contextmanager
def waiting(console: Console, what: str) -> Iterator[None]:
    """Show a spinner and the time below the lines; nothing if the output is no terminal."""
    columns = (SpinnerColumn("line"), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        progress.add_task(what, total=None)
        yield


def title(console: Console, text: str) -> None:
    """Print the first line."""
    console.print(Text(text, "bold"))


def heading(console: Console, number: int, name: str, about: str) -> None:
    """Print the first line of a scene."""
    console.print()
    console.print(Text.assemble((f"{number}  {name}", "bold"), (f"  {about}", "dim")))


def entry(console: Console, view: dict[str, Any], seconds: float, note: str) -> None:
    """Print an entry of a timeline, with a note of our own behind it."""
    console.print(
        Text.assemble(
            (f"{seconds:7.2f} s  ", "dim"),
            (f"{view['type']:<10}  ", "cyan"),
            output.plain(output.summary(view)),
            (f"  {note}" if note else "", "green"),
        )
    )


def verdict(console: Console, failures: list[str], success: str) -> None:
    """Print every failure, or without one what succeeded."""
    if not failures:
        console.print(Text.assemble(("       ok    ", "green"), success))
    for failure in failures:
        console.print(Text.assemble(("   failed    ", "bold red"), output.plain(failure)))
