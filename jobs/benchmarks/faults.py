"""Trainings that are shot at: `python -m jobs.benchmarks.faults --runs 60 --json faults.json`.

Each run starts a detached training on a local cluster of three nodes and kills, at a random moment, one of its actors,
one of its nodes or its controller, in turn. Then the workspace has to verify, and its ledger has to be right.

A run that is over is written down at once: the same command again makes those that are missing, and any that a cluster
which could not be started cost. Every twelve runs the cluster is a new one.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.benchmarks.small_data import small_recipe, write_small_data
from privshard.api.recipe import Recipe
from privshard.core.errors import InputError, PrivshardError
from privshard.runtime.record import RunRecord
from privshard.store.disk import write_whole
from privshard.store.workspace import Workspace

VICTIMS = ("actor", "node", "controller")
DEADLINE_S = 300.0
CLUSTER_RUNS = 12
_STORE_BYTES = 78 * 2**20


@dataclass(frozen=True)
class Run:
    """What became of one training. hit: whether it was still at work when the moment came. work_s: from its first job
    to its end. reruns: how often it had to be started again by its operator."""

    number: int
    seed: int
    victim: str
    after_s: float
    hit: bool
    work_s: float
    elapsed_s: float
    retries: int
    reruns: int
    charged: int
    problems: tuple[str, ...]


def train_in_controller(
    values: dict[str, Any],
    workspace: str,
    address: str,
    name: str,
    stand_in_s: float | None,
    *,
    record: RunRecord,
    cancelled: Callable[[], bool],
) -> None:
    """What the controllers of this program do: the library's own work, with the stand-in where that is asked for."""
    from privshard.api.running import run_training

    with ExitStack() as stack:
        if stand_in_s is not None:
            from jobs.benchmarks.stand_in import standing_in
            from privshard.api.methods import make_method
            from privshard.api.setup import base_spec
            from privshard.models.base import load_base

            recipe = Recipe(**values)
            assert recipe.data.classes is not None
            base = load_base(base_spec(recipe, len(recipe.data.classes)))
            shapes = make_method(recipe.method_spec(), base.view).shapes()
            stack.enter_context(standing_in(shapes, work_s=stand_in_s))
        run_training(values, workspace, address, name, record=record, cancelled=cancelled)


class Range:
    """A local cluster of a head that only controls and two machines that work."""

    def __init__(self) -> None:
        import ray
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": _STORE_BYTES}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = str(self._cluster.address)
        ray.init(address=self.address, log_to_driver=False, logging_level=logging.ERROR)
        self._nodes = [self._add() for _ in range(2)]

    def close(self) -> None:
        """Stop every node that this started."""
        import ray

        ray.shutdown()
        self._cluster.shutdown()

    def lose_node(self, chance: random.Random) -> None:
        """Kill one of the machines that work, and give the cluster another one."""
        node = self._nodes.pop(chance.randrange(len(self._nodes)))
        self._cluster.remove_node(node, allow_graceful=False)
        self._nodes.append(self._add())

    def _add(self) -> Any:
        """Another machine; one that does not start in time on a busy computer is tried again."""
        for left in (2, 1, 0):
            try:
                return self._cluster.add_node(num_cpus=1, object_store_memory=_STORE_BYTES)
            except Exception:  # Ray raises no class of its own here
                if not left:
                    raise


