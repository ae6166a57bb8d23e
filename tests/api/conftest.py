"""Small trainings for the tests of the verbs: keys in a temporary folder, workers that can be made to fail."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_digits import recipe_values, write_people

from privshard.api import train, worker
from privshard.api.recipe import Recipe
from privshard.core.jobs import ShardJob

MakeRecipe = Callable[..., Recipe]


class Killed(BaseException):
    """The process ends here: nothing that would clean up after an error may rely on catching it."""


@pytest.fixture
def killed() -> type[Killed]:
    return Killed


@pytest.fixture(autouse=True)
def keys_dir(tmp_path, monkeypatch) -> Path:
    monkeypatch.delenv("PRIVSHARD_KEYS", raising=False)
    monkeypatch.setenv("PRIVSHARD_KEYS_DIR", str(tmp_path / "keys"))
    return tmp_path / "keys"


@pytest.fixture
def data(tmp_path) -> Path:
    return write_people(tmp_path / "people.parquet")


@pytest.fixture
def make_recipe(data) -> MakeRecipe:
    """(section changes) -> a recipe that trains in a moment."""

    def make(path: Path = data, **changes: Any) -> Recipe:
        return Recipe(**recipe_values(path, **changes))

    return make


@pytest.fixture
def workspace(tmp_path) -> str:
    return str(tmp_path / "workspace")


@pytest.fixture(scope="session")
def _trained_once(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("seeded")
    recipe = Recipe(**recipe_values(write_people(home / "people.parquet"), insecure_seed=3))
    train(recipe, workspace=str(home / "workspace"))
    return home / "workspace"


@pytest.fixture
def seeded_workspace(_trained_once, tmp_path) -> Path:
    """A copy of a trained workspace of two shards; its keys are insecure ones, so that they need no file."""
    return shutil.copytree(_trained_once, tmp_path / "seeded")


class Workers(list):
    """The (shard, attempt) of every job that was started. `fail`: shard -> what its worker raises."""

    def __init__(self) -> None:
        super().__init__()
        self.fail: dict[int, BaseException] = {}


@pytest.fixture
def workers(monkeypatch) -> Workers:
    """The real shard function, watched."""
    real, seen = worker.run_job, Workers()

    def run_job(job: ShardJob, *rest: Any) -> Any:
        seen.append((job.shard, job.attempt))
        if job.shard in seen.fail:
            raise seen.fail[job.shard]
        return real(job, *rest)

    monkeypatch.setattr(worker, "run_job", run_job)
    return seen
