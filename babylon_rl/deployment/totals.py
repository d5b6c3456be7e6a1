"""What an arm did so far, for people: means and shares, without a claim about which arm is better."""

from dataclasses import dataclass, field

from babylon_rl.deployment.evidence import WindowEvidence, is_money
from babylon_rl.deployment.guards import candidate_calls, find_quantile, known_latencies
from babylon_rl.deployment.stages import Arm
from babylon_rl.types import Json


@dataclass(slots=True)
class ArmTotals:
    """Sums over windows of one arm, `CANDIDATE` (its shadow calls too) or `INCUMBENT`."""

    arm: Arm
    agents: set[str] = field(default_factory=set)
    agent_hours: int = 0
    pnl_usd: float = 0.0
    won: int = 0
    timed: int = 0
    timed_right: int = 0
    decisions: int = 0
    invalid: int = 0
    volume_usd: float | None = None
    calls: int = 0
    errors: int = 0
    latency_ms: list[float] = field(default_factory=list)

    def add(self, window: WindowEvidence) -> None:
        """Take a window in."""
        for a in sorted(window.agents, key=lambda a: a.agent_id):  # sums to the same digit in any order
            if a.arm is not self.arm:
                continue
            self.timed += a.timed
            self.timed_right += a.timed_right
            self.decisions += a.decisions
            self.invalid += a.invalid
            if is_money(a.volume_usd):
                self.volume_usd = (self.volume_usd or 0.0) + a.volume_usd
            if is_money(a.pnl_usd):
                self.agents.add(a.agent_id)
                self.agent_hours += 1
                self.pnl_usd += a.pnl_usd
                self.won += a.pnl_usd > 0
        calls = candidate_calls(window) if self.arm is Arm.CANDIDATE else window.calls.get(self.arm)
        if calls is not None:
            self.calls += calls.calls
            self.errors += calls.errors
            self.latency_ms += known_latencies(calls)

    def describe(self) -> Json:
        """Facts by name, each opening with the arm's; what is not known is left out."""
        latency = sorted(self.latency_ms)
        facts = {
            "agents": len(self.agents),
            "agent_hours": self.agent_hours,
            "mean_pnl_usd": _divide(self.pnl_usd, self.agent_hours),
            "win_rate": _divide(self.won, self.agent_hours),
            "timing_share": _divide(self.timed_right, self.timed),
            "invalid_share": _divide(self.invalid, self.decisions),
            "error_share": _divide(self.errors, self.calls),
            "latency_p50_ms": find_quantile(latency, 0.5) if latency else None,
            "latency_p95_ms": find_quantile(latency, 0.95) if latency else None,
        }
        return {f"{self.arm.value}_{name}": value for name, value in facts.items() if value is not None}


def share_volume(candidate: ArmTotals, incumbent: ArmTotals) -> float | None:
    """The candidate's share of what both traded: how much of the common market it may have moved. None: unknown."""
    if candidate.volume_usd is None or incumbent.volume_usd is None:
        return None
    return _divide(candidate.volume_usd, candidate.volume_usd + incumbent.volume_usd)


def _divide(part: float, whole: float) -> float | None:
    return part / whole if whole else None
