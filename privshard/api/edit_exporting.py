"""`edit export`: a plain model file with the edits beside it added to its weights, for use elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from privshard.api.edit_target import open_target
from privshard.core.errors import InputError
from privshard.editing import sparse
from privshard.store.disk import write_whole


def edit_export(path: str, *, model: str, out: str) -> dict[str, Any]:
    """Write the weights of a plain model with its edits: w + sum of the edits, rounded once. The file itself stays.

    Exported copies are out of reach of a later `edit revert`. InputError where `out` is the model itself.
    """
    if Path(out).resolve() == Path(path).resolve():
        raise InputError("out: expected another file than the model, which is never changed.")
    from safetensors.numpy import save

    with open_target(path, model=model) as target:
        state = target.base.state
        for name, array in sparse.total([target.edits[edit] for edit in sorted(target.edits)]).items():
            state[name] = np.asarray(state[name].astype(np.float64) + array, dtype=np.float32)
        metadata = {"base": target.base.digest, "edits": ",".join(sorted(target.edits))}
        write_whole(Path(out), save({name: np.asarray(a, order="C") for name, a in state.items()}, metadata=metadata))
        return {"target": path, "out": out, "edits": sorted(target.edits)}
