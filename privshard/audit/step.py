"""The step audit: white-box canaries through the production step, and the trade-off that their draws prove."""

from __future__ import annotations

import math

import numpy as np

from privshard.audit.bounds import Shift, proportion_bounds, shift
from privshard.audit.checks import step_checks
from privshard.audit.draws import Draws, NewKey, draw, require_private
from privshard.audit.report import ALARM, Attack, AuditReport, Curve, check_confidence, claimed_epsilon, finite
from privshard.audit.tradeoff import ComposedGaussian, claimed_misses
from privshard.core.errors import InputError
from privshard.core.privacy import MechanismPlan, PrivacySpend
from privshard.training.shard import OnStep

DEFAULT_CANARIES = 50_000
MIN_CANARIES = 100
VACANT = 4  # coordinates without a canary, for each with one: they cost only noise
CURVE_POINTS = 161
_RATE_SHARE = 0.05


def step_audit(
    plan: MechanismPlan,
    *,
    claim: PrivacySpend,
    new_key: NewKey,
    num_canaries: int = DEFAULT_CANARIES,
    confidence: float = 0.95,
    on_step: OnStep = lambda done, total: None,
) -> AuditReport:
    """Attack one training under `plan` with the strongest canary there is, and bound its epsilon from below.

    One call of `train_shard` trains `num_canaries` canaries, each alone on its coordinate, beside four times as many
    coordinates without one; another call trains an empty shard. In the model below all of the bound is exact: the sum
    of a run's releases is a + m n + s N(0, 1) at a coordinate whose canary took part n times; m / s is bounded by
    `bounds.shift`, the rate at which canaries took part by Clopper and Pearson, alpha split over the two; and the
    epsilon of the composed mechanism grows with both (`tradeoff.ComposedGaussian`, which rounds down). Where everybody
    takes part in every step no rate is needed.

    Model: noise is independent over coordinates and steps, and normal; canaries take part independently. The checks of
    the report can refute each of these. The bound exceeds the true epsilon with probability at most 1 - confidence.

    claim: what the plan's accountant says of one training. new_key: as production draws it. num_canaries: at least
    100; with 50,000 the bound misses about 3 % of mu at epsilon 1.

    Tests: tests/audit/test_step.py, tests/audit/test_coverage.py.
    """
    require_private(plan)
    alpha = check_confidence(confidence)
    if num_canaries < MIN_CANARIES:
        raise InputError(f"canaries: expected at least {MIN_CANARIES}, got {num_canaries}.")
    size = (1 + VACANT) * num_canaries
    present = draw(plan, present=range(num_canaries), num_coordinates=size, root_key=new_key(0, 0), on_step=on_step)
    empty = draw(plan, present=range(0), num_coordinates=size, root_key=new_key(1, 0))
    achieved, found = proven(plan, present, num_canaries=num_canaries, alpha=alpha)
    sure, _ = proven(plan, present, num_canaries=num_canaries, alpha=ALARM)
    lower = finite(achieved.epsilon(plan.delta))
    alarm = finite(sure.epsilon(plan.delta))
    planned = ComposedGaussian(1 / plan.noise_multiplier, plan.sample_rate, plan.steps)
    return AuditReport(
        kind="step",
        claim=claim,
        epsilon_lower=lower,
        confidence=confidence,
        contradicted=alarm is None or alarm > claimed_epsilon(claim),
        threat_model=THREAT_MODEL.format(unit=plan.unit),
        method=METHOD,
        not_covered=_not_covered(plan),
        num_canaries=num_canaries,
        num_draws=size,
        attacks=(Attack("the sum along the canary's direction", lower, _detail(plan, achieved, found)),),
        checks=step_checks(plan, present=present, empty=empty, num_canaries=num_canaries),
        curve=_curve(plan, claim, planned, present, num_canaries),
    )


def proven(plan: MechanismPlan, draws: Draws, *, num_canaries: int, alpha: float) -> tuple[ComposedGaussian, Shift]:
    """The mechanism that the draws prove to be no more private than, wrong with probability at most alpha."""
    everybody = plan.sample_rate == 1 and bool((draws.inclusions_P[:num_canaries] == plan.steps).all())
    rate, left = 1.0, alpha
    if not everybody:
        successes = int(draws.inclusions_P.sum())
        low, _ = proportion_bounds(np.array(successes), num_canaries * plan.steps, alpha=_RATE_SHARE * alpha)
        rate, left = float(low), (1 - _RATE_SHARE) * alpha
    found = shift(draws.sums_P, draws.inclusions_P, alpha=left)
    return ComposedGaussian(found.lower * math.sqrt(plan.steps), rate, plan.steps), found


def _detail(plan: MechanismPlan, achieved: ComposedGaussian, found: Shift) -> str:
    step = found.slope / found.deviation * math.sqrt(plan.steps) if found.deviation > 0 else math.inf
    return (
        f"One inclusion moves the release by {step:.4g} standard deviations of its noise, at least {achieved.mu:.4g} "
        f"(planned: {1 / plan.noise_multiplier:.4g}); composed over {plan.steps} steps at rate "
        f"{achieved.sample_rate:.6g}."
    )


def _curve(
    plan: MechanismPlan, claim: PrivacySpend, planned: ComposedGaussian, draws: Draws, num_canaries: int
) -> Curve:
    alarms = np.geomspace(1e-6, 1.0, CURVE_POINTS)
    sums_in, sums_out = np.sort(draws.sums_P[:num_canaries]), draws.sums_P[num_canaries:]
    thresholds = np.quantile(sums_out, 1 - alarms)
    shown = alarms >= 10 / len(sums_out)  # fewer than ten false alarms say little about their probability
    misses = np.searchsorted(sums_in, thresholds) / len(sums_in)
    return Curve(
        false_alarms=tuple(alarms.tolist()),
        claimed=tuple(claimed_misses(alarms, epsilon=claimed_epsilon(claim), delta=claim.delta).tolist()),
        planned=tuple(np.clip(planned.misses(alarms), 0.0, 1.0).tolist()),
        achieved=tuple(float(miss) if ok else None for miss, ok in zip(misses, shown, strict=True)),
    )


def _not_covered(plan: MechanismPlan) -> str:
    parts = []
    if plan.mean_releases:
        parts.append("the release of everyone's mean before the first step")
    if plan.count_noise_multiplier is not None:
        parts.append("the noisy count")
    attacked = f"Part of the claim, but not attacked here: {' and '.join(parts)}. " if parts else ""
    return attacked + "Outside the claim as outside the attack: choices that somebody made by looking at private rows."


THREAT_MODEL = (
    "White box: the attacker sees every release of one shard's training, knows everything except whether one {unit} "
    "is in the shard, and made that {unit}'s gradient: after clipping exactly the clipping norm, always in one known "
    "direction."
)
METHOD = (
    "Every canary has a coordinate of its own, so one run of the production training holds one experiment a "
    "coordinate. Shift over noise is bounded by an exact normal and chi-squared bound, the rate by Clopper and "
    "Pearson, and both are composed over the steps by the trade-off of the (subsampled) Gaussian. Model: independent "
    "normal noise, independent participation."
)
