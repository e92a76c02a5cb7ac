"""Secrets at rest: sealed with AES-256-GCM under keys derived from GENHOOK_SECRET_KEYS."""

import hmac
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

_KEY_ID_BYTES = 4
_NONCE_BYTES = 12
_TAG_BYTES = 16


class VaultError(Exception):
    """Sealed bytes cannot be opened. The message never contains them."""


@dataclass(frozen=True, slots=True)
class _Key:
    id: bytes
    secret: bytes = field(repr=False)


class Vault:
    """Seals and opens small secrets. Sealed bytes contain the id of their key: keys can rotate."""

    def __init__(
        self, secret_keys: Sequence[str], random_bytes: Callable[[int], bytes] = os.urandom
    ) -> None:
        """Take the secret keys from oldest to newest. All of them open; the newest seals."""
        if not secret_keys:
            raise ValueError("a vault needs a secret key")
        self._keys = tuple(_derive(secret_key) for secret_key in secret_keys)
        self._random_bytes = random_bytes

    def seal(self, plain: bytes, context: str) -> bytes:
        """Seal `plain`. It can be opened only with the same `context`, which names its owner."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  cold start

        key, nonce = self._keys[-1], self._random_bytes(_NONCE_BYTES)
        return key.id + nonce + AESGCM(key.secret).encrypt(nonce, plain, context.encode())

    def open(self, sealed: bytes, context: str) -> bytes:
        """Return the plain bytes. VaultError if the key, the bytes or the context are not right."""
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415  cold start
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415  cold start

        # Sealed bytes are key id, nonce, ciphertext and tag.
        nonce_end = _KEY_ID_BYTES + _NONCE_BYTES
        if len(sealed) < nonce_end + _TAG_BYTES:
            raise VaultError("the sealed bytes are too short")
        nonce, rest = sealed[_KEY_ID_BYTES:nonce_end], sealed[nonce_end:]
        keys = [key for key in self._keys if key.id == sealed[:_KEY_ID_BYTES]]
        if not keys:
            raise VaultError("its key is not among GENHOOK_SECRET_KEYS: put that first")
        for key in keys:
            try:
                return AESGCM(key.secret).decrypt(nonce, rest, context.encode())
            except InvalidTag:
                continue
        raise VaultError("the sealed bytes were changed, or have another owner")

    def is_current(self, sealed: bytes) -> bool:
        """Return whether the newest key sealed these bytes. If not, they should be resealed."""
        return sealed[:_KEY_ID_BYTES] == self._keys[-1].id


def _derive(secret_key: str) -> _Key:
    # "v1" in the labels is the format's version.
    secret = hmac.digest(secret_key.encode(), b"genhook.vault.v1.key", "sha256")
    key_id = hmac.digest(secret, b"genhook.vault.v1.key-id", "sha256")
    return _Key(key_id[:_KEY_ID_BYTES], secret)
