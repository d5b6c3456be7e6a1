"""What the gateway counts, for Prometheus. Labels are policies, arms and codes: never an agent, an address or a key."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from babylon_rl.gateway.calls import ServedCall
from babylon_rl.types import policy_name

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class GatewayMetrics:
    """The counters of one application, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = r = CollectorRegistry()
        self._calls = Counter("babylon_gateway_calls", "Ended calls.", ("policy", "arm", "status"), registry=r)
        self._refused = Counter("babylon_gateway_refused", "Requests refused unasked.", ("status",), registry=r)
        self._fallbacks = Counter(
            "babylon_gateway_fallbacks", "Calls that the incumbent answered for another.", ("policy",), registry=r
        )
        self._failures = Counter(
            "babylon_gateway_upstream_failures", "Tries that failed.", ("policy", "code"), registry=r
        )
        self._latency = Histogram(
            "babylon_gateway_latency_seconds",
            "From a call's arrival to the end of its answer.",
            ("policy",),
            buckets=_SECONDS,
            registry=r,
        )
        self._first_token = Histogram(
            "babylon_gateway_first_token_seconds",
            "From a call's arrival to the first piece of a streamed answer.",
            ("policy",),
            buckets=_SECONDS,
            registry=r,
        )
        self._tokens = Counter("babylon_gateway_tokens", "Tokens.", ("policy", "kind"), registry=r)
        self.in_flight = Gauge("babylon_gateway_in_flight", "Calls under way.", registry=r)
        self.shadows_dropped = Counter(
            "babylon_gateway_shadows_dropped", "Shadow calls not made: too many were under way.", registry=r
        )

    def watch(self, gauges: Mapping[str, tuple[str, Callable[[], float]]]) -> None:
        """Add gauges that are read when they are asked for: name → (what it is, how to read it)."""
        for name, (what, read) in gauges.items():
            Gauge(f"babylon_gateway_{name}", what, registry=self._registry).set_function(read)

    def count(self, call: ServedCall) -> None:
        """Count a call that has ended."""
        policy = policy_name(call.lineage, call.step)
        self._calls.labels(policy, call.arm.value, str(call.status)).inc()
        if call.fell_back_from is not None:
            self._fallbacks.labels(policy_name(call.lineage, call.fell_back_from)).inc()
        if call.status == 200:
            self._latency.labels(policy).observe(call.latency_ms / 1000)
        if call.first_token_ms is not None:
            self._first_token.labels(policy).observe(call.first_token_ms / 1000)
        for kind, tokens in (("prompt", call.prompt_tokens), ("completion", call.completion_tokens)):
            if tokens:
                self._tokens.labels(policy, kind).inc(tokens)

    def count_refusal(self, status: int) -> None:
        """Count a request that never became a call."""
        self._refused.labels(str(status)).inc()

    def count_failure(self, policy: str, code: str) -> None:
        """Count a try that failed, whether or not somebody else answered."""
        self._failures.labels(policy, code).inc()

    def render(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)
