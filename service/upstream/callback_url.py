"""The callback token: signed proof of which generation a callback URL belongs to."""

import base64
import hashlib
import hmac
import re
from collections.abc import Callable, Sequence
from typing import Literal

import itsdangerous
import msgspec

from service.model import clock

Reason = Literal["forged", "expired", "malformed"]

TOKEN_LENGTH_MAX = 512
CACHE_SIZE_DEFAULT = 10_000
_NONCE_BYTES = 16

# Generation, nonce, second of expiry and the 43 characters of a SHA-256. The signature is compared
# as text: decoders of base64 would pass over other spellings of its last character.
_FORM = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([0-9]{1,12})\.([A-Za-z0-9_-]{43})")


class TokenError(Exception):
    """A token that opens nothing; `reason` is for the record, strangers get a plain 404."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(f"the callback token is {reason}")
        self.reason: Reason = reason


class Claim(msgspec.Struct, frozen=True):
    """What a good token says.

    nonce: compare it with the one stored for the generation; another one has been revoked.
    expires_at: milliseconds since the epoch, a whole second.
    """

    generation_id: str
    nonce: str
    expires_at: int


def new_nonce(random_bytes: Callable[[int], bytes]) -> str:
    """128 bits in 22 URL-safe characters."""
    return base64.urlsafe_b64encode(random_bytes(_NONCE_BYTES)).rstrip(b"=").decode()


class CallbackTokens:
    """Mints and reads the tokens of one upstream, and remembers the good ones it has read.

    The cache holds nothing but claims whose signature was verified: one token a generation, so
    that no holder of one token fills it, dropped when it expires, at `forget`, or when
    `cache_size` newer ones have come.
    """

    def __init__(
        self,
        secret_keys: Sequence[str],
        upstream: str,
        *,
        cache_size: int = CACHE_SIZE_DEFAULT,
    ) -> None:
        """`secret_keys` run from oldest to newest: all are read, the newest signs."""
        if not secret_keys or cache_size < 1:
            raise ValueError("callback tokens need a secret key and room for one claim")
        self._signer = itsdangerous.Signer(
            list(secret_keys),
            salt=f"genhook.callback.{upstream}",
            key_derivation="hmac",
            digest_method=hashlib.sha256,
        )
        self._keys = [self._signer.derive_key(key) for key in reversed(self._signer.secret_keys)]
        self._cache_size = cache_size
        self._claims: dict[str, Claim] = {}
        self._token_of: dict[str, str] = {}

    def mint(self, generation_id: str, nonce: str, expires_at: int) -> str:
        """A token that is good before `expires_at` (milliseconds, rounded up to a second)."""
        expires_at_seconds = -(-expires_at // clock.SECOND)
        claim = f"{generation_id}.{nonce}.{expires_at_seconds}"
        token = self._signer.sign(claim).decode()
        if len(token) > TOKEN_LENGTH_MAX or not _FORM.fullmatch(token):
            raise ValueError("that token could never be read")
        return token

    def read(self, token: str, now: int) -> Claim:
        """What `token` says; TokenError unless we signed it and it is still good at `now`."""
        cached = self._claims.get(token)
        claim = cached or self._verify(token)
        if now >= claim.expires_at:
            self.forget(claim.generation_id)
            raise TokenError("expired")
        if cached is None:
            self._remember(token, claim)
        return claim

    def forget(self, generation_id: str) -> None:
        """Drop what is cached for a generation, as when its nonce is revoked."""
        token = self._token_of.pop(generation_id, None)
        if token is not None:
            del self._claims[token]

    def _verify(self, token: str) -> Claim:
        """The claim of a token that one of the keys signed.

        As itsdangerous does it, at a fraction of its cost: most callbacks bring a token unseen.
        """
        form = _FORM.fullmatch(token) if len(token) <= TOKEN_LENGTH_MAX else None
        if form is None:
            raise TokenError("malformed")
        generation_id, nonce, seconds, signature = form.groups()
        claim = token[: form.start(4) - 1].encode()
        if not any(hmac.compare_digest(_sign(key, claim), signature) for key in self._keys):
            raise TokenError("forged")
        return Claim(generation_id, nonce, int(seconds) * clock.SECOND)

    def _remember(self, token: str, claim: Claim) -> None:
        self.forget(claim.generation_id)
        if len(self._token_of) >= self._cache_size:
            self.forget(next(iter(self._token_of)))  # Insertion order: the oldest expires first.
        self._claims[token] = claim
        self._token_of[claim.generation_id] = token


def _sign(key: bytes, claim: bytes) -> str:
    # hmac.digest would let other threads in, and wait for them.
    digest = hmac.new(key, claim, "sha256").digest()
    return base64.urlsafe_b64encode(digest)[:43].decode()
