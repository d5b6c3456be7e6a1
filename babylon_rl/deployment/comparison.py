"""The candidate's arm beside the incumbent's, window by window: the mean difference and an interval that may be watched.

Both arms faced the same market, so a window's difference of mean P&L is free of what the market did to everybody. Differences
are weighted by what they can tell (arm sizes, known before the outcomes), test agents are compared with test agents, and
three sources of error are told apart:

- chance from window to window: the confidence sequence of `sequence.py` on the weighted differences;
- agents that earn more than others whatever answers them: an agent keeps its arm, so no number of windows averages this
  out. Its variance is estimated within the arms (`spread.py`) and counted by how unevenly the agents stand in the estimate;
- CUPED: what agents earned in earlier windows is subtracted as far as it predicts, and the doubt about that is counted too.

The whole is incremental: a window costs its agents, a look costs all agents once.
"""

import math
from collections import defaultdict
from dataclasses import dataclass, field

from babylon_rl.deployment.evidence import AgentResult, WindowEvidence, is_money
from babylon_rl.deployment.sequence import choose_rho2, mixture_boundary, t_quantile
from babylon_rl.deployment.spread import Spread, split_spread
from babylon_rl.deployment.stages import Arm

BURN_IN_WINDOWS = 8
"""Compared windows before which there is no interval: the boundary is asymptotic (measured in docs/deployment.md)."""
SHARPEST_WINDOWS = 60
"""Windows of half against half about which the interval is narrowest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """What the windows so far say of the candidate minus the incumbent, in US dollars an agent and window.

    Attributes:
        windows: Compared: both arms had an agent of one stratum.
        effective_windows: (Σ weights)² / Σ weights²: equally weighted windows that tell as much.
        theta: Share of an agent's earlier P&L that was subtracted (CUPED); 0: it did not help.
        lasting_usd: Standard deviation between agents of what lasts from window to window, after CUPED.
        lo: None before the burn-in, or when agents are too few to tell a policy from an agent.
        hi: The same.
    """

    mean: float
    lo: float | None
    hi: float | None
    windows: int
    effective_windows: float
    theta: float
    lasting_usd: float | None


@dataclass(slots=True)
class _AgentSums:
    """One agent's sums over windows; `u` is its distance from its arm's mean, scaled to an agent's variance."""

    standing: float = 0.0  # weight of its own lasting earnings in the weighted sum of differences
    windows: int = 0
    u_y: float = 0.0
    u_x: float = 0.0
    u_yy: float = 0.0
    u_yx: float = 0.0
    u_xx: float = 0.0


