"""Metrics of the server, in Prometheus' text format.

The names are vLLM's (`vllm:…`) where the meaning is the same, so that its dashboards and gateways work; metrics that
vLLM does not have begin with `tsugiki:`. The label `model_name` is the name of the base or of the adapter.
"""

import time
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from tsugiki.generation.engine import Engine
from tsugiki.generation.request import Observer, Timing
from tsugiki.serve.served_adapters import ServedAdapters

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)


class Metrics(Observer):
    """Counters and times. The engine's thread changes them, and any thread may read them."""

    def __init__(self, gauges: Collector | None = None) -> None:
        """Begin at 0; `gauges` adds values that are read when the metrics are asked for."""
        self._registry = CollectorRegistry()
        # vLLM does not show the time of the first event of each label either.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        if gauges is not None:
            self._registry.register(gauges)
        self._prompt_tokens = self._counter("vllm:prompt_tokens", "Tokens of prompts.")
        self._new_tokens = self._counter("vllm:generation_tokens", "New tokens.")
        self._queried = self._counter(
            "vllm:prefix_cache_queries", "Tokens of prompts that were looked up in the prefix cache."
        )
        self._found = self._counter(
            "vllm:prefix_cache_hits",
            "Tokens of prompts that were found in the prefix cache and not computed again.",
        )
        self._finished = self._counter(
            "vllm:request_success", "Requests that have ended.", "model_name", "finished_reason"
        )
        self._refused = self._counter("tsugiki:requests_refused", "Requests that were not taken.", "reason")
        self._first_token = self._histogram(
            "vllm:time_to_first_token_seconds", "From the arrival of a request to its first new token."
        )
        self._between = self._histogram("vllm:inter_token_latency_seconds", "Between two new tokens of a request.")
        self._whole = self._histogram("vllm:e2e_request_latency_seconds", "From the arrival of a request to its end.")
        self._queue = self._histogram(
            "vllm:request_queue_time_seconds",
            "From the arrival of a request to the beginning of its prompt's computation.",
        )
        self._prefill = self._histogram(
            "vllm:request_prefill_time_seconds",
            "From the beginning of the computation of a prompt to the first new token.",
        )
        self._decode = self._histogram("vllm:request_decode_time_seconds", "From the first new token to the last one.")

    def begun(self, timing: Timing, prompt_tokens: int) -> None:
        """Record that the computation of a prompt begins. A second call, after a failed batch, changes nothing."""
        if timing.begun is None:
            timing.begun = time.monotonic()
            self._prompt_tokens.labels(timing.model_name).inc(prompt_tokens)
            self._queue.labels(timing.model_name).observe(timing.begun - timing.arrived)

    def found(self, timing: Timing, queried: int, found: int) -> None:
        """Record how many tokens of a prompt were looked up in the prefix cache, and how many were used from it."""
        self._queried.labels(timing.model_name).inc(queried)
        self._found.labels(timing.model_name).inc(found)

    def token(self, timing: Timing) -> None:
        """Record a new token."""
        now, name = time.monotonic(), timing.model_name
        self._new_tokens.labels(name).inc()
        if timing.last is not None:
            self._between.labels(name).observe(now - timing.last)
        if timing.first is None:
            timing.first = now
            self._first_token.labels(name).observe(now - timing.arrived)
            self._prefill.labels(name).observe(now - (timing.begun or timing.arrived))
        timing.last = now

    def ended(self, timing: Timing, reason: str) -> None:
        """Record the end of a request, once: "stop", "length", "abort" if the client disconnected, or "error"."""
        if timing.ended:
            return
        timing.ended = True
        self._finished.labels(timing.model_name, reason).inc()
        self._whole.labels(timing.model_name).observe(time.monotonic() - timing.arrived)
        if timing.first is not None and timing.last is not None:
            self._decode.labels(timing.model_name).observe(timing.last - timing.first)

    def refused(self, reason: str) -> None:
        """Record that a request was not accepted."""
        self._refused.labels(reason).inc()

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        """Return a counter; the client library adds `_total` to its name."""
        return Counter(name, help_text, labels or ("model_name",), registry=self._registry)

    def _histogram(self, name: str, help_text: str) -> Histogram:
        return Histogram(name, help_text, ("model_name",), registry=self._registry, buckets=_SECONDS)


class Gauges(Collector):
    """The present state of a server, read when the metrics are asked for."""

    def __init__(self, engine: Engine, adapters: ServedAdapters) -> None:
        self._engine, self._adapters = engine, adapters

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield each gauge with its present value."""
        engine, base = self._engine, {"model_name": self._adapters.base.name}
        running, waiting = engine.adapters()
        cache = engine.cached_tokens * engine.token_bytes
        yield _gauge("vllm:num_requests_running", "Requests in the batch.", base, engine.running)
        yield _gauge("vllm:num_requests_waiting", "Requests in the queue.", base, engine.waiting)
        part = cache / engine.limits.cache_bytes
        yield _gauge("vllm:kv_cache_usage_perc", "Part of the cache that is used, up to 1.", base, part)
        lora = {
            "max_lora": str(self._adapters.max_loaded),
            "running_lora_adapters": ",".join(running),
            "waiting_lora_adapters": ",".join(waiting),
        }
        snapshot = "Time of this snapshot, in seconds since 1970."
        yield _gauge("vllm:lora_requests_info", snapshot, lora, time.time())
        yield _gauge("tsugiki:kv_cache_bytes", "Bytes of the cache that are used.", base, cache)
        prefixes = "Bytes of the prefix cache that are used."
        yield _gauge("tsugiki:prefix_cache_bytes", prefixes, base, engine.scheduler.prefixes.bytes)
        yield _gauge("tsugiki:adapters_loaded", "Adapters in memory.", base, len(self._adapters.loaded()))


def _gauge(name: str, help_text: str, labels: Mapping[str, str], value: float) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, help_text, labels=[*labels])
    family.add_metric([*labels.values()], value)
    return family
