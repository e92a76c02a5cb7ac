"""The bounds of the figures, in one table. A run that misses one of them fails."""

from typing import Literal, NamedTuple


class Floor(NamedTuple):
    """A bound for the median of one figure: at least (≥) or at most (≤) the limit."""

    measurement: str
    figure: str
    sign: Literal["≥", "≤"]
    limit: float
    unit: str
    label: str

    def holds(self, value: float) -> bool:
        """Return whether the value keeps the bound; NaN does not."""
        return value >= self.limit if self.sign == "≥" else value <= self.limit


# "of 16": each of sixteen units that are stored in one batch.
FLOORS = (
    Floor("counts", "callback_batch_statements", "≤", 3.2, "", "callback of 16: statements"),
    Floor("counts", "callback_batch_bytes", "≤", 7_600, "bytes", "callback of 16: WAL"),
    Floor("counts", "callback_pages", "≤", 5, "", "single callback: pages"),
    Floor("counts", "callback_trees", "≤", 3, "", "single callback: trees"),
    Floor("counts", "outcome_batch_statements", "≤", 8, "", "outcome of 16: statements"),
    Floor("counts", "outcome_batch_bytes", "≤", 22_700, "bytes", "outcome of 16: WAL"),
    Floor("counts", "outcome_pages", "≤", 17.5, "", "single outcome: pages"),
    Floor("counts", "outcome_for_ten_batch_statements", "≤", 17, "", "for ten, of 16: statements"),
    Floor("counts", "outcome_for_ten_batch_bytes", "≤", 33_000, "bytes", "for ten, of 16: WAL"),
    Floor("counts", "outcome_for_ten_pages", "≤", 22.5, "", "single outcome for ten: pages"),
    Floor("counts", "polled_outcome_batch_statements", "≤", 9, "", "by poll, of 16: statements"),
    Floor("counts", "polled_outcome_batch_bytes", "≤", 18_400, "bytes", "by poll, of 16: WAL"),
    Floor("counts", "polled_outcome_pages", "≤", 15.5, "", "single outcome by poll: pages"),
    Floor("counts", "poll_batch_statements", "≤", 5, "", "unchanged poll of 16: statements"),
    Floor("counts", "poll_batch_bytes", "≤", 3_450, "bytes", "unchanged poll of 16: WAL"),
    Floor("counts", "poll_pages", "≤", 3.6, "", "single unchanged poll: pages"),
    Floor("counts", "attempt_statements", "≤", 5, "", "single recorded attempt: statements"),
    Floor("counts", "attempt_pages", "≤", 3.3, "", "single recorded attempt: pages"),
    Floor("counts", "attempt_trees", "≤", 3, "", "single recorded attempt: trees"),
    Floor("callbacks", "first_of_ceiling", "≥", 0.33, "", "durable callbacks / bare server"),
    Floor("callbacks", "times_by_hand", "≥", 12, "x", "durable callbacks / hand-written handler"),
    Floor("one-client", "p50_ms", "≤", 1.0, "ms", "answer to a single client, median"),
    Floor("one-client", "p99_ms", "≤", 3.0, "ms", "answer to a single client, p99"),
    Floor("start", "bare_starts", "≤", 12, "x", "start to first answer / bare Python start"),
    Floor("start", "memory_mb", "≤", 50, "MB", "memory of an idle process"),
    Floor("sender", "of_bare", "≥", 0.65, "", "sender / bare protocol"),
    Floor("sender", "times_aiohttp", "≥", 3, "x", "sender / aiohttp"),
    Floor("deliveries", "of_bare", "≥", 0.18, "", "recorded deliveries / bare protocol"),
    Floor("latency", "one_p50_ms", "≤", 2.0, "ms", "callback in to webhook out, median"),
    Floor("latency", "one_p99_ms", "≤", 5.0, "ms", "callback in to webhook out, p99"),
    Floor("latency", "ten_p50_ms", "≤", 2.5, "ms", "the same, ten subscribers, median"),
    Floor("latency", "ten_p99_ms", "≤", 6.0, "ms", "the same, ten subscribers, p99"),
    Floor("backlog", "ordered_ratio", "≤", 1.15, "x", "delivery, 1,000,000 / 20,000 waiting"),
    Floor("backlog", "scattered_ratio", "≤", 2.5, "x", "the same, random due times"),
    Floor("idle", "percent_of_core", "≤", 2.0, "%", "CPU with 1,000,000 deliveries not yet due"),
    Floor("isolation", "ratio", "≥", 0.9, "", "healthy subscribers while one in ten is slow"),
    Floor("polling", "of_budget", "≥", 0.9, "", "polls per second / poll budget"),
    Floor("polling", "of_budget", "≤", 1.1, "", "polls per second / poll budget"),
    Floor("polling", "memory_mb", "≤", 100, "MB", "memory with 10,000 open tasks"),
    Floor("lists", "worst_p99_ms", "≤", 20, "ms", "slowest list or count, 1,000,000 rows"),
    Floor(
        "whole",
        "postgres_cpu_of_sqlite",
        "≤",
        2.2,
        "x",
        "CPU of a whole event, PostgreSQL / SQLite",
    ),
    Floor("claims", "many_of_few", "≥", 0.8, "", "claims, 1,000,000 / 10,000 rows, PostgreSQL"),
    Floor(
        "two-processes", "longest_ms", "≤", 250, "ms", "longest answer, web and worker on a file"
    ),
    Floor("minute", "deadlocks", "≤", 0, "", "deadlocks in a minute on PostgreSQL"),
    Floor("pages", "worst_p50_ms", "≤", 50, "ms", "slowest page, 1,000,000 rows, median"),
)
