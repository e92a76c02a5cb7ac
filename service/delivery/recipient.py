"""A recipient: what an attempt needs to know of a subscriber, decrypted and parsed once."""

from collections.abc import Mapping

import msgspec

from service.delivery import signing
from service.delivery.target import Target, parse_target
from service.model.subscriber import Subscriber
from service.store import stats, subscribers
from service.store.database import Transaction
from service.store.vault import Vault


class Recipient(msgspec.Struct, frozen=True):
    """A subscriber, ready to be sent to."""

    subscriber: Subscriber
    target: Target
    headers: Mapping[str, str]  # The subscriber's own, decrypted.
    signer: signing.Signer
    last_attempt_at: int | None = None  # Read only if there is a rate, which continues from there.


async def read_recipient(tx: Transaction, vault: Vault, subscriber_id: str) -> Recipient | None:
    """Read a recipient, whose secrets are the tenant's for a `notify_url`.

    None if the subscriber was deleted. VaultError if a key is missing.
    """
    subscriber = await subscribers.get(tx, subscriber_id)
    if subscriber is None:
        return None
    owner_id, sealed = subscriber.id, subscriber.sealed_secrets
    if subscriber.is_notify:
        owner_id = subscriber.tenant
        sealed = await subscribers.tenant_secrets(tx, owner_id)
    assert sealed is not None
    has_rate = subscriber.rate_per_second is not None
    return Recipient(
        subscriber=subscriber,
        target=parse_target(subscriber.url),
        headers=signing.unseal_headers(vault, subscriber.sealed_headers, subscriber.id),
        signer=signing.Signer(signing.unseal(vault, sealed, owner_id)),
        last_attempt_at=await stats.last_attempt_at(tx, subscriber_id) if has_rate else None,
    )
