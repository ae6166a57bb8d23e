"""The same work wherever it runs: other machines, other storage, a controller of its own, software that is another."""

from __future__ import annotations

import os
import re
import shutil
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

import privshard
from jobs.benchmarks.faults import Range
from privshard import api
from privshard.core.errors import ResourceError
from privshard.runtime.worker import software_versions
from privshard.store.workspace import Workspace

PLACES = ("none", "local", "three nodes")


def components(workspace, **where):
    """(shard, attempt) -> the component's digest, of everything that is committed."""
    with Workspace.open(workspace, **where) as ws:
        held = ws.ledger.reservations()
        assert [run.state for run in held] == ["committed"] * len(held)
        return {(run.shard, run.attempt): str(run.component) for run in held}


def train_and_forget(make_recipe, workspace, *, address, **changes):
    """Every shard once, and one of them again without a person."""
    ray = {"address": address, "schedule_timeout_s": 120.0}
    api.train(make_recipe(insecure_seed=3, ray=ray, **changes), workspace=workspace)
    assert api.forget(workspace, subject="person-01", mode="retrain")["status"] == "done"
    assert api.verify(workspace)["ok"]
    return components(workspace)


@pytest.mark.slow
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("storage", ["disk", "s3"])
@pytest.mark.timeout(900)
def test_a_seeded_recipe_gives_the_same_digests_everywhere(
    where, storage, make_recipe, seeded_workspace, tmp_path, request
):
    """In this process, on one machine, on three; on a local disk with a file, in a bucket with a server."""
    there: dict[str, str] = {}
    place = str(tmp_path / "there")
    if storage == "s3":
        place = request.getfixturevalue("buckets").uri()
        there = {"ledger": request.getfixturevalue("server").database()}
    assert api.forget(str(seeded_workspace), subject="person-01", mode="retrain")["status"] == "done"
    expected = components(str(seeded_workspace))
    assert len(expected) == 3
    if where == "three nodes":
        with closing(Range()) as cluster:
            assert train_and_forget(make_recipe, place, address=cluster.address, **there) == expected
    else:
        assert train_and_forget(make_recipe, place, address=where, **there) == expected


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_detached_training_in_a_bucket_is_left_and_found_again(make_recipe, buckets, server, seeded_workspace):
    """Its controller has no local folder: whatever it needs, it gets from the bucket and the database."""
    bucket, url = buckets.uri(), server.database()
    with closing(Range()) as cluster:
        ray = {"address": cluster.address, "schedule_timeout_s": 120.0}
        recipe = make_recipe(insecure_seed=3, ledger=url, ray=ray)
        begun = api.train_detached(recipe, workspace=bucket)
        assert (begun["started"], begun["workspace"]) == (True, bucket)
        ended = api.status(bucket, follow=True)
        assert ended["run"]["state"] == "done", ended
        assert ended["shards"]["committed"] == 2
        assert components(bucket) == components(str(seeded_workspace))
        assert api.verify(bucket)["ok"]
        assert {job["state"] for job in api.timeline(bucket)["confidential"]["jobs"]} == {"done"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_prometheus_finds_public_numbers_and_nobody_in_them(make_recipe, workspace):
    """What a scraper gets from the machines of a cluster on which a training ran, while its driver is there."""
    import ray

    with closing(Range()) as cluster:
        api.train(
            make_recipe(ray={"address": cluster.address, "schedule_timeout_s": 120.0}, training={"steps": 5}),
            workspace=workspace,
        )
        deadline, found = time.monotonic() + 120, []
        while not any("privshard_jobs" in line for line in found) and time.monotonic() < deadline:
            time.sleep(2)
            found = [line for node in ray.nodes() for line in scrape(node)]
    with Workspace.open(workspace) as ws:
        spent = api.budget(workspace)["shards"][0]["epsilon_spent"]
        labels = f'workspace="{ws.id}"'
    mine = [line for line in found if "privshard_" in line.partition("{")[0] and not line.startswith("#")]
    names = {re.sub(r"^ray_", "", line.partition("{")[0]) for line in mine}
    assert {"privshard_epsilon_spent", "privshard_jobs", "privshard_removals_open"} <= names
    assert all(labels in line for line in mine)
    shown = [float(line.rsplit(" ", 1)[1]) for line in mine if "privshard_epsilon_spent" in line]
    assert shown[0] == pytest.approx(spent)
    text = "\n".join(mine)
    assert not re.search(r"person|subject|shard[-_=]0|\.parquet", text.replace("privshard", "")), text


def scrape(node) -> list[str]:
    """The lines of one machine's metrics; none where it exports none yet."""
    try:
        address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.read().decode().splitlines()
    except OSError:
        return []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_machines_with_another_privshard_are_refused_before_anything_is_spent(
    make_recipe, workspace, tmp_path, monkeypatch
):
    """The workers start with a copy of the package that calls itself another version, as an old image would have it."""
    other = tmp_path / "other"
    shutil.copytree(Path(privshard.__file__).parent, other / "privshard", ignore=shutil.ignore_patterns("__pycache__"))
    init = other / "privshard" / "__init__.py"
    init.write_text(init.read_text().replace(f'"{privshard.__version__}"', '"0.0.7"'))
    (other / "sitecustomize.py").write_text("import privshard\n")  # before Ray adds the driver's own folders
    monkeypatch.setenv("PYTHONPATH", f"{other}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with closing(Range()) as cluster, pytest.raises(ResourceError, match=r"privshard 0\.0\.7 instead of") as refused:
        api.train(make_recipe(ray={"address": cluster.address, "schedule_timeout_s": 120.0}), workspace=workspace)
    assert "same versions" in refused.value.remedy
    assert software_versions()["privshard"] in refused.value.message
    with Workspace.open(workspace) as ws:  # no worker has begun, so nothing is spent
        assert {run.state for run in ws.ledger.reservations()} == {"voided"}
        assert ws.component_ids() == []
