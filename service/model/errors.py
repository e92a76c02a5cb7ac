"""Errors that cross rooms.

Exception
├── SettingsError      a setting is missing or wrong
├── CommandError       a command of the command line cannot be carried out
└── StorageError       the database failed
    └── StorageBusyError    the queue in front of the database is full

The API's own errors are in api/problem.py.
"""


def pointer(*steps: str | int) -> str:
    """Return the JSON pointer (RFC 6901) that these names and indexes form."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)


class SettingsError(Exception):
    """A setting is missing or wrong; the message names the variable and says what to do."""


class CommandError(Exception):
    """A command cannot be carried out; the message is a sentence for a terminal."""


class StorageError(Exception):
    """The database failed: nothing of the unit was stored. The API answers 503."""


class StorageBusyError(StorageError):
    """The queue in front of the database is full. The API answers 503."""