def run_once(
    number: int,
    *,
    base_seed: int,
    where: Range,
    folder: Path,
    span_s: float,
    stand_in_s: float | None,
    victim: str | None,
) -> tuple[Run, dict[int, str]]:
    """One training, shot at once (or never, without a victim); what became of it, and its components by shard."""
    from privshard.runtime.detached import ControllerClient

    seed = base_seed * 1000 + number
    chance = random.Random(seed)
    after_s = chance.uniform(0.0, span_s)
    workspace = str(folder / f"run-{number}")
    recipe = small_recipe(folder / "people.parquet", shards=4, insecure_seed=7)
    environment = {name: os.environ[name] for name in ("PRIVSHARD_KEYS_DIR", "PYTHONPATH") if name in os.environ}
    began, retries, reruns, shot, first_job_s = time.monotonic(), 0, -1, victim is None, None
    problems: list[str] = []
    with ControllerClient(workspace, address=where.address) as client:
        while True:
            reruns += 1
            arguments = (recipe.model_dump(mode="json"), workspace, where.address, client.name, stand_in_s)
            client.start(train_in_controller, arguments, kind="train", environment=environment, local=True)
            record = None
            while time.monotonic() - began < DEADLINE_S:
                try:
                    record = client.ask("status", timeout_s=30.0)
                except PrivshardError:
                    record = _saved(workspace)
                if record is None:
                    continue
                if record["state"] != "running":
                    break
                if first_job_s is None and record["jobs"]:
                    first_job_s = time.monotonic()
                if not shot and first_job_s is not None and time.monotonic() >= first_job_s + after_s:
                    shot = _shoot(str(victim), record, client=client, where=where, chance=chance)
                time.sleep(0.05)
            state = record["state"] if record else "no answer"
            retries = max(retries, sum(job["retries"] for job in record["jobs"]) if record else 0)
            client.kill()
            _until_gone(client)
            if state == "failed" and reruns < 2:
                continue
            break
    if state != "done":
        problems.append(f"ended {state} after {time.monotonic() - began:.0f} s: {record and record['error']}")
    charged, found, components = check_workspace(workspace)
    shutil.rmtree(workspace, ignore_errors=True)
    elapsed = time.monotonic() - began
    problems += found
    work_s = time.monotonic() - (first_job_s or began)
    run = Run(
        number, seed, victim or "nobody", after_s, shot, work_s, elapsed, retries, reruns, charged, tuple(problems)
    )
    return run, components


def check_workspace(workspace: str) -> tuple[int, list[str], dict[int, str]]:
    """Attempts that were charged beyond one a shard, what is wrong, and the component of every shard."""
    from privshard import api

    verified = api.verify(workspace)
    problems = [f"{check['name']}: {check['detail']}" for check in verified["checks"] if not check["ok"]]
    with Workspace.open(workspace) as ws:
        runs = ws.ledger.reservations()
        model = ws.ledger.current_model()
        num_shards = ws.ledger.get("setup")["num_shards"]
    committed = {run.shard: str(run.component) for run in runs if run.state == "committed"}
    if sorted(committed) != list(range(num_shards)) or sum(run.state == "committed" for run in runs) != num_shards:
        problems.append(f"expected one committed attempt a shard, got {sorted(committed)}")
    if model is None or set(model.composition.weights) != set(committed.values()):
        problems.append("the model is not the composition of the committed components")
    for run in runs:
        if run.state == "reserved" and not run.released:
            problems.append(f"{run.run_id} is charged, and nothing of it was let out")
        if run.state == "committed" and not run.released:
            problems.append(f"{run.run_id} was committed without a mark that it was let out")
    charged = sum(run.state != "voided" for run in runs) - num_shards
    lost = sum(run.state == "reserved" and run.released for run in runs)
    if charged != lost:
        problems.append(f"{charged} attempts are charged beyond one a shard, and {lost} were let out and lost")
    first = {run.shard: str(run.component) for run in runs if run.state == "committed" and run.attempt == 0}
    return charged, problems, first


