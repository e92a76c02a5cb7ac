"""Reads from a signed URL when it expires. Upstream's JSON says so for few models only."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlsplit

from service.model import clock

_SIGNED = re.compile(r"[?&](?:x-(?:\w+-)?)?(?:expires|se|q-sign-time)=", re.IGNORECASE)
# By storage: S3 and what speaks its protocol, Google, Alibaba and Volcengine.
_VENDORS = ("amz", "goog", "oss", "tos")
_MAX = clock.parse_rfc3339("9999-12-31T23:59:59Z")


def expiry_of(url: str) -> int | None:
    """Return when a signed URL expires, in milliseconds; None if it does not say so.

    Known are a date and a duration (`X-Amz-Date` with `X-Amz-Expires`, and the same of Google,
    Alibaba and Volcengine), seconds since the epoch (`Expires`, `x-expires`), a time (`se`, of
    Azure), and the end of `q-sign-time` (Tencent).
    """
    if not _SIGNED.search(url):
        return None
    try:
        query = {name.lower(): value for name, value in parse_qsl(urlsplit(url).query)}
        expires_at = _read(query)
    except (ValueError, OverflowError):
        return None
    return expires_at if expires_at is not None and 0 < expires_at <= _MAX else None


def _read(query: Mapping[str, str]) -> int | None:
    for vendor in _VENDORS:
        if duration := query.get(f"x-{vendor}-expires"):
            signed_at = query.get(f"x-{vendor}-date", "")
            begin = datetime.strptime(signed_at, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
            return round((begin + timedelta(seconds=int(duration))).timestamp() * clock.SECOND)
    if end := query.get("se"):
        # Azure takes a date and a time without seconds as well.
        time = datetime.fromisoformat(end)
        return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * clock.SECOND)
    _, _, end = query.get("q-sign-time", "").partition(";")
    seconds = query.get("expires") or query.get("x-expires") or end
    # A smaller number counts from the signature: a wrong date is worse than none.
    is_date = seconds and int(seconds) >= clock.EPOCH_SECONDS_MIN
    return int(seconds) * clock.SECOND if is_date else None
