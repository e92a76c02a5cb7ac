"""The exceptions of genhook (those of the API are in api/problem.py), and JSON pointers."""


def json_pointer(*steps: str | int) -> str:
    """Return the JSON pointer (RFC 6901) with these names and indexes as its steps."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


class SettingsError(Exception):
    """Settings are missing or wrong. Each of `problems` names a variable and the remedy."""

    def __init__(self, *problems: str) -> None:
        super().__init__(" ".join(problems))
        self.problems = problems


class CommandError(Exception):
    """A command failed. The message is a sentence for the terminal."""

    status = 1  # The exit status of the process; docs/cli.md explains each.


class UsageError(CommandError):
    """An option, or a variable that takes its place, is wrong. Nothing was sent."""

    status = 2


class MissingError(CommandError):
    """There is nothing with this id, or it is another tenant's."""

    status = 4


class StorageError(Exception):
    """The database failed. Answered with 503.

    The unit of work was not stored, or genhook does not know whether it was: its commit goes on, or
    the connection was lost before the database answered.
    """


class OtherRoleError(StorageError):
    """A worker with another role of the database works: until it has ended, this one stands by."""


class StorageBusyError(StorageError):
    """Too many callers wait for the database or for their turn, or a commit takes too long.

    Answered with 503. A commit that takes too long goes on.
    """


class UnstoredError(StorageBusyError):
    """A unit was refused before the database was given it: it is not stored, and never will be."""


class SearchTooLongError(StorageError):
    """A search took too many steps: the client has to ask for less. Answered with 400."""
