"""The decomposition benchmark: order, resumption and report; its tiny form on the digits."""

from __future__ import annotations

import functools
import json
import operator
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_decompositions import state_of, vit

from jobs.benchmarks import decomposition as benchmark
from jobs.benchmarks._decomposition_cells import Bench, Cell, Settings, changed, every_other
from jobs.benchmarks._decomposition_report import claims
from privshard.core.errors import InputError
from privshard.decomposition import regional

SMALL = replace(benchmark.TINY, depth=2, added=(1, 1), depths=(2,), steps=2)


def plan(settings=Settings(), seeds=(0, 1, 2)) -> list[Cell]:  # noqa: B008
    return benchmark.cells(settings, seeds, pretraining=["cifar10", "tiny_imagenet"], targets=["hands", "flowers12"])


def test_the_headline_claims_come_first_with_every_seed():
    found = plan()
    assert len(found) == len({cell.name for cell in found})
    headline = [cell for cell in found if cell.start in ("phased", "at_once") and cell.data == "cifar10"]
    assert [cell.seed for cell in headline] == [0, 0, 1, 1, 2, 2]
    last = max(index for index, cell in enumerate(found) if cell.seed == 2)
    first = {cell.start.partition("@")[0] for cell in found[: last + 1]}
    assert first == {"phased", "plain", "at_once", "tied", "free", "random"}
    again = [(cell.start, cell.seed) for cell in found[: last + 1] if "@" in cell.start]
    assert len(again) == 15  # phased, at_once, tied and two of plain, with every seed
    assert {cell.components for cell in found if cell.start == "free"} == {1, 2, 4, 8, 12}
    assert {cell.depth for cell in found if cell.start == "free"} == {2, 4, 6, 8, 10, 12}
    others = {cell.start for cell in found[last + 1 :]}
    assert {"every_other", "t0t1", "scratch", "distilled", "phased:taylor:0:symmetric"} <= others


class Fake:
    """A bench whose cells take 10 s of a clock."""

    def __init__(self) -> None:
        self.settings, self.device, self.now, self.done = SMALL, "cpu", 0.0, []

    def run(self, cell):
        self.now += 10.0
        self.done.append(cell.name)
        return {"accuracy": 0.5}


def test_a_sitting_ends_before_its_budget_and_the_next_goes_on(tmp_path):
    todo = [Cell("d", "plain", 2, 0, seed) for seed in range(5)]
    sittings = []
    for _ in range(3):
        bench = Fake()
        benchmark.run(todo, bench, results=tmp_path / "r.jsonl", budget_s=25.0, clock=lambda b=bench: b.now)
        sittings.append(bench.done)
    assert [len(done) for done in sittings] == [2, 2, 1]  # the third would need 12 s, with reserve, of the 5 left
    assert functools.reduce(operator.iadd, sittings, []) == [cell.name for cell in todo]
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [line["seed"] for line in lines] == [0, 1, 2, 3, 4]


def test_results_of_other_settings_are_refused(tmp_path):
    bench = Fake()
    benchmark.run([Cell("d", "plain", 2, 0, 0)], bench, results=tmp_path / "r.jsonl", budget_s=99, clock=lambda: 0.0)
    with pytest.raises(InputError, match="expected results of the settings"):
        benchmark.read_results(tmp_path / "r.jsonl", replace(SMALL, steps=3))


def test_every_other_layer_is_evenly_spaced_with_both_ends():
    state = {name: torch.from_numpy(array) for name, array in state_of(vit(7)).items()}
    found = every_other(state, 7, 3)
    for new, old in enumerate((0, 3, 6)):
        assert torch.equal(found[f"blocks.{new}.mlp.fc1.weight"], state[f"blocks.{old}.mlp.fc1.weight"])
    assert found.keys() == {
        name for name in state if not name.startswith(("blocks.3", "blocks.4", "blocks.5", "blocks.6"))
    }


def line(start, accuracy, *, seed=0, target="", depth=12, components=0, **more):
    return {"cell": "", "data": "cifar10", "start": start, "depth": depth, "components": components, "seed": seed,
            "target": target, "accuracy": accuracy, "seconds": 1.0, **more}  # fmt: skip


def test_claims_are_judged_by_their_means():
    lines = [
        line("phased", 0.90, components=12, by_components=[[1, 0.5], [2, 0.6], [4, 0.7], [8, 0.8], [12, 0.90]]),
        line("phased", 0.92, components=12, seed=1, by_components=[[1, 0.6], [2, 0.5], [4, 0.7], [8, 0.8], [12, 0.92]]),
        line("at_once", 0.91, components=12),
        line("at_once", 0.90, components=12, seed=1),
        line("plain", 0.92),
        line("tied", 0.90, components=4),
        line("phased@growing+warmup=4+steps=2", 0.93, components=12),
        line("plain@steps=2", 0.93),
        line("plain@warmup=4+steps=2", 0.95),
        line("free", 0.8, target="hands", depth=4, components=12),
        line("random", 0.9, target="hands", depth=4),
    ]
    found = {claim: (figure, seeds, holds) for claim, figure, seeds, holds in claims(lines, Settings())}
    assert found["accuracy rises with the components"][2] == "no"  # 0.55, 0.55, …
    assert found["phased beats all at once"] == ("+0.50 points (-1.00 to +2.00)", 2, "yes")
    assert found["12 components reach the undecomposed model within 0.5 points"] == ("-2.00 points", 1, "no")
    assert found["tied with 4 components loses at most 2 points to the undecomposed model"][2] == "yes"
    longer = [found[name][::2] for name in found if name.startswith("12 components reach") and "steps=2" in name]
    assert longer == [("+0.00 points", "yes"), ("-2.00 points", "no")]
    assert found["free beats random: hands, depth 4"] == ("-10.00 points", 1, "no")
    assert found["free beats random: hands, depth 6"] == ("–", 0, "–")


