"""The run audit: fair coins put canary examples into one training of every shard, and an attacker guesses the coins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from privshard.audit.bounds import guesses_bound
from privshard.audit.draws import NewKey, require_private
from privshard.audit.report import Attack, AuditReport, Check, Curve, check_confidence, claimed_epsilon, finite
from privshard.audit.tradeoff import claimed_misses
from privshard.core.errors import InputError
from privshard.core.jobs import TrainingParams
from privshard.core.method import Constants, Method, initial, pull
from privshard.core.privacy import MechanismPlan, PrivacySpend
from privshard.training.loss import cotangent
from privshard.training.shard import OnStep, train_shard

GUESSED = (0.05, 0.1, 0.2, 0.4, 0.7, 1.0)
"""The parts of all canaries that the attacker guesses, abstaining on the others; alpha is split over them."""


def run_audit(
    method: Method,
    constants: Constants,
    *,
    labels_B: Tensor,
    plan: MechanismPlan,
    params: TrainingParams,
    num_shards: int,
    claim: PrivacySpend,
    new_key: NewKey,
    coins: np.random.Generator,
    confidence: float = 0.95,
    max_rows: int = 512,
    on_step: OnStep = lambda done, total: None,
) -> AuditReport:
    """Train every shard once on the canaries whose coin fell on "in", and bound epsilon by how many coins are guessed.

    Canaries are dealt evenly to the shards, each is a unit of its own, and a fair coin decides whether it is in. The
    attacker holds the components and scores canary k of shard s by how far its component moved against the canary's
    gradient, -<r_k, f(x_k; D_s) - f(x_k; 0)> / |g_k|. The highest scores are
    guessed "in", the lowest "out". All shards together are one mechanism in independent coins, so the bound of one run
    (`bounds.guesses_bound`) holds for the pooled guesses, and for any canaries and any score. No distribution is
    assumed. Delta lets a mechanism give a canary away outright now and then, which one run can't refute at the alarm
    level of other audits, so the claim counts as contradicted where the bound itself exceeds it.

    method, constants, labels_B: what production trains with, and the canaries encoded by it. coins: the auditor's own
    randomness. Test: tests/audit/test_run.py.
    """
    number = len(labels_B)
    alpha = check_run(plan, num_canaries=number, num_shards=num_shards, confidence=confidence)
    in_B = coins.integers(0, 2, number).astype(bool)
    shard_B = coins.permutation(np.arange(number) % num_shards)
    score_B = np.empty(number)
    for shard in range(num_shards):
        mine = np.flatnonzero(shard_B == shard)
        learnt = mine[in_B[mine]]
        trained = train_shard(
            method,
            _rows(constants, learnt) if len(learnt) else None,
            labels_B=labels_B[torch.from_numpy(learnt)],
            unit_of_row=[f"canary-{row:09d}" for row in learnt],
            plan=plan if method.radius is not None else replace(plan, mean_releases=0),
            params=params,
            root_key=new_key(shard, 0),
            max_rows=max_rows,
            on_step=lambda done, total, shard=shard: on_step(shard * total + done, num_shards * total),
        )
        score_B[mine] = _scores(
            method, _rows(constants, mine), labels_B[torch.from_numpy(mine)], trained.tensors, params
        )
    attacks = tuple(_attack(score_B, in_B, part, plan.delta, alpha / len(GUESSED)) for part in GUESSED)
    bounds = [attack.epsilon_lower or 0.0 for attack in attacks]
    return AuditReport(
        kind="run",
        claim=claim,
        epsilon_lower=finite(max(bounds)),
        confidence=confidence,
        contradicted=max(bounds) > claimed_epsilon(claim),
        threat_model=THREAT_MODEL.format(unit=plan.unit),
        method=METHOD,
        not_covered=NOT_COVERED,
        num_canaries=number,
        num_draws=number,
        attacks=attacks,
        checks=(_coins_check(in_B),),
        curve=_curve(score_B, in_B, claim),
    )


def check_run(plan: MechanismPlan, *, num_canaries: int, num_shards: int, confidence: float) -> float:
    """1 - confidence; InputError for what `run_audit` can't attack, which is known before any canary is encoded."""
    require_private(plan)
    alpha = check_confidence(confidence)
    if num_canaries < 2 * num_shards:
        raise InputError(f"canaries: expected at least two a shard, {2 * num_shards}, got {num_canaries}.")
    return alpha


