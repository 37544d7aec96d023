"""What a server tells Prometheus: vLLM's names, so that dashboards keep working, and stage times of ours.

Counters and histograms are fed as answers grow; what the engine counts is read when it is asked for.
"""

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tilewise.inputs.media.fetch_context import Stage

_REQUEST_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 5.0)
_LABELS = ("model_name",)


class Metrics(Collector):
    """The metrics of one server, in a registry of their own. Safe to use from any thread."""

    def __init__(self, model_name: str, read_stats: Callable[[], Mapping[str, float]]) -> None:
        """`read_stats` gives the engine's counters, or nothing while there is none."""
        self._model_name, self._read_stats = model_name, read_stats
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self.first_token_s = self._time("vllm:time_to_first_token", "From arrival to the first token.", _REQUEST_S)
        self.inter_token_s = self._time("vllm:inter_token_latency", "From one token to the next.", _TOKEN_S)
        self.request_s = self._time("vllm:e2e_request_latency", "From arrival to the last token.", _REQUEST_S)
        self.build_s = self._time("tilewise:build", "Fetching, decoding and tokenising of a request.", _REQUEST_S)
        fetch_s = self._time("tilewise:picture_fetch", "Fetching of a picture by its URL.", _REQUEST_S)
        decode_s = self._time("tilewise:picture_decode", "Decoding of a picture, with its wait.", _REQUEST_S)
        self._stages: dict[Stage, Histogram] = {"fetch": fetch_s, "decode": decode_s}
        self.prompt_tokens = self._count("vllm:prompt_tokens", "Tokens of the prompts that were answered.")
        self.generation_tokens = self._count("vllm:generation_tokens", "Tokens of answers.")
        self.opened = self._count("tilewise:requests_opened", "Answers that were begun.")
        self.ended = self._count("tilewise:requests_ended", "Answers that ended, in whatever way.")
        labels = (*_LABELS, "finished_reason")
        self._success = Counter("vllm:request_success", "Answers by their ends.", labels, registry=self._registry)

    def count_finished(self, reason: str) -> None:
        """Count an answer that ended for `reason`."""
        self._success.labels(self._model_name, reason).inc()

    def observe_stage(self, stage: Stage, seconds: float) -> None:
        """Count the time of a picture's fetching or decoding."""
        self._stages[stage].observe(seconds)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """What the engine counts."""
        stats = self._read_stats()
        usage = stats.get("blocks_held", 0.0) / max(stats.get("blocks", 0.0), 1.0)
        running, waiting = stats.get("requests_running", 0.0), stats.get("requests_waiting", 0.0)
        yield self._tell(GaugeMetricFamily("vllm:num_requests_running", "Answers that run.", labels=_LABELS), running)
        yield self._tell(GaugeMetricFamily("vllm:num_requests_waiting", "Answers that wait.", labels=_LABELS), waiting)
        yield self._tell(GaugeMetricFamily("vllm:kv_cache_usage_perc", "Share of KV blocks.", labels=_LABELS), usage)
        for name in ("queries", "hits"):
            family = CounterMetricFamily(f"vllm:prefix_cache_{name}", "Prompt tokens.", labels=_LABELS)
            yield self._tell(family, stats.get(f"prefix_{name}", 0.0))
        stages = CounterMetricFamily("tilewise:stage_seconds", "Time by stage.", labels=(*_LABELS, "stage"))
        for name, value in stats.items():
            if name.endswith("_s") and name != "heartbeat_age_s":
                stages.add_metric([self._model_name, name.removesuffix("_s")], value)
        yield stages

    def _tell(self, family: GaugeMetricFamily | CounterMetricFamily, value: float) -> Metric:
        family.add_metric([self._model_name], value)
        return family

    def _count(self, name: str, text: str) -> Counter:
        return Counter(name, text, _LABELS, registry=self._registry).labels(self._model_name)

    def _time(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(f"{name}_seconds", text, _LABELS, registry=self._registry, buckets=buckets)
        return family.labels(self._model_name)
