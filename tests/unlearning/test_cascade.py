"""Removals: what is left is bit for bit, or by training, the model and the data of everyone else."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from privshard.composition.average import average
from privshard.core.errors import BudgetError, InputError, VerificationError
from privshard.core.model import Composition
from privshard.data.shards import ShardRows, encode_partition, part_path
from privshard.unlearning import eval_cache
from privshard.unlearning.clean_up import clean_up
from privshard.unlearning.pending import pending


def stored(world):
    """Every file of the workspace, the ledger and its journal included."""
    return {path: path.read_bytes() for path in world.root.rglob("*") if path.is_file()}


def moved(world, weights):
    paths = {name: world.root / world.workspace.component_path(name) for name in weights}
    return {name: array.tobytes() for name, array in average(paths, weights).items()}


def rows_of(world, subject):
    """(image, id) of every row of a subject."""
    parts = [world.rows(shard) for shard in (None, 0, 1, 2)]
    return [
        (image, identity)
        for part in parts
        for image, identity, name in zip(part.images, part.ids, part.subjects, strict=True)
        if name == subject
    ]


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("mode", ["drop", "retrain"])
def test_the_rows_left_are_those_of_data_that_never_held_the_subject(world, mode, place):
    rows = world.rows(1)
    subject = rows.subjects[{"first": 0, "middle": len(rows) // 2, "last": len(rows) - 1}[place]]
    expected, others = encode_partition(rows.without(subject)), [encode_partition(world.rows(s)) for s in (0, 2)]
    receipt = world.forget(subject, mode)
    objects = world.workspace.objects
    assert objects.read(part_path("data/shard=001")) == expected
    assert [encode_partition(world.rows(s)) for s in (0, 2)] == others
    assert receipt["rows_erased"] == {"train": 2, "eval": 0}
    assert objects.list("cache/shard=001") == []
    assert objects.list("cache/shard=000") != []
    assert objects.list("reports") == []
    assert world.failed() == {}


def test_drop_is_bit_for_bit_the_average_of_the_others(world):
    others = [world.component(0), world.component(2)]
    expected = moved(world, {name: 0.5 for name in others})
    before = world.composition
    dropped = world.component(1)
    receipt = world.forget(world.rows(1).subjects[0], "drop")
    assert world.composition == Composition.uniform(before.base, others)
    assert moved(world, world.composition.weights) == expected
    assert world.trained == []
    assert sorted(world.workspace.component_ids()) == sorted(others)
    assert receipt["guarantee"] == "exact_drop"
    assert (receipt["model_before"], receipt["model_after"]) == ("v0001", "v0002")
    assert (receipt["composition_before"], receipt["composition_after"]) == (before.digest, world.composition.digest)
    assert {action["component"] for action in receipt["actions"]} == {dropped, None}
    assert world.workspace.objects.list("models") == ["models/v0002.json"]


def test_all_shards_dropped_leave_the_base(world):
    for shard in range(3):
        world.forget(world.rows(shard).subjects[0], "drop")
    assert world.composition.weights == {}
    assert world.workspace.component_ids() == []
    assert world.failed() == {}


def test_retrain_keeps_the_weights_and_learns_from_the_rows_left(world):
    old, others = world.component(1), [world.component(0), world.component(2)]
    receipt = world.forget(world.rows(1).subjects[0], "retrain")
    new = world.component(1)
    assert world.trained == [1]
    assert new != old
    assert world.composition.weights == {name: 1 / 3 for name in (new, *others)}
    assert sorted(world.workspace.component_ids()) == sorted([new, *others])
    private = world.workspace.objects.read_json(world.workspace.private_path(new))
    assert tuple(private["examples"]) == world.rows(1).ids
    assert (receipt["guarantee"], receipt["component_after"]) == ("exact_retrain_seeded", new)
    assert receipt["spend"]["epsilon"] == 4.0


@pytest.mark.parametrize("mode", ["drop", "retrain"])
def test_the_last_subject_of_a_shard(world, mode):
    for subject in sorted(set(world.rows(1).subjects))[:-1]:
        world.budget += 1
        world.forget(subject, "retrain")
    last = world.rows(1).subjects[0]
    world.budget += 1
    world.forget(last, mode)
    assert world.rows(1) == ShardRows()
    assert world.failed() == {}
    if mode == "retrain":
        assert world.composition.weights[world.component(1)] == 1 / 3
    else:
        assert world.component(1) is None


def test_a_class_that_disappears_with_its_subject(world):
    only = next(name for name in world.rows(0).subjects if name in world.rows(None).subjects)
    assert "eel" in world.rows(None).labels
    receipt = world.forget(only, "drop")
    assert "eel" not in world.rows(None).labels
    assert receipt["rows_erased"] == {"train": 2, "eval": 1}
    eel = receipt["metrics_after"]["per_class"][2]
    assert (eel["class"], eel["num_rows"], eel["accuracy"]) == ("eel", 0, None)
    assert world.failed() == {}


def test_metrics_before_and_after_are_of_the_same_rows(world):
    subject = next(name for name in world.rows(0).subjects if name in world.rows(None).subjects)
    cache, composition, gone = eval_cache.load(world.workspace), world.composition, world.component(0)
    ids = {identity for _, identity in rows_of(world, subject)}
    left = cache.without_rows(ids)
    receipt = world.forget(subject, "drop")
    classes = ("cat", "dog", "eel")
    assert receipt["metrics_before"] == left.metrics(composition, classes)
    assert receipt["metrics_after"] == left.metrics(composition.without({gone}), classes)
    assert receipt["metrics_before"]["num_rows"] == 4
    assert world.workspace.ledger.current_model().metrics == receipt["metrics_after"]


def test_without_a_cache_nothing_is_measured(build_world):
    world = build_world(cached=False)
    receipt = world.forget(world.rows(1).subjects[0])
    assert (receipt["metrics_before"], receipt["metrics_after"]) == (None, None)
    assert world.failed() == {}


@pytest.mark.parametrize("mode", ["auto", "drop", "retrain"])
def test_held_out_rows_leave_without_changing_the_model(world, mode):
    before, kept = world.composition, [encode_partition(world.rows(shard)) for shard in range(3)]
    receipt = world.forget("held-2", mode)
    assert world.composition == before
    assert receipt["model_before"] == receipt["model_after"] == "v0001"
    assert receipt["guarantee"] is None
    assert receipt["rows_erased"] == {"train": 0, "eval": 1}
    assert [encode_partition(world.rows(shard)) for shard in range(3)] == kept
    assert len(eval_cache.load(world.workspace).ids) == len(world.rows(None)) == 4
    assert world.trained == []
    assert world.failed() == {}


def test_a_subject_of_a_dropped_shard_is_erased_only(world):
    one, two = sorted(set(world.rows(1).subjects))[:2]
    world.forget(one, "drop")
    receipt = world.forget(two, "retrain")
    assert [action["action"] for action in receipt["actions"]] == ["erase", "suppress"]
    assert receipt["model_before"] == receipt["model_after"] == "v0002"
    assert world.failed() == {}


def test_forgetting_twice_and_nobody(world):
    subject = world.rows(1).subjects[0]
    first = world.forget(subject)
    after = stored(world)
    head = world.workspace.ledger.head
    assert world.plan(subject).status == "already_forgotten"
    assert world.forget(subject) == first
    assert world.plan("nobody").status == "unknown_subject"
    assert world.forget("nobody") is None
    assert world.workspace.ledger.head == head
    assert stored(world).keys() == after.keys()
    assert world.workspace.subject_hash("nobody") not in world.workspace.ledger.suppressed()


def test_rows_that_are_there_again_are_forgotten_again(world):
    rows = world.rows(1)
    subject = rows.subjects[0]
    world.forget(subject, "drop")
    world.workspace.objects.write(part_path("data/shard=001"), encode_partition(rows))
    assert set(world.failed()) == {"suppressed subjects"}
    assert world.forget(subject)["rows_erased"]["train"] == 2
    assert world.failed() == {}


@pytest.mark.parametrize("mode", ["drop", "retrain"])
@pytest.mark.parametrize("seed", [None, 7])
def test_nothing_of_the_subject_is_left_in_any_file(build_world, mode, seed):
    world = build_world(insecure_seed=seed)
    subject = next(name for name in world.rows(0).subjects if name in world.rows(None).subjects)
    rows = rows_of(world, subject)
    assert len(rows) == 3
    needles = [subject.encode(), *(image for image, _ in rows), *(identity.encode() for _, identity in rows)]
    before = stored(world).values()
    assert all(any(needle in data for data in before) for needle in needles)
    world.forget(subject, mode)
    world.workspace.close()
    for path, data in stored(world).items():
        for needle in needles:
            assert needle not in data, f"{needle!r} is left in {path}"


def test_the_receipt(build_world):
    world = build_world(insecure_seed=None)
    subject = world.rows(2).subjects[0]
    receipt = world.forget(subject, "auto")
    assert world.workspace.check_signature(receipt)
    assert world.workspace.load_receipt("q0") == receipt
    assert {key: value for key, value in receipt.items() if key != "signature"} == world.workspace.ledger.receipt_for(
        world.workspace.subject_hash(subject)
    )
    assert receipt["guarantee"] == "fresh_retrain"
    assert "in distribution" in receipt["meaning"]
    assert receipt["statement"].startswith("One subject changes little.")
    assert "earlier releases rest on differential privacy alone" in receipt["statement"]
    assert world.statements == [world.composition]
    assert receipt["insecure"] is False
    assert receipt["suppressed"] is True
    assert receipt["when"].endswith("+00:00")
    assert any("backups" in item for item in receipt["out_of_scope"])
    assert world.workspace.subject_hash(subject) in world.workspace.ledger.suppressed()
    assert subject not in str(receipt)


def test_a_receipt_without_differential_privacy_says_so(world):
    from privshard.core.privacy import PrivacySpend

    none = PrivacySpend(None, 1e-5, "subject", "rdp")
    receipt = world.forget(world.rows(2).subjects[0], "drop", spend_after=lambda shard: none)
    assert "differential privacy alone, and there is none" in receipt["statement"]
    assert receipt["insecure"] is True


def test_a_receipt_tells_of_a_noisy_count_that_included_the_subject(world):
    subject, other = world.rows(1).subjects[0], world.rows(2).subjects[0]
    assert "noisy count" not in world.forget(subject, "drop")["meaning"]
    world.workspace.ledger.record_count(9.0, noise_multiplier=20.0, nominal=9.0)
    assert "noisy count" in world.forget(other, "drop")["meaning"]


def test_auto_drops_what_the_budget_refuses(world):
    world.budget = 1
    receipt = world.forget(world.rows(1).subjects[0], "auto")
    assert (receipt["guarantee"], world.component(1), world.trained) == ("exact_drop", None, [])


def test_auto_drops_where_the_budget_refuses_only_when_training(world):
    subject = world.rows(1).subjects[0]
    plan = world.plan(subject, "auto")
    world.budget = 1
    receipt = world.execute(plan, subject)
    assert receipt["guarantee"] == "exact_drop"
    assert "the limit is reached" in receipt["actions"][0]["reason"]
    assert world.component(1) is None
    assert world.failed() == {}


def test_retrain_stays_open_where_the_budget_refuses_and_may_be_finished_as_a_drop(world):
    from privshard.unlearning.plan import as_drop

    subject = world.rows(1).subjects[0]
    plan = world.plan(subject, "retrain")
    world.budget = 1
    with pytest.raises(BudgetError, match="limit is reached") as caught:
        world.execute(plan, subject)
    assert "--mode drop" in caught.value.remedy
    waiting = pending(world.workspace, plan.request.subject_hash)
    assert waiting == plan
    assert set(world.failed()) == {"open requests"}
    receipt = world.execute(as_drop(waiting, reason="asked for"), subject)
    assert (receipt["id"], receipt["guarantee"]) == (plan.request.id, "exact_drop")
    assert world.failed() == {}


def test_a_replacement_that_learnt_from_the_subject_is_refused(world):
    rows = world.rows(1)

    def careless(shard):
        attempt = world.workspace.ledger.next_attempt(shard)
        component = world.save(shard, attempt, rows)
        world.workspace.ledger.reserve(
            "careless", shard=shard, attempt=attempt, plan=world.plan_of_training(), admit=lambda _: None
        )
        world.workspace.ledger.commit("careless", component=component)
        return component, None

    for retrain in (careless, lambda shard: (world.component(0), None)):
        with pytest.raises(VerificationError, match="rows that are left"):
            world.forget(rows.subjects[0], "retrain", retrain=retrain)
    receipt = world.forget(rows.subjects[0])
    assert receipt["guarantee"] == "exact_retrain_seeded"
    assert world.failed() == {}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("mode", ["drop", "retrain"])
def test_another_removal_may_come_between(world, mode):
    """A's shard is retrained, and A is killed before the commit; B of the same shard must not inherit B from it."""
    a, b = sorted(set(world.rows(1).subjects))[:2]

    def killed(shard):
        world.learn(shard)
        raise Killed

    with pytest.raises(Killed):
        world.forget(a, "retrain", retrain=killed)
    assert set(world.failed()) == {"open requests"}
    world.forget(b, mode)
    assert set(world.failed()) == {"open requests"}
    if mode == "retrain":
        listed = world.workspace.objects.read_json(world.workspace.private_path(world.component(1)))["examples"]
        assert tuple(listed) == world.rows(1).ids
        assert world.trained == [1, 1]
    receipt = world.forget(a)
    assert receipt["rows_erased"] == {"train": 2, "eval": 0}
    assert receipt["guarantee"] == ("exact_retrain_seeded" if mode == "retrain" else None)
    assert world.trained == ([1, 1] if mode == "retrain" else [1])
    assert world.failed() == {}


