"""Runs a command of genhook under cProfile, one profile for each thread.

`python -m bench.profiled serve` prints the profiles when the command ends. The profiler slows
Python functions more than C functions: use the order of the lines rather than their figures.
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


def profile(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `run` so that each call has its own profile."""

    def wrapped(*args: Any, **named: Any) -> Any:
        profiler = cProfile.Profile()
        _profiles.append((name, profiler))
        return profiler.runcall(run, *args, **named)

    return wrapped


def main() -> None:
    """Run the command, then print the profiles."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # Once the server has stopped.
    threading.Thread.run = profile("thread", threading.Thread.run)  # type: ignore[method-assign]
    from service.cli import main  # noqa: PLC0415  starts its threads after the line above

    try:
        profile("event loop", main.main)(sys.argv[1:])
    finally:
        for name, profiler in _profiles:
            _print(name, profiler)


def _print(name: str, profiler: cProfile.Profile) -> None:
    text = io.StringIO()
    stats = pstats.Stats(profiler, stream=text)
    if stats.total_tt < 0.05:  # type: ignore[attr-defined]  # typeshed leaves it out
        return
    stats.strip_dirs().sort_stats("tottime").print_stats(LINES)
    print(f"== {name}\n{text.getvalue()}", file=sys.stderr)


if __name__ == "__main__":
    main()
