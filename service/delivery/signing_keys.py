"""The secrets that sign for one subscriber or tenant: sealed at rest, rotated with overlap."""

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
    """What signs: the current secret, those that it replaced, and an ed25519 key for `v1a`."""

    current: str
    previous: tuple[Previous, ...] = ()
    private_key: str | None = None

    def live(self, now: int) -> list[str]:
        """The secrets that sign at `now`, newest first."""
        return [self.current, *(p.secret for p in self.previous if p.expires_at > now)]

    def rotated(self, new: str, overlap_seconds: int, now: int) -> "Secrets":
        """`new` signs from now on; the old one beside it for `overlap_seconds`."""
        old = Previous(self.current, now + overlap_seconds * SECOND)
        valid = [p for p in (old, *self.previous) if p.expires_at > now]
        return Secrets(new, tuple(valid[:PREVIOUS_MAX]), self.private_key)


def new_secrets(random_bytes: Callable[[int], bytes], *, asymmetric: bool = False) -> Secrets:
    """Create new secrets, with an Ed25519 key if `v1a` is asked for."""
    private_key = signing.new_keypair(random_bytes)[0] if asymmetric else None
    return Secrets(signing.new_secret(random_bytes), (), private_key)


def seal(vault: Vault, secrets: Secrets, owner_id: str) -> bytes:
    """Sealed for the row of `owner_id` and no other."""
    return vault.seal(msgspec.json.encode(secrets), f"secrets:{owner_id}")


def unseal(vault: Vault, sealed: bytes, owner_id: str) -> Secrets:
    """What `seal` sealed; VaultError if the key is gone or the row was changed."""
    return msgspec.json.decode(vault.open(sealed, f"secrets:{owner_id}"), type=Secrets)


def seal_headers(vault: Vault, headers: dict[str, str], owner_id: str) -> bytes | None:
    """A subscriber's own headers, sealed: they often carry credentials."""
    if not headers:
        return None
    return vault.seal(msgspec.json.encode(headers), f"headers:{owner_id}")


def unseal_headers(vault: Vault, sealed: bytes | None, owner_id: str) -> dict[str, str]:
    """What `seal_headers` sealed."""
    if sealed is None:
        return {}
    return msgspec.json.decode(vault.open(sealed, f"headers:{owner_id}"), type=dict[str, str])


class Signer:
    """Signs messages with keys that were decoded once for a lane, not for each message."""

    def __init__(self, secrets: Secrets) -> None:
        self._keys = [(signing.decode_secret(secrets.current), None)] + [
            (signing.decode_secret(p.secret), p.expires_at) for p in secrets.previous
        ]
        self._seed = secrets.private_key and signing.decode_private_key(secrets.private_key)

    def header(self, message_id: str, now: int, body: bytes) -> str:
        """The `webhook-signature` value for a message that leaves at `now`."""
        keys = [key for key, expires_at in self._keys if expires_at is None or expires_at > now]
        timestamp = now // SECOND
        value = signing.signature_header(keys, message_id, timestamp, body)
        if not self._seed:
            return value
        return f"{value} {signing.sign_asymmetric(self._seed, message_id, timestamp, body)}"
