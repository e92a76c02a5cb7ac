"""What subscribers and tenants share: showing and rotating their signing secrets."""

from typing import Annotated, Any

import msgspec

from service.api.call import Call
from service.api.checks import secret_errors
from service.api.problem import refuse_fields
from service.delivery import signing
from service.delivery.signing_keys import Secrets
from service.model.clock import rfc3339

OVERLAP_SECONDS = 86_400
Overlap = Annotated[int, msgspec.Meta(ge=0, le=604_800)]


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of a rotation."""

    secret: str | None = None
    overlap_seconds: Overlap = OVERLAP_SECONDS


def read_rotation(call: Call) -> tuple[str, int]:
    """Return the new secret, drawn if the body has none, and the overlap in seconds.

    Problem 422 if the body's secret cannot sign.
    """
    rotation = call.decode(Rotation, empty=b"{}")
    if rotation.secret is None:
        return signing.new_secret(call.context.random_bytes), rotation.overlap_seconds
    refuse_fields("The secret cannot be used.", secret_errors(rotation.secret))
    return rotation.secret, rotation.overlap_seconds


def secrets_view(secrets: Secrets, now: int) -> dict[str, Any]:
    """The secrets as the API shows them."""
    expiries = [previous.expires_at for previous in secrets.previous if previous.expires_at > now]
    return {
        "secret": secrets.current,
        "public_key": secrets.private_key and signing.public_key_of(secrets.private_key),
        "previous_expires_at": rfc3339(max(expiries)) if expiries else None,
    }
