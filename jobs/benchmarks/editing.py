"""Where to edit: the learned locator against nine other editors on a model's natural errors.

    python -m jobs.benchmarks.editing --data FOLDER --weights FILE --out FOLDER --budget-s 540

Resumable: every part is kept in the out folder as it is done; run it again until it says that it is complete.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from jobs.benchmarks._editing_data import Bench, load_bench
from jobs.benchmarks._editing_methods import Editor, Problem, editors, masked_editor
from jobs.benchmarks._editing_report import write_report
from jobs.benchmarks._editing_timing import timing
from jobs.benchmarks._machine import machine
from privshard.core.digest import json_digest
from privshard.editing.front import front_area
from privshard.editing.groups import ErrorGroup
from privshard.editing.locator import Locator
from privshard.editing.measure import MARGIN, Measures
from privshard.editing.meta import MetaOptions
from privshard.editing.places import Place, default_places, parse_places
from privshard.editing.search import greedy_search
from privshard.editing.tail import WeightTail
from privshard.editing.training import LocatorOptions, train_locator
from privshard.models.plain import load_plain
from privshard.store.objects import ObjectStore

META: Mapping[str, Mapping[str, float]] = {
    "sparse": {"inner_lr": 1e-2, "sparsity": 0.1},
    "dense": {"inner_lr": 1e-2, "sparsity": 0.01},
}


class OutOfTimeError(Exception):
    """The budget is used up; what is done is kept."""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run what is missing, within the budget, and write the report of what there is."""
    asked = _parser().parse_args(arguments)
    deadline = time.monotonic() + asked.budget_s
    torch.manual_seed(asked.seed)
    store = ObjectStore(asked.out)
    base = load_plain(str(asked.weights), model=asked.model)
    base.view.to(asked.device)
    bench = load_bench(
        base, data=asked.data, store=store, device=asked.device, limit=asked.limit, least=asked.least,
        validation=asked.validation_groups, test=asked.groups, max_members=asked.max_members, margin=asked.margin,
        seed=asked.seed,
    )  # fmt: skip
    depth = len(base.view.blocks)
    places = parse_places(asked.places, depth=depth) if asked.places else default_places(depth)
    key = {name: str(value) for name, value in vars(asked).items() if name not in ("budget_s", "out", "device", "data")}
    parts = _Parts(store, json_digest([key, base.digest]), deadline)
    done = True
    locators: dict[str, Locator] = {}
    try:
        for name, meta in META.items():
            locators[name] = _locator(bench, store, places, asked, meta, name, parts)
        _compare(bench, places, locators, asked, parts)
        parts.once("timing", lambda: _timing(bench, places, locators, asked))
        parts.once("search", lambda: _search(bench, places, asked))
    except OutOfTimeError:
        done = False
    report = {
        "benchmark": "editing",
        "complete": done,
        "machine": machine(asked.device),
        "command": {name: str(value) for name, value in vars(asked).items()},
        "model": {"name": asked.model, "digest": base.digest, "accuracy_on_errors": bench.errors.accuracy,
                  "accuracy_on_sample": bench.sample.accuracy},
        "data": {"num_groups_found": bench.num_groups, "tuned": [group.name for group in bench.tuned],
                 "reported": [group.name for group in bench.reported],
                 "images_a_group": [len(group.rows) for group in bench.reported],
                 "num_sensitive": len(bench.sensitive), "num_unlabeled": len(bench.unlabeled)},
        "places": ",".join(map(str, places)),
        "parts": parts.held,
    }  # fmt: skip
    finished = write_report(report, bench=bench, locators=locators, places=places, out=Path(asked.out), asked=asked)
    state = "complete" if done else "not complete: run the same command again to continue"
    print(f"{asked.out}/report.md, report.json: {state}")
    return finished


class _Parts:
    """Results by name, each kept as JSON as soon as it is there; nothing new is begun after the deadline."""

    def __init__(self, store: ObjectStore, key: str, deadline: float) -> None:
        self._store, self._key, self._deadline = store, key[:16], deadline
        self.held: dict[str, Any] = {}

    def once(self, name: str, make: Any) -> Any:
        """The part `name`, made where it is missing."""
        path = f"parts-{self._key}/{name.replace(' ', '_').replace('/', '_')}.json"
        if not self._store.exists(path):
            self.check()
            started = time.monotonic()
            value = make()
            self._store.write_json(path, {"value": value, "elapsed_s": time.monotonic() - started})
            print(f"{name}: {time.monotonic() - started:.1f} s", flush=True)
        self.held[name] = self._store.read_json(path)
        return self.held[name]["value"]

    def check(self) -> None:
        """Raise OutOfTimeError after the deadline."""
        if time.monotonic() > self._deadline:
            raise OutOfTimeError


