"""File descriptors: connections that go out must leave room for those that come in."""

import resource

import msgspec

from service.settings import Settings
from service.telemetry import log

OWN_DESCRIPTORS = 128  # For the database, upstream, logs, tests of subscribers, refused clients.

_log = log.get()


def raise_limit(settings: Settings, *, accepts: bool) -> Settings:
    """Raise the soft limit as far as needed; return the settings that it allows.

    accepts: whether the process accepts connections itself, up to `connections_max`.
    A soft limit of 1,024 is usual, and a process that needs more should raise it itself
    (https://0pointer.net/blog/file-descriptor-limits.html).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = needed_for(settings, accepts=accepts)
    if 0 <= soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if not 0 <= soft < needed:
        return settings
    room = max(soft - OWN_DESCRIPTORS, 2)
    taken = min(settings.connections_max, room // 2) if accepts else 0
    in_flight = max(1, min(settings.max_in_flight, room - taken))
    connections = max(1, taken) if accepts else settings.connections_max
    _log.warning(
        "descriptors.few",
        allowed=soft,
        needed=needed,
        max_in_flight=in_flight,
        connections_max=connections,
    )
    return msgspec.structs.replace(settings, max_in_flight=in_flight, connections_max=connections)


def needed_for(settings: Settings, *, accepts: bool) -> int:
    """Return how many descriptors these settings may use."""
    return OWN_DESCRIPTORS + settings.max_in_flight + settings.connections_max * accepts
