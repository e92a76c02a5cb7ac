"""Files of a generation: what kind each is, whether it can be shown, and from which host."""

import mimetypes
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import msgspec

from service.model.clock import parse_rfc3339

HOSTS_MAX = 40  # In one policy; files of further hosts are only linked.
KINDS = ("image", "audio", "video")
_HOST = re.compile(r"[\w.-]{1,253}|[0-9a-f:.]{2,45}")
# Of hosts, a policy may name only these: Chromium ignores a rule with an IPv6 address.
_POLICY_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


class Medium(msgspec.Struct, frozen=True, kw_only=True):
    """A file as a page shows it.

    kind: `image`, `audio`, `video`, or `file` for a file that is only linked.
    url: empty if a browser should not follow it.
    origin: scheme, host and port of the URL, for the policy of the page; empty if that may not
        name them.
    """

    kind: str
    url: str
    origin: str
    media_type: str
    expires_at: str | None
    is_expired: bool

    @property
    def can_be_embedded(self) -> bool:
        """Whether a page may show the file itself; otherwise it is only linked."""
        return self.kind != "file" and not self.is_expired and bool(self.origin)


def read_files(generation: Mapping[str, Any], now: int) -> list[Medium]:
    """Return the files in the output of a generation, as the API shows it."""
    files = (generation.get("output") or {}).get("files") or []
    return [_read(file, now) for file in files]


def _read(file: Mapping[str, Any], now: int) -> Medium:
    url, expires_at = str(file.get("url") or ""), file.get("expires_at")
    is_link, origin = _origin_of(url)
    media_type = file.get("media_type") or mimetypes.guess_type(url.partition("?")[0])[0] or ""
    kind = media_type.partition("/")[0]
    return Medium(
        kind=kind if kind in KINDS else "file",
        url=url if is_link else "",
        origin=origin,
        media_type=media_type,
        expires_at=expires_at,
        is_expired=expires_at is not None and parse_rfc3339(expires_at) <= now,
    )


def _origin_of(url: str) -> tuple[bool, str]:
    """Return whether a URL may be linked, and its origin if the policy of a page may name it."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return False, ""
    if parts.scheme not in ("http", "https") or "@" in parts.netloc or not _HOST.fullmatch(host):
        return False, ""
    if not _POLICY_HOST.fullmatch(host):
        return True, ""
    return True, f"{parts.scheme}://{host}{'' if port is None else f':{port}'}"
