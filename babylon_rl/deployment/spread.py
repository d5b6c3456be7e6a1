"""The spread of agents within their arm, split into what lasts from window to window and what is chance."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

ERRORS = 1.5
"""Standard errors added to what is estimated to last; measured in docs/deployment.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Variances within an arm, in squared US dollars.

    Attributes:
        lasting: Between agents, of what each earns more or less than its arm in every window.
        lasting_upper: The same, `ERRORS` standard errors higher: few windows or agents may show none of it.
        chance: Of one agent from window to window.
    """

    lasting: float
    lasting_upper: float
    chance: float


def split_spread(agents: Iterable[tuple[int, float, float]], *, degrees: int, fitted: int = 0) -> Spread | None:
    """Split by products of one agent's distances in different windows: chance is independent there, what lasts is not.

    Args:
        agents: Windows, sum and sum of squares of each agent's distances from its arm's mean, scaled to one agent's variance.
        degrees: Agents less arms, and less coefficients that were fitted to the same distances.
        fitted: Those coefficients.

    Returns:
        None: no agent has two windows beside another of its arm.
    """
    pairs = hours = products = squares = 0.0
    for windows, total, total_squares in agents:
        pairs += windows * (windows - 1)
        hours += windows
        products += total * total - total_squares
        squares += total_squares
    if not pairs or degrees < 1:
        return None
    lasting = max(products / pairs, 0.0) * (degrees + fitted) / degrees
    chance = max(squares / hours - lasting, 0.0)
    windows_each = pairs / hours + 1
    error = ERRORS * math.sqrt(2 / degrees) * (lasting + chance / windows_each)
    return Spread(lasting=lasting, lasting_upper=lasting + error, chance=chance)