@dataclass(slots=True)
class Comparison:
    """Accumulates windows in time order; `interval` may be asked for after each.

    Attributes:
        alpha: Chance that the interval ever leaves out the truth.
        use_earlier: Whether CUPED may be used.
    """

    alpha: float
    burn_in: int = BURN_IN_WINDOWS
    sharpest: float = SHARPEST_WINDOWS
    use_earlier: bool = True
    windows: int = 0
    _unit: float | None = None
    _agents: defaultdict[str, _AgentSums] = field(default_factory=lambda: defaultdict(_AgentSums))
    _groups: set[tuple[bool, Arm]] = field(default_factory=set)
    _w: float = 0.0
    _ww: float = 0.0
    _wy: float = 0.0
    _wx: float = 0.0
    _wwy: float = 0.0
    _wwx: float = 0.0
    _wwyy: float = 0.0
    _wwyx: float = 0.0
    _wwxx: float = 0.0
    _wwn: float = 0.0  # Σ weight² (1/n + 1/m): of the weighted sum's variance, the part that arm sizes give

    def add(self, window: WindowEvidence) -> bool:
        """Take a window in; False: no stratum had an agent in both arms, so nothing was compared."""
        known = [a for a in window.agents if is_money(a.pnl_usd) and a.arm in (Arm.INCUMBENT, Arm.CANDIDATE)]
        parts = [
            part for is_test in (False, True) if (part := self._compare([a for a in known if a.is_test is is_test]))
        ]
        if not parts:
            return False
        self.windows += 1
        w = sum(part[0] for part in parts)
        y = sum(part[0] * part[1] for part in parts) / w
        x = sum(part[0] * part[2] for part in parts) / w
        self._w += w
        self._ww += w * w
        self._wy += w * y
        self._wx += w * x
        self._wwy += w * w * y
        self._wwx += w * w * x
        self._wwyy += w * w * y * y
        self._wwyx += w * w * y * x
        self._wwxx += w * w * x * x
        return True

    def _compare(self, stratum: list[AgentResult]) -> tuple[float, float, float] | None:
        """Weight and differences (P&L, earlier P&L) of one stratum of one window."""
        arms = {
            arm: sorted((a for a in stratum if a.arm is arm), key=lambda a: a.agent_id)
            for arm in (Arm.CANDIDATE, Arm.INCUMBENT)
        }
        n_candidate, n_incumbent = len(arms[Arm.CANDIDATE]), len(arms[Arm.INCUMBENT])
        if not n_candidate or not n_incumbent:
            return None
        if self._unit is None:  # a window of half against half of the first window's agents weighs 1
            self._unit = (n_candidate + n_incumbent) / 4
        weight = n_candidate * n_incumbent / (n_candidate + n_incumbent) / self._unit
        self._wwn += weight**2 * (1 / n_candidate + 1 / n_incumbent)
        earlier = {a.agent_id: a.earlier_pnl_usd for a in stratum if is_money(a.earlier_pnl_usd)}
        unknown = math.fsum(earlier.values()) / len(earlier) if earlier else 0.0
        means: dict[Arm, tuple[float, float]] = {}
        for arm, agents in arms.items():
            n = len(agents)
            ys = [a.pnl_usd for a in agents]
            xs = [earlier.get(a.agent_id, unknown) for a in agents]
            mean_y, mean_x = math.fsum(ys) / n, math.fsum(xs) / n
            means[arm] = mean_y, mean_x
            sign = 1 if arm is Arm.CANDIDATE else -1
            for agent, y, x in zip(agents, ys, xs, strict=True):
                sums = self._agents[agent.agent_id]
                sums.standing += sign * weight / n
                if n == 1:
                    continue
                scale = math.sqrt(1 - 1 / n)
                u_y, u_x = (y - mean_y) / scale, (x - mean_x) / scale
                sums.windows += 1
                sums.u_y += u_y
                sums.u_x += u_x
                sums.u_yy += u_y * u_y
                sums.u_yx += u_y * u_x
                sums.u_xx += u_x * u_x
            if n > 1:
                self._groups.add((stratum[0].is_test, arm))
        (y_c, x_c), (y_i, x_i) = means[Arm.CANDIDATE], means[Arm.INCUMBENT]
        return weight, y_c - y_i, x_c - x_i

    def interval(self) -> Interval | None:
        """The interval now; None: nothing has been compared yet."""
        if not self.windows:
            return None
        degrees = sum(a.windows > 0 for a in self._agents.values()) - len(self._groups)
        theta, theta_error = self._choose_theta(degrees) if self.use_earlier else (0.0, 0.0)
        if theta:
            degrees -= 1
        mean_x = self._wx / self._w
        mean = self._wy / self._w - theta * mean_x
        effective = self._w**2 / self._ww
        spread = self._split(theta, degrees)
        lo = hi = None
        if self.windows >= self.burn_in and effective > 1 and spread is not None:
            chance = self._chance_radius(theta, mean, effective, spread)
            uneven = math.fsum(a.standing**2 for a in self._agents.values()) / self._w**2
            lasting = spread.lasting_upper * uneven + (theta_error * mean_x) ** 2
            radius = math.hypot(chance, t_quantile(1 - self.alpha / 2, degrees) * math.sqrt(lasting))
            lo, hi = mean - radius, mean + radius
        return Interval(
            mean=mean,
            lo=lo,
            hi=hi,
            windows=self.windows,
            effective_windows=effective,
            theta=theta,
            lasting_usd=None if spread is None else math.sqrt(spread.lasting),
        )

    def _chance_radius(self, theta: float, mean: float, effective: float, spread: Spread) -> float:
        """The confidence sequence's half-width: theorem 2.2 with Σ weights as information.

        The variance is the differences' own, or what the spread within arms gives if that is more: with one agent against
        many, the differences may not yet have shown a rare gain that the many have.
        """
        squares = self._wwyy - 2 * theta * self._wwyx + theta**2 * self._wwxx  # Σ w²d²
        crossed = self._wwy - theta * self._wwx  # Σ w²d
        seen = max(squares - 2 * mean * crossed + mean**2 * self._ww, 0.0) * effective / (effective - 1)
        variance = max(seen, spread.chance * self._wwn)
        rho2 = choose_rho2(self.alpha, self.sharpest)
        return math.sqrt(variance / self._w) * mixture_boundary(self._w, self.alpha, rho2) / self._w

    def _choose_theta(self, degrees: int) -> tuple[float, float]:
        """CUPED's coefficient and its standard error, both from distances within arms, where no policy's effect is.

        The error is by agent (an agent's windows share its earlier P&L). The coefficient is shrunk by 1 − error² / coefficient²
        and kept in [0, 1]: where earlier P&L predicts nothing, it is 0.
        """
        spread = math.fsum(a.u_xx for a in self._agents.values())
        if degrees < 3 or spread <= 0:
            return 0.0, 0.0
        theta = math.fsum(a.u_yx for a in self._agents.values()) / spread
        scores = math.fsum((a.u_yx - theta * a.u_xx) ** 2 for a in self._agents.values())
        error2 = scores / spread**2 * (degrees + 1) / (degrees - 1)
        if theta <= 0 or theta**2 <= error2:
            return 0.0, 0.0
        shrink = 1 - error2 / theta**2
        return min(theta * shrink, 1.0), math.sqrt(error2) * shrink

    def _split(self, theta: float, degrees: int) -> Spread | None:
        """The spread within arms of P&L less `theta` of the earlier P&L; None: agents are too few."""
        return split_spread(
            (
                (a.windows, a.u_y - theta * a.u_x, a.u_yy - 2 * theta * a.u_yx + theta**2 * a.u_xx)
                for a in self._agents.values()
            ),
            degrees=degrees,
            fitted=int(theta > 0),
        )
