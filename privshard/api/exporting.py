"""`export`: the current model as one file that runs without privshard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from privshard.api import facts
from privshard.api.reading import current_model
from privshard.api.setup import Setup
from privshard.core.errors import InputError
from privshard.store.workspace import Workspace

NOTE = (
    "An exported model is out of reach: erasure, dropping and retraining don't change it. Delete it, and export again, "
    "when somebody was forgotten."
)


def export(workspace: str, *, out: str) -> dict[str, Any]:
    """Write the current model to `out` as a program of torch.export, in fp32, for images that went through the base's
    eval transform: `torch.export.load(out).module()(images)`.

    The file also names classes, transform, base, model version and the privacy statement. Exporting is a release of
    what was released already: it spends nothing.
    """
    if Path(out).suffix != ".pt2":
        raise InputError(f"out: expected a file name that ends in .pt2, got {out}.")
    with Workspace.open(workspace) as ws:
        setup, model = Setup.load(ws), current_model(ws)

        from privshard.api import worker
        from privshard.api.composed import displacements
        from privshard.api.methods import make_method
        from privshard.composition.exporting import export_program
        from privshard.composition.inference import ComposedModel

        base = worker.open_base(setup.base, None, digest=setup.base_digest, objects=ws.objects)
        method = make_method(setup.method, base.view, core=base.core)
        parts = displacements(ws, model.composition, method=method, device="cpu")
        size = list(base.transform_config["input_size"])
        about = {
            "format": "privshard export 1",
            "input": {"images": ["batch", *size], "transform": dict(base.transform_config)},
            "output": {"logits": ["batch", len(setup.classes)], "classes": list(setup.classes)},
            "base": {"name": setup.base.model, "digest": setup.base_digest},
            "public": setup.public,
            "model": {"version": facts.version_name(model.version), "digest": model.composition.digest},
            "privacy": facts.privacy_report(ws, setup),
            "note": NOTE,
        }
        composed = ComposedModel(method, model=base.view.model, parts=parts)
        export_program(composed, Path(out), input_size=size, facts=about)
    return {
        "out": str(out),
        "model": about["model"]["version"],
        "digest": about["model"]["digest"],
        "input": ["batch", *size],
        "classes": list(setup.classes),
        "statement": about["privacy"]["statement"],
        "note": NOTE,
    }
