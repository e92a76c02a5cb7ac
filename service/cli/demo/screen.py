"""What the demo shows: colours and a spinner on a terminal, the same lines plain elsewhere."""

import contextlib
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from service.cli import output


def new_console() -> Console:
    """A console on standard output that never breaks a line by itself."""
    return Console(highlight=False, soft_wrap=True)


@contextlib.contextmanager
def waiting(console: Console, what: str) -> Iterator[None]:
    """Show that time passes, below the lines; nothing where the output is no terminal."""
    columns = (SpinnerColumn("line"), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        progress.add_task(what, total=None)
        yield


def title(console: Console, text: str) -> None:
    """The first line."""
    console.print(Text(text, "bold"))


def heading(console: Console, number: int, name: str, about: str) -> None:
    """A scene begins."""
    console.print()
    console.print(Text.assemble((f"{number}  {name}", "bold"), (f"  {about}", "dim")))


def entry(console: Console, found: dict[str, Any], seconds: float, note: str) -> None:
    """An entry of a timeline; `note` is what we know of it beyond the service's word."""
    console.print(
        Text.assemble(
            (f"{seconds:7.2f} s  ", "dim"),
            (f"{found['type']:<10}  ", "cyan"),
            output.plain(output.said(found)),
            (f"  {note}" if note else "", "green"),
        )
    )


def verdict(console: Console, failures: list[str], said: str) -> None:
    """What came of it: one good line, or every failure."""
    if not failures:
        console.print(Text.assemble(("       ok    ", "green"), said))
    for failure in failures:
        console.print(Text.assemble(("   failed    ", "bold red"), output.plain(failure)))
