"""What must hold: every floor and ceiling, in one table. A run that misses one fails."""

from typing import Literal, NamedTuple


class Floor(NamedTuple):
    """A figure of a measurement, and what its median must not be under (or over)."""

    measurement: str
    figure: str
    sign: Literal["≥", "≤"]
    limit: float
    unit: str
    says: str

    def holds(self, value: float) -> bool:
        """False for what is no number, too."""
        return value >= self.limit if self.sign == "≥" else value <= self.limit


FLOORS = (
    Floor("counts", "callback_batch_statements", "≤", 3.2, "", "statements: a callback, of 16"),
    Floor("counts", "callback_batch_bytes", "≤", 5_000, "bytes", "log: a callback, of 16"),
    Floor("counts", "callback_pages", "≤", 5, "", "pages: a callback alone"),
    Floor("counts", "callback_trees", "≤", 3, "", "trees: a callback"),
    Floor("counts", "outcome_batch_statements", "≤", 8, "", "statements: an outcome, of 16"),
    Floor("counts", "outcome_batch_bytes", "≤", 17_000, "bytes", "log: an outcome, of 16"),
    Floor("counts", "outcome_pages", "≤", 20, "", "pages: an outcome alone"),
    Floor("counts", "outcome_for_ten_batch_statements", "≤", 17, "", "statements: for ten, of 16"),
    Floor("counts", "outcome_for_ten_batch_bytes", "≤", 26_000, "bytes", "log: for ten, of 16"),
    Floor("counts", "outcome_for_ten_pages", "≤", 25, "", "pages: for ten, alone"),
    Floor("counts", "polled_outcome_batch_statements", "≤", 9, "", "statements: by poll, of 16"),
    Floor("counts", "polled_outcome_batch_bytes", "≤", 14_000, "bytes", "log: by poll, of 16"),
    Floor("counts", "polled_outcome_pages", "≤", 20, "", "pages: by poll, alone"),
    Floor("counts", "poll_batch_statements", "≤", 5, "", "statements: a poll without news, of 16"),
    Floor("counts", "poll_batch_bytes", "≤", 2_600, "bytes", "log: a poll without news, of 16"),
    Floor("counts", "poll_pages", "≤", 5, "", "pages: a poll without news, alone"),
    Floor("counts", "attempt_statements", "≤", 5, "", "statements: a recorded attempt alone"),
    Floor("counts", "attempt_pages", "≤", 4.5, "", "pages: a recorded attempt alone"),
    Floor("counts", "attempt_trees", "≤", 3, "", "trees: a recorded attempt"),
    Floor("callbacks", "first_of_ceiling", "≥", 0.33, "", "durable callbacks, of the bare server"),
    Floor("callbacks", "times_by_hand", "≥", 12, "x", "durable callbacks, over the one by hand"),
    Floor("one-client", "p50_ms", "≤", 1.0, "ms", "a lone callback's answer, median"),
    Floor("one-client", "p99_ms", "≤", 3.0, "ms", "a lone callback's answer, 99th percentile"),
    Floor("start", "bare_starts", "≤", 8, "x", "start to first answer, in starts of Python alone"),
    Floor("start", "memory_mb", "≤", 50, "MB", "memory of an idle process"),
    Floor("sender", "of_bare", "≥", 0.65, "", "the sender, of a bare protocol"),
    Floor("sender", "times_aiohttp", "≥", 3, "x", "the sender, over aiohttp"),
    Floor("deliveries", "of_bare", "≥", 0.18, "", "signed, recorded deliveries, of the same"),
    Floor("latency", "one_p50_ms", "≤", 2.0, "ms", "callback in, webhook out, median"),
    Floor("latency", "one_p99_ms", "≤", 5.0, "ms", "callback in, webhook out, 99th percentile"),
    Floor("latency", "ten_p50_ms", "≤", 2.5, "ms", "the same for ten subscribers, median"),
    Floor("latency", "ten_p99_ms", "≤", 6.0, "ms", "the same for ten, 99th percentile"),
    Floor("backlog", "ordered_ratio", "≤", 1.15, "x", "a delivery of a million, of 10,000"),
    Floor("backlog", "scattered_ratio", "≤", 2.5, "x", "the same, due in no order"),
    Floor("idle", "percent_of_core", "≤", 2.0, "%", "CPU with a million deliveries not yet due"),
    Floor("isolation", "ratio", "≥", 0.9, "", "the healthy while one in ten hangs"),
    Floor("polling", "of_budget", "≥", 0.9, "", "questions a second, of the budget"),
    Floor("polling", "of_budget", "≤", 1.1, "", "questions a second, of the budget"),
    Floor("polling", "memory_mb", "≤", 100, "MB", "memory with 10,000 open tasks"),
    Floor("lists", "worst_p99_ms", "≤", 20, "ms", "the slowest list or count, a million rows"),
)
