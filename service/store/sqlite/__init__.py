"""The SQLite engine: connections, commits, schema."""
