"""Runs a command of genhook under cProfile, each thread by itself, and prints where time went.

`python -m bench.profiled serve` prints when it is ended. Python functions look dearer than they
are: believe the order, not the figures.
"""

import cProfile
import io
import pstats
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

LINES = 45
_profiles: list[tuple[str, cProfile.Profile]] = []


def profiled(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` under a profile of its own."""

    def wrapped(*args: Any, **named: Any) -> Any:
        profile = cProfile.Profile()
        _profiles.append((name, profile))
        return profile.runcall(run, *args, **named)

    return wrapped


def main() -> None:
    """Run what the command line says, then print."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # for when the server has seen to it
    threading.Thread.run = profiled("thread", threading.Thread.run)  # type: ignore[method-assign]
    from service.cli import main  # noqa: PLC0415  its threads start after the line above

    try:
        profiled("event loop", main.main)(sys.argv[1:])
    finally:
        for name, profile in _profiles:
            _print(name, profile)


def _print(name: str, profile: cProfile.Profile) -> None:
    text = io.StringIO()
    stats = pstats.Stats(profile, stream=text)
    if stats.total_tt < 0.05:  # type: ignore[attr-defined]  # typeshed leaves it out
        return
    stats.strip_dirs().sort_stats("tottime").print_stats(LINES)
    print(f"== {name}\n{text.getvalue()}", file=sys.stderr)


if __name__ == "__main__":
    main()