def test_a_stale_plan_that_overlooks_a_component_is_refused(world):
    from dataclasses import replace

    subject = world.rows(1).subjects[0]
    plan = world.plan(subject, "drop")
    wrong = replace(plan, actions=plan.actions[1:], guarantee=None)
    head = world.workspace.ledger.head
    with pytest.raises(InputError, match="overlooks"):
        world.execute(wrong, subject)
    assert world.workspace.ledger.head == head


def test_another_subject_than_the_plans_is_refused(world):
    one, two = sorted(set(world.rows(1).subjects))[:2]
    with pytest.raises(InputError, match="its own subject") as caught:
        world.execute(world.plan(one), two)
    assert one not in str(caught.value)
    assert two not in str(caught.value)


def test_an_unfinished_training_has_nothing_to_remove_from(world, monkeypatch):
    subject = world.rows(1).subjects[0]
    plan = world.plan(subject)
    monkeypatch.setattr(type(world.workspace.ledger), "current_model", lambda self: None)
    with pytest.raises(InputError, match="unfinished training"):
        world.execute(plan, subject)
    assert subject in world.rows(1).subjects


def test_clean_up_before_the_first_model_deletes_nothing(world, monkeypatch):
    monkeypatch.setattr(type(world.workspace.ledger), "current_model", lambda self: None)
    world.workspace.objects.write("components/written.json", b"{}")
    clean_up(world.workspace)
    assert "written" in world.workspace.component_ids()


def test_progress_is_told_to_the_end(world):
    news = []
    world.forget(world.rows(1).subjects[0], on_progress=news.append)
    assert [item.done for item in news] == [0, 1, 2, 3]
    assert {(item.run_id, item.shard, item.total) for item in news} == {("q0", 1, 3)}


def test_cached_logits_of_a_replacement_are_used(world):
    subject = world.rows(1).subjects[0]
    world.forget(subject, "retrain", logits_of=lambda _: None)
    cache = eval_cache.load(world.workspace)
    assert set(cache.component_logits) == set(world.composition.components)
    new = world.component(1)
    np.testing.assert_array_equal(cache.component_logits[new], world.logits_of(new))


def test_removal_and_verification_start_without_torch():
    code = (
        "import sys; from privshard.unlearning import cascade, plan, presence, verify;"
        "print([m for m in ('torch', 'timm', 'ray', 'opacus', 'pyarrow', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
