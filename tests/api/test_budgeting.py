"""`budget`: what it says of real trainings, its planner, and that a damaged ledger has no budget."""

from __future__ import annotations

import sqlite3

import jsonschema
import postgres
import pytest

from privshard import api
from privshard.api import schemas
from privshard.api.budgeting import budget
from privshard.api.recipe import Recipe
from privshard.api.setup import Setup
from privshard.core.errors import BudgetError, InputError, VerificationError
from privshard.privacy.budget import admit_workspace
from privshard.privacy.group import group_spend
from privshard.privacy.plan import spend_of
from privshard.store.workspace import Workspace


def checked(workspace, **asked):
    result = budget(str(workspace), **asked)
    jsonschema.validate(result, schemas.load("budget"))
    return result


def reserve(workspace, *, shard, times):
    with Workspace.open(workspace) as ws:
        for _ in range(times):
            attempt = ws.ledger.next_attempt(shard)
            plan = Setup.load(ws).plan
            ws.ledger.reserve(f"more-{shard}-{attempt}", shard=shard, attempt=attempt, plan=plan, admit=lambda _: None)
        return Setup.load(ws)


def test_spent_and_left_of_every_shard(seeded_workspace):
    setup = reserve(seeded_workspace, shard=1, times=1)
    result = checked(seeded_workspace)
    first, second = result["shards"]
    assert (first["releases"], first["retrains_left"]) == (1, 1)
    assert (second["releases"], second["retrains_left"]) == (2, 0)
    assert second["epsilon_spent"] == pytest.approx(spend_of([setup.plan] * 2).epsilon)
    assert first["epsilon_left"] == pytest.approx(setup.limit - first["epsilon_spent"])
    assert second["epsilon_left"] == pytest.approx(0, abs=1e-6)
    assert result["workspace"] == {"epsilon_spent": second["epsilon_spent"], "epsilon_limit": setup.limit}
    assert result["what_if"] is None


def test_subjects_with_several_examples_are_told_what_they_are_promised(seeded_workspace):
    setup = reserve(seeded_workspace, shard=1, times=1)
    result = checked(seeded_workspace, group_sizes=(2, 5))
    for group, size in zip(result["groups"], (2, 5), strict=True):
        assert group["examples"] == size
        both = group_spend([setup.plan] * 2, group_size=size).epsilon
        assert group["epsilon_spent"] == group["epsilon_limit"] == pytest.approx(both)
    assert "For a subject with 2 examples epsilon is" in result["statement"]
    assert "with 5 examples" in result["statement"]


@pytest.mark.parametrize(("noise", "factor"), [(None, 1.0), (30.0, None)])
def test_how_many_more_retrainings_at_this_noise(seeded_workspace, noise, factor):
    answer = checked(seeded_workspace, what_if="retrains", noise_multiplier=noise)["what_if"]
    for shard in answer["shards"]:
        assert shard["admitted"]
        assert shard["retrains"] == 1 if noise is None else shard["retrains"] > 1
        after = checked(seeded_workspace, what_if="epsilon", retrains=shard["retrains"] + 1, noise_multiplier=noise)[
            "what_if"
        ]["shards"][shard["shard"]]
        assert not after["admitted"]
        assert after["epsilon"] > shard["epsilon"]


def test_what_noise_more_retrainings_need(seeded_workspace):
    (answer, _) = checked(seeded_workspace, what_if="noise", retrains=4)["what_if"]["shards"]
    again = checked(seeded_workspace, what_if="epsilon", retrains=4, noise_multiplier=answer["noise_multiplier"])
    assert answer["admitted"]
    assert again["what_if"]["shards"][0] == answer
    reserve(seeded_workspace, shard=0, times=1)
    (spent, _) = checked(seeded_workspace, what_if="noise", retrains=1)["what_if"]["shards"]
    assert spent == {"shard": 0, "retrains": 1, "noise_multiplier": None, "epsilon": None, "admitted": False}


