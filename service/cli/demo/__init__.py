"""`genhook demo`: three generations through a sandbox, the service and a subscriber."""

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path

from service.model.errors import CommandError

EXTRA = ("rich", "PIL", "standardwebhooks")


def demo(options: argparse.Namespace, _say: Callable[[str], None]) -> int:
    """Run every scenario; return 0 if all checks passed."""
    if any(importlib.util.find_spec(name) is None for name in EXTRA):
        raise CommandError("the demo needs its extra: pip install 'genhook[demo]'.")
    from service.cli import server  # noqa: PLC0415  slow to import
    from service.cli.demo import scenarios  # noqa: PLC0415  needs the extra
    from service.telemetry import log  # noqa: PLC0415  slow to import

    log.configure("error")
    return server.run(scenarios.run(Path(options.output)))
