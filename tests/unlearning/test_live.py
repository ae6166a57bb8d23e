"""Which components count, and which requests are open."""

from __future__ import annotations

from privshard.unlearning.live import attempts_of, component_of, live_components
from privshard.unlearning.pending import pending, pending_plans, record


def open_request(world, subject, mode):
    record(world.workspace.ledger, plan := world.plan(subject, mode))
    return plan


def test_the_models_components_count(world):
    ledger = world.workspace.ledger
    assert live_components(ledger) == frozenset(world.composition.components)
    assert {component_of(ledger, shard) for shard in range(3)} == set(world.composition.components)
    assert component_of(ledger, 7) is None


def test_a_newer_attempt_counts_only_while_its_request_is_open(world):
    ledger, old = world.workspace.ledger, world.component(1)
    newer, _ = world.learn(1)
    assert attempts_of(ledger, 1) == [newer, old]
    assert newer not in live_components(ledger)
    plan = open_request(world, world.rows(1).subjects[0], "retrain")
    assert live_components(ledger) == {*world.composition.components, newer}
    assert component_of(ledger, 1) == old
    ledger.complete_request(plan.request.id, receipt={}, suppress=False)
    assert newer not in live_components(ledger)


def test_open_drops_keep_no_newer_attempt(world):
    newer, _ = world.learn(1)
    open_request(world, world.rows(1).subjects[0], "drop")
    assert newer not in live_components(world.workspace.ledger)


def test_a_replaced_attempt_stays_gone_when_the_next_request_opens(world):
    a, b = sorted(set(world.rows(1).subjects))[:2]
    replaced = world.component(1)
    world.forget(a, "retrain")
    open_request(world, b, "retrain")
    assert live_components(world.workspace.ledger) == frozenset(world.composition.components)
    assert replaced not in live_components(world.workspace.ledger)


def test_a_dropped_shard_has_no_component(world):
    subject, other = sorted(set(world.rows(1).subjects))[:2]
    open_request(world, other, "retrain")
    dropped = world.component(1)
    world.forget(subject, "drop")
    assert component_of(world.workspace.ledger, 1) is None
    assert dropped not in live_components(world.workspace.ledger)


def test_pending_until_completed(world):
    subject = world.rows(2).subjects[0]
    subject_hash = world.workspace.subject_hash(subject)
    assert pending(world.workspace, subject_hash) is None
    plan = open_request(world, subject, "retrain")
    head = world.workspace.ledger.head
    record(world.workspace.ledger, plan)
    assert world.workspace.ledger.head == head
    assert pending(world.workspace, subject_hash) == plan
    assert pending(world.workspace, world.workspace.subject_hash("nobody")) is None
    assert pending_plans(world.workspace.ledger) == [plan]
    world.workspace.ledger.complete_request(plan.request.id, receipt={}, suppress=True)
    assert pending(world.workspace, subject_hash) is None
