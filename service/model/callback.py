"""The verdicts: how genhook classified a callback."""

VERDICTS = ("accepted", "duplicate", "late", "unreadable", "rejected")
