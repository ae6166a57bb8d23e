"""The benchmarks of training, in their smallest form: every case runs and has a figure."""

from __future__ import annotations

import json

import pytest
import timm

from jobs.benchmarks import _machine, _measure, _models, end_to_end, private_step

pytestmark = [
    pytest.mark.filterwarnings("ignore:Secure RNG turned off"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
]


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    real = timm.create_model

    def create(name, **options):
        return real(name, img_size=32, embed_dim=24, depth=2, **options)

    monkeypatch.setattr(_models.timm, "create_model", create)
    monkeypatch.setattr(private_step, "_STEPS", 1)
    peaks = _machine.Peaks(flops_per_s=1e9, bytes_per_s=1e9, source="measured")
    monkeypatch.setattr(private_step, "peaks", lambda *_, **__: peaks)
    once = {"warm_up": 0, "repeats": 1}
    monkeypatch.setattr(private_step, "measure", lambda cases, **given: _measure.measure(cases, **{**given, **once}))


def check(report, path, names):
    assert json.loads(path.read_text()) == report
    assert names <= {item["name"] for item in report["rows"]}
    for item in report["rows"]:
        assert item["error"] is None, item
        assert item["examples_per_s"] > 0
        assert item["ratio"] > 0


@pytest.mark.parametrize("blocks", ["1", "all"])
def test_private_step(tmp_path, blocks):
    file = tmp_path / "f.json"
    given = f"--model vit_tiny_patch16_224 --device cpu --batch 4 --peer-batch 2 --blocks {blocks}"
    report = private_step.main([*given.split(), "--json", str(file)])
    own = {"this engine, private", "this engine, private, before noise", private_step.PLAIN}
    peers = {
        f"{kind}, {how}" for kind in ("linearized", "non-linear, cached") for how in ("Opacus ghost", "not private")
    }
    check(report, file, own | peers | {"linearized, torch.func.jvp, forward only"})
    assert all(item["floor_s"] > 0 for item in report["rows"] if item["name"] in own)
    assert report["notes"]["engine"] == ("ClassRowEngine" if blocks == "1" else "BlockEngine")


def test_end_to_end(tmp_path):
    file = tmp_path / "f.json"
    given = "--model vit_tiny_patch16_224 --device cpu --batch 4 --examples 10 --shards 2 --epochs 2"
    report = end_to_end.main([*given.split(), "--json", str(file)])
    check(report, file, {end_to_end.INFERENCE, end_to_end.FILL, end_to_end.WHOLE})
    fill_s, whole_s = (
        next(item["median_s"] for item in report["rows"] if item["name"] == name)
        for name in (end_to_end.FILL, end_to_end.WHOLE)
    )
    share = report["notes"]["an epoch over the caches, of the time to fill them"]
    assert share == pytest.approx((whole_s - fill_s) / 2 / fill_s, abs=1e-3)
