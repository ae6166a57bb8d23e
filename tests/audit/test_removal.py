"""The removal audit: who left is hidden as well as the privacy guarantee says, and gone from what comes after."""

from __future__ import annotations

import pytest

from privshard.audit.removal import removal_audit
from privshard.core.errors import InputError


def test_who_left_leaves_no_trace_and_is_hidden_in_what_was_there_before(claimed, keys):
    plan, claim = claimed(8.0, steps=10)
    found = removal_audit(plan, claim=claim, new_key=keys(0), num_canaries=8_000)
    bounds = {attack.name: attack.epsilon_lower for attack in found.attacks}
    assert found.ok
    assert bounds["after alone"] == pytest.approx(0.0, abs=0.1)
    assert 1.5 < bounds["before alone"] < 8.0
    assert bounds["before minus after"] < bounds["before alone"]
    assert found.epsilon_lower == max(bounds.values())


def test_noise_that_is_used_again_gives_away_who_left(claimed, keys):
    plan, claim = claimed(3.0, steps=3)
    found = removal_audit(plan, claim=claim, new_key=lambda shard, attempt: keys(0)(0, 0), num_canaries=20_000)
    assert found.contradicted
    assert max(found.attacks, key=lambda attack: attack.epsilon_lower).name == "before minus after"


def test_a_shard_that_was_not_retrained_still_knows_who_left(claimed, keys, monkeypatch):
    from privshard.audit import removal

    plan, claim = claimed(8.0, steps=3)
    real = removal.draw
    everybody = lambda plan, **options: real(plan, **{**options, "present": range(12_000)})  # noqa: E731
    monkeypatch.setattr(removal, "draw", everybody)
    found = removal_audit(plan, claim=claim, new_key=keys(0), num_canaries=6_000)
    assert [check.name for check in found.checks if not check.ok] == ["no trace after"]


def test_too_few_canaries_are_refused(claimed, keys):
    plan, claim = claimed(3.0)
    with pytest.raises(InputError, match="at least 200"):
        removal_audit(plan, claim=claim, new_key=keys(0), num_canaries=10)
