"""What /metrics counts, in the form of Prometheus. It knows names and figures, and nothing of what causes them."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from mmada_lite.serve.engine import Engine

_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        r = self._registry
        self._requests = Counter("mmada_requests", "requests answered", ["route", "status"], registry=r)
        self._waited = Histogram("mmada_queue_seconds", "seconds in the queue", buckets=_BUCKETS, registry=r)
        self._first = Histogram("mmada_first_step_seconds", "seconds from arrival to first step", buckets=_BUCKETS, registry=r)
        self._tokens = Counter("mmada_tokens", "tokens written", registry=r)
        self._seconds = Counter("mmada_decoding_seconds", "seconds of decoding: tokens by this are the speed", registry=r)
        self._calls = Counter("mmada_model_calls", "model calls", registry=r)
        self._deaths = Counter("mmada_worker_deaths", "ends of the process that holds the model", registry=r)
        self._memory = Gauge("mmada_resident_bytes", "resident memory", ["process"], registry=r)
        self._queue = Gauge("mmada_queue", "tasks by state", ["state"], registry=r)

    def watch(self, name: str, value: float) -> None:
        """One figure of the engine's."""
        if name == "waited":
            self._waited.observe(value)
        elif name == "first":
            self._first.observe(value)
        else:
            counters = {"calls": self._calls, "tokens": self._tokens, "seconds": self._seconds, "deaths": self._deaths}
            counters[name].inc(value)

    def answered(self, route: str, status: int) -> None:
        self._requests.labels(route, str(status)).inc()

    def page(self, engine: "Engine") -> bytes:
        """The text that a Prometheus reads."""
        self._queue.labels("waiting").set(engine.waiting)
        self._queue.labels("running").set(engine.running)
        self._memory.labels("server").set(resident_bytes(os.getpid()))
        self._memory.labels("worker").set(resident_bytes(engine.pid) if engine.pid else 0)
        return generate_latest(self._registry)


def resident_bytes(pid: int) -> int:
    """Resident memory of a process, 0 where the system does not say."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0
