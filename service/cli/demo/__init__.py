"""`genhook demo`: sandbox, service and a subscriber on this machine, and three generations."""

import argparse
import importlib.util
from collections.abc import Callable
from pathlib import Path

from service.model.errors import CommandError

EXTRA = ("rich", "PIL", "standardwebhooks")


def demo(options: argparse.Namespace, _say: Callable[[str], None]) -> int:
    """Play every scene; 0 only if all that was promised held."""
    if any(importlib.util.find_spec(name) is None for name in EXTRA):
        raise CommandError("the demo needs its extra: pip install 'genhook[demo]'.")
    from service.cli import server  # noqa: PLC0415  only once the extra is known to be there
    from service.cli.demo.play import play  # noqa: PLC0415  the same
    from service.telemetry import log  # noqa: PLC0415  only once the extra is known to be there

    log.configure("error")
    return server.run(play(Path(options.output)))
