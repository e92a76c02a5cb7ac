"""A subscriber: a URL that receives events."""

from typing import Any, Literal

import msgspec

from service.model.generation import Generation
from service.model.view import view_of

REDACTED = "[redacted]"  # Stands for a header's value; in a PATCH it keeps the stored one.


class Filter(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which generations a subscriber receives events about; an empty field allows all."""

    models: list[str] = []
    metadata: dict[str, str] = {}

    def matches(self, model: str, metadata: dict[str, str]) -> bool:
        """Whether the filter has the model, and `metadata` every value of the filter."""
        if self.models and model not in self.models:
            return False
        return all(metadata.get(name) == value for name, value in self.metadata.items())


class Subscriber(msgspec.Struct, frozen=True, kw_only=True):
    """A URL that receives events. `sealed_*` fields are encrypted (see store/vault.py)."""

    id: str
    tenant: str
    is_notify: bool = False  # For a `notify_url`: it receives outcomes only and is in no list.
    url: str
    description: str = ""
    event_types: list[str] = []  # Empty: all types.
    filter: Filter = Filter()
    header_names: list[str] = []  # Names of the headers that the client configured.
    sealed_headers: bytes | None = None  # Names and values of these headers.
    sealed_secrets: bytes | None = None  # The signing secrets.
    status: Literal["active", "paused", "disabled"] = "active"
    disabled_reason: str | None = None
    max_in_flight: int = 100
    rate_per_second: float | None = None
    retry_schedule_seconds: list[int]  # The delay before each attempt.
    ordered: bool = False  # Whether the events of one generation are delivered in order.
    payload: Literal["full", "thin", "cloudevents"] = "full"
    signature: Literal["v1", "v1a"] = "v1"
    failing_since: int | None = None  # The first failure since the last success.
    last_failed_at: int | None = None  # Exact to an hour.
    probing: bool = False  # Enabled again: one attempt at a time until one succeeds.
    created_at: int
    updated_at: int

    def subscribes_to(self, event_type: str, generation: Generation | None) -> bool:
        """Whether the subscriber receives an event of this type about this generation."""
        if self.is_notify:
            return generation is not None and event_type != "generation.submitted"
        if self.event_types and event_type not in self.event_types:
            return False
        return generation is None or self.filter.matches(generation.model, generation.metadata)

    def view(self) -> dict[str, Any]:
        """Return the subscriber as the API shows it: without header values and secrets."""
        return {
            **view_of(self, "id", "url", "description", "event_types", "filter"),
            "headers": dict.fromkeys(self.header_names, REDACTED),
            **view_of(self, "status", "disabled_reason", "max_in_flight", "rate_per_second"),
            **view_of(self, "retry_schedule_seconds", "ordered", "payload", "signature"),
            "for_notify_url": self.is_notify,
            **view_of(self, "created_at", "updated_at"),
        }
