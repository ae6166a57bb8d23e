"""The what-if planner: how many more retrainings, at which noise, a shard's budget admits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from privshard.core.errors import BudgetError
from privshard.core.privacy import MechanismPlan
from privshard.privacy.accounting import MAX_NOISE, MIN_NOISE
from privshard.privacy.budget import MAX_REPEATS, admit

_LOUDEST = 1000.0


def retrains_left(plans: Sequence[MechanismPlan], plan: MechanismPlan, *, limit: float | None) -> int | None:
    """How many more trainings under `plan` a shard with the history `plans` admits; None: any number.

    The answer to "how many more retrainings at this noise?": the last number that `admit` does not refuse.
    """
    if limit is None:
        return 0 if plan.private else None
    if not plan.private:
        return 0
    check = admit(limit)

    def fits(times: int) -> bool:
        try:
            check([*plans, *[plan] * times])
        except BudgetError:
            return False
        return True

    if not fits(1):
        return 0
    low, high = 1, 2
    while high < MAX_REPEATS and fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def noise_for_retrains(
    plans: Sequence[MechanismPlan], plan: MechanismPlan, *, retrains: int, limit: float
) -> float | None:
    """The least noise multiplier at which `retrains` more trainings like `plan` fit under `limit`; None where no noise
    below a thousand times the plan's does, since nothing is learnt at such noise. Rounded up to 1e-3 of itself. It is
    charged as `admit` would: other noise than before, so by the filter."""

    def fits(noise: float) -> bool:
        try:
            admit(limit)([*plans, *[replace(plan, noise_multiplier=noise)] * retrains])
        except BudgetError:
            return False
        return True

    low, high = MIN_NOISE, min(MAX_NOISE, _LOUDEST * plan.noise_multiplier)
    if retrains < 1 or not fits(high):
        return None
    while high > low * 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if fits(middle) else (middle, high)
    return high
