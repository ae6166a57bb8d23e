"""Detached trainings on a cluster of three nodes: started, left, found again, cancelled; equal to this process."""

from __future__ import annotations

import json

import pytest

from jobs.benchmarks.faults import Range
from privshard import api
from privshard.core.errors import InputError, ResourceError
from privshard.store.workspace import Workspace

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def cluster():
    """A head and two machines of one CPU each."""
    where = Range()
    yield where
    where.close()


def on(cluster, make_recipe, **changes):
    return make_recipe(insecure_seed=3, ray={"address": cluster.address, "schedule_timeout_s": 120.0}, **changes)


def components(workspace) -> dict[int, str]:
    with Workspace.open(workspace) as ws:
        return {run.shard: str(run.component) for run in ws.ledger.reservations() if run.state == "committed"}


def test_a_client_leaves_and_finds_it_again_and_the_components_are_those_of_this_process(
    cluster, make_recipe, workspace, seeded_workspace, tmp_path
):
    recipe = on(cluster, make_recipe)
    begun = api.train_detached(recipe, workspace=workspace)
    assert begun["started"]
    again = api.train_detached(recipe, workspace=workspace)
    assert (again["started"], again["controller"]) == (False, begun["controller"])
    heard = []
    ended = api.status(workspace, follow=True, on_progress=heard.append)
    assert ended["run"]["state"] == "done", ended
    assert ended["shards"] == {"total": 2, "committed": 2, "reserved": 0, "not_started": 0, "attempts_spent": 2}
    assert heard[-1].done == 2
    assert components(workspace) == components(seeded_workspace)  # trained in this process
    assert api.verify(workspace)["ok"]
    shown = api.timeline(workspace, html=str(tmp_path / "t.html"), trace=str(tmp_path / "t.json"))
    assert {job["state"] for job in shown["confidential"]["jobs"]} == {"done"}
    assert "shard-001-attempt-000" in (tmp_path / "t.html").read_text()
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert api.cancel(workspace)["status"] in ("done", "not_running")


def test_what_was_cancelled_is_taken_up_without_a_new_charge(cluster, make_recipe, workspace):
    recipe = on(cluster, make_recipe, shards=4, training={"steps": 100})
    api.train_detached(recipe, workspace=workspace)
    assert api.cancel(workspace)["status"] in ("cancelled", "killed")
    assert api.status(workspace)["run"]["state"] in ("cancelled", "interrupted")
    api.train(recipe.model_copy(update={"ray": recipe.ray.model_copy(update={"address": "none"})}), workspace=workspace)
    shards = api.status(workspace)["shards"]
    assert (shards["committed"], shards["attempts_spent"]) == (4, 4)


def test_a_cluster_without_the_gpus_is_refused_before_anything_is_written(cluster, make_recipe, workspace, tmp_path):
    recipe = on(cluster, make_recipe)
    wanting = recipe.model_copy(update={"ray": recipe.ray.model_copy(update={"gpus_per_shard": 1.0})})
    with pytest.raises(ResourceError, match="1 GPU and 1 CPU; no machine of this cluster has that"):
        api.train_detached(wanting, workspace=workspace)
    assert not (tmp_path / "workspace").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ray": {"address": "none"}}, "ends with this command"),
        ({"ray": {"address": "local"}}, "ends with this command"),
        ({"ray": {"address": "h:1"}, "ledger": "postgresql://u:secret@h/d"}, "without its password"),
    ],
)
def test_what_cannot_be_left_alone_is_refused(changes, message, make_recipe, workspace):
    with pytest.raises(InputError, match=message) as refused:
        api.train_detached(make_recipe(**changes), workspace=workspace)
    assert "secret" not in str(refused.value)


def test_where_nothing_is_there_is_nothing_to_see(workspace, seeded_workspace):
    with pytest.raises(InputError, match="found none"):
        api.status(workspace)
    assert api.cancel(workspace) == {"workspace": workspace, "status": "not_running"}
    assert api.status(str(seeded_workspace))["controller"]["state"] == "none"
    assert api.status(str(seeded_workspace))["run"]["state"] == "done"
