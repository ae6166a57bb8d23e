"""Plans: what is done in which case, with its guarantee and a reason for everything."""

from __future__ import annotations

import json

import pytest

from privshard.core.errors import BudgetError
from privshard.core.removal import RemovalRequest
from privshard.unlearning.plan import as_drop, change_of, plan_from_json, plan_removal, plan_to_json, rebased
from privshard.unlearning.presence import Presence

REFUSAL = "3 trainings have spent epsilon 6 of 6."


def make(mode="auto", *, train=2, held_out=0, component="c5", refused=None, seeded=False, already=False):
    return plan_removal(
        RemovalRequest("q1", "5f", mode),
        Presence(5, train, held_out),
        component=component,
        mode=mode,
        retrain_refused=refused,
        seeded=seeded,
        already=already,
    )


def steps(plan):
    return [(action.action, action.component) for action in plan.actions]


DROP = [("drop", "c5"), ("erase", None), ("suppress", None)]
RETRAIN = [("erase", None), ("retrain", "c5"), ("suppress", None)]
ERASE = [("erase", None), ("suppress", None)]


@pytest.mark.parametrize(
    ("given", "expected", "guarantee"),
    [
        ({"mode": "drop"}, DROP, "exact_drop"),
        ({"mode": "drop", "refused": REFUSAL, "seeded": True}, DROP, "exact_drop"),
        ({"mode": "retrain"}, RETRAIN, "fresh_retrain"),
        ({"mode": "retrain", "seeded": True}, RETRAIN, "exact_retrain_seeded"),
        ({"mode": "auto"}, RETRAIN, "fresh_retrain"),
        ({"mode": "auto", "refused": REFUSAL}, DROP, "exact_drop"),
        ({"mode": "auto", "held_out": 3}, RETRAIN, "fresh_retrain"),
        ({"mode": "auto", "train": 0, "held_out": 3}, ERASE, None),
        ({"mode": "retrain", "train": 0, "held_out": 3, "refused": REFUSAL}, ERASE, None),
        ({"mode": "drop", "component": None}, ERASE, None),
        ({"mode": "retrain", "component": None, "refused": REFUSAL}, ERASE, None),
        ({"mode": "auto", "already": True}, RETRAIN, "fresh_retrain"),
    ],
)
def test_actions_and_guarantee(given, expected, guarantee):
    plan = make(**given)
    assert (plan.status, steps(plan), plan.guarantee) == ("planned", expected, guarantee)
    assert (plan.num_train_rows, plan.num_eval_rows) == (given.get("train", 2), given.get("held_out", 0))
    assert all(len(action.reason) > 20 for action in plan.actions)
    assert {action.shard for action in plan.actions if action.action != "suppress"} == {5}


@pytest.mark.parametrize("mode", ["auto", "drop", "retrain"])
@pytest.mark.parametrize(("already", "status"), [(False, "unknown_subject"), (True, "already_forgotten")])
def test_without_rows_there_is_nothing_to_do(mode, already, status):
    plan = make(mode, train=0, refused=REFUSAL, already=already)
    assert (plan.status, plan.actions, plan.guarantee) == (status, (), None)


def test_a_refused_retraining_raises_before_anything_is_done():
    with pytest.raises(BudgetError, match="3 trainings have spent epsilon 6 of 6") as caught:
        make("retrain", refused=REFUSAL)
    assert "--mode drop" in caught.value.remedy


def test_reasons_tell_why():
    assert "was asked for" in make("drop").actions[0].reason
    assert REFUSAL in make("auto", refused=REFUSAL).actions[0].reason
    assert "same weight" in make("retrain").actions[1].reason
    assert "2 training row(s) of shard 5 and 4 held-out" in make("drop", held_out=4).actions[1].reason
    assert "no component learnt from held-out rows" in make(train=0, held_out=1).actions[0].reason
    assert "no component of shard 5 any more" in make(component=None).actions[0].reason


def test_as_drop_replaces_a_retraining_only():
    changed = as_drop(make("auto"), reason="the limit is reached")
    assert (steps(changed), changed.guarantee) == (DROP, "exact_drop")
    assert "the limit is reached" in changed.actions[0].reason
    for plan in (make("drop"), make(component=None)):
        assert as_drop(plan, reason="x") == plan


def test_rebased_follows_the_model():
    plan = make("retrain")
    assert rebased(plan, component="c5") == plan
    assert steps(rebased(plan, component="c6")) == [(a, "c6" if c else None) for a, c in RETRAIN]
    gone = rebased(plan, component=None)
    assert (steps(gone), gone.guarantee, change_of(gone)) == (ERASE, None, None)
    assert rebased(make(component=None), component="c6") == make(component=None)


@pytest.mark.parametrize("given", [{"mode": "drop"}, {"mode": "retrain", "seeded": True}, {"train": 0}])
def test_json_round_trip(given):
    plan = make(**given)
    assert plan_from_json(json.loads(json.dumps(plan_to_json(plan)))) == plan
