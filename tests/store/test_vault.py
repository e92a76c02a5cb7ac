"""Secrets at rest: only the same keys, bytes and context open what was sealed."""

import hashlib
import hmac
import os
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from service.store.vault import Vault, VaultError

OLD, NEW = "o" * 32, "n" * 32
relaxed = settings(deadline=None)


def fixed(byte: bytes) -> Callable[[int], bytes]:
    return lambda count: byte * count


@relaxed
@given(st.binary(), st.text())
def test_what_is_sealed_is_opened(plain: bytes, context: str) -> None:
    vault = Vault([NEW])
    assert vault.open(vault.seal(plain, context), context) == plain


@relaxed
@given(st.text(), st.text())
def test_another_context_does_not_open_it(context: str, other: str) -> None:
    assume(context != other)
    vault = Vault([NEW])
    with pytest.raises(VaultError, match="another owner"):
        vault.open(vault.seal(b"secret", context), other)


def test_every_single_changed_byte_is_noticed() -> None:
    vault = Vault([NEW])
    sealed = vault.seal(b"secret", "sub_1")
    for at in range(len(sealed)):
        changed = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(VaultError):
            vault.open(changed, "sub_1")


@relaxed
@given(st.binary(max_size=80))
def test_arbitrary_bytes_fail_with_a_vault_error_only(junk: bytes) -> None:
    vault = Vault([OLD, NEW])
    key_id = vault.seal(b"", "")[:4]
    for sealed in (junk, key_id + junk):
        with pytest.raises(VaultError):
            vault.open(sealed, "sub_1")


def test_every_shortened_form_is_refused() -> None:
    vault = Vault([NEW])
    sealed = vault.seal(b"secret", "sub_1")
    for length in range(len(sealed)):
        with pytest.raises(VaultError):
            vault.open(sealed[:length], "sub_1")


def test_another_key_does_not_open_it_and_the_message_says_which_setting_is_wrong() -> None:
    with pytest.raises(VaultError, match="GENHOOK_SECRET_KEYS"):
        Vault([NEW]).open(Vault([OLD]).seal(b"secret", "sub_1"), "sub_1")


def test_keys_rotate_all_open_and_the_newest_seals() -> None:
    before, both, after = Vault([OLD]), Vault([OLD, NEW]), Vault([NEW])
    old = before.seal(b"secret", "sub_1")
    assert both.open(old, "sub_1") == b"secret"
    assert before.is_current(old)
    assert not both.is_current(old)
    again = both.seal(both.open(old, "sub_1"), "sub_1")
    assert both.is_current(again)
    assert after.open(again, "sub_1") == b"secret"


def test_bytes_that_were_never_sealed_are_not_current() -> None:
    assert not Vault([NEW]).is_current(b"")
    assert not Vault([NEW]).is_current(b"plain text of long ago, longer than an envelope")


def test_two_keys_with_the_same_id_both_open_theirs(monkeypatch: pytest.MonkeyPatch) -> None:
    both = Vault([OLD, NEW])
    old_key, new_key = both._keys
    clash = type(old_key)(new_key.id, old_key.secret)
    monkeypatch.setattr(both, "_keys", (clash, new_key))
    sealed_old = new_key.id + Vault([OLD]).seal(b"older", "sub_1")[4:]
    assert both.open(sealed_old, "sub_1") == b"older"
    assert both.open(both.seal(b"newer", "sub_1"), "sub_1") == b"newer"


def test_the_same_secret_never_seals_to_the_same_bytes_twice() -> None:
    vault = Vault([NEW])
    assert len({vault.seal(b"secret", "sub_1") for _ in range(100)}) == 100


def test_neither_the_secret_nor_its_key_is_visible() -> None:
    vault = Vault([NEW])
    sealed = vault.seal(b"secret", "sub_1")
    assert b"secret" not in sealed
    assert vault._keys[0].secret not in sealed
    assert repr(vault._keys[0].secret) not in repr(vault._keys)


def test_the_format_is_key_id_nonce_and_aes_gcm_under_a_derived_key() -> None:
    """What is on disk must stay readable: this pins the format without the module's own code."""
    sealed = Vault([NEW], fixed(b"\x07")).seal(b"secret", "sub_1")
    key = hmac.new(NEW.encode(), b"genhook.vault.v1.key", hashlib.sha256).digest()
    key_id = hmac.new(key, b"genhook.vault.v1.key-id", hashlib.sha256).digest()[:4]
    nonce = b"\x07" * 12
    assert sealed == key_id + nonce + AESGCM(key).encrypt(nonce, b"secret", b"sub_1")


def test_a_nonce_is_drawn_for_each_seal() -> None:
    asked: list[int] = []

    def random_bytes(count: int) -> bytes:
        asked.append(count)
        return os.urandom(count)

    vault = Vault([NEW], random_bytes)
    vault.seal(b"a", "sub_1")
    vault.seal(b"b", "sub_1")
    assert asked == [12, 12]


def test_a_vault_without_a_key_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a secret key"):
        Vault([])
