"""Prometheus metrics of the server and its engine."""

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from jaxdeploy.engine.request import Output
from serve.engine_stats import EngineStats

FIRST_TOKEN_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.25, 2.5, 5, 10, 20, 40, 80)
BETWEEN_TOKENS_BUCKETS = (0.0025, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2, 0.4, 0.8, 2)
END_TO_END_BUCKETS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120, 300, 600)


class Metrics:
    """What is counted and timed here, plus gauges read from the engine when somebody asks.

    Each server has a registry of its own, so that several can live in one process.
    """

    def __init__(self):
        self.registry = CollectorRegistry()
        self.first_token = self._histogram("time_to_first_token", "request to first token", FIRST_TOKEN_BUCKETS)
        self.between_tokens = self._histogram(
            "inter_token_latency", "one token to the next of an answer", BETWEEN_TOKENS_BUCKETS
        )
        self.end_to_end = self._histogram("e2e_request_latency", "request to last token", END_TO_END_BUCKETS)
        self.prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of answers that began")
        self.output_tokens = self._counter("generation_tokens", "Tokens generated")
        self.answers = self._counter("answers", "Answers that ended, by reason", ("finish_reason",))
        self.refused = self._counter("requests_refused", "Requests answered 429 because the queue was full")
        self.aborted = self._counter("requests_aborted", "Requests given up because their client left")
        self.requests = self._counter("http_requests", "HTTP requests, by path and status", ("path", "status"))

    def watch_engine(self, read: Callable[[], EngineStats]) -> None:
        """Report what ``read`` gives, each time the metrics are asked for."""
        self.registry.register(_EngineCollector(read))

    def generated(self, output: Output, timing: Any, now: float) -> None:
        """Count one step's output of one answer.

        Args:
            output: of the engine.
            timing: the answer's ``AnswerTiming``, brought up to date.
            now: ``time.perf_counter()``.
        """
        tokens = len(output.token_ids)
        if tokens:
            self.output_tokens.inc(tokens)
            if timing.last is None:
                self.first_token.observe(now - timing.start)
                if output.index == 0:
                    self.prompt_tokens.inc(output.input_tokens)
            else:
                self.between_tokens.observe((now - timing.last) / tokens)
            timing.last = now
        if output.finish_reason is not None:
            self.answers.labels(output.finish_reason).inc()
            self.end_to_end.observe(now - timing.start)

    def answered(self, path: str, status: int) -> None:
        """Count an HTTP request."""
        self.requests.labels(path, str(status)).inc()

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self.registry)

    def _histogram(self, name: str, what: str, buckets: Iterable[float]) -> Histogram:
        return Histogram(
            f"jaxdeploy_{name}_seconds", f"Seconds from {what}", buckets=tuple(buckets), registry=self.registry
        )

    def _counter(self, name: str, help: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"jaxdeploy_{name}", help, labels, registry=self.registry)


class _EngineCollector(Collector):
    """The engine's state as gauges and counters."""

    def __init__(self, read: Callable[[], EngineStats]):
        self._read = read

    def collect(self) -> Iterable[Metric]:
        stats = self._read()
        gauges = {
            "requests_running": ("Answers in the running batch", stats.running),
            "requests_waiting": ("Answers that wait for a place in the batch", stats.waiting),
            "cache_pages": ("Pages of the KV cache", stats.pages),
            "cache_pages_used": ("Pages of the KV cache in use", stats.pages_used),
            "cache_usage_ratio": ("Share of the KV cache's pages in use", stats.page_use),
        }
        counters = {
            "prefix_cache_queries": ("Prompt tokens looked up in the prefix cache", stats.prefix_queried_tokens),
            "prefix_cache_hits": ("Prompt tokens found in the prefix cache", stats.prefix_hit_tokens),
            "preemptions": ("Answers that gave their pages back and started anew", stats.preemptions),
            "steps": ("Steps that the engine ran", stats.steps),
            "compile_misses": ("Steps compiled after the server was ready; should stay 0", stats.compile_misses),
        }
        for name, (help, value) in gauges.items():
            yield GaugeMetricFamily(f"jaxdeploy_{name}", help, value)
        for name, (help, value) in counters.items():
            yield CounterMetricFamily(f"jaxdeploy_{name}", help, value)
