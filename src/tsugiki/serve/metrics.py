"""Metrics of the server, in Prometheus' text format.

The names are vLLM's (`vllm:…`) where the meaning is the same, so that its dashboards and gateways work; metrics that
vLLM does not have begin with `tsugiki:`. The label `model_name` is the name of the base or of the adapter.
"""

import time
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from tsugiki.generation.request import Observer, Timing

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)
_TIMES = {
    "vllm:time_to_first_token_seconds": "From the arrival of a request to its first new token.",
    "vllm:inter_token_latency_seconds": "Between two new tokens of a request.",
    "vllm:e2e_request_latency_seconds": "From the arrival of a request to its end.",
    "vllm:request_queue_time_seconds": "From the arrival of a request to the beginning of its prompt's computation.",
    "vllm:request_prefill_time_seconds": "From the beginning of the computation of a prompt to the first new token.",
    "vllm:request_decode_time_seconds": "From the first new token to the last one.",
}
_COUNTS = {
    "vllm:prompt_tokens_total": "Tokens of prompts.",
    "vllm:generation_tokens_total": "New tokens.",
    "vllm:prefix_cache_queries_total": "Tokens of prompts that were looked up in the prefix cache.",
    "vllm:prefix_cache_hits_total": "Tokens of prompts that were found in the prefix cache and not computed again.",
}
_FINISHED = "vllm:request_success_total"
_REFUSED = "tsugiki:requests_refused_total"

Labels: TypeAlias = tuple[tuple[str, str], ...]
Sample: TypeAlias = tuple[Labels, float]
Kind: TypeAlias = Literal["counter", "gauge", "histogram"]


@dataclass
class Histogram:
    """A histogram of durations in seconds, with the bounds `_SECONDS`."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(_SECONDS) + 1))
    """Number of durations between two bounds; the last number is for durations above the largest bound."""
    total: float = 0.0
    """Sum of the durations."""

    def observe(self, seconds: float) -> None:
        """Count a duration."""
        self.counts[bisect_left(_SECONDS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str, labels: Labels) -> list[str]:
        """Return the histogram in Prometheus' text format."""
        buckets, count = [], 0
        for bound, number in zip([*map(str, _SECONDS), "+Inf"], self.counts, strict=True):
            count += number
            buckets.append(f"{name}_bucket{_text((*labels, ('le', bound)))} {count}")
        return [*buckets, f"{name}_sum{_text(labels)} {self.total}", f"{name}_count{_text(labels)} {count}"]


class Metrics(Observer):
    """Counters and times. The engine's thread changes them, and any thread may read them."""

    def __init__(self) -> None:
        self._counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._finished: Counter[tuple[str, str]] = Counter()
        self._refused: Counter[str] = Counter()
        self._times: defaultdict[tuple[str, str], Histogram] = defaultdict(Histogram)

    def begun(self, timing: Timing, prompt_tokens: int) -> None:
        """Record that the computation of a prompt begins. A second call, after a failed batch, changes nothing."""
        if timing.begun is None:
            timing.begun = time.monotonic()
            self._counts["vllm:prompt_tokens_total"][timing.model_name] += prompt_tokens
            self._observe("vllm:request_queue_time_seconds", timing, timing.begun - timing.arrived)

    def found(self, timing: Timing, queried: int, found: int) -> None:
        """Record how many tokens of a prompt were looked up in the prefix cache, and how many were used from it."""
        self._counts["vllm:prefix_cache_queries_total"][timing.model_name] += queried
        self._counts["vllm:prefix_cache_hits_total"][timing.model_name] += found

    def token(self, timing: Timing) -> None:
        """Record a new token."""
        now = time.monotonic()
        self._counts["vllm:generation_tokens_total"][timing.model_name] += 1
        if timing.last is not None:
            self._observe("vllm:inter_token_latency_seconds", timing, now - timing.last)
        if timing.first is None:
            timing.first = now
            self._observe("vllm:time_to_first_token_seconds", timing, now - timing.arrived)
            self._observe("vllm:request_prefill_time_seconds", timing, now - (timing.begun or timing.arrived))
        timing.last = now

    def ended(self, timing: Timing, reason: str) -> None:
        """Record the end of a request, once: "stop", "length", "abort" if the client disconnected, or "error"."""
        if timing.ended:
            return
        timing.ended = True
        self._finished[timing.model_name, reason] += 1
        self._observe("vllm:e2e_request_latency_seconds", timing, time.monotonic() - timing.arrived)
        if timing.first is not None and timing.last is not None:
            self._observe("vllm:request_decode_time_seconds", timing, timing.last - timing.first)

    def refused(self, reason: str) -> None:
        """Record that a request was not accepted."""
        self._refused[reason] += 1

    def text(self, gauges: Mapping[str, tuple[str, Sequence[Sample]]]) -> str:
        """Return all metrics in Prometheus' text format.

        Args:
            gauges: name -> (help text, values with their labels).
        """
        lines: list[str] = []
        for name, (help_text, samples) in gauges.items():
            lines += _metric(name, help_text, "gauge", samples)
        for name, help_text in _COUNTS.items():
            counts = [(_model(model), count) for model, count in self._counts[name].copy().items()]
            lines += _metric(name, help_text, "counter", counts)
        finished = [
            ((*_model(model), ("finished_reason", reason)), count)
            for (model, reason), count in self._finished.copy().items()
        ]
        lines += _metric(_FINISHED, "Requests that have ended.", "counter", finished)
        refused = [((("reason", reason),), count) for reason, count in self._refused.copy().items()]
        lines += _metric(_REFUSED, "Requests that were not taken.", "counter", refused)
        times = self._times.copy()
        for name, help_text in _TIMES.items():
            lines += _metric(name, help_text, "histogram", ())
            for (metric, model), histogram in times.items():
                lines += histogram.lines(name, _model(model)) if metric == name else []
        return "\n".join(lines) + "\n"

    def _observe(self, name: str, timing: Timing, seconds: float) -> None:
        self._times[name, timing.model_name].observe(seconds)


def _model(name: str) -> Labels:
    return (("model_name", name),)


def _metric(name: str, help_text: str, kind: Kind, samples: Iterable[Sample]) -> list[str]:
    values = [f"{name}{_text(labels)} {value}" for labels, value in samples]
    return [f"# HELP {name} {help_text}", f"# TYPE {name} {kind}", *values]


def _text(labels: Labels) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")

    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in labels) + "}" if labels else ""
