"""Exported models: equal to what was exported, for any batch size, where privshard can't be imported."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from tiny_vits import images, random_tensors, tiny_vit
from torch import nn

from privshard.composition.exporting import export_program
from privshard.composition.inference import ComposedModel
from privshard.core.errors import InputError
from privshard.models.vit import freeze, view_vit
from privshard.tangent.block_engine import BlockEngine
from privshard.tangent.class_row import ClassRowEngine
from privshard.training.head import HeadMethod

KINDS = ("class row", "block", "head")
RUN = """
import sys
sys.modules["privshard"] = None  # importing it raises ImportError
import json, numpy, torch
for folder in sys.argv[1:]:
    extra = {"privshard.json": ""}
    model = torch.export.load(f"{folder}/model.pt2", extra_files=extra).module()
    for at, x in numpy.load(f"{folder}/images.npz").items():
        numpy.save(f"{folder}/{at}.npy", model(torch.from_numpy(x)).numpy())
    print(json.dumps(json.loads(extra["privshard.json"])))
try:
    import privshard
except ImportError:
    print("no privshard")
"""


def make(kind):
    model = freeze(tiny_vit("deit3", dtype=torch.float32))
    view = view_vit(model)
    engines = {"class row": lambda: ClassRowEngine(view), "head": lambda: HeadMethod(view)}
    method = engines.get(kind, lambda: BlockEngine(view, first_block=1))()
    return method, model, random_tensors(method.shapes(), dtype=torch.float32)


def test_runs_elsewhere_and_gives_the_same_logits(tmp_path):
    expected = {}
    for kind in KINDS:
        method, model, tensors = make(kind)
        composed = ComposedModel(method, model=model, parts=[(1.0, tensors)])
        folder = tmp_path / kind
        folder.mkdir()
        export_program(composed, folder / "model.pt2", input_size=(3, 32, 32), facts={"kind": kind, "classes": ["é"]})
        batches = {f"b{num}": images(num, model, seed=num) for num in (1, 2, 7)}
        np.savez(folder / "images.npz", **{name: x.numpy() for name, x in batches.items()})
        expected[folder] = {name: composed(x) for name, x in batches.items()}
    command = [sys.executable, "-c", RUN, *map(str, expected)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    *facts, last = done.stdout.splitlines()
    assert last == "no privshard"
    assert [json.loads(line) for line in facts] == [{"kind": kind, "classes": ["é"]} for kind in KINDS]
    for folder, logits in expected.items():
        for name, wanted in logits.items():
            found = torch.from_numpy(np.load(folder / f"{name}.npy"))
            assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max()), (folder.name, name)


def test_nothing_in_it_is_pickled(tmp_path):
    method, model, tensors = make("head")
    path = tmp_path / "model.pt2"
    composed = ComposedModel(method, model=model, parts=[(1.0, tensors)])
    export_program(composed, path, input_size=(3, 32, 32), facts={})
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    pickled = [name for name, data in entries.items() if data[:1] == b"\x80" or data[:2] == b"PK"]
    assert pickled == []
    assert entries["archive/data/sample_inputs/model.pt"] == b""
    for name in ("weights/model_weights_config.json", "constants/model_constants_config.json"):
        assert b'"use_pickle": true' not in entries[f"archive/data/{name}"]
    assert [item.name for item in tmp_path.iterdir()] == ["model.pt2"]


def test_what_can_not_be_traced_or_has_another_ending_is_refused(tmp_path):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return x * self.weight if float(x.sum()) > 0 else -x

    with pytest.raises(InputError, match="can't be written as one graph"):
        export_program(Branching(), tmp_path / "m.pt2", input_size=(3, 2, 2), facts={})
    with pytest.raises(InputError, match=r"ends in \.pt2"):
        export_program(Branching(), tmp_path / "m.safetensors", input_size=(3, 2, 2), facts={})
    assert not list(tmp_path.iterdir())
