"""Metrics as plain numbers; prometheus_client renders them on request."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

_ALL: "list[Counter | Histogram | Gauge | Gauges]" = []


class Counter:
    """A count for each combination of label values, which must come from fixed sets."""

    def __init__(self, name: str, description: str, labels: Sequence[str] = ()) -> None:
        self.name, self.description, self.labels = name, description, tuple(labels)
        self.values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}
        _ALL.append(self)

    def add(self, amount: float, *labels: str) -> None:
        """Add `amount` to the count with these label values."""
        self.values[labels] = self.values.get(labels, 0) + amount

    def family(self) -> Any:
        """The counts as prometheus_client takes them."""
        from prometheus_client.core import CounterMetricFamily  # noqa: PLC0415  cold start

        family = CounterMetricFamily(self.name, self.description, labels=self.labels)
        for labels, value in self.values.items():
            family.add_metric(labels, value)
        return family


class Histogram:
    """Durations in seconds, by one label."""

    def __init__(self, name: str, description: str, label: str, bounds: Sequence[float]) -> None:
        self.name, self.description, self.label = name, description, label
        self.bounds = tuple(bounds)
        self.counts: dict[str, list[int]] = {}
        self.sums: dict[str, float] = {}
        _ALL.append(self)

    def observe(self, seconds: float, label: str) -> None:
        """Count one duration."""
        counts = self.counts.get(label)
        if counts is None:
            counts = self.counts[label] = [0] * (len(self.bounds) + 1)
        counts[bisect_left(self.bounds, seconds)] += 1
        self.sums[label] = self.sums.get(label, 0.0) + seconds

    def family(self) -> Any:
        """The histogram as prometheus_client takes it."""
        from prometheus_client.core import HistogramMetricFamily  # noqa: PLC0415  cold start

        family = HistogramMetricFamily(self.name, self.description, labels=[self.label])
        edges = [*(f"{bound:g}" for bound in self.bounds), "+Inf"]
        for label, counts in self.counts.items():
            total, buckets = 0, []
            for edge, count in zip(edges, counts, strict=True):
                total += count
                buckets.append((edge, float(total)))
            family.add_metric([label], buckets, self.sums[label])
        return family


class Gauge:
    """A value that is read when the metrics are rendered."""

    def __init__(self, name: str, description: str) -> None:
        self.name, self.description = name, description
        self.read: Callable[[], float] = lambda: 0.0
        _ALL.append(self)

    def family(self) -> Any:
        """The value as prometheus_client takes it."""
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415  cold start

        return GaugeMetricFamily(self.name, self.description, value=self.read())


class Gauges:
    """Values by one label, set before rendering; the caller bounds their number."""

    def __init__(self, name: str, description: str, label: str) -> None:
        self.name, self.description, self.label = name, description, label
        self.values: Mapping[str, float] = {}
        _ALL.append(self)

    def family(self) -> Any:
        """The values as prometheus_client takes them."""
        from prometheus_client.core import GaugeMetricFamily  # noqa: PLC0415  cold start

        family = GaugeMetricFamily(self.name, self.description, labels=[self.label])
        for value_label, value in self.values.items():
            family.add_metric([value_label], value)
        return family


SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0)
callbacks = Counter("genhook_callbacks", "Callbacks received, by verdict.", ["verdict"])
submissions = Counter("genhook_submissions", "Submissions, by outcome.", ["outcome"])
polls = Counter("genhook_polls", "Polls of upstream, by outcome.", ["outcome"])
generations = Counter("genhook_generations_ended", "Generations, by outcome.", ["status"])
attempts = Counter("genhook_attempts", "Delivery attempts, by outcome.", ["outcome"])
attempt_seconds = Histogram("genhook_attempt_seconds", "Attempt duration.", "outcome", SECONDS)
requests = Counter("genhook_requests", "API requests, by status code.", ["status"])
log_lines_dropped = Counter("genhook_log_lines_dropped", "Log lines lost because nobody read them.")
write_queue = Gauge("genhook_write_queue", "Units that wait for the next commit.")
in_flight = Gauge("genhook_attempts_in_flight", "Attempts under way.")
backlog = Gauge("genhook_deliveries_waiting", "Due deliveries in memory that wait for a slot.")

owed_to = Gauge("genhook_subscribers_owed", "Subscribers with a pending delivery.")
oldest = Gauge("genhook_oldest_undelivered_seconds", "Age of the oldest pending delivery.")
oldest_by_subscriber = Gauges(
    "genhook_subscriber_oldest_undelivered_seconds",
    "Age of the oldest pending delivery, of the subscribers that wait the longest.",
    "subscriber_id",
)


class _Collector:
    def collect(self) -> Iterable[Any]:
        return [metric.family() for metric in _ALL]


def render() -> bytes:
    """Every metric in Prometheus' text format."""
    from prometheus_client import CollectorRegistry, generate_latest  # noqa: PLC0415  cold start

    registry = CollectorRegistry()
    registry.register(_Collector())
    return generate_latest(registry)
