"""The weighted sum of components on disk, one tensor in memory at a time."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from privshard.composition.files import ComponentFiles, open_components
from privshard.composition.weights import check_space, check_weights


def average(paths: Mapping[str, Path], weights: Mapping[str, float]) -> dict[str, np.ndarray]:
    """The displacement of a composition: D = sum_i weight_i D_i, streamed from safetensors.

    Guarantees:
    - exact: one component with weight 1.0 comes back bit for bit;
    - a function of (id, weight, tensors) alone: products are summed in double precision in sorted order of the ids and
      rounded to fp32 once, so neither the order of a mapping nor a component without weight leaves a trace. What a
      drop gives is therefore, bit for bit, the average of the other components under their weights;
    - beside the result, memory holds a few copies of one tensor, whatever the number of components.

    paths: component id -> safetensors file; may hold more components than are weighted.
    weights: component id -> public weight. Empty weights give no tensors: the base itself.

    Raises InputError for a weighted component without a path, a weight that is not finite, weights of prompts that are
    no average, and components whose base, space, names, shapes or types differ (both sides are shown);
    VerificationError for a file that is missing or no safetensors file.

    Test: tests/composition/test_average.py, against a loop in exact rational arithmetic.
    """
    check_weights(weights, paths, what="a file")
    if not weights:
        return {}
    with open_components({name: paths[name] for name in weights}) as files:
        check_space(weights, space=files.header.space)
        return {tensor: _sum(files, tensor, weights) for tensor in files.names}


def _sum(files: ComponentFiles, tensor: str, weights: Mapping[str, float]) -> np.ndarray:
    """One tensor of the result. It starts at the first product, not at zero, which would lose the sign of -0.0."""
    first, *others = files.ids
    total = np.multiply(files.handles[first].get_tensor(tensor), weights[first], dtype=np.float64)
    for name in others:
        total += np.multiply(files.handles[name].get_tensor(tensor), weights[name], dtype=np.float64)
    return np.asarray(total, dtype=np.float32)
