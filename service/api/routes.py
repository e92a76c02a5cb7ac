"""The table of operations, grouped by path: method, path, function, scope, query."""

from collections.abc import Set as AbstractSet
from typing import Any, Literal, NamedTuple

from service.api import (
    callbacks,
    deliveries,
    docs,
    events,
    generations,
    keys,
    models,
    replays,
    signing_secret,
    subscribers,
    system,
)
from service.api.call import PAGING
from service.model.key import Scope
from service.store.database import Unit


class Operation(NamedTuple):
    """One operation.

    scope: the scope that the key needs; `open` needs no key, unless a setting closes it.
    for_operators: whether a key with the scope `operator` may call it too, across tenants.
    creates: the id prefix of what a POST creates; it takes an `Idempotency-Key`. A rotation creates
    a secret, whose answer shows no id.
    reads_body: whether the request has a body.
    audit: the name of the act in the log, if it acts on keys, secrets, subscribers or replays, or
    ends a generation.
    audit_again: the act of a repeated request, which changes nothing but shows a secret again.
    unit: the transaction in which `run(tx, call)` runs; without it, `run(call)` makes its own.

    run: returns an answer, or a resource whose view is the answer, or None for a 204.
    """

    method: str
    path: str
    run: Unit[Any]
    scope: Scope | Literal["open"]
    query: AbstractSet[str] = frozenset()
    creates: str = ""
    reads_body: bool = False
    unit: Literal["read", "search", "write"] | None = None
    for_operators: bool = False
    audit: str = ""
    audit_again: str = ""

    @property
    def is_one_unit(self) -> bool:
        """Whether a change is one unit of work, so that nothing is stored if that is refused.

        A POST that creates nothing may make several, such as a tick, and sends what they store.
        """
        return bool(self.unit or self.creates) or self.method != "POST"


_GENERATIONS = PAGING | {"status", "model", "created_after", "created_before", "metadata."}
_DELIVERIES = PAGING | {"status", "subscriber_id", "event_id", "generation_id"}
_CALLBACKS = PAGING | {"generation_id", "verdict"}
_MODELS = {"limit", "after", "kind", "callbacks", "sort"}
_USAGE = {"since", "until", "model", "tenant"}
_GENERATION = "/v1/generations/{id}"
_SUBSCRIBERS, _SUBSCRIBER = "/v1/subscribers", "/v1/subscribers/{id}"

OPERATIONS = (
    Operation(
        "POST", "/v1/generations", generations.create, "submit", creates="gen", reads_body=True
    ),
    Operation("GET", "/v1/generations", generations.list_, "read", _GENERATIONS),
    Operation("GET", _GENERATION, generations.get, "read", {"wait"}),
    Operation(
        "DELETE",
        _GENERATION,
        generations.delete,
        "manage",
        unit="write",
        audit="generation.delete",
    ),
    Operation("GET", f"{_GENERATION}/timeline", generations.get_timeline, "read", unit="search"),
    Operation("POST", f"{_GENERATION}/refresh", generations.refresh, "submit"),
    Operation(
        "POST",
        f"{_GENERATION}/cancel",
        generations.cancel,
        "submit",
        unit="write",
        audit="generation.cancel",
    ),
    Operation("POST", f"{_GENERATION}/retry", generations.retry, "submit", creates="gen"),
    Operation("GET", "/v1/models", models.list_, "read", _MODELS),
    Operation("GET", "/v1/models/{id:path}", models.get, "read"),
    Operation("GET", "/v1/callbacks", callbacks.list_, "read", _CALLBACKS, for_operators=True),
    Operation("GET", "/v1/callbacks/{id}", callbacks.get, "read", for_operators=True),
    Operation(
        "POST",
        _SUBSCRIBERS,
        subscribers.create,
        "manage",
        creates="sub",
        reads_body=True,
        audit="subscriber.create",
        audit_again="secret.show",
    ),
    Operation("GET", _SUBSCRIBERS, subscribers.list_, "manage", PAGING),
    Operation("GET", _SUBSCRIBER, subscribers.get, "manage", unit="read"),
    Operation(
        "PATCH",
        _SUBSCRIBER,
        subscribers.update,
        "manage",
        reads_body=True,
        audit="subscriber.change",
    ),
    Operation(
        "DELETE", _SUBSCRIBER, subscribers.delete, "manage", unit="write", audit="subscriber.delete"
    ),
    Operation(
        "GET",
        f"{_SUBSCRIBER}/secret",
        subscribers.get_secret,
        "manage",
        unit="read",
        audit="secret.show",
    ),
    Operation(
        "POST",
        f"{_SUBSCRIBER}/rotate-secret",
        subscribers.rotate_secret,
        "manage",
        creates="rot",
        reads_body=True,
        audit="secret.rotate",
        audit_again="secret.show",
    ),
    Operation("POST", f"{_SUBSCRIBER}/test", subscribers.test, "manage", audit="subscriber.test"),
    Operation("GET", f"{_SUBSCRIBER}/stats", subscribers.get_stats, "read", unit="search"),
    Operation(
        "GET", "/v1/signing-secret", signing_secret.get, "manage", audit="signing_secret.show"
    ),
    Operation(
        "POST",
        "/v1/signing-secret/rotate",
        signing_secret.rotate,
        "manage",
        creates="rot",
        reads_body=True,
        audit="signing_secret.rotate",
        audit_again="signing_secret.show",
    ),
    Operation("GET", "/v1/events", events.list_, "read", PAGING | {"type", "generation_id"}),
    Operation("GET", "/v1/events/{id}", events.get, "read", unit="read"),
    Operation("GET", "/v1/deliveries", deliveries.list_, "read", _DELIVERIES),
    Operation("GET", "/v1/deliveries/{id}", deliveries.get, "read", unit="read"),
    Operation(
        "POST",
        "/v1/deliveries/{id}/retry",
        deliveries.retry,
        "manage",
        unit="write",
        audit="delivery.retry",
    ),
    Operation(
        "POST",
        "/v1/replays",
        replays.create,
        "manage",
        creates="rpl",
        reads_body=True,
        audit="replay.create",
    ),
    Operation("GET", "/v1/replays", replays.list_, "manage", PAGING),
    Operation("GET", "/v1/replays/{id}", replays.get, "manage", unit="read"),
    Operation(
        "POST",
        "/v1/replays/{id}/cancel",
        replays.cancel,
        "manage",
        unit="write",
        audit="replay.cancel",
    ),
    Operation("GET", "/v1/usage", generations.get_usage, "read", _USAGE, for_operators=True),
    Operation(
        "POST",
        "/v1/keys",
        keys.create,
        "admin",
        creates="key",
        reads_body=True,
        for_operators=True,
        audit="key.create",
        audit_again="key.show",
    ),
    Operation("GET", "/v1/keys", keys.list_, "admin", PAGING | {"tenant"}, for_operators=True),
    Operation("GET", "/v1/keys/{id}", keys.get, "admin", unit="read", for_operators=True),
    Operation(
        "DELETE",
        "/v1/keys/{id}",
        keys.revoke,
        "admin",
        unit="write",
        for_operators=True,
        audit="key.revoke",
    ),
    Operation("POST", "/v1/tick", system.tick, "operator", {"seconds"}),
    Operation("GET", "/v1/workers", system.list_workers, "operator"),
    Operation("GET", "/readyz", system.readyz, "open"),
    Operation("GET", "/metrics", system.metrics_, "open"),
    Operation("GET", "/openapi.yaml", docs.get_document, "open"),
    Operation("GET", "/docs", docs.get, "open"),
    Operation("GET", "/docs/{file}", docs.get_file, "open"),
)
