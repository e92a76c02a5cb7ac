"""A command that calls the API of a running service, as data: what it sends, and what it shows."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from service.cli.arguments import parse_count, parse_idempotency_key, parse_pair
from service.cli.output import plain
from service.model.errors import UsageError

Place = Literal["path", "query", "body", "own"]  # "own": only the function of the command reads it.


class Argument(NamedTuple):
    """An option, or without dashes a positional argument: where its value goes, and how it is read.

    `field` may have a dot: `filter.models` is a field within the field `filter`. argparse gets
    `options`. An argument without a flag is no option: its `const` is always sent.
    """

    flag: str
    place: Place
    field: str
    options: Mapping[str, Any]

    @property
    def dest(self) -> str:
        """The name under which argparse keeps the value."""
        return "argument_" + self.flag.lstrip("-").replace("-", "_")

    def value_of(self, options: argparse.Namespace) -> Any:
        """Return the value to send; None if there is none. UsageError for a name given twice."""
        value = getattr(options, self.dest) if self.flag else self.options["const"]
        if self.options.get("action") != "append" or value is None:
            return value
        names = [name for name, _ in filter(None, value)]
        if names and () in value:
            raise UsageError(f"{self.flag} none takes all away: give it alone.")
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"{self.flag} gives {plain(twice)} twice: give it once.")
        return dict(filter(None, value))


class Command(NamedTuple):
    """A command of a group, or the only one of its word.

    answer: a `page` is shown as a table with the columns `shows`, an `item` as the fields `shows`
    and the lines that `details` makes of it. The sentence `says`, filled with fields of the answer,
    follows; it is all that is shown of a DELETE, which is answered 204.
    shape: the type that the answer must have, by default a JSON object, or `answers.Page`.
    lost: the sentence that says what to do if nobody could see the answer, filled likewise.
    run: the function that runs the command, if not `client.run`.
    """

    summary: str
    example: str  # What follows the command's name.
    method: str
    path: str
    arguments: tuple[Argument, ...] = ()
    answer: Literal["page", "item"] = "item"
    shows: tuple[str, ...] = ()
    says: str = ""
    shape: Any = None
    details: Callable[[Any], list[str]] | None = None
    lost: str = ""
    run: "Callable[[Command, argparse.Namespace], int] | None" = None


Commands = Mapping[str, Command]


def argument(place: Place, flag: str, help_: str, field: str = "", **options: Any) -> Argument:
    """Return an argument; its field is named as the flag if no other is given."""
    name = field or flag.lstrip("-").replace("-", "_")
    return Argument(flag, place, name, {"help": help_, **options})


def pairs(place: Place, flag: str, help_: str, field: str = "", **options: Any) -> Argument:
    """Return an option that may be repeated, with a name and a value each."""
    options = {"type": parse_pair, "action": "append", "metavar": "NAME=VALUE", **options}
    return argument(place, flag, f"{help_}; may be repeated", field, **options)


def always(field: str, value: object) -> Argument:
    """Return a field of the body that always has this value."""
    return Argument("", "body", field, {"const": value})


PAGING = (
    argument("query", "--limit", "list at most this many (50)", type=parse_count, metavar="N"),
    argument("query", "--after", "list only the rows after this id", metavar="ID"),
    argument("query", "--order", "oldest or newest first (desc)", choices=("asc", "desc")),
)
IDEMPOTENCY = argument(
    *("own", "--idempotency-key", "a request with the same key is carried out once"),
    type=parse_idempotency_key,
    metavar="KEY",
)
