"""What groups of commands are about: their ids, and the requests that are alike for each."""

import re
from typing import Any, NamedTuple

from service.cli.arguments import check
from service.cli.command import PAGING, Argument, Command, Place, argument


class Noun(NamedTuple):
    """What a group of commands is about: how it is called, its ids' prefix, its collection."""

    name: str  # With its article.
    prefix: str
    path: str

    @property
    def example(self) -> str:
        """An id, as help shows it."""
        return f"{self.prefix}_01a1f83ac6f470008f5b21d7c0e394a6"

    def parse_id(self, text: str) -> str:
        """Read an id. It becomes a step of a URL's path, so nothing else may be in it."""
        is_own = re.fullmatch(f"{self.prefix}_[0-9A-Za-z_]{{1,60}}", text)
        check(bool(is_own), f"must be the id of {self.name}, such as {self.example}")
        return text

    def id_argument(self, place: Place, field: str, metavar: str, help_: str) -> Argument:
        """Return the positional argument that is an id."""
        return argument(place, "id", help_, field, type=self.parse_id, metavar=metavar)

    def one(
        self, summary: str, call: str, *arguments: Argument, example: str = "", **more: Any
    ) -> Command:
        """Return a command about the one whose id is given.

        call: the method, and what follows the id in the path. example: what follows the id in help.
        """
        method, _, step = call.partition(" ")
        id_ = self.id_argument("path", "id", "ID", "its id")
        path, example = f"{self.path}/{{id}}{step}", f"{self.example} {example}".rstrip()
        return Command(summary, example, method, path, (id_, *arguments), **more)

    def page(self, summary: str, example: str, *filters: Argument, **more: Any) -> Command:
        """Return a command that lists those which pass the filters."""
        return Command(summary, example, "GET", self.path, (*filters, *PAGING), "page", **more)

    def filter(self, flag: str, help_: str) -> Argument:
        """Return an option that is an id, by which another noun is listed."""
        return argument("query", flag, help_, type=self.parse_id, metavar="ID")


CALLBACK = Noun("a callback", "cb", "/v1/callbacks")
DELIVERY = Noun("a delivery", "dlv", "/v1/deliveries")
EVENT = Noun("an event", "evt", "/v1/events")
GENERATION = Noun("a generation", "gen", "/v1/generations")
KEY = Noun("a key", "key", "/v1/keys")
REPLAY = Noun("a replay", "rpl", "/v1/replays")
SUBSCRIBER = Noun("a subscriber", "sub", "/v1/subscribers")
