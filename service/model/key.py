"""An API key and its scopes."""

from typing import Any, Literal

import msgspec

from service.model.clock import rfc3339, time_or_none

Scope = Literal["submit", "read", "manage", "admin"]
SCOPES: tuple[Scope, ...] = ("submit", "read", "manage", "admin")


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
