"""The manifests fit the operator's schema, and what they start exists."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import shlex
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from jobs.train import names

FOLDER = Path(__file__).parents[3] / "jobs/kubernetes"


def _subset() -> Any:
    """The schema beside this test."""
    spec = importlib.util.spec_from_file_location("kuberay_subset", Path(__file__).with_name("kuberay_subset.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SUBSET = _subset()
SCHEMAS = {"rayjob": (SUBSET.RAY_JOB, "rayClusterSpec"), "rayservice": (SUBSET.RAY_SERVICE, "rayClusterConfig")}


def load(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def test_no_manifest_is_left_out():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(SCHEMAS)


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_manifest_fits_the_schema_and_a_wrong_one_does_not(name):
    schema, cluster = SCHEMAS[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    manifest = load(name)
    jsonschema.validate(manifest, schema)
    for path, value in {
        ("apiVersion",): "ray.io/v1alpha1",
        ("spec", "entrypont"): "x",
        ("spec", cluster, "headGroupSpec", "rayStartParams", "num-cpus"): 0,
        ("spec", cluster, "workerGroupSpecs", 0, "maxReplicas"): "4",
    }.items():
        wrong = copy.deepcopy(manifest)
        place: Any = wrong
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_mount_has_its_volume_and_replicas_their_bounds(name):
    spec = load(name)["spec"][SCHEMAS[name][1]]
    groups = [spec["headGroupSpec"], *spec["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        volumes = {volume["name"] for volume in pod.get("volumes", ())}
        mounts = {mount["name"] for container in pod["containers"] for mount in container.get("volumeMounts", ())}
        assert mounts == volumes
        if "replicas" in group:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


def test_workers_of_a_training_do_not_see_the_keys():
    (group,) = load("rayjob")["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert "keys" not in yaml.safe_dump(group)


def test_what_the_job_starts_exists():
    words = shlex.split(load("rayjob")["spec"]["entrypoint"])
    assert words[:3] == ["python", "-m", "jobs.train"]
    assert words[3] in names()


def test_what_the_service_imports_exists_and_takes_its_arguments():
    config = yaml.safe_load(load("rayservice")["spec"]["serveConfigV2"])
    jsonschema.validate(config, SUBSET.SERVE_CONFIG)
    (application,) = config["applications"]
    module, _, name = application["import_path"].partition(":")
    assert getattr(importlib.import_module(module), name)(application["args"]) is not None
