"""An API key, its scopes, and the rule for tenant names."""

import base64
import re
from collections.abc import Callable
from typing import Any, Literal, get_args

import msgspec

from service.model.view import view_of

Scope = Literal["submit", "read", "manage", "admin", "operator"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
KEY_PREFIX = "ghk_"
DEFAULT_TENANT = "default"  # It exists from the start.
TENANT_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
TENANT_NAME_RULE = "1 to 63 of a-z, 0-9, - and _"


def new_key(random_bytes: Callable[[int], bytes]) -> str:
    """Return a new API key: `ghk_` and 32 random bytes in URL-safe base64."""
    return KEY_PREFIX + base64.urlsafe_b64encode(random_bytes(32)).rstrip(b"=").decode()


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """An API key. The key itself is not stored, only its SHA-256."""

    id: str
    name: str
    tenant: str
    scopes: list[Scope]
    created_at: int
    last_used_at: int | None = None
    revoked_at: int | None = None

    def has(self, scope: Scope) -> bool:
        """Whether the key has the scope; `admin` includes the others of its tenant.

        `operator` reaches across tenants, so no other scope includes it.
        """
        return scope in self.scopes or (scope != "operator" and "admin" in self.scopes)

    def view(self) -> dict[str, Any]:
        """Return the key as the API lists it."""
        return view_of(self, *self.__struct_fields__)