def _scores(
    method: Method, constants: Constants, labels_B: Tensor, component: Mapping[str, Tensor], params: TrainingParams
) -> np.ndarray:
    """-<r_k, f(x_k; D) - f(x_k; 0)> / |g_k| of every canary, g_k the gradient where training starts, standardized by
    their median and spread; a zero gradient scores 0."""
    moved = {name: tensor.to(labels_B.device) for name, tensor in component.items()}
    before_BC, pullback = pull(method, constants, initial(method, device=labels_B.device))
    cotangent_BC = cotangent(params.loss, before_BC, labels_B)
    change_B = (cotangent_BC * (method.logits(constants, moved) - before_BC)).sum(1)
    norm_B = pullback(cotangent_BC).squared_norms(None, len(labels_B)).sqrt()
    score_B = torch.where(norm_B > 0, -change_B / norm_B, 0.0).double().cpu().numpy()
    spread = float(np.subtract(*np.quantile(score_B, [0.75, 0.25])))
    return (score_B - np.median(score_B)) / (spread or 1.0)


def _attack(score_B: np.ndarray, in_B: np.ndarray, part: float, delta: float, alpha: float) -> Attack:
    """Guess the most extreme scores, half of them "in" and half "out"."""
    each = max(1, round(part * len(score_B) / 2))
    order = np.argsort(score_B, kind="stable")
    correct = int(in_B[order[-each:]].sum() + (~in_B[order[:each]]).sum())
    bound = guesses_bound(correct, guesses=2 * each, canaries=len(in_B), delta=delta, alpha=alpha)
    return Attack(f"guess a share {part:g} of the coins", bound, f"{correct} of {2 * each} guesses were right")


def _coins_check(in_B: np.ndarray) -> Check:
    """The auditor's own coins were fair."""
    heads, number = int(in_B.sum()), len(in_B)
    detail = f"{heads} of {number} canaries were in"
    return Check("fair coins", bool(abs(heads - number / 2) <= 3 * number**0.5), detail)


def _curve(score_B: np.ndarray, in_B: np.ndarray, claim: PrivacySpend) -> Curve:
    alarms = np.union1d(np.geomspace(1e-5, 1.0, 81), np.linspace(0.0, 1.0, 81))
    inside, outside = np.sort(score_B[in_B]), score_B[~in_B]
    misses = np.searchsorted(inside, np.quantile(outside, 1 - alarms)) / max(1, len(inside))
    claimed = claimed_misses(alarms, epsilon=claimed_epsilon(claim), delta=claim.delta)
    shown = alarms >= min(1.0, 10 / max(1, len(outside)))
    achieved = tuple(float(miss) if ok else None for miss, ok in zip(misses, shown, strict=True))
    return Curve(tuple(alarms.tolist()), tuple(claimed.tolist()), None, achieved)


def _rows(constants: Constants, rows: np.ndarray) -> Constants:
    return {name: tensor[torch.from_numpy(rows).to(tensor.device)] for name, tensor in constants.items()}


THREAT_MODEL = (
    "The attacker holds the finished components, the base and every canary {unit}, and guesses which canaries each "
    "shard learnt from. Steps in between are hidden, and the other rows of a shard are canaries too."
)
METHOD = (
    "Fair coins decide who is in; the score is how far a component moved against a canary's gradient. The bound is "
    "that of Steinke, Nasr and Jagielski (2023) for many canaries in one run, on the pooled guesses of all shards, "
    "split over the numbers of guesses that were tried. It assumes no distribution."
)
NOT_COVERED = (
    "One run of an average-case attack: expect a bound far below the claim. The step audit is the sharper one."
)
