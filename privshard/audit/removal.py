"""The removal audit: can who holds the models before and after tell who left?"""

from __future__ import annotations

import numpy as np

from privshard.audit.bounds import Threshold, threshold_bound
from privshard.audit.draws import NewKey, draw, require_private
from privshard.audit.report import ALARM, Attack, AuditReport, Check, Curve, check_confidence, claimed_epsilon, finite
from privshard.audit.tradeoff import ComposedGaussian, claimed_misses
from privshard.core.errors import InputError
from privshard.core.privacy import MechanismPlan, PrivacySpend
from privshard.training.shard import OnStep

DEFAULT_CANARIES = 20_000
MIN_CANARIES = 200
_TRACE_LIMIT = 0.1


def removal_audit(
    plan: MechanismPlan,
    *,
    claim: PrivacySpend,
    new_key: NewKey,
    num_canaries: int = DEFAULT_CANARIES,
    confidence: float = 0.95,
    on_step: OnStep = lambda done, total: None,
) -> AuditReport:
    """Attack those who left a shard, with the models of before and after, and bound epsilon from below.

    A shard is trained on canaries that will leave and on as many that stay (attempt 0), and again on those who stay
    (attempt 1). The same attacks run on coordinates of canaries that left and on coordinates that never had one:

    - "after alone": the retrained component knows nobody who left; its bound has to stay near zero.
    - "before alone": what dropping a component reveals, which is the component itself, by subtraction.
    - "before minus after": what both versions reveal together; noise that is used twice cancels here.

    Who left took part in one training, so the claim is that of one training. The bounds assume no distribution
    (`bounds.threshold_bound`), at alpha / 3 each, so that their maximum holds at the report's confidence. One member
    of a pair that a bound compares is as good as any other: coordinates are equally distributed and independent.

    new_key: (shard, attempt) -> root key, as production draws it. Test: tests/audit/test_removal.py.
    """
    require_private(plan)
    alpha = check_confidence(confidence)
    if num_canaries < MIN_CANARIES:
        raise InputError(f"canaries: expected at least {MIN_CANARIES}, got {num_canaries}.")
    leaving, never = slice(0, num_canaries), slice(2 * num_canaries, None)
    stays = range(num_canaries, 2 * num_canaries)
    size = 3 * num_canaries
    before = draw(plan, present=range(2 * num_canaries), num_coordinates=size, root_key=new_key(0, 0), on_step=on_step)
    after = draw(plan, present=stays, num_coordinates=size, root_key=new_key(0, 1), on_step=on_step)
    scores = {
        "after alone": after.sums_P,
        "before alone": before.sums_P,
        "before minus after": before.sums_P - after.sums_P,
    }

    def bounds(level: float) -> dict[str, Threshold]:
        return {
            name: threshold_bound(score_P[leaving], score_P[never], delta=plan.delta, alpha=level / len(scores))
            for name, score_P in scores.items()
        }

    found, sure = bounds(alpha), bounds(ALARM)
    strongest = max(found.values(), key=lambda item: item.epsilon)
    trace = sure["after alone"].epsilon
    score_P = scores["before alone"]
    return AuditReport(
        kind="removal",
        claim=claim,
        epsilon_lower=finite(strongest.epsilon),
        confidence=confidence,
        contradicted=max(item.epsilon for item in sure.values()) > claimed_epsilon(claim),
        threat_model=THREAT_MODEL.format(unit=plan.unit),
        method=METHOD,
        not_covered=NOT_COVERED,
        num_canaries=num_canaries,
        num_draws=2 * num_canaries,
        attacks=tuple(_attack(name, item) for name, item in found.items()),
        checks=(
            Check(
                "no trace after",
                trace <= _TRACE_LIMIT,
                f"the retrained component alone proves epsilon {trace:.3g} about those who left; nothing is expected",
            ),
        ),
        curve=_curve(plan, claim, score_P[leaving], score_P[never]),
    )


def _attack(name: str, found: Threshold) -> Attack:
    detail = f'says "left" for {found.hits:.4g} of those who left and for {found.false_alarms:.4g} of the others'
    return Attack(name, finite(found.epsilon), detail)


def _curve(plan: MechanismPlan, claim: PrivacySpend, left_N: np.ndarray, never_N: np.ndarray) -> Curve:
    alarms = np.geomspace(1e-5, 1.0, 161)
    shown = alarms >= 10 / len(never_N)
    misses = np.searchsorted(np.sort(left_N), np.quantile(never_N, 1 - alarms)) / len(left_N)
    planned = ComposedGaussian(1 / plan.noise_multiplier, plan.sample_rate, plan.steps).misses(alarms)
    return Curve(
        false_alarms=tuple(alarms.tolist()),
        claimed=tuple(claimed_misses(alarms, epsilon=claimed_epsilon(claim), delta=claim.delta).tolist()),
        planned=tuple(np.clip(planned, 0.0, 1.0).tolist()),
        achieved=tuple(float(miss) if ok else None for miss, ok in zip(misses, shown, strict=True)),
    )


THREAT_MODEL = (
    "The attacker holds the component from before the removal and the one from after it, knows that some {unit} may "
    "have left, and made that {unit}'s gradient: after clipping exactly the clipping norm, in one known direction."
)
METHOD = (
    "The same attack on canaries that left and on canaries that were never there. Half of the scores choose a "
    "threshold, the other half bounds both error rates by Clopper and Pearson; no distribution is assumed, so the "
    "bound is looser than the step audit's. Confidence is split over the attacks."
)
NOT_COVERED = (
    "The time of the removal, and requests that were chosen by looking at earlier releases: those rest on the privacy "
    "guarantee alone."
)
