"""Metrics as plain numbers; prometheus_client renders them on request."""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate
from types import SimpleNamespace
from typing import Any, Literal

from service.model.callback import VERDICTS

_ALL: "list[Numbers | Histogram]" = []


class Numbers:
    """One number for each combination of label values, of which there must be few.

    values: values of the only label that have a number, 0, from the start. Prometheus sees no
    increase in the first sample of a series, so an alert would miss what happens once.
    """

    def __init__(
        self,
        kind: Literal["Counter", "Gauge"],
        name: str,
        description: str,
        *labels: str,
        values: Sequence[str] = (),
    ) -> None:
        self.kind, self.name, self.description, self.labels = kind, name, description, labels
        known = [(value,) for value in values] if labels else [()]
        self.values: dict[tuple[str, ...], float] = defaultdict(float, dict.fromkeys(known, 0))
        _ALL.append(self)

    def add(self, amount: float, *labels: str) -> None:
        """Add `amount` to the number with these label values."""
        self.values[labels] += amount

    def set(self, number: float) -> None:
        """Set the number of a metric without labels."""
        self.values[()] = number

    def rows(self) -> Iterable[tuple[Any, ...]]:
        """Return pairs (label values, number), as prometheus_client's `add_metric` takes them."""
        return self.values.items()


class Histogram:
    """Durations in seconds, by one label."""

    kind = "Histogram"

    def __init__(self, name: str, description: str, label: str, bounds: Sequence[float]) -> None:
        self.name, self.description, self.labels = name, description, (label,)
        self.bounds = tuple(bounds)
        self.counts: dict[str, list[int]] = defaultdict(lambda: [0] * (len(bounds) + 1))
        self.sums: dict[str, float] = defaultdict(float)
        _ALL.append(self)

    def observe(self, seconds: float, label: str) -> None:
        """Count one duration."""
        self.counts[label][bisect_left(self.bounds, seconds)] += 1
        self.sums[label] += seconds

    def rows(self) -> Iterable[tuple[Any, ...]]:
        """Yield (label values, buckets, sum), as prometheus_client's `add_metric` takes them."""
        edges = [*(f"{bound:g}" for bound in self.bounds), "+Inf"]
        for label, counts in self.counts.items():
            totals = map(float, accumulate(counts))
            yield [label], list(zip(edges, totals, strict=True)), self.sums[label]


_counter = partial(Numbers, "Counter")
_gauge = partial(Numbers, "Gauge")
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0)
callbacks = _counter(
    "genhook_callbacks",
    "Callbacks received, by verdict; `not_stored`: answered 503 or 500.",
    "verdict",
    values=(*VERDICTS, "not_kept", "not_stored"),
)
submissions = _counter(
    "genhook_submissions",
    "Submissions, by outcome.",
    "outcome",
    values=("taken", "refused", "put_off", "lost"),
)
polls = _counter(
    "genhook_polls",
    "Polls of upstream, by outcome.",
    "outcome",
    values=("processing", "succeeded", "failed", "absent", "throttled", "unwell", "other_task"),
)
unknown_words = _counter(
    "genhook_unknown_words", "Answers and callbacks with a status word that genhook does not know."
)
troubled_routes = _counter(
    "genhook_troubled_routes", "How often a route of upstream began to decline all questions."
)
generations = _counter(
    "genhook_generations_ended",
    "Generations, by outcome.",
    "status",
    values=("succeeded", "failed", "timed_out", "canceled"),
)
attempts = _counter(
    "genhook_attempts",
    "Delivery attempts, by outcome.",
    "outcome",
    values=("delivered", "retried", "dead"),
)
attempt_seconds = Histogram("genhook_attempt_seconds", "Attempt duration.", "outcome", SECONDS)
requests = _counter("genhook_requests", "API requests, by status code.", "status")
log_lines_dropped = _counter(
    "genhook_log_lines_dropped", "Log lines lost because nobody read them."
)
write_queue = _gauge("genhook_write_queue", "Units that wait for the next commit.")
shards = _gauge(
    "genhook_shards", "Shards that this process works on, of 64; 0 where it only serves."
)
in_flight = _gauge("genhook_attempts_in_flight", "Attempts under way.")
backlog = _gauge("genhook_deliveries_waiting", "Due deliveries in memory that wait for a slot.")

owed_to = _gauge("genhook_subscribers_owed", "Subscribers with a pending delivery.")
oldest = _gauge("genhook_oldest_undelivered_seconds", "Age of the oldest pending delivery.")
oldest_by_subscriber = _gauge(
    "genhook_subscriber_oldest_undelivered_seconds",
    "Age of the oldest pending delivery, of the subscribers that wait the longest.",
    "subscriber_id",
)


def render(role: str) -> bytes:
    """Return every metric in Prometheus' text format, labelled with the role of the process."""
    from prometheus_client import core, generate_latest  # noqa: PLC0415  cold start

    families = []
    for metric in _ALL:
        new_family = getattr(core, f"{metric.kind}MetricFamily")
        labels = (*metric.labels, "role")
        families.append(new_family(metric.name, metric.description, labels=labels))
        for values, *row in metric.rows():
            families[-1].add_metric((*values, role), *row)
    return generate_latest(SimpleNamespace(collect=lambda: families))
