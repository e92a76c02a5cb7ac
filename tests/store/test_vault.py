"""The vault: sealed bytes open only with the right key, bytes and context."""

import hashlib
import hmac
import os

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from service.store.vault import Vault, VaultError

OLD, NEW = "o" * 32, "n" * 32
no_deadline = settings(deadline=None)


@no_deadline
@given(st.binary(), st.text())
def test_open_returns_what_was_sealed(plain: bytes, context: str) -> None:
    vault = Vault([NEW])
    assert vault.open(vault.seal(plain, context), context) == plain


@no_deadline
@given(st.text(), st.text())
def test_another_context_does_not_open_sealed_bytes(context: str, other: str) -> None:
    assume(context != other)
    vault = Vault([NEW])
    with pytest.raises(VaultError, match="another owner"):
        vault.open(vault.seal(b"secret", context), other)


def test_every_changed_byte_is_detected() -> None:
    vault = Vault([NEW])
    sealed = vault.seal(b"secret", "sub_1")
    for position in range(len(sealed)):
        changed = bytearray(sealed)
        changed[position] ^= 1
        with pytest.raises(VaultError):
            vault.open(bytes(changed), "sub_1")


@no_deadline
@given(st.binary(max_size=80))
def test_arbitrary_bytes_raise_a_vault_error(random_bytes: bytes) -> None:
    vault = Vault([OLD, NEW])
    key_id = vault.seal(b"", "")[:4]
    for sealed in (random_bytes, key_id + random_bytes):
        with pytest.raises(VaultError):
            vault.open(sealed, "sub_1")


def test_truncated_bytes_are_refused() -> None:
    vault = Vault([NEW])
    sealed = vault.seal(b"secret", "sub_1")
    for length in range(len(sealed)):
        with pytest.raises(VaultError):
            vault.open(sealed[:length], "sub_1")


def test_the_error_for_an_unknown_key_names_the_setting() -> None:
    with pytest.raises(VaultError, match="GENHOOK_SECRET_KEYS"):
        Vault([NEW]).open(Vault([OLD]).seal(b"secret", "sub_1"), "sub_1")


def test_all_keys_open_and_the_newest_seals() -> None:
    before, both, after = Vault([OLD]), Vault([OLD, NEW]), Vault([NEW])
    old = before.seal(b"secret", "sub_1")
    assert both.open(old, "sub_1") == b"secret"
    assert before.is_current(old)
    assert not both.is_current(old)
    resealed = both.seal(both.open(old, "sub_1"), "sub_1")
    assert both.is_current(resealed)
    assert after.open(resealed, "sub_1") == b"secret"


def test_bytes_that_were_never_sealed_are_not_current() -> None:
    assert not Vault([NEW]).is_current(b"")
    assert not Vault([NEW]).is_current(b"plain text that is longer than a key id, nonce and tag")


def test_two_keys_with_the_same_id_both_open_what_they_sealed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = Vault([OLD, NEW])
    old_key, new_key = both._keys
    old_key_with_new_id = type(old_key)(new_key.id, old_key.secret)
    monkeypatch.setattr(both, "_keys", (old_key_with_new_id, new_key))
    sealed_old = new_key.id + Vault([OLD]).seal(b"older", "sub_1")[4:]
    assert both.open(sealed_old, "sub_1") == b"older"
    assert both.open(both.seal(b"newer", "sub_1"), "sub_1") == b"newer"


def test_the_same_secret_never_seals_to_the_same_bytes_twice() -> None:
    vault = Vault([NEW])
    assert len({vault.seal(b"secret", "sub_1") for _ in range(100)}) == 100


def test_sealed_bytes_and_repr_contain_neither_the_secret_nor_the_key() -> None:
    vault = Vault([NEW])
    sealed = vault.seal(b"secret", "sub_1")
    assert b"secret" not in sealed
    assert vault._keys[0].secret not in sealed
    assert repr(vault._keys[0].secret) not in repr(vault._keys)


def test_the_format_is_key_id_nonce_and_aes_gcm_under_a_derived_key() -> None:
    """Sealed bytes in a database must stay readable, so the format is computed here once more."""
    sealed = Vault([NEW], lambda count: b"\x07" * count).seal(b"secret", "sub_1")
    key = hmac.new(NEW.encode(), b"genhook.vault.v1.key", hashlib.sha256).digest()
    key_id = hmac.new(key, b"genhook.vault.v1.key-id", hashlib.sha256).digest()[:4]
    nonce = b"\x07" * 12
    assert sealed == key_id + nonce + AESGCM(key).encrypt(nonce, b"secret", b"sub_1")


def test_each_seal_has_a_new_nonce() -> None:
    counts: list[int] = []

    def random_bytes(count: int) -> bytes:
        counts.append(count)
        return os.urandom(count)

    vault = Vault([NEW], random_bytes)
    vault.seal(b"a", "sub_1")
    vault.seal(b"b", "sub_1")
    assert counts == [12, 12]


def test_a_vault_without_a_key_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a secret key"):
        Vault([])
