"""A subscriber: a URL that wants events."""

from typing import Any, Literal

import msgspec

from service.model.clock import rfc3339
from service.model.generation import Generation


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
    max_in_flight: int = 100
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
