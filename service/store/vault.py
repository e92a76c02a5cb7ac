"""Secrets at rest: sealed with AES-256-GCM under keys derived from the service's secret keys."""

import hmac
import os
from collections.abc import Callable, Sequence

import msgspec

_KEY_ID_BYTES = 4
_NONCE_BYTES = 12
_TAG_BYTES = 16

# The version in the label is the version of the format: sealed = key id, nonce, ciphertext, tag.
_KEY_LABEL = b"genhook.vault.v1.key"
_KEY_ID_LABEL = b"genhook.vault.v1.key-id"


class VaultError(Exception):
    """Sealed bytes that cannot be opened; the message never quotes them."""


class _Key(msgspec.Struct, frozen=True):
    id: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"_Key(id={self.id.hex()})"


class Vault:
    """Seals and opens small secrets; what is sealed says by which key, so that keys can rotate."""

    def __init__(
        self, secret_keys: Sequence[str], random_bytes: Callable[[int], bytes] = os.urandom
    ) -> None:
        """`secret_keys` run from oldest to newest: all open, the newest seals."""
        if not secret_keys:
            raise ValueError("a vault needs a secret key")
        self._keys = tuple(_derive(secret_key) for secret_key in secret_keys)
        self._random_bytes = random_bytes

    def seal(self, plain: bytes, context: str) -> bytes:
        """`plain`, readable only here and only with the same `context` (what it belongs to)."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  cold start

        key, nonce = self._keys[-1], self._random_bytes(_NONCE_BYTES)
        return key.id + nonce + AESGCM(key.secret).encrypt(nonce, plain, context.encode())

    def open(self, sealed: bytes, context: str) -> bytes:
        """What was sealed; VaultError if the key is unknown, the bytes or the context differ."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415  cold start
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  cold start

        key_id, nonce, rest = _split(sealed)
        keys = [key for key in self._keys if key.id == key_id]
        if not keys:
            raise VaultError("sealed under a key that is not among GENHOOK_SECRET_KEYS")
        for key in keys:
            try:
                return AESGCM(key.secret).decrypt(nonce, rest, context.encode())
            except InvalidTag:
                continue
        raise VaultError("the sealed bytes were changed, or belong to something else")

    def is_current(self, sealed: bytes) -> bool:
        """Whether the newest key sealed it; if not, open it and seal it again."""
        return sealed[:_KEY_ID_BYTES] == self._keys[-1].id


def _derive(secret_key: str) -> _Key:
    secret = hmac.digest(secret_key.encode(), _KEY_LABEL, "sha256")
    return _Key(hmac.digest(secret, _KEY_ID_LABEL, "sha256")[:_KEY_ID_BYTES], secret)


def _split(sealed: bytes) -> tuple[bytes, bytes, bytes]:
    nonce_end = _KEY_ID_BYTES + _NONCE_BYTES
    if len(sealed) < nonce_end + _TAG_BYTES:
        raise VaultError("too short to have been sealed here")
    return sealed[:_KEY_ID_BYTES], sealed[_KEY_ID_BYTES:nonce_end], sealed[nonce_end:]
