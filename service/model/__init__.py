"""Data types, ids, times and errors. Fields `*_at` are milliseconds since the epoch, UTC."""
