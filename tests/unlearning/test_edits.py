"""Removals reach edits and locators: what goes, what stays, what the receipt says, and killed half-way."""

from __future__ import annotations

import pytest

from privshard.core.errors import InputError
from privshard.store.edits import active_locators, edit_ids
from privshard.store.layout import LOCATORS, edit_private_path
from privshard.unlearning.edits import dependents


def actions(plan) -> list[tuple[str, str | None]]:
    return [(a.action, a.component) for a in plan.actions if a.action in ("drop_edit", "retire_locator")]


def test_somebody_known_by_an_edit_alone_is_forgotten(world):
    before = world.composition
    edit, other = world.edit("ada"), world.edit("bob")
    assert world.plan("ada").guarantee == "exact_drop"
    receipt = world.forget("ada")
    assert [action["action"] for action in receipt["actions"]] == ["drop_edit", "suppress"]
    assert receipt["guarantee"] == "exact_drop"
    assert "1 edit(s) were dropped" in receipt["meaning"]
    assert edit_ids(world.workspace.objects) == [other]
    assert world.composition == before.adding(other)
    assert world.trained == []
    assert world.failed() == {}
    assert not any(edit in path for path in world.workspace.objects.list("models"))
    assert world.plan("ada").status == "already_forgotten"


def test_the_weights_of_components_stay_bit_for_bit(world):
    before = world.composition
    world.edit("ada")
    world.forget("ada")
    assert world.composition.digest == before.digest


def test_a_retired_locator_takes_its_edits_along(world):
    mine, others = world.locator("zoe", "yan"), world.locator("yan")
    chosen, kept = world.edit("ada", locator=mine), world.edit("bob", locator=others)
    receipt = world.forget("zoe")
    assert active_locators(world.workspace.ledger) == [others]
    assert all(others in path for path in world.workspace.objects.list(LOCATORS))
    assert "1 locator(s) were retired" in receipt["meaning"]
    assert world.composition.added == {kept}
    assert chosen not in edit_ids(world.workspace.objects)
    assert world.failed() == {}


def test_what_was_learnt_beside_an_edit_goes_with_it(world):
    first = world.edit("ada")
    second = world.edit("bob", beside=(first,))
    third = world.edit("cleo", beside=(second,))
    fourth = world.edit("dan")
    assert dependents(world.workspace, [first]) == {first, second, third}
    plan = world.plan("ada")
    assert actions(plan) == sorted(("drop_edit", edit) for edit in (first, second, third))
    world.forget("ada")
    assert world.composition.added == {fourth}


def test_without_privacy_what_was_learnt_on_a_component_goes_with_it(world):
    """The world's randomness comes from a seed, so nothing bounds what came through the component."""
    edit, locator = world.edit("ada"), world.locator("zoe")
    receipt = world.forget(world.rows(0).subjects[0], "drop")
    assert {a["component"] for a in receipt["actions"] if a["action"] in ("drop_edit", "retire_locator")} == {
        edit,
        locator,
    }
    assert "bounded by differential privacy" not in receipt["meaning"]
    assert world.failed() == {}


@pytest.mark.parametrize("mode", ["drop", "retrain"])
def test_with_privacy_it_stays_and_the_receipt_says_what_bounds_it(build_world, mode):
    world = build_world(insecure_seed=None)
    edit = world.edit("ada")
    receipt = world.forget(world.rows(0).subjects[0], mode)
    assert world.composition.added == {edit}
    assert "1 edit(s) that stay were learnt on a model with the shard's component" in receipt["meaning"]
    assert sum(world.composition.averaged.values()) == pytest.approx(1.0)
    assert world.composition.weights[edit] == 1.0
    assert world.failed() == {}


def test_a_private_file_that_cannot_be_read_counts_as_the_subjects(world):
    edit = world.edit("ada")
    world.workspace.objects.write(edit_private_path(edit), b"{")
    receipt = world.forget("held-1")
    assert edit not in world.composition.added
    assert receipt["rows_erased"]["eval"] == 1
    assert world.plan("nobody").status == "unknown_subject"


def test_an_edit_that_came_after_the_plan_is_reached_too(world):
    subject = world.rows(1).subjects[0]
    plan = world.plan(subject, "drop")
    edit = world.edit(subject)
    world.execute(plan, subject)
    assert edit not in world.composition.added
    assert world.failed() == {}


def test_a_removal_killed_before_its_commit_is_finished(world, monkeypatch):
    edit, locator = world.edit("ada"), world.locator("ada")

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(type(world.workspace.ledger), "complete_request", killed)
        with pytest.raises(KeyboardInterrupt):
            world.forget("ada")
    assert edit in world.composition.added
    assert active_locators(world.workspace.ledger) == [locator]
    again = world.reopened()
    again.forget("ada")
    assert edit_ids(again.workspace.objects) == []
    assert active_locators(again.workspace.ledger) == []
    assert again.failed() == {}


def test_the_same_edit_is_added_once(world):
    edit = world.edit("ada")
    with pytest.raises(InputError, match="may occur once"):
        world.composition.adding(edit)
