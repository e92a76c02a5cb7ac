"""The nouns: frozen, with their allowed transitions, and the JSON that people see of them."""

from collections.abc import Iterable
from typing import Any, Literal

import msgspec

from service.clock import rfc3339

GenerationStatus = Literal["queued", "processing", "succeeded", "failed", "timed_out"]
Submission = Literal["sending", "waiting", "taken", "lost", "refused"]
Scope = Literal["submit", "read", "manage", "admin"]

SCOPES: tuple[Scope, ...] = ("submit", "read", "manage", "admin")
OPEN = ("queued", "processing")
TERMINAL = ("succeeded", "failed", "timed_out")
TRANSITIONS: dict[str, tuple[str, ...]] = {
    "queued": ("processing", "succeeded", "failed", "timed_out"),
    "processing": ("succeeded", "failed", "timed_out"),
    "timed_out": ("succeeded", "failed"),  # The result came late; it was paid for.
    "succeeded": (),
    "failed": (),
}
EVENT_TYPES = (
    "generation.submitted",
    "generation.succeeded",
    "generation.failed",
    "generation.timed_out",
    "subscriber.disabled",
    "ping",
)
EVENT_TYPE_OF = {
    "processing": "generation.submitted",
    "succeeded": "generation.succeeded",
    "failed": "generation.failed",
    "timed_out": "generation.timed_out",
}


def time_or_none(at: int | None) -> str | None:
    """RFC 3339, or None where there is no time yet."""
    return None if at is None else rfc3339(at)