def test_questions_that_make_no_sense_are_refused(seeded_workspace, make_recipe, workspace):
    for asked, message in (
        ({"what_if": "steps"}, "expected one of retrains, epsilon, noise"),
        ({"what_if": "epsilon", "retrains": 0}, "retrains: expected 1 or more"),
        ({"what_if": "retrains", "noise_multiplier": float("nan")}, "finite number above 0"),
        ({"group_sizes": (0,)}, "group sizes"),
        ({"retrains": 3}, "beside retrains or a noise multiplier"),
    ):
        with pytest.raises(InputError, match=message):
            budget(str(seeded_workspace), **asked)
    api.train(make_recipe(privacy={"epsilon": None}, method={"name": "head"}), workspace=workspace)
    assert checked(workspace)["shards"][0]["retrains_left"] is None
    assert checked(workspace)["groups"] == []
    with pytest.raises(InputError, match="no budget to plan with"):
        budget(workspace, what_if="retrains")


def test_a_damaged_ledger_has_no_budget(seeded_workspace):
    with sqlite3.connect(seeded_workspace / "ledger.db") as connection:
        connection.execute("UPDATE entries SET kind = 'reservf' WHERE kind = 'reserve' AND shard = 1")
    with pytest.raises(VerificationError, match=r"reservf, shard-001.* is not what was written"):
        budget(str(seeded_workspace))


def test_the_limit_of_the_workspace_is_calibrated_enforced_and_shown(make_recipe, workspace):
    recipe = make_recipe(privacy={"epsilon": 3.0, "workspace_limit": 4.0, "planned_retrains": 2})
    api.train(recipe, workspace=workspace)
    result = checked(workspace)
    assert 3.99 < result["workspace"]["epsilon_limit"] <= 4.0  # three trainings, calibrated to fit
    assert [shard["retrains_left"] for shard in result["shards"]] == [2, 2]
    reserve(workspace, shard=0, times=2)
    with Workspace.open(workspace) as ws:
        setup = Setup.load(ws)
        check = admit_workspace(setup.limit)
        assert check is not None
        with pytest.raises(BudgetError, match="Limit of the workspace"):
            ws.ledger.reserve(
                "one-too-many", shard=0, attempt=3, plan=setup.plan, admit=lambda _: None, admit_workspace=check
            )


def test_training_and_budget_with_accountant_pld_and_on_a_grid(make_recipe, tmp_path):
    tight = str(tmp_path / "pld")
    api.train(make_recipe(privacy={"accountant": "pld"}), workspace=tight)
    result = checked(tight)
    assert result["accountant"] == "pld"
    assert "by the pld accountant" in result["statement"]
    hard = str(tmp_path / "grid")
    api.train(make_recipe(privacy={"hardening": "grid"}), workspace=hard)
    assert "public grid" in checked(hard)["statement"]


@pytest.mark.skipif(postgres.missing() is not None, reason=str(postgres.missing()))
def test_a_whole_life_on_postgresql(make_recipe, tmp_path, monkeypatch):
    """Train, forget, budget and verify, the ledger on a server all along; no password and no ledger on disk."""
    monkeypatch.delenv("PRIVSHARD_LEDGER", raising=False)
    with postgres.running_server() as server:
        url, workspace = server.database(), tmp_path / "ws"
        secret = url.replace("postgres@", "postgres:hunter2@")
        recipe = Recipe(**{**make_recipe().model_dump(exclude={"data"}), "data": make_recipe().data, "ledger": secret})
        trained = api.train(recipe, workspace=str(workspace))
        assert not (workspace / "ledger.db").exists()
        assert not any(b"hunter2" in file.read_bytes() for file in workspace.rglob("*") if file.is_file())
        again = api.train(recipe, workspace=str(workspace))
        assert again["components"] == trained["components"]
        assert api.forget(str(workspace), subject="person-00", mode="drop")["status"] == "done"
        assert checked(workspace)["shards"][0]["releases"] == 1
        verdict = api.verify(str(workspace))
        assert verdict["ok"], [check for check in verdict["checks"] if not check["ok"]]
        wrong = make_recipe(data={"path": str(tmp_path / "people.parquet"), "nominal_examples": 24}, ledger=url)
        with pytest.raises(InputError):
            api.train(wrong, workspace=str(tmp_path / "other"))