def test_what_a_downstream_model_starts_from(tmp_path):
    data = benchmark.load_dataset("digits", folder=None, cached=tmp_path / "cache", size=16)
    assert data.images_M3HW.shape[1:] == (3, 16, 16)
    assert len(data.train_rows) + len(data.eval_rows) == 1797
    bench = Bench(SMALL, tmp_path, dataset=lambda name: data, device="cpu", compile_models=False)
    cell = Cell("digits", "free", 2, 2, 0, "digits")
    source, accuracies = bench._components(bench._source(cell, "phased"))
    again, kept = bench._components(bench._source(cell, "phased"))
    assert accuracies == kept
    start = bench._start_weights(cell)
    assert all(np.array_equal(source.tensors()[name], array) for name, array in again.tensors().items())
    assert np.array_equal(
        start["blocks.0.norm1.weight"],
        source.components["blocks"]["norm1.weight"][0] - source.components["blocks"]["norm1.weight"][1],
    )
    assert bench._start_weights(replace(cell, start="random")) == {}


def test_refined_components_train_together_after_their_phases(tmp_path):
    data = benchmark.load_dataset("digits", folder=None, cached=tmp_path / "cache", size=16)
    settings, cell = replace(SMALL, steps=9), Cell("digits", "phased", 2, 2, 0)
    folders = {"phases": changed(settings, "steps=0.7"), "refined": changed(settings, "refined")}  # 6 steps and 3 more
    first = {}
    for name, chosen in folders.items():
        bench = Bench(chosen, tmp_path / name, dataset=lambda name: data, device="cpu", compile_models=False)
        source, accuracies = bench._components(cell)
        assert [count for count, _ in accuracies] == [1, 2]
        assert accuracies[-1][1] == bench.run(cell)["accuracy"]
        first[name] = source.components["blocks"]["mlp.fc1.weight"][0]
    assert folders["refined"].steps_of(SMALL.added) == folders["phases"].steps_of(SMALL.added) == [3, 3]
    assert not np.array_equal(first["phases"], first["refined"])


def test_a_cell_may_change_settings():
    settings = Settings(steps=1000, added=(1, 1, 2))
    assert settings.steps_of(settings.added) == [333, 333, 333]
    growing = changed(settings, "growing")
    assert growing.steps_of(settings.added) == [142, 285, 571]
    assert changed(settings, "steps=2") == replace(settings, steps=2000)
    assert changed(settings, "growing+steps=2") == replace(growing, steps=2000)
    assert len({settings.digest, growing.digest, changed(settings, "lr=0.5").digest}) == 3


@pytest.mark.slow
def test_compiled_cells_share_graphs(tmp_path, monkeypatch):
    """Every kind of training: plain, in phases, all at once, tied, and on a target."""
    graphs, compile_it = [], torch.compile

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda function, **how: compile_it(function, backend=keep, **how))
    torch._dynamo.reset()
    regional._compiled.cache_clear()
    data = benchmark.load_dataset("digits", folder=None, cached=tmp_path / "cache", size=16)
    bench = Bench(SMALL, tmp_path, dataset=lambda name: data, device="cpu", compile_models=True)
    for start, components, target, graphs_so_far in (
        ("plain", 0, "", 2),  # the teacher and the blocks
        ("phased", 2, "", 3),
        ("at_once", 2, "", 3),
        ("tied", 1, "", 3),
        ("tied", 2, "digits", 3),
        ("free", 2, "digits", 3),
    ):
        assert 0 <= bench.run(Cell("digits", start, 2, components, 0, target))["accuracy"] <= 1
        assert len(graphs) == graphs_so_far, (start, target)
    torch._dynamo.reset()
    regional._compiled.cache_clear()


def test_the_tiny_form_runs_and_resumes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "TINY", SMALL)
    arguments = ["--tiny", "--out", str(tmp_path), "--seeds", "0", "--device", "cpu", "--budget-s", "10000"]
    assert benchmark.main([*arguments, "--plan"]) == 0
    assert "s  digits/phased/depth2/k2/seed0" in capsys.readouterr().out
    assert benchmark.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["done"] == found["cells"]
    before = (tmp_path / "results.jsonl").read_text()
    assert benchmark.main(arguments) == 0
    assert (tmp_path / "results.jsonl").read_text() == before
    report = (tmp_path / "report.md").read_text()
    assert report.startswith(f"# Decomposed transformers: {found['cells']} of {found['cells']} cells\n")
    assert "| phased beats all at once |" in report
    assert (tmp_path / "components.png").stat().st_size > 1000
    assert (tmp_path / "downstream.png").stat().st_size > 1000
    assert benchmark.main([*arguments, "--only", "/plain/"]) == 0  # the other cells' lines are there, and not asked for
    report, asked = (tmp_path / "report.md").read_text(), json.loads(capsys.readouterr().out.splitlines()[-1])
    assert asked["done"] == asked["cells"] > 0
    assert f" {asked['cells']} of {asked['cells']} cells, {found['cells'] - asked['cells']} besides" in report
