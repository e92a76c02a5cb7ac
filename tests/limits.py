"""Limits of the service in real seconds: a test reaches one only if it sets it.

A busy machine is no reason for a test to fail. So each limit that gives something up is raised for
all tests of this process, and a test that means one sets it to what it means.
"""

import pkgutil
from typing import Any

_POSTGRES = "service.store.postgres"
RAISED = {
    # A write that waits for its commit is refused.
    "service.store.write_queue.WAIT_SECONDS": 60.0,
    # Requests that a stop cancels are not recorded.
    "service.worker.RECORD_SECONDS": 30.0,
    # A connection, or a place in the pool, counts as refused.
    f"{_POSTGRES}.connection.CONNECT_SECONDS": 60.0,
    f"{_POSTGRES}.database.CONNECT_SECONDS": 60.0,
    f"{_POSTGRES}.ownership.CONNECT_SECONDS": 60.0,
    # A read fails, and the order of events is left for the next call.
    f"{_POSTGRES}.reads.READ_SECONDS": 60.0,
    f"{_POSTGRES}.database.READ_SECONDS": 60.0,
    # A search is refused, or fails for the lock of another program.
    f"{_POSTGRES}.reads.SEARCH_SECONDS": 60.0,
    f"{_POSTGRES}.reads.LOCK_SECONDS": 60.0,
    # The connection with the locks is ended, and the server frees the shards only later.
    f"{_POSTGRES}.ownership.RELEASE_SECONDS": 60.0,
    f"{_POSTGRES}.ownership.BEAT_SECONDS_MAX": 60.0,
    # A worker stops by its own clock, and others replace it.
    f"{_POSTGRES}.ownership.VALID_SECONDS": 60.0,
    f"{_POSTGRES}.locks.SILENT_SECONDS": 90.0,
}


def _constant(name: str) -> tuple[Any, str, float]:
    module, _, constant = name.rpartition(".")
    loaded = pkgutil.resolve_name(module)
    return loaded, constant, getattr(loaded, constant)  # An error if it has another name by now.


OWN = {name: _constant(name)[2] for name in RAISED}  # What the service has itself.


def raise_all() -> None:
    """Raise every limit for the tests of this process."""
    for name, seconds in RAISED.items():
        module, constant, _ = _constant(name)
        setattr(module, constant, seconds)
