"""`export`: the file predicts what the workspace predicts, and says what it is."""

from __future__ import annotations

import io
import json

import jsonschema
import pytest
import torch
from PIL import Image

from privshard.api import export, predict, schemas
from privshard.api.setup import Setup
from privshard.core.errors import InputError
from privshard.models.base import load_base
from privshard.store.workspace import Workspace


def test_the_file_predicts_what_the_workspace_predicts(seeded_workspace, tmp_path):
    out = tmp_path / "model.pt2"
    result = export(str(seeded_workspace), out=str(out))
    jsonschema.validate(result, schemas.load("export"))
    picture = tmp_path / "grey.png"
    image = Image.linear_gradient("L").convert("RGB")
    image.save(picture)
    with Workspace.open(seeded_workspace) as ws:
        setup = Setup.load(ws)
    extra = {"privshard.json": ""}
    model = torch.export.load(io.BytesIO(out.read_bytes()), extra_files=extra).module()
    logits = model(load_base(setup.base).transform(image)[None])
    (row,) = predict(str(seeded_workspace), [str(picture)])["predictions"]
    found = dict(zip(setup.classes, torch.softmax(logits.double(), dim=1)[0].tolist(), strict=True))
    assert found == pytest.approx(row["probabilities"], abs=1e-5)
    about = json.loads(extra["privshard.json"])
    assert about["output"]["classes"] == list(setup.classes)
    assert about["base"]["digest"] == setup.base_digest
    assert about["model"] == {"version": "v0001", "digest": result["digest"]}
    assert about["privacy"]["statement"] == result["statement"]
    assert about["input"]["transform"]["input_size"] == result["input"][1:]


def test_another_ending_is_refused_before_anything_is_opened(tmp_path):
    with pytest.raises(InputError, match=r"ends in \.pt2"):
        export(str(tmp_path / "none"), out="model.onnx")
