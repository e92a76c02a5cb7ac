"""The verdicts on callbacks: what genhook made of each."""

VERDICTS = ("accepted", "duplicate", "late", "unreadable", "rejected")
