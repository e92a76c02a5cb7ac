"""PostgreSQL: the same units as on SQLite, for any number of processes."""

from service.store.postgres.database import Database
from service.store.postgres.ownership import ShardLocks

__all__ = ["Database", "ShardLocks"]
