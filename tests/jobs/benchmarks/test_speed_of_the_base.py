"""The benchmarks of filling and inference, in their smallest form: every case runs and has a figure and a floor."""

from __future__ import annotations

import json

import pytest
import timm

from jobs.benchmarks import _models, cache_fill, inference


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    real = timm.create_model

    def create(name, **options):
        return real(name, img_size=32, embed_dim=24, depth=2, **options)

    monkeypatch.setattr(_models.timm, "create_model", create)


def check(report, path, names):
    assert json.loads(path.read_text()) == report
    assert names <= {item["name"] for item in report["rows"]}
    for item in report["rows"]:
        assert item["error"] is None, item
        assert item["examples_per_s"] > 0
        assert item["floor_s"] > 0
        assert item["ratio"] > 0


def test_cache_fill(tmp_path):
    file = tmp_path / "f.json"
    given = "--model vit_tiny_patch16_224 --device cpu --batch 4 --batches 2 --repeats 2"
    report = cache_fill.main([*given.split(), "--json", str(file)])
    check(report, file, {"inference, eager", "fill, eager, to the device", "fill, stored on disk and mapped"})
    forward, fill = report["notes"]["operations an image, forward and fill"]
    assert fill < forward  # of the last block, one row


def test_inference(tmp_path):
    file = tmp_path / "f.json"
    given = "--model vit_tiny_patch16_224 --device cpu --batch 4 --components 3 --repeats 2"
    report = inference.main([*given.split(), "--json", str(file)])
    check(report, file, {"base, eager", "composed, eager", "3 components, at once, eager"})
    assert report["notes"]["largest difference to the dual stream, of the largest logit"] < 1e-5
    assert report["notes"]["3 components against one (eager)"] > 0