def main(given: Sequence[str] | None = None) -> int:
    """Run them all, print each and a table; exit status 1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--first", type=int, default=0, help="the number of the first run, to go on from another one")
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the victims")
    parser.add_argument("--real", action="store_true", help="train the real model instead of the stand-in")
    parser.add_argument("--json", help="where to write the result, and to go on from")
    options = parser.parse_args(given)
    result = Result(Path(options.json) if options.json else None, settings={"seed": options.seed, "real": options.real})
    numbers = [number for number in range(options.first, options.first + options.runs) if number not in result.runs]
    folder = Path(tempfile.mkdtemp(prefix="privshard-faults-"))
    os.environ["PRIVSHARD_KEYS_DIR"] = str(folder / "keys")
    try:
        write_small_data(folder / "people.parquet")
        for begin in range(0, len(numbers), CLUSTER_RUNS):
            with closing(Range()) as where:
                shoot_at_all(
                    numbers[begin : begin + CLUSTER_RUNS],
                    base_seed=options.seed,
                    where=where,
                    folder=folder,
                    stand_in_s=None if options.real else 0.5,
                    on_run=result.add,
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    runs = [run for number, run in sorted(result.runs.items())]
    print(table(runs))
    return int(any(run.problems for run in runs))


class Result:
    """The runs that are over, by number, kept in a file so that the rest can be made later."""

    def __init__(self, path: Path | None, *, settings: Mapping[str, Any]) -> None:
        self._path, self._settings = path, dict(settings)
        self.runs: dict[int, Run] = {}
        if path is None or not path.exists():
            return
        held = json.loads(path.read_text())
        if held["settings"] != self._settings:
            raise InputError(
                f"{path}: expected runs made with {self._settings}, found some made with {held['settings']}.",
                remedy="Give --json another file.",
            )
        for values in held["runs"]:
            run = Run(**{**values, "problems": tuple(values["problems"])})
            self.runs[run.number] = run

    def add(self, run: Run) -> None:
        """Keep one more."""
        self.runs[run.number] = run
        if self._path is not None:
            runs = [each for _, each in sorted(self.runs.items())]
            content = {"settings": self._settings, "runs": [asdict(each) for each in runs], "table": table(runs)}
            write_whole(self._path, json.dumps(content, indent=1).encode())


def shoot_at_all(
    numbers: Sequence[int],
    *,
    base_seed: int,
    where: Range,
    folder: Path,
    stand_in_s: float | None,
    on_run: Callable[[Run], None] = lambda _: None,
) -> list[Run]:
    """One training that nobody shoots at, which says how long one takes, and `numbers` that are. on_run: takes each of
    these when it is over."""
    shared = {"base_seed": base_seed, "where": where, "folder": folder, "stand_in_s": stand_in_s}
    quiet, expected = run_once(-1, span_s=0.0, victim=None, **shared)
    print(_line(quiet), flush=True)
    runs = []
    for number in numbers:
        victim = VICTIMS[number % len(VICTIMS)]
        run, components = run_once(number, span_s=quiet.work_s, victim=victim, **shared)
        wrong = [shard for shard, component in components.items() if component != expected[shard]]
        if wrong:
            run = Run(**{**asdict(run), "problems": (*run.problems, f"other digests than in peace: shards {wrong}")})
        print(_line(run), flush=True)
        on_run(run)
        runs.append(run)
    return runs


def table(runs: Sequence[Run]) -> str:
    """One row a kind of victim."""
    names = ("killed", "runs", "hit at work", "verified, ledger right", "workers replaced", "started again by hand")
    names += ("attempts charged", "longest, s")
    rows = [f"| {' | '.join(names)} |", f"|{' --- |' * len(names)}"]
    for victim in VICTIMS:
        mine = [run for run in runs if run.victim == victim]
        if mine:
            fine = sum(not run.problems for run in mine)
            sums = [sum(getattr(run, name) for run in mine) for name in ("retries", "reruns", "charged")]
            longest = f"{max(run.elapsed_s for run in mine):.0f}"
            cells = (victim, len(mine), sum(run.hit for run in mine), fine, *sums, longest)
            rows.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(rows)


def _shoot(victim: str, record: dict[str, Any], *, client: Any, where: Range, chance: random.Random) -> bool:
    """Kill the victim; False where there is none at this moment."""
    if victim == "node":
        where.lose_node(chance)
        return True
    if victim == "controller":
        import ray

        actor = client.find()
        if actor is not None:
            ray.kill(actor, no_restart=False)
        return actor is not None
    pids = [
        job["pid"] for job in record["jobs"] if job["pid"] and job["state"] in ("running", "finished", "collecting")
    ]
    if pids:
        try:
            os.kill(chance.choice(pids), signal.SIGKILL)
        except ProcessLookupError:  # it has just ended by itself
            return False
    return bool(pids)


def _saved(workspace: str) -> dict[str, Any] | None:
    from privshard.api.watching import latest_run

    try:
        with Workspace.open(workspace) as ws:
            return latest_run(ws)
    except PrivshardError:
        return None


def _until_gone(client: Any) -> None:
    """Wait until the controller's name is free."""
    deadline = time.monotonic() + 30.0
    while client.find() is not None and time.monotonic() < deadline:
        time.sleep(0.1)


def _line(run: Run) -> str:
    fine = "ok" if not run.problems else "; ".join(run.problems)
    when = f"after {run.after_s:5.2f} s{'' if run.hit else ' (over by then)'}"
    return (
        f"run {run.number:3d} seed {run.seed} {run.victim:10s} {when}: {fine} in "
        f"{run.elapsed_s:.1f} s, {run.retries} retried, {run.reruns} rerun, {run.charged} charged"
    )


if __name__ == "__main__":
    sys.exit(main())
