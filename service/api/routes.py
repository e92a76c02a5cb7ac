"""Every operation in one table: method, path, handler, and who may call."""

from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple

from service.api import (
    account,
    callbacks,
    deliveries,
    events,
    generations,
    models,
    replays,
    subscribers,
    system,
)
from service.api.call import PAGING, Answer, Call

Who = Literal["open", "submit", "read", "manage", "admin"]
NONE: frozenset[str] = frozenset()


class Operation(NamedTuple):
    """One operation.

    `makes` is the id prefix of what a POST creates: such a POST takes `Idempotency-Key`.
    `reads`: it reads a body; so does every operation that makes something.
    """

    method: str
    path: str
    handler: Callable[[Call], Awaitable[Answer]]
    who: Who
    query: frozenset[str] = NONE
    makes: str = ""
    reads: bool = False


_GENERATIONS = PAGING | {"status", "model", "created_after", "created_before", "metadata."}
_CALLBACKS = PAGING | {"generation_id", "verdict"}
_DELIVERIES = PAGING | {"status", "subscriber_id", "event_id"}
_EVENTS = PAGING | {"type", "generation_id"}
_WAIT, _SECONDS = frozenset({"wait"}), frozenset({"seconds"})
_USAGE = frozenset({"since", "until", "model"})

OPERATIONS = (
    Operation("POST", "/v1/generations", generations.create, "submit", makes="gen"),
    Operation("GET", "/v1/generations", generations.list_, "read", _GENERATIONS),
    Operation("GET", "/v1/generations/{id}", generations.get, "read", _WAIT),
    Operation("GET", "/v1/generations/{id}/timeline", generations.story, "read"),
    Operation("POST", "/v1/generations/{id}/refresh", generations.refresh, "submit"),
    Operation("GET", "/v1/models", models.list_, "read"),
    Operation("GET", "/v1/models/{id:path}", models.get, "read"),
    Operation("GET", "/v1/callbacks", callbacks.list_, "read", _CALLBACKS),
    Operation("GET", "/v1/callbacks/{id}", callbacks.get, "read"),
    Operation("POST", "/v1/subscribers", subscribers.create, "manage", makes="sub"),
    Operation("GET", "/v1/subscribers", subscribers.list_, "manage", PAGING),
    Operation("GET", "/v1/subscribers/{id}", subscribers.get, "manage"),
    Operation("PATCH", "/v1/subscribers/{id}", subscribers.update, "manage", reads=True),
    Operation("DELETE", "/v1/subscribers/{id}", subscribers.delete, "manage"),
    Operation("GET", "/v1/subscribers/{id}/secret", subscribers.secret, "manage"),
    Operation(
        "POST", "/v1/subscribers/{id}/rotate-secret", subscribers.rotate, "manage", reads=True
    ),
    Operation("POST", "/v1/subscribers/{id}/test", subscribers.test, "manage"),
    Operation("GET", "/v1/subscribers/{id}/stats", subscribers.stats_, "read"),
    Operation("GET", "/v1/signing-secret", account.signing_secret, "manage"),
    Operation(
        "POST", "/v1/signing-secret/rotate", account.rotate_signing_secret, "manage", reads=True
    ),
    Operation("GET", "/v1/events", events.list_, "read", _EVENTS),
    Operation("GET", "/v1/events/{id}", events.get, "read"),
    Operation("GET", "/v1/deliveries", deliveries.list_, "read", _DELIVERIES),
    Operation("GET", "/v1/deliveries/{id}", deliveries.get, "read"),
    Operation("POST", "/v1/deliveries/{id}/retry", deliveries.retry, "manage"),
    Operation("POST", "/v1/replays", replays.create, "manage", makes="rpl"),
    Operation("GET", "/v1/replays", replays.list_, "manage", PAGING),
    Operation("GET", "/v1/replays/{id}", replays.get, "manage"),
    Operation("POST", "/v1/replays/{id}/cancel", replays.cancel, "manage"),
    Operation("GET", "/v1/usage", account.usage, "read", _USAGE),
    Operation("POST", "/v1/keys", account.create_key, "admin", makes="key"),
    Operation("GET", "/v1/keys", account.list_keys, "admin", PAGING),
    Operation("GET", "/v1/keys/{id}", account.get_key, "admin"),
    Operation("DELETE", "/v1/keys/{id}", account.revoke_key, "admin"),
    Operation("POST", "/v1/tick", system.tick, "admin", _SECONDS),
    Operation("GET", "/readyz", system.readyz, "open"),
    Operation("GET", "/metrics", system.metrics_, "open"),
    Operation("GET", "/openapi.yaml", system.openapi, "open"),
    Operation("GET", "/docs", system.docs, "open"),
)
