"""The step audit: its bound, its checks, and that it runs what production runs."""

from __future__ import annotations

from dataclasses import replace

import jsonschema
import numpy as np
import pytest

from privshard.api import schemas
from privshard.audit import draws as draws_module
from privshard.audit.canary import CanaryMethod
from privshard.audit.draws import draw
from privshard.audit.step import step_audit
from privshard.core.errors import InputError
from privshard.core.privacy import PrivacySpend
from privshard.training.shard import train_shard


def test_the_audit_calls_the_production_step():
    assert draws_module.train_shard is train_shard


def test_with_little_noise_every_coordinate_shows_how_often_its_canary_took_part(claimed, keys):
    plan, _ = claimed(3.0, rate=0.5, steps=12)
    plan = replace(plan, noise_multiplier=1e-4)
    found = draw(plan, present=range(20), num_coordinates=30, root_key=keys(0)(0, 0))
    assert np.abs(found.sums_P - found.inclusions_P).max() < 0.01
    assert (found.inclusions_P[20:] == 0).all()
    assert found.inclusions_P[:20].std() > 0
    assert sum(found.batch_sizes) == found.inclusions_P.sum()


@pytest.mark.parametrize(("epsilon", "rate", "steps"), [(1.0, 1.0, 60), (3.0, 0.3, 40), (8.0, 1.0, 60)])
def test_the_claim_survives_and_most_of_it_is_proved(claimed, keys, epsilon, rate, steps):
    plan, claim = claimed(epsilon, rate=rate, steps=steps)
    found = step_audit(plan, claim=claim, new_key=keys(3), num_canaries=25_000 if rate == 1 else 10_000)
    assert found.ok, found
    assert found.epsilon_lower is not None
    assert 0.8 * epsilon < found.epsilon_lower < 1.02 * epsilon


def test_a_claim_of_half_the_spend_is_contradicted(claimed, keys):
    plan, claim = claimed(3.0)
    found = step_audit(plan, claim=replace(claim, epsilon=1.5), new_key=keys(1), num_canaries=20_000)
    assert found.contradicted
    assert not found.ok
    assert "contradicted" in found.verdict


def test_the_report_fits_the_schema_and_never_calls_a_bound_a_measurement(claimed, keys):
    plan, claim = claimed(3.0, steps=3, means=1)
    value = step_audit(plan, claim=claim, new_key=keys(2), num_canaries=500).to_json()
    jsonschema.validate({"workspace": "w", **value}, schemas.load("audit"))
    assert "measured" not in str(value)
    assert "mean" in value["not_covered"]
    assert value["lower_bound"]["confidence"] == 0.95


def test_what_makes_no_sense_is_refused(claimed, keys):
    plan, claim = claimed(3.0)
    with pytest.raises(InputError, match="no claim to attack"):
        step_audit(replace(plan, noise_multiplier=0.0), claim=claim, new_key=keys(0))
    nothing = PrivacySpend(None, 1e-5, "example", "rdp")
    with pytest.raises(InputError, match="expected a claim"):
        step_audit(plan, claim=nothing, new_key=keys(0), num_canaries=200)
    with pytest.raises(InputError, match="at least 100"):
        step_audit(plan, claim=claim, new_key=keys(0), num_canaries=5)
    with pytest.raises(InputError, match="confidence"):
        step_audit(plan, claim=claim, new_key=keys(0), confidence=1.0)
    with pytest.raises(InputError, match="got images"):
        CanaryMethod(3, max_grad_norm=1.0).encode(None)  # pyright: ignore[reportArgumentType]
