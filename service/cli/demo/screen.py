"""Prints the demo: with colours and a spinner on a terminal, as plain lines elsewhere."""

import contextlib
from collections.abc import Iterator
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from service.cli import output, streams


def new_console() -> Console:
    """Return a console on standard output that does not wrap lines."""
    return Console(file=cast("IO[str]", streams.Output()), highlight=False, soft_wrap=True)


@contextlib.contextmanager
def waiting(console: Console, label: str) -> Iterator[None]:
    """Show a spinner and the elapsed time below the lines; only on a terminal."""
    columns = (SpinnerColumn("line"), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        progress.add_task(label, total=None)
        yield


def title(console: Console, text: str, note: str) -> None:
    """Print the title of the demo, and a note below it."""
    console.print(Text(text, "bold"))
    console.print(Text(note, "dim"))


def heading(console: Console, number: int, name: str, description: str) -> None:
    """Print the heading of a scenario."""
    console.print()
    console.print(Text.assemble((f"{number}  {name}", "bold"), (f"  {description}", "dim")))


def entry(console: Console, view: dict[str, Any], seconds: float, note: str) -> None:
    """Print an entry of a timeline, with its time since the start and a note."""
    console.print(
        Text.assemble(
            (f"{seconds:7.2f} s  ", "dim"),
            (f"{view['type']:<10}  ", "cyan"),
            output.plain(output.summary(view)),
            (f"  {note}" if note else "", "green"),
        )
    )


def result(console: Console, failures: list[str], summary: str) -> None:
    """Print every failure, or the summary if there is none."""
    if not failures:
        console.print(Text.assemble(("       ok    ", "green"), summary))
    for failure in failures:
        console.print(Text.assemble(("   failed    ", "bold red"), output.plain(failure)))