def joined_headers(lines: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Header lines by name; the values of a name that came more than once joined by commas."""
    joined: dict[str, str] = {}
    for name, value in lines:
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


class Generation(msgspec.Struct, frozen=True, kw_only=True):
    """One request and its result, with what genhook still has to do about it."""

    id: str
    tenant: str
    model: str
    status: GenerationStatus
    route: Literal["callback", "poll"]
    input: dict[str, Any]
    metadata: dict[str, str]
    notify_url: str | None = None
    notify_subscriber_id: str | None = None
    task_id: str | None = None
    output: dict[str, Any] | None = None
    error: dict[str, str] | None = None
    credits: int | None = None
    created_at: int
    submitted_at: int | None = None
    completed_at: int | None = None
    deadline_at: int
    nonce: str
    submission: Submission
    submit_at: int | None = None
    submit_count: int = 0
    next_poll_at: int | None = None
    poll_count: int = 0
    trouble_count: int = 0
    late_poll_count: int = 0
    last_poll_at: int | None = None

    def accepts(self, status: str) -> bool:
        """True if the generation may move to `status`: a terminal state is reached once."""
        return status in TRANSITIONS[self.status]

    @property
    def is_terminal(self) -> bool:
        """True once there is an outcome, or the deadline has passed without one."""
        return self.status in TERMINAL

    def view(self) -> dict[str, Any]:
        """The generation as the API and events show it."""
        return {
            "id": self.id,
            "model": self.model,
            "status": self.status,
            "route": self.route,
            "input": self.input,
            "metadata": self.metadata,
            "notify_url": self.notify_url,
            "task_id": self.task_id,
            "output": self.output,
            "error": self.error,
            "credits": self.credits,
            "created_at": rfc3339(self.created_at),
            "submitted_at": time_or_none(self.submitted_at),
            "completed_at": time_or_none(self.completed_at),
            "deadline_at": rfc3339(self.deadline_at),
        }


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable fact; `body` is the exact bytes that are stored, signed and sent."""

    seq: int
    id: str
    tenant: str
    type: str
    generation_id: str | None
    created_at: int
    body: bytes


class Filter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which generations a subscriber hears of; an empty part lets everything pass."""

    models: list[str] = []
    metadata: dict[str, str] = {}

    def passes(self, model: str, metadata: dict[str, str]) -> bool:
        """True if the model is listed and every named metadata value is equal."""
        if self.models and model not in self.models:
            return False
        return all(metadata.get(name) == value for name, value in self.metadata.items())


class Subscriber(msgspec.Struct, frozen=True, kw_only=True):
    """A URL that wants events. `sealed_*` fields are encrypted at rest (see vault.py)."""

    id: str
    tenant: str
    is_notify: bool = False
    url: str
    description: str = ""
    event_types: list[str] = []
    filter: Filter = Filter()
    header_names: list[str] = []
    sealed_headers: bytes | None = None
    sealed_secrets: bytes | None = None
    status: Literal["active", "paused", "disabled"] = "active"
    disabled_reason: str | None = None
    max_in_flight: int = 10
    rate_per_second: float | None = None
    retry_schedule_seconds: list[int]
    ordered: bool = False
    payload: Literal["full", "thin", "cloudevents"] = "full"
    signature: Literal["v1", "v1a"] = "v1"
    failing_since: int | None = None
    slow_until: int | None = None
    probing: bool = False
    created_at: int
    updated_at: int

    def wants(self, type_: str, generation: Generation | None) -> bool:
        """True if an event of this type about this generation is for the subscriber."""
        if self.is_notify:
            return generation is not None and type_ != "generation.submitted"
        if self.event_types and type_ not in self.event_types:
            return False
        return generation is None or self.filter.passes(generation.model, generation.metadata)

    def view(self) -> dict[str, Any]:
        """The subscriber as the API shows it: header values and secrets stay in."""
        return {
            "id": self.id,
            "url": self.url,
            "description": self.description,
            "event_types": self.event_types,
            "filter": self.filter,
            "headers": dict.fromkeys(self.header_names, "[redacted]"),
            "status": self.status,
            "disabled_reason": self.disabled_reason,
            "max_in_flight": self.max_in_flight,
            "rate_per_second": self.rate_per_second,
            "retry_schedule_seconds": self.retry_schedule_seconds,
            "ordered": self.ordered,
            "payload": self.payload,
            "signature": self.signature,
            "created_at": rfc3339(self.created_at),
            "updated_at": rfc3339(self.updated_at),
        }


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One event for one subscriber; due until it is delivered, dead or canceled."""

    id: str
    tenant: str
    subscriber_id: str
    event_id: str
    event_type: str
    generation_id: str | None
    status: Literal["pending", "delivered", "dead", "canceled"]
    trigger: Literal["scheduled", "manual", "replay", "test"]
    attempt_count: int
    due_at: int | None
    created_at: int
    delivered_at: int | None
    last_error: str | None

    def view(self) -> dict[str, Any]:
        """The delivery as the API lists it."""
        return {
            "id": self.id,
            "event_id": self.event_id,
            "event_type": self.event_type,
            "generation_id": self.generation_id,
            "subscriber_id": self.subscriber_id,
            "status": self.status,
            "attempt_count": self.attempt_count,
            "next_attempt_at": time_or_none(self.due_at) if self.status == "pending" else None,
            "created_at": rfc3339(self.created_at),
            "delivered_at": time_or_none(self.delivered_at),
            "last_error": self.last_error,
        }


class Due(msgspec.Struct):
    """A delivery on its way to the sender: what an attempt needs, and nothing else."""

    tenant: str
    id: str
    subscriber_id: str
    event_id: str
    event_type: str
    generation_id: str | None
    created_at: int
    attempt_count: int
    trigger: str
    body: bytes
    ordered: bool


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP try of a delivery."""

    id: str
    delivery_id: str
    number: int
    trigger: str
    started_at: int
    duration_ms: int
    status_code: int | None
    error_code: str | None
    error_message: str | None
    response_headers: list[tuple[str, str]]
    response_body: bytes

    def view(self) -> dict[str, Any]:
        """The attempt as the API shows it; the body as text, its strange bytes replaced."""
        error = self.error_code and {"code": self.error_code, "message": self.error_message}
        return {
            "id": self.id,
            "number": self.number,
            "trigger": self.trigger,
            "started_at": rfc3339(self.started_at),
            "duration_ms": self.duration_ms,
            "status_code": self.status_code,
            "error": error or None,
            "response_headers": joined_headers(self.response_headers),
            "response_body": self.response_body.decode("utf-8", "replace"),
        }


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """New deliveries to one subscriber, for events of a span of time that are stored.

    `cursor` is the place among events up to which deliveries were made, `last_seq` the last place
    to look at. `due_at`: when to go on; None when there is nothing left to do.
    """

    id: str
    tenant: str
    subscriber_id: str
    since_at: int
    until_at: int
    event_types: list[str]
    only_dead: bool
    rate_per_second: float | None
    dry_run: bool
    status: Literal["running", "done", "canceled"]
    total: int
    done: int = 0
    cursor: int
    last_seq: int
    due_at: int | None
    created_at: int
    finished_at: int | None = None

    def view(self) -> dict[str, Any]:
        """The replay as the API shows it."""
        return {
            "id": self.id,
            "subscriber_id": self.subscriber_id,
            "status": self.status,
            "total": self.total,
            "done": self.done,
            "dry_run": self.dry_run,
            "created_at": rfc3339(self.created_at),
            "finished_at": time_or_none(self.finished_at),
        }


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """An API key; only its SHA-256 is stored."""

    id: str
    name: str
    tenant: str
    scopes: list[Scope]
    created_at: int
    last_used_at: int | None
    revoked_at: int | None

    def view(self) -> dict[str, Any]:
        """The key as the API shows it, without the key."""
        return {
            "id": self.id,
            "name": self.name,
            "tenant": self.tenant,
            "scopes": self.scopes,
            "created_at": rfc3339(self.created_at),
            "last_used_at": time_or_none(self.last_used_at),
            "revoked_at": time_or_none(self.revoked_at),
        }
