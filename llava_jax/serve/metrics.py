"""What a server counts, for Prometheus. Names are vLLM's where the meaning is the same, so that its dashboards work."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from llava_jax.inference.slot_engine import SlotEngine

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
FINISH_REASONS = ("stop", "length", "abort", "error")


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self):
        registry = self.registry = CollectorRegistry()
        histogram = lambda name, text: Histogram(name, text, registry=registry, buckets=SECONDS)  # noqa: E731
        self._first_token = histogram("vllm:time_to_first_token_seconds", "From arrival to the first token.")
        self._token = histogram("vllm:inter_token_latency_seconds", "Between two tokens of an answer.")
        self._request = histogram("vllm:e2e_request_latency_seconds", "From arrival to the end of all answers.")
        self._prompt_tokens = Counter("vllm:prompt_tokens", "Tokens of answered prompts.", registry=registry)
        self._tokens = Counter("vllm:generation_tokens", "Tokens of answers.", registry=registry)
        self._ends = Counter(
            "vllm:request_success", "Ended answers.", ["finished_reason"], registry=registry
        )  # fmt: skip
        for reason in FINISH_REASONS:
            self._ends.labels(reason)
        self._responses = Counter("llava_jax:responses", "HTTP responses.", ["status"], registry=registry)

    def watch_queue(self, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Reads the number of jobs with and without a slot whenever metrics are asked for."""
        for name, text, value in (
            ("vllm:num_requests_running", "Requests that are answered.", running),
            ("vllm:num_requests_waiting", "Requests that wait for a slot.", waiting),
        ):
            Gauge(name, text, registry=self.registry).set_function(value)

    def watch_engine(self, engine: SlotEngine) -> None:
        """Reads the engine's counters whenever metrics are asked for."""
        self.registry.register(_EngineCollector(engine))

    def first_token(self, seconds: float, prompt_tokens: int) -> None:
        self._first_token.observe(seconds)
        self._prompt_tokens.inc(prompt_tokens)

    def token(self, gap: float | None) -> None:
        """gap: seconds since the token before, None for the first of an answer."""
        self._tokens.inc()
        if gap is not None:
            self._token.observe(gap)

    def choice_end(self, reason: str) -> None:
        """reason: one of FINISH_REASONS."""
        self._ends.labels(reason).inc()

    def job_end(self, seconds: float) -> None:
        self._request.observe(seconds)

    def response(self, status: int) -> None:
        self._responses.labels(str(status)).inc()

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    def __init__(self, engine: SlotEngine):
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        counters = self.engine.counters
        cached, read = counters.prompt_tokens_cached, counters.prompt_tokens_read
        for name, text, value in (
            ("vllm:prefix_cache_queries", "Tokens of prompts.", cached + read),
            ("vllm:prefix_cache_hits", "Tokens of prompts that were read before.", cached),
            ("llava_jax:images_encoded", "Images that were encoded.", counters.images_encoded),
            ("llava_jax:steps", "Decoding steps of all running answers.", counters.steps),
        ):
            yield CounterMetricFamily(name, text, value=value)
        yield GaugeMetricFamily("llava_jax:free_slots", "Slots without an answer.", value=self.engine.free_slots)
        yield GaugeMetricFamily("llava_jax:longest_gap_seconds", "Between two steps.", value=counters.longest_gap)
