"""The advisory locks of one genhook: who holds which shard, who works, and who has gone silent.

Each shard is a lock of its own, all in one class; every worker also shares the lock ALIVE.
PostgreSQL separates the locks of its databases, and the class separates those of their schemas.
"""

from collections.abc import Collection, Iterable
from typing import Any, NamedTuple
from zlib import crc32

from service.model.errors import OtherRoleError, StorageError
from service.store.shards import SHARDS

ALIVE = SHARDS  # Every worker shares this lock.
# A session that is idle, and has sent no statement for so long, belongs to a process that hangs, or
# to a machine that cannot be reached.
SILENT_SECONDS = 6.0

OURS = """l.locktype = 'advisory' AND l.objsubid = 2 AND l.granted AND l.classid = $1
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())"""
_VIEW = f"""
SELECT CAST(l.objid AS INTEGER) AS shard, l.pid, a.application_name AS name,
    l.pid = $2 AND pg_backend_pid() = $2 AS is_own,
    a.pid IS NOT NULL AND (a.state IS NULL OR a.state = 'disabled'
        OR a.usename IS DISTINCT FROM session_user) AS is_hidden,
    CASE WHEN a.state = 'idle' THEN CAST(extract(epoch FROM clock_timestamp() - a.state_change)
        AS DOUBLE PRECISION) ELSE 0 END AS silent_seconds
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE {OURS} AND NOT pg_is_in_recovery()"""  # noqa: S608  our own text
_TAKE = """
SELECT shard, pg_try_advisory_lock($1, shard) AS is_taken FROM unnest(CAST($2 AS INTEGER[])) shard
WHERE NOT pg_is_in_recovery()"""
_JOIN = "SELECT pg_try_advisory_lock_shared($1, $2) WHERE NOT pg_is_in_recovery()"
_GIVE_UP = "SELECT pg_advisory_unlock($1, shard) FROM unnest(CAST($2 AS INTEGER[])) shard"
_LEAVE = "SELECT pg_advisory_unlock_all()"
# Checks the session again, since it may have sent a statement meanwhile. Then terminates all
# connections of its process, which have one `application_name`, and not only that with the locks.
_TERMINATE = """
SELECT count(pg_terminate_backend(b.pid)) FROM pg_stat_activity a JOIN pg_stat_activity b
    ON b.application_name = a.application_name AND b.datname = a.datname AND b.usename = a.usename
WHERE a.pid = $1 AND a.application_name = $2 AND a.datname = current_database()
    AND a.usename = session_user AND a.state = 'idle'
    AND clock_timestamp() - a.state_change > make_interval(secs => $3)"""
_HOLDERS = f"""
SELECT coalesce(a.application_name, '') AS name,
    array_agg(CAST(l.objid AS INTEGER)) FILTER (WHERE l.objid < $2) AS shards
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid WHERE {OURS} GROUP BY name"""  # noqa: S608
_CLASS = "SELECT CAST(genhook_id AS TEXT) FROM schema_version"
_PID = "SELECT pg_backend_pid()"
POOLED = (
    "a pooler such as PgBouncer stands before the database, and due work needs a session of its "
    "own: have workers, ticks and copies connect to the server itself, and only processes with "
    "GENHOOK_WORKER=off to the pooler"
)
UNTRACKED = (
    "track_activities is off for this role, database or server, and nobody could see which worker "
    "hangs: set it to on, for which a superuser's right is needed, and start again"
)
_CHANGED_ROLE = (
    "the role is changed after the login (SET role), and the new one may not see its own session: "
    "log in as the role that works"
)
_OWN_STATE = "SELECT state FROM pg_stat_activity WHERE pid = pg_backend_pid()"


class Silent(NamedTuple):
    """A session that holds locks and has sent no statement for too long."""

    pid: int
    name: str
    seconds: float


class View(NamedTuple):
    """The locks of this genhook as the server has them."""

    own: frozenset[int]  # The shards of this session.
    taken: frozenset[int]  # The shards of all sessions.
    workers: tuple[int, ...]  # The sessions that share the lock ALIVE, by their pid.
    silent: Silent | None
    is_hidden: bool  # Another session's activity cannot be seen, or has another role.


class Locks:
    """The locks of one session, a connection that nobody else uses."""

    def __init__(self, connection: Any, class_: int, pid: int) -> None:
        self.connection = connection
        self.pid = pid
        self._class = class_

    async def read_view(self) -> View:
        """Return which session holds which shard. The query is this session's beat, too."""
        rows = await self.connection.fetch(_VIEW, self._class, self.pid)
        shards = [row for row in rows if row["shard"] < SHARDS]
        others = [row for row in rows if row["pid"] != self.pid]
        silent = [Silent(r["pid"], r["name"], r["silent_seconds"]) for r in others if r["name"]]
        longest = max(silent, key=lambda each: each.seconds, default=None)
        return View(
            own=frozenset(row["shard"] for row in shards if row["is_own"]),
            taken=frozenset(row["shard"] for row in shards),
            workers=tuple(row["pid"] for row in rows if row["shard"] == ALIVE),
            silent=longest if longest and longest.seconds > SILENT_SECONDS else None,
            is_hidden=any(row["is_hidden"] for row in others),
        )

    async def join(self) -> None:
        """Share the lock ALIVE, so that others count this worker."""
        if not await self.connection.fetchval(_JOIN, self._class, ALIVE):
            raise StorageError("the server is in recovery")

    async def take(self, shards: Iterable[int]) -> set[int]:
        """Take those of the shards that nobody holds; return them."""
        rows = await self.connection.fetch(_TAKE, self._class, list(shards))
        return {row["shard"] for row in rows if row["is_taken"]}

    async def give_up(self, shards: Collection[int]) -> None:
        """Release the locks of these shards."""
        await self.connection.execute(_GIVE_UP, self._class, list(shards))

    async def leave(self) -> None:
        """Release every lock."""
        await self.connection.execute(_LEAVE)

    async def terminate(self, silent: Silent) -> bool:
        """End all connections of a silent process; False if it has sent a statement since."""
        count = await self.connection.fetchval(_TERMINATE, silent.pid, silent.name, SILENT_SECONDS)
        return bool(count)


async def holders(connection: Any) -> dict[str, frozenset[int]]:
    """Return the shards of each process that works, by the name of its connections."""
    rows = await connection.fetch(_HOLDERS, await class_of(connection), SHARDS)
    return {row["name"]: frozenset(row["shards"] or ()) for row in rows}


async def class_of(connection: Any) -> int:
    """Return the class of this genhook's locks, from the id that its first migration stored."""
    return crc32(str(await connection.fetchval(_CLASS)).encode()) >> 1


async def begin(connection: Any) -> Locks:
    """Return the locks of a connection; StorageError if sessions are hidden from each other."""
    pid = await connection.fetchval(_PID)
    if pid != connection.get_server_pid():
        raise StorageError(POOLED)
    state = await connection.fetchval(_OWN_STATE)
    if state in (None, "disabled"):
        raise StorageError(UNTRACKED if state else _CHANGED_ROLE)
    begun = Locks(connection, await class_of(connection), pid)
    if (await begun.read_view()).is_hidden:
        raise OtherRoleError(
            "the activity of another worker cannot be seen: all workers must use one role"
        )
    return begun