def _locator(
    bench: Bench,
    store: ObjectStore,
    places: Sequence[Place],
    asked: argparse.Namespace,
    meta: Mapping[str, float],
    name: str,
    parts: _Parts,
) -> Locator:
    """A locator trained on the unlabeled images; its own parts make it resumable."""
    options = LocatorOptions(
        episodes=asked.episodes, batch=asked.batch, depth=asked.depth, fit_steps=asked.fit_steps, seed=asked.seed,
        meta=replace(MetaOptions(), **meta),
    )  # fmt: skip
    rows = bench.unlabeled
    first = min(place.block for place in places)

    def on_done(stage: str, done: int, total: int) -> None:
        if done < total:
            parts.check()

    return train_locator(
        WeightTail(bench.base.view, first),
        lambda chosen: bench.pixels(bench.sample, [rows[at] for at in chosen]),
        num_images=len(rows),
        places=places,
        base=bench.base.digest,
        identity=json_digest([len(rows), rows[:50]]),
        state=ObjectStore(f"{store.root}/locator-{name}-{json_digest(str(options))[:8]}"),
        options=options,
        on_done=on_done,
    )


def _compare(
    bench: Bench, places: Sequence[Place], locators: Mapping[str, Locator], asked: argparse.Namespace, parts: _Parts
) -> None:
    """Tune every editor on the validation groups, then run the chosen setting once on the groups to report."""
    for locator in locators.values():
        locator.network.to(asked.device)
    tuned = _problem(bench, bench.tuned, places, locators, asked)
    reported = _problem(bench, bench.reported, places, locators, asked)
    for editor in editors(places, list(locators)):
        curves = []
        for setting in editor.settings:
            name = f"tune {editor.name} {json.dumps(setting, sort_keys=True)}"
            curves.append(parts.once(name, lambda e=editor, s=setting: _curve(bench, bench.tuned, tuned, e, s, asked)))
        areas = [front_area(points(curve)) for curve in curves]
        best = int(np.argmax(areas))
        parts.held[f"chosen {editor.name}"] = {"value": {"setting": dict(editor.settings[best]), "areas": areas}}
        setting = editor.settings[best]
        parts.once(
            f"report {editor.name}", lambda e=editor, s=setting: _curve(bench, bench.reported, reported, e, s, asked)
        )


def points(curve: Mapping[str, Any]) -> np.ndarray:
    """(groups, strengths, 2): generalization and locality."""
    return np.stack([np.array(curve["generalization"]), np.array(curve["locality"])], axis=-1)


def _problem(
    bench: Bench,
    groups: Sequence[ErrorGroup],
    places: Sequence[Place],
    locators: Mapping[str, Locator],
    asked: argparse.Namespace,
) -> Problem:
    """The first images of every group, each to be edited by itself."""
    rows = [row for group in groups for row in group.rows[: asked.edits]]
    labels = [group.label for group in groups for _ in group.rows[: asked.edits]]
    return Problem(
        view=bench.base.view,
        images=bench.pixels(bench.errors, rows),
        labels_B=torch.tensor(labels, device=asked.device),
        places=tuple(places),
        unlabeled=bench.pixels(bench.sample, bench.unlabeled[:64]),
        steps=asked.steps,
        seed=asked.seed,
        chunk=asked.chunk,
        locators=locators,
    )


