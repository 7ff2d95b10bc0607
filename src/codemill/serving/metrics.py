"""What the server counts, in the text format that Prometheus reads."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field

from codemill.engine.engine import EngineStats

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_HELP = {
    "request_seconds": "From the request's first byte to the answer's last.",
    "first_token_seconds": "From the request to the first token of its answer.",
    "token_seconds": "Between two tokens of one answer, on average.",
}


@dataclass(slots=True)
class Histogram:
    """Counts of seconds by their upper bounds."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(SECONDS) + 1))
    total: float = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(SECONDS, seconds)] += 1
        self.total += seconds


class Metrics:
    """Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: dict[tuple[str, int], int] = defaultdict(int)
        self._histograms: dict[tuple[str, str], Histogram] = defaultdict(Histogram)
        self.open_requests = 0

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        with self._lock:
            self._requests[endpoint, status] += 1
            self._histograms["request_seconds", endpoint].observe(seconds)

    def answer(self, endpoint: str, first_token: float, tokens: int, seconds: float) -> None:
        """An answer of `tokens` tokens: the first after `first_token` seconds, all of them after `seconds`."""
        with self._lock:
            self._histograms["first_token_seconds", endpoint].observe(first_token)
            if tokens > 1:
                self._histograms["token_seconds", endpoint].observe((seconds - first_token) / (tokens - 1))

    def text(self, stats: EngineStats, sequences: int) -> str:
        """Everything, with the engine's figures; `sequences` have been admitted and have not ended."""
        with self._lock:
            lines = _counter("requests_total", "Requests by endpoint and status.")
            for (endpoint, status), count in sorted(self._requests.items()):
                lines.append(f'codemill_requests_total{{endpoint="{endpoint}",status="{status}"}} {count}')
            for name, text in _HELP.items():
                lines += [f"# HELP codemill_{name} {text}", f"# TYPE codemill_{name} histogram"]
                for (own, endpoint), histogram in sorted(self._histograms.items()):
                    if own == name:
                        lines += _histogram_lines(name, endpoint, histogram)
        for name, value, text in _counters(stats):
            lines += [*_counter(name, text), f"codemill_{name} {value}"]
        for name, value, text in [*_gauges(stats), ("open_requests", self.open_requests, "Requests being answered."),
                                  ("sequences", sequences, "Answers asked for that have not ended.")]:  # fmt: skip
            lines += [f"# HELP codemill_{name} {text}", f"# TYPE codemill_{name} gauge", f"codemill_{name} {value}"]
        return "\n".join(lines) + "\n"


def _counter(name: str, text: str) -> list[str]:
    return [f"# HELP codemill_{name} {text}", f"# TYPE codemill_{name} counter"]


def _histogram_lines(name: str, endpoint: str, histogram: Histogram) -> list[str]:
    lines, below = [], 0
    for bound, count in zip((*map(str, SECONDS), "+Inf"), histogram.counts, strict=True):
        below += count
        lines.append(f'codemill_{name}_bucket{{endpoint="{endpoint}",le="{bound}"}} {below}')
    return [
        *lines,
        f'codemill_{name}_sum{{endpoint="{endpoint}"}} {histogram.total:.6f}',
        f'codemill_{name}_count{{endpoint="{endpoint}"}} {below}',
    ]


def _counters(stats: EngineStats) -> list[tuple[str, int, str]]:
    return [
        ("prompt_tokens_total", stats.prompt_tokens, "Tokens of prompts, a prompt with n answers n times."),
        ("completion_tokens_total", stats.completion_tokens, "Tokens written."),
        ("cached_tokens_total", stats.cached_tokens, "Tokens of prompts that came out of the prefix cache."),
        ("drafted_tokens_total", stats.drafted_tokens, "Tokens proposed by speculation."),
        ("accepted_tokens_total", stats.accepted_tokens, "Proposed tokens that were kept."),
        ("steps_total", stats.steps, "Steps of the engine."),
        ("preemptions_total", stats.preemptions, "Times a sequence gave its memory to another."),
    ]


def _gauges(stats: EngineStats) -> list[tuple[str, int, str]]:
    return [
        ("running_sequences", stats.running, "Answers being written."),
        ("waiting_sequences", stats.waiting, "Answers that wait for their turn."),
        ("kv_used_tokens", stats.kv_used, "Places of the key-value cache in use."),
        ("kv_cached_tokens", stats.kv_cached, "Places kept for reuse only."),
        ("kv_total_tokens", stats.kv_total, "Places of the key-value cache."),
    ]
