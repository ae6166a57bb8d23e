"""`decompose`: from a recipe to a finished decomposition, resuming whatever is there."""

from __future__ import annotations

import json
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from privshard.api.decompose_recipe import DecomposeRecipe
from privshard.core.errors import InputError, PrivshardError, VerificationError
from privshard.core.jobs import OnProgress, ShardFailure
from privshard.store.disk import explain, make_folder, write_whole
from privshard.store.lock import LOCK_NAME, hold

_RECIPE, _RESULT = "recipe.yaml", "result.json"


def decompose(recipe: DecomposeRecipe, *, workspace: str, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """Learn components, or fit them to given weights, and write them to the folder `workspace`.

    What it makes is a base: public knowledge, without any guarantee of privacy. The same recipe on the same folder
    resumes, or returns what is there; another recipe is refused. What fails before anything was learnt leaves nothing
    behind, so that a corrected recipe may be tried in the same folder. Returns the contract's `decompose` object.
    """
    if "://" in workspace:
        raise InputError(
            f"workspace: expected a folder, got {workspace}.",
            remedy="Use a local or mounted disk; components are small.",
        )
    started, folder = time.perf_counter(), Path(workspace).absolute()
    _check_owner(folder, recipe)
    try:
        make_folder(folder)
    except OSError as error:
        raise explain(error, folder) from error
    with hold(folder):
        _check_owner(folder, recipe)
        if not _is_done(folder):
            write_whole(folder / _RECIPE, recipe.to_yaml().encode())
            try:
                found = _run(recipe, folder, on_progress or (lambda _: None))
            except PrivshardError:
                _take_back(folder)
                raise
            write_whole(folder / _RESULT, json.dumps(_report(recipe, folder, found), sort_keys=True).encode())
        result = json.loads((folder / _RESULT).read_text())
    return {**result, "timing_s": {**result["timing_s"], "total": time.perf_counter() - started}}


def _run(recipe: DecomposeRecipe, folder: Path, on_progress: OnProgress) -> dict[str, Any]:
    """The one job of a decomposition, here or on a Ray worker."""
    from privshard.api.decompose_worker import DecomposeJob, run_decompose
    from privshard.runtime import make_executor

    job: Any = DecomposeJob("decompose", str(folder), recipe.to_yaml(), recipe.flags())
    run: Any = run_decompose  # executors run any job that has a run id, a workspace and flags
    with make_executor(
        run,
        address=recipe.ray.address,
        gpus_per_shard=recipe.ray.gpus_per_shard,
        cpus_per_shard=recipe.ray.cpus_per_shard,
        schedule_timeout_s=recipe.ray.schedule_timeout_s,
    ) as executor:
        executor.check(1)
        (outcome,) = executor.train([job], on_progress)
    if isinstance(outcome, ShardFailure):
        raise outcome.error
    found: Any = outcome
    return found


def _check_owner(folder: Path, recipe: DecomposeRecipe) -> None:
    """A folder belongs to the recipe that it was begun with."""
    path, held = folder / _RECIPE, None
    with suppress(InputError):  # a recipe of something else
        held = DecomposeRecipe.load(path)
    if held is None:
        entries = folder.iterdir() if folder.is_dir() else [folder] if folder.exists() else []
        strangers = sorted(entry.name for entry in entries if entry.name != LOCK_NAME)
        if strangers:
            raise InputError(
                f"workspace: expected an empty folder or a decomposition, got {folder} with {strangers[0]} in it.",
                remedy="Name another folder with --workspace.",
            )
    elif held.digest != recipe.digest:
        raise InputError(
            f"Workspace {folder} belongs to another recipe.",
            remedy=f"Decompose into another folder with --workspace, or use {path}.",
        )


def _is_done(folder: Path) -> bool:
    """Whether the result is there, and the very file that it tells of."""
    from privshard.decomposition.files import FILE_NAME, open_decomposition

    with suppress(FileNotFoundError, InputError), open_decomposition(folder / FILE_NAME) as found:
        return found.digest == json.loads((folder / _RESULT).read_text())["digest"]
    return False


def _take_back(folder: Path) -> None:
    """Undo a beginning: a folder belongs to nobody, and is gone, while nothing has been learnt."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    if {entry.name for entry in folder.iterdir()} <= {_RECIPE, LOCK_NAME}:
        (folder / _RECIPE).unlink()
        (folder / LOCK_NAME).unlink()  # last: until then nobody else gets the folder
        with suppress(OSError):  # not empty: somebody has begun to use it anew
            folder.rmdir()


def _report(recipe: DecomposeRecipe, folder: Path, found: dict[str, Any]) -> dict[str, Any]:
    """The contract's `decompose` object."""
    from privshard.decomposition.files import FILE_NAME, open_decomposition

    with open_decomposition(folder / FILE_NAME) as decomposition:
        if decomposition.digest != found["digest"]:
            raise VerificationError(f"{folder / FILE_NAME} changed while it was made.", remedy="Make it again.")
        basis = decomposition.basis
        return {
            "workspace": str(folder),
            "file": str(folder / FILE_NAME),
            "digest": decomposition.digest,
            "model": {"name": recipe.model.name, "args": dict(decomposition.architecture.args)},
            "method": recipe.method,
            "components": decomposition.num_components,
            "stacks": [
                {
                    "name": stack.prefix,
                    "depth": stack.depth,
                    "condition_number": basis.condition_number(
                        stack.depth, components=min(decomposition.num_components, stack.depth)
                    ),
                }
                for stack in decomposition.stacks
            ],
            "basis": basis.to_json(),
            "phases": found["phases"],
            "residuals": found["residuals"],
            "data": found["data"],
            "statement": decomposition.facts["statement"],
            "timing_s": found["timing_s"],
        }
