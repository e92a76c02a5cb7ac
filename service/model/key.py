"""An API key and its scopes."""

from typing import Any, Literal, get_args

import msgspec

from service.model.clock import rfc3339, rfc3339_or_none

Scope = Literal["submit", "read", "manage", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """An API key. The key itself is not stored, only its SHA-256."""

    id: str
    name: str
    tenant: str
    scopes: list[Scope]
    created_at: int
    last_used_at: int | None
    revoked_at: int | None

    def view(self) -> dict[str, Any]:
        """Return the key as the API lists it."""
        return {
            "id": self.id,
            "name": self.name,
            "tenant": self.tenant,
            "scopes": self.scopes,
            "created_at": rfc3339(self.created_at),
            "last_used_at": rfc3339_or_none(self.last_used_at),
            "revoked_at": rfc3339_or_none(self.revoked_at),
        }