def _curve(
    bench: Bench,
    groups: Sequence[ErrorGroup],
    problem: Problem,
    editor: Editor,
    setting: Mapping[str, Any],
    asked: argparse.Namespace,
) -> dict[str, Any]:
    """Success, generalization, locality of every group, means over its edits, at every strength."""
    unsure = bench.pixels(bench.sample, bench.sensitive)
    before_B = torch.from_numpy(bench.sample.predictions_B[bench.sensitive]).to(asked.device)
    members = [bench.pixels(bench.errors, group.rows) for group in groups]
    found = np.zeros((3, len(groups), len(editor.strengths)))
    for column, strength in enumerate(editor.strengths):
        predictors = iter(editor.run(problem, setting, strength))
        for line, group in enumerate(groups):
            edits = range(len(group.rows[: asked.edits]))
            for at in edits:
                said_B = next(predictors)(torch.cat([members[line], unsure]))
                right_B = said_B[: len(group.rows)] == group.label
                others = [other for other in range(len(group.rows)) if other != at]
                values = (
                    right_B[at],
                    right_B[others].double().mean(),
                    (said_B[len(group.rows) :] == before_B).double().mean(),
                )
                found[:, line, column] += np.array([float(value) for value in values]) / len(edits)
    names = ("success", "generalization", "locality")
    curves = {name: values.tolist() for name, values in zip(names, found, strict=True)}
    return {"strengths": list(editor.strengths), "setting": dict(setting), **curves}


def _search(bench: Bench, places: Sequence[Place], asked: argparse.Namespace) -> dict[str, Any]:
    """Where a gradient mask edits best, on the validation groups: what the search command does."""
    problem = _problem(bench, bench.tuned, places, {}, asked)
    editor = Editor("gradient mask", (0.25,), ({"lr": 5e-5},), masked_editor("gradient"))

    def evaluate(chosen: tuple[Place, ...]) -> Measures:
        moved = replace(problem, places=chosen)
        curve = _curve(bench, bench.tuned, moved, editor, editor.settings[0], asked)
        return Measures(*(float(np.mean(curve[name])) for name in ("success", "generalization", "locality")))

    found, tried = greedy_search(evaluate, blocks=range(len(bench.base.view.blocks)), group=asked.search_blocks)
    return {"places": ",".join(map(str, found)), "candidates": [candidate.to_json() for candidate in tried]}


def _timing(
    bench: Bench, places: Sequence[Place], locators: Mapping[str, Locator], asked: argparse.Namespace
) -> dict[str, Any]:
    problem = _problem(bench, bench.reported[:1], places, locators, asked)
    return timing(problem, next(iter(locators.values())), steps=asked.timed_steps, batch=asked.timed_batch,
                  device=asked.device)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    found.add_argument(
        "--data", type=Path, required=True, help="folder with tiny_imagenet and imagenet_sample .parquet"
    )
    found.add_argument("--weights", type=Path, required=True, help="safetensors file of the model, head included")
    found.add_argument("--out", default="editing-benchmark", help="folder for parts, report and plots")
    found.add_argument("--budget-s", type=float, default=540, help="begin nothing new after so many seconds")
    found.add_argument("--model", default="deit_tiny_patch16_224", help="timm's name")
    found.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    found.add_argument("--places", help="where masked editors may edit; default: FFNs of up to 3 late blocks")
    found.add_argument("--groups", type=int, default=24, help="error groups to report")
    found.add_argument("--validation-groups", type=int, default=8, help="other error groups, to tune on")
    found.add_argument("--least", type=int, default=8, help="images in a group, at least")
    found.add_argument("--max-members", type=int, default=24, help="images of a group that are used")
    found.add_argument("--edits", type=int, default=2, help="images of a group that are edited, one at a time")
    found.add_argument("--margin", type=float, default=MARGIN, help="sensitive: right, and the two best are closer")
    found.add_argument("--steps", type=int, default=100, help="of every editor, at most")
    found.add_argument("--episodes", type=int, default=1024)
    found.add_argument("--batch", type=int, default=64, help="episodes at once")
    found.add_argument("--depth", type=int, default=2, help="blocks of the hypernetwork")
    found.add_argument("--fit-steps", type=int, default=1500)
    found.add_argument("--chunk", type=int, default=16, help="edits at once of editors that move the whole model")
    found.add_argument("--timed-steps", type=int, default=50)
    found.add_argument("--timed-batch", type=int, default=256)
    found.add_argument("--search-blocks", type=int, default=3, help="consecutive blocks that the search tries together")
    found.add_argument("--limit", type=int, help="rows of each file that are used; all by default")
    found.add_argument("--draws", type=int, default=2000, help="of the bootstrap over groups")
    found.add_argument("--seed", type=int, default=0)
    return found


if __name__ == "__main__":
    main()
