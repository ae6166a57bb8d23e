"""`audit`: on a trained workspace, without its rows, and without leaving anything behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import jsonschema
import pytest

from privshard import api
from privshard.api import auditing, schemas
from privshard.core.errors import InputError
from privshard.store.workspace import Workspace


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(("kind", "canaries"), [("step", 2000), ("removal", 1000), ("run", 60)])
def test_every_kind_reports_what_the_schema_says_and_changes_nothing(seeded_workspace, kind, canaries):
    before = contents(seeded_workspace)
    found = api.audit(str(seeded_workspace), kind=kind, canaries=canaries)
    jsonschema.validate(found, schemas.load("audit"))
    assert found["kind"] == kind
    assert found["ok"]
    assert found["num_canaries"] == canaries
    assert "insecure_seed" in found["note"]
    assert contents(seeded_workspace) == before


def test_no_private_row_is_needed(seeded_workspace, monkeypatch):
    shutil.rmtree(seeded_workspace / "data")
    shutil.rmtree(seeded_workspace / "components")
    assert api.audit(str(seeded_workspace), canaries=500)["ok"]


def test_the_bound_is_of_the_workspaces_own_plan_and_claim(seeded_workspace):
    from privshard.api.setup import Setup

    with Workspace.open(str(seeded_workspace)) as ws:
        setup = Setup.load(ws)
    found = api.audit(str(seeded_workspace), canaries=20_000)
    assert found["claim"]["epsilon"] == setup.spend(1).epsilon
    assert 0.5 * setup.spend(1).epsilon < found["lower_bound"]["epsilon"] < setup.spend(1).epsilon


def test_keys_are_drawn_as_workers_draw_them_even_where_training_was_seeded(seeded_workspace, monkeypatch):
    from privshard.api import worker

    drawn, real = [], worker.fresh_key
    monkeypatch.setattr(worker, "fresh_key", lambda: drawn.append(real()) or drawn[-1])
    api.audit(str(seeded_workspace), canaries=100)
    assert len(set(drawn)) == 2


def test_a_page_is_written(seeded_workspace, tmp_path):
    target = tmp_path / "pages" / "audit.html"
    found = api.audit(str(seeded_workspace), canaries=500, html=str(target))
    assert found["html"] == str(target)
    assert "Step audit" in target.read_text()


def test_progress_is_told(seeded_workspace):
    news = []
    api.audit(str(seeded_workspace), canaries=100, on_progress=news.append)
    assert (news[-1].stage, news[-1].done) == ("audit", news[-1].total)


def test_what_makes_no_sense_is_refused_before_anything_is_computed(
    seeded_workspace, make_recipe, workspace, monkeypatch
):
    """Opening a base and running canaries through it takes minutes for an adapter of a large network."""
    from privshard.api import worker

    api.train(make_recipe(privacy={"epsilon": None}, method={"name": "head"}), workspace=workspace)
    monkeypatch.setattr(worker, "open_base", lambda *given, **options: pytest.fail("the base was opened"))
    for options, message in (
        ({"kind": "guess"}, "expected one of step, run, removal"),
        ({"canaries": 0}, "positive number"),
        ({"confidence": 1.5}, "confidence"),
        ({"kind": "run", "confidence": 1.5}, "confidence"),
        ({"kind": "run", "canaries": 3}, "at least two a shard"),
    ):
        with pytest.raises(InputError, match=message):
            api.audit(str(seeded_workspace), **options)
    for kind in auditing.KINDS:
        with pytest.raises(InputError, match="no claim to attack"):
            api.audit(workspace, kind=kind, canaries=8)
