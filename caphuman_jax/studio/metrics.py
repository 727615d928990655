"""Counters for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """What a server counts; `waiting` and `sessions` are asked when they are read."""

    def __init__(self, waiting: Callable[[], int], sessions: Callable[[], int]):
        self._registry = registry = CollectorRegistry()
        name = "caphuman_{}".format
        self.requests = Counter(
            name("requests"), "requests answered", ("route", "status"), registry=registry
        )
        self.pictures = Counter(name("pictures"), "pictures made", registry=registry)
        self.cancelled = Counter(
            name("cancelled"), "requests whose client left or cancelled", registry=registry
        )
        self.seconds = Histogram(
            name("seconds"),
            "time of a request for pictures by stage: queue, prepare, pictures",
            ("stage",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch = Histogram(
            name("batch"), "pictures made at a time", buckets=_BATCHES, registry=registry
        )
        Gauge(name("waiting"), "requests that wait or are made", registry=registry).set_function(
            waiting
        )
        Gauge(name("sessions"), "sessions that are open", registry=registry).set_function(sessions)

    def text(self) -> bytes:
        """In the text format of Prometheus."""
        return generate_latest(self._registry)
