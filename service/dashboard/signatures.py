"""The signed cookie of a sign-in, with a random id, and the tokens of forms."""

import base64
import binascii
import hashlib
from collections.abc import Callable, Sequence

import itsdangerous

ID_BYTES = 32
COOKIE_CHARACTERS_MAX = 200


class Signatures:
    """Signs the ids of sign-ins for cookies, and for the forms of a page.

    A browser gets an id before it signs in, so that the sign-in form has a token, too.
    """

    def __init__(self, secret_keys: Sequence[str]) -> None:
        """`secret_keys` are ordered from oldest to newest: the newest signs, all verify."""
        self._cookie, self._form = (
            itsdangerous.Signer(
                list(secret_keys),
                salt=f"genhook.dashboard.{purpose}",
                key_derivation="hmac",
                digest_method=hashlib.sha256,
            )
            for purpose in ("cookie", "form")
        )

    def new_cookie(self, random_bytes: Callable[[int], bytes]) -> tuple[bytes, str]:
        """Return a new id, and the cookie that holds it."""
        id_ = random_bytes(ID_BYTES)
        return id_, self._cookie.sign(base64.urlsafe_b64encode(id_)).decode()

    def read_cookie(self, cookie: str) -> bytes:
        """Return the id in a cookie; empty unless genhook signed it."""
        if len(cookie) > COOKIE_CHARACTERS_MAX or not cookie.isascii():
            return b""
        try:
            return base64.urlsafe_b64decode(self._cookie.unsign(cookie.encode()))
        except (itsdangerous.BadSignature, binascii.Error):
            return b""

    def token(self, id_: bytes) -> str:
        """Return the token that every form on a page of this browser carries."""
        return self._form.get_signature(base64.urlsafe_b64encode(id_)).decode()

    def is_token(self, id_: bytes, token: str) -> bool:
        """Whether a form came from a page of this browser."""
        value = base64.urlsafe_b64encode(id_)
        return token.isascii() and self._form.verify_signature(value, token.encode())
