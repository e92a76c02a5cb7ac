"""The callback token: signed proof of which generation a callback URL belongs to."""

import base64
import hashlib
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import itsdangerous
import msgspec

from service import clock

Reason = Literal["forged", "expired", "malformed"]

TOKEN_LENGTH_MAX = 512
CACHE_SIZE_DEFAULT = 10_000
_NONCE_BYTES = 16

# A payload and the 43 characters of a SHA-256. The last of them carries four bits of it, hence
# one spelling a token: base64 decoders would pass over the other spellings and stray characters.
_FORM = re.compile(r"\.?[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{42}[AEIMQUYcgkosw048]")


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
        self._serializer = itsdangerous.URLSafeSerializer(
            list(secret_keys),
            salt=f"genhook.callback.{upstream}",
            signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha256},
        )
        self._cache_size = cache_size
        self._claims: dict[str, Claim] = {}
        self._token_of: dict[str, str] = {}

    def mint(self, generation_id: str, nonce: str, expires_at: int) -> str:
        """A token that is good before `expires_at` (milliseconds, rounded up to a second)."""
        expires_at_seconds = -(-expires_at // clock.SECOND)
        token = self._serializer.dumps([generation_id, nonce, expires_at_seconds])
        if len(token) > TOKEN_LENGTH_MAX:
            raise ValueError(f"a token of {len(token)} characters could never be read")
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
        if len(token) > TOKEN_LENGTH_MAX or not _FORM.fullmatch(token):
            raise TokenError("malformed")
        try:
            content: Any = self._serializer.loads(token)
        except itsdangerous.BadSignature:
            raise TokenError("forged") from None
        except itsdangerous.BadPayload:
            raise TokenError("malformed") from None
        return _claim(content)

    def _remember(self, token: str, claim: Claim) -> None:
        self.forget(claim.generation_id)
        if len(self._token_of) >= self._cache_size:
            self.forget(next(iter(self._token_of)))  # Insertion order: the oldest expires first.
        self._claims[token] = claim
        self._token_of[claim.generation_id] = token


def _claim(content: Any) -> Claim:
    """The claim in what was signed; an older or newer release may have signed another shape."""
    match content:
        case [str(generation_id), str(nonce), int(expires_at_seconds)]:
            return Claim(generation_id, nonce, expires_at_seconds * clock.SECOND)
    raise TokenError("malformed")
