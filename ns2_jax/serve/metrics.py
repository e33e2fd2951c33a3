"""What Prometheus reads at GET /metrics."""

from __future__ import annotations

import prometheus_client as prometheus

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    """Counters of one server; each has its own registry, so that several can live in one process."""

    def __init__(self):
        self.registry = registry = prometheus.CollectorRegistry()
        histogram = lambda name, text, buckets=SECONDS: prometheus.Histogram(f"ns2_jax_{name}", text, registry=registry, buckets=buckets)
        self.requests = prometheus.Counter("ns2_jax_requests", "answers by route and status", ["route", "status"], registry=registry)
        self.refused = prometheus.Counter("ns2_jax_refused", "refusals to relieve the server, by reason", ["reason"], registry=registry)
        self.gone = prometheus.Counter("ns2_jax_gone", "clients that left before their answer", registry=registry)
        self.speech = prometheus.Counter("ns2_jax_speech_seconds", "seconds of speech made", registry=registry)
        self.waiting = prometheus.Gauge("ns2_jax_waiting", "requests in the queue", registry=registry)
        self.voices = prometheus.Gauge("ns2_jax_voices", "voices registered", registry=registry)
        self.wait = histogram("wait_seconds", "seconds in the queue")
        self.speaking = histogram("batch_seconds", "seconds that a batch took")
        self.first_audio = histogram("first_audio_seconds", "seconds from a streamed request to its first audio")
        self.batch = histogram("batch_rows", "requests spoken together", (1, 2, 4, 8, 16, 32))

    def text(self) -> bytes:
        return prometheus.generate_latest(self.registry)
