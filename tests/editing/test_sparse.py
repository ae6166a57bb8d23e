"""Sparse edits: exact round trips, sums, and files that are something else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from privshard.core.edit import EditRecord
from privshard.core.errors import VerificationError
from privshard.editing import sparse

RECORD = EditRecord("id", "base", "weight", None, 0.1, ("ffn:1",))


@pytest.fixture
def moved(tiny) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for slot in tiny.slots:
        keep = torch.rand(slot.size, generator=generator) < 0.2
        found[slot.name] = (
            torch.randn(slot.shape, generator=generator) * slot.spread(keep.double().unsqueeze(0))[0]
        ).float()
    return found


def test_dense_and_back_is_exact(tiny, moved):
    edit = sparse.sparsify(moved, tiny.slots)
    read = sparse.from_arrays(sparse.to_arrays(edit), sparse.to_header(edit, RECORD), place="here")
    for name, delta in moved.items():
        assert np.array_equal(read[name].dense(), delta.numpy())
    assert sparse.num_weights(edit) == sum(int((delta != 0).sum()) for delta in moved.values())


def test_edits_add(tiny, moved):
    edit = sparse.sparsify(moved, tiny.slots)
    twice = sparse.total([edit, edit])
    assert all(np.array_equal(twice[name], 2 * delta.numpy()) for name, delta in moved.items())
    assert {array.dtype for array in twice.values()} == {np.dtype(np.float32)}
    assert sparse.total([]) == {}


def test_overlap_is_of_neurons(tiny, moved):
    edit = sparse.sparsify(moved, tiny.slots)
    assert sparse.overlap(edit, edit) == 1.0
    assert sparse.overlap(edit, {"other.weight": next(iter(edit.values()))}) == 0.0


def test_what_is_no_edit_is_refused(tiny, moved):
    edit = sparse.sparsify(moved, tiny.slots)
    arrays, header = sparse.to_arrays(edit), sparse.to_header(edit, RECORD)
    name = next(iter(edit))
    broken = [
        (arrays, {**header, "format": "other"}),
        (arrays, {"format": sparse.FORMAT}),
        ({key: value for key, value in arrays.items() if key != name + "/index"}, header),
        ({**arrays, "more": np.zeros(1)}, header),
        ({**arrays, name + "/index": arrays[name + "/index"][::-1].copy()}, header),
        ({**arrays, name + "/index": arrays[name + "/index"] + 10_000}, header),
        ({**arrays, name + "/value": arrays[name + "/value"][:, 1:]}, header),
        ({**arrays, name + "/value": arrays[name + "/value"].astype(np.float64)}, header),
    ]
    for values, metadata in broken:
        with pytest.raises(VerificationError, match="here: expected an edit's indices and values"):
            sparse.from_arrays(values, metadata, place="here")
