"""The secrets that sign for one subscriber or tenant, encrypted at rest, rotated with overlap."""

import hmac
import math
from collections.abc import Callable

import msgspec

from service.delivery import signing
from service.model.clock import SECOND
from service.store.vault import Vault

PREVIOUS_MAX = 10


class Previous(msgspec.Struct, frozen=True):
    """A secret that still signs beside the current one until `expires_at`."""

    secret: str
    expires_at: int


class Secrets(msgspec.Struct, frozen=True):
    """The current secret, those that it replaced, and an ed25519 key for `v1a`."""

    current: str
    previous: tuple[Previous, ...] = ()
    private_key: str | None = None

    def rotated(self, new: str, overlap_seconds: int, now: int) -> "Secrets":
        """Return secrets with `new` as the current one; the old one signs for `overlap_seconds`."""
        old = Previous(self.current, now + overlap_seconds * SECOND)
        valid = [p for p in (old, *self.previous) if p.expires_at > now]
        return Secrets(new, tuple(valid[:PREVIOUS_MAX]), self.private_key)


def new_secrets(random_bytes: Callable[[int], bytes], *, asymmetric: bool = False) -> Secrets:
    """Create new secrets, with an Ed25519 key if `v1a` is asked for."""
    private_key = signing.new_private_key(random_bytes) if asymmetric else None
    return Secrets(signing.new_secret(random_bytes), (), private_key)


def seal(vault: Vault, secrets: Secrets, owner_id: str) -> bytes:
    """Encrypt secrets for the row of `owner_id`; in another row they cannot be read."""
    return vault.seal(msgspec.json.encode(secrets), f"secrets:{owner_id}")


def unseal(vault: Vault, sealed: bytes, owner_id: str) -> Secrets:
    """Decrypt what `seal` returned; VaultError if the key is missing or the row was changed."""
    return msgspec.json.decode(vault.open(sealed, f"secrets:{owner_id}"), type=Secrets)


def seal_headers(vault: Vault, headers: dict[str, str], owner_id: str) -> bytes | None:
    """Encrypt a subscriber's own headers, which often contain credentials; None for none."""
    return vault.seal(msgspec.json.encode(headers), f"headers:{owner_id}") if headers else None


def unseal_headers(vault: Vault, sealed: bytes | None, owner_id: str) -> dict[str, str]:
    """Decrypt what `seal_headers` returned."""
    if sealed is None:
        return {}
    return msgspec.json.decode(vault.open(sealed, f"headers:{owner_id}"), type=dict[str, str])


class Signer:
    """Signs messages with keys that are decoded and prepared once for a recipient."""

    def __init__(self, secrets: Secrets) -> None:
        expiries = [(secrets.current, math.inf), *map(msgspec.structs.astuple, secrets.previous)]
        self._keys = [
            (hmac.new(signing.decode_secret(secret), digestmod="sha256"), expires_at)
            for secret, expires_at in expiries
        ]
        self._seed = secrets.private_key and signing.decode_private_key(secrets.private_key)

    def header(self, message_id: str, now: int, body: bytes) -> str:
        """Return the `webhook-signature` value for a message that leaves at `now`."""
        content = signing.signed_content(message_id, now // SECOND, body)
        signatures = [
            signing.sign_content(key, content) for key, expires_at in self._keys if expires_at > now
        ]
        if self._seed:
            signatures.append(signing.sign_asymmetric(self._seed, content))
        return " ".join(signatures)
