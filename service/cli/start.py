"""The entry point of `genhook`, which imports nothing before it can be interrupted."""

INTERRUPTED = 130  # As shells call the end by SIGINT.


def main() -> int:
    """Run the command line; return its exit status, or 130 if Ctrl-C ends it."""
    try:
        from service.cli import interrupts

        with interrupts.handled():
            from service.cli import main as command_line  # Most of the time until help is shown.

            return command_line.main()
    except KeyboardInterrupt:
        return INTERRUPTED
