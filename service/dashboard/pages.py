"""The table of pages: path, function, and the scope that the API asks for."""

from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple

from starlette.responses import Response

from service.dashboard import (
    account,
    deliveries,
    generations,
    models,
    overview,
    subscriber_form,
    subscribers,
)
from service.dashboard.visit import Visit
from service.model.key import Scope


class Page(NamedTuple):
    """A page below /dashboard. `name` is its word in the menu, empty if it is not there.

    filters: the parameters that its query may have.
    for_operators: whether the scope `operator` suffices, as in the API.
    shown_on: the path of the other page that asks for this one, and shows the answer in itself.
    """

    path: str
    show: Callable[[Visit], Awaitable[Response]]
    scope: Scope | Literal["open"]
    name: str = ""
    for_operators: bool = False
    shown_on: str | None = None
    filters: tuple[str, ...] = ()

    def is_shown_to(self, visit: Visit) -> bool:
        """Whether the reader's key has the scope."""
        return self.scope == "open" or visit.may(self.scope, for_operators=self.for_operators)


PAGES = (
    Page("", overview.show, "read", "Overview"),
    Page(
        "/generations",
        generations.show_list,
        "read",
        "Generations",
        filters=("status", "model", "name", "value", "from", "to", "after"),
    ),
    Page("/generations/{id}", generations.show, "read"),
    Page("/models", models.show_list, "read", "Models", filters=("kind", "callbacks", "sort")),
    Page("/models/try", models.show_try, "read", filters=("model",)),
    Page("/subscribers", subscribers.show_list, "manage", "Subscribers", filters=("after",)),
    Page("/subscribers/{id}", subscribers.show, "manage"),
    Page("/subscribers/{id}/edit", subscriber_form.show, "manage"),
    Page("/subscribers/{id}/stats", subscribers.show_stats, "read", shown_on="/subscribers/{id}"),
    Page(
        "/deliveries",
        deliveries.show_list,
        "read",
        "Deliveries",
        filters=("status", "subscriber_id", "event_id", "generation_id", "after"),
    ),
    Page("/deliveries/{id}", deliveries.show, "read"),
    Page(
        "/dead-letters",
        deliveries.show_dead,
        "read",
        "Dead letters",
        filters=("subscriber_id", "after"),
    ),
    Page("/replays", deliveries.show_replays, "manage", "Replays", filters=("after",)),
    Page("/replays/{id}", deliveries.show_replay, "manage"),
    Page(
        "/callbacks",
        deliveries.show_callbacks,
        "read",
        "Callbacks",
        for_operators=True,
        filters=("verdict", "generation_id", "after"),
    ),
    Page("/callbacks/{id}", deliveries.show_callback, "read", for_operators=True),
    Page(
        "/usage",
        account.show_usage,
        "read",
        "Usage",
        for_operators=True,
        filters=("since", "until", "model", "tenant"),
    ),
    Page(
        "/keys", account.show_keys, "admin", "Keys", for_operators=True, filters=("tenant", "after")
    ),
    Page("/workers", account.show_workers, "open", "Workers"),
)
# Parts of pages, which htmx asks for.
PARTS = (Page("/subscribers/{id}/health", subscribers.show_health, "manage", shown_on=""),)
