"""A recipient: what an attempt needs to know of a subscriber, decrypted and parsed once."""

from collections.abc import Mapping

import msgspec

from service.delivery import signing_keys
from service.delivery.target import Target
from service.delivery.webhook.request import parse_target
from service.model.subscriber import Subscriber
from service.store import stats, subscribers
from service.store.database import Transaction
from service.store.vault import Vault


class Recipient(msgspec.Struct, frozen=True):
    """A subscriber, ready to be sent to.

    Attributes:
        headers: the subscriber's own, decrypted.
        last_attempt_at: read only where the subscriber has a rate, which continues from there.

    """

    subscriber: Subscriber
    target: Target
    headers: Mapping[str, str]
    signer: signing_keys.Signer
    last_attempt_at: int | None = None


class SealedRecipient(msgspec.Struct, frozen=True):
    """A recipient as it is stored; the secrets are the tenant's for a `notify_url`."""

    subscriber: Subscriber
    sealed_secrets: bytes
    last_attempt_at: int | None


async def read_recipient(tx: Transaction, subscriber_id: str) -> SealedRecipient | None:
    """Read a recipient; None if the subscriber was deleted."""
    subscriber = await subscribers.get(tx, subscriber_id)
    if subscriber is None:
        return None
    sealed = subscriber.sealed_secrets
    if subscriber.is_notify:
        sealed = await subscribers.tenant_secrets(tx, subscriber.tenant)
    assert sealed is not None
    has_rate = subscriber.rate_per_second is not None
    last_attempt_at = await stats.last_attempt_at(tx, subscriber_id) if has_rate else None
    return SealedRecipient(subscriber, sealed, last_attempt_at)


def unseal_recipient(vault: Vault, sealed: SealedRecipient) -> Recipient:
    """Decrypt secrets and headers and parse the URL; VaultError if a key is missing."""
    subscriber = sealed.subscriber
    owner_id = subscriber.tenant if subscriber.is_notify else subscriber.id
    return Recipient(
        subscriber=subscriber,
        target=parse_target(subscriber.url),
        headers=signing_keys.unseal_headers(vault, subscriber.sealed_headers, subscriber.id),
        signer=signing_keys.Signer(signing_keys.unseal(vault, sealed.sealed_secrets, owner_id)),
        last_attempt_at=sealed.last_attempt_at,
    )
