"""What an audit reports: a lower bound, its confidence, who the attacker is, and whether the claim survived."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from privshard.core.errors import InputError
from privshard.core.privacy import PrivacySpend

Kind = Literal["step", "run", "removal"]

ALARM = 1e-6
"""The probability with which an audit of a mechanism that keeps its claim may call the claim contradicted, or one of
its checks failed. The reported bound has the confidence that was asked for; an alarm has to be surer than that."""


@dataclass(frozen=True)
class Attack:
    """One way of telling members from others, and the epsilon that it proves (None: without bound)."""

    name: str
    epsilon_lower: float | None
    detail: str


@dataclass(frozen=True)
class Check:
    """One assumption of the bound, or one promise of the plan, that the same draws can refute."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Curve:
    """Trade-off of an attacker's errors: at each probability of a false alarm, the least of a miss.

    claimed: what (epsilon, delta) allows. planned: what the planned mechanism has
    against the strongest attack, where that is known. achieved: what the attack did (None: too few draws to tell).
    """

    false_alarms: tuple[float, ...]
    claimed: tuple[float, ...]
    planned: tuple[float, ...] | None
    achieved: tuple[float | None, ...]


@dataclass(frozen=True)
class AuditReport:
    """A lower bound on epsilon at the claim's delta. It says what an attack proved, never what epsilon is."""

    kind: Kind
    claim: PrivacySpend
    epsilon_lower: float | None
    confidence: float
    contradicted: bool
    threat_model: str
    method: str
    not_covered: str
    num_canaries: int
    num_draws: int
    attacks: tuple[Attack, ...]
    checks: tuple[Check, ...]
    curve: Curve

    @property
    def ok(self) -> bool:
        """Whether the claim survived: it is not contradicted and no check failed."""
        return not self.contradicted and all(check.ok for check in self.checks)

    @property
    def verdict(self) -> str:
        """The outcome in a sentence."""
        if self.contradicted:
            return "The claim is contradicted: this attack does better than (epsilon, delta) allows."
        failed = [check.name for check in self.checks if not check.ok]
        if failed:
            return f"What ran is not what was planned; failed: {', '.join(failed)}."
        return "The claim survived this attack. That proves no privacy: another attack may do better."

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        found = asdict(self)
        claim = found.pop("claim")
        lower = {"epsilon": found.pop("epsilon_lower"), "delta": self.claim.delta, "confidence": self.confidence}
        found.pop("confidence")
        return {
            "kind": found.pop("kind"),
            "ok": self.ok,
            "verdict": self.verdict,
            "claim": claim,
            "lower_bound": lower,
            **found,
            "attacks": list(found["attacks"]),
            "checks": list(found["checks"]),
            "curve": {key: None if value is None else list(value) for key, value in found["curve"].items()},
        }


def claimed_epsilon(claim: PrivacySpend) -> float:
    """The claim's epsilon; InputError where there is no claim."""
    if claim.epsilon is None or not math.isfinite(claim.epsilon):
        raise InputError(
            "audit: expected a claim to attack, got a training without differential privacy.",
            remedy="Audit a workspace whose privacy.epsilon is a number.",
        )
    return claim.epsilon


def check_confidence(confidence: float) -> float:
    """The probability with which a bound of this confidence may be wrong."""
    if not 0.5 <= confidence < 1:
        raise InputError(f"confidence: expected a number in [0.5, 1), got {confidence}.")
    return 1 - confidence


def finite(value: float) -> float | None:
    """None for infinity, which JSON does not have."""
    return value if math.isfinite(value) else None
