"""`genhook demo`: three generations through a sandbox, the service and a subscriber."""

import argparse
import importlib.util
from pathlib import Path

from service.cli.arguments import Echo, define
from service.model.errors import CommandError

EXTRA_PACKAGES = ("rich", "PIL", "standardwebhooks")


def add_demo(parser: argparse.ArgumentParser) -> None:
    """The options of `genhook demo`."""
    define(parser, demo, "genhook demo --output pictures")
    parser.add_argument(
        "--output", default="demo-output", help="folder for the pictures (demo-output)"
    )


def demo(options: argparse.Namespace, _echo: Echo) -> int:
    """Run every scenario; return 0 if all checks passed."""
    if any(importlib.util.find_spec(name) is None for name in EXTRA_PACKAGES):
        raise CommandError("the demo needs its extra: pip install 'genhook[demo]'.")
    from service.cli import server
    from service.cli.demo import scenarios
    from service.telemetry import log

    log.configure("error")
    return server.run(scenarios.run(Path(options.output)))
