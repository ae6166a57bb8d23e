"""A composed model as one file that runs without this package: torch's exported program, with its facts beside it.

A .pt2 file is a zip archive: the graph of operations as JSON, every tensor as raw bytes, `extra/privshard.json` with
the facts. It holds no pickled object and no example input; but loading such a file is running somebody's program, so
privshard never does it.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from privshard.core.errors import InputError
from privshard.store.disk import write_whole

FACTS = "privshard.json"


def export_program(model: nn.Module, path: Path, *, input_size: Sequence[int], facts: Mapping[str, Any]) -> None:
    """Write images (B, 3, H, W) -> logits (B, C) to `path`, whole or not at all; B is free, at least 1.

    `torch.export.load(path).module()(images)` gives the logits of `model`, in fp32 to 1e-5 of the largest one
    (tests/composition/test_exporting.py, in a process that can't import privshard). facts: plain JSON values, read
    back by `torch.export.load(path, extra_files={"privshard.json": ""})`.

    input_size: (3, H, W). InputError where `path` doesn't end in .pt2, or the model can't be traced.
    """
    if path.suffix != ".pt2":
        raise InputError(f"out: expected a file name that ends in .pt2, got {path}.")
    where = next(model.parameters()).device
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own deprecations, and its words about tensors that share memory
        try:
            program = torch.export.export(
                model.eval(), (torch.zeros(2, *input_size, device=where),), dynamic_shapes=({0: batch},)
            )
        except Exception as error:  # whatever a tracer raises
            raise InputError(
                f"export: this method's model can't be written as one graph ({type(error).__name__}: {error}).",
                remedy="Use a composition by tangent or head, or `privshard gift export`.",
            ) from error
        program.example_inputs = None
        sink = io.BytesIO()
        torch.export.save(program, sink, extra_files={FACTS: json.dumps(facts, indent=1, ensure_ascii=False)})
    write_whole(path, sink.getvalue())
