"""Sparse edits: the changed neurons of a displacement as indices and values, on their way to and from a file.

K neurons that are kept, W weights of one neuron.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from privshard.core.edit import EditRecord
from privshard.core.errors import VerificationError

if TYPE_CHECKING:
    from torch import Tensor

    from privshard.editing.places import Slot

INDEX, VALUE = "/index", "/value"


@dataclass(frozen=True, eq=False)
class SparseSlot:
    """Of one weight matrix (out, in): the neurons along `axis` that move, and by how much.

    index_K: int32, ascending. value_KW: fp32, row k is neuron index_K[k], whatever the axis.
    """

    axis: int
    shape: tuple[int, int]
    index_K: np.ndarray
    value_KW: np.ndarray

    def dense(self) -> np.ndarray:
        """The displacement (out, in): zero where nothing moves."""
        full = np.zeros(self.shape, dtype=np.float32)
        if self.axis == 0:
            full[self.index_K] = self.value_KW
        else:
            full[:, self.index_K] = self.value_KW.T
        return full


SparseEdit = Mapping[str, SparseSlot]


def sparsify(moved: Mapping[str, Tensor], slots: Sequence[Slot]) -> dict[str, SparseSlot]:
    """The neurons of dense displacements (out, in) that move at all; matrices that don't are left out.

    Exact: `dense` gives the same bits back (a negative zero becomes zero).
    """
    found = {}
    for slot in slots:
        array = moved[slot.name].detach().cpu().float().numpy()
        rows = array if slot.axis == 0 else array.T
        index_K = np.flatnonzero(rows.any(axis=1)).astype(np.int32)
        if len(index_K):
            found[slot.name] = SparseSlot(slot.axis, slot.shape, index_K, np.ascontiguousarray(rows[index_K]))
    return found


def to_arrays(edit: SparseEdit) -> dict[str, np.ndarray]:
    """Named arrays of a file: `NAME/index` and `NAME/value` for every parameter NAME."""
    arrays: dict[str, np.ndarray] = {}
    for name, slot in edit.items():
        arrays |= {name + INDEX: slot.index_K, name + VALUE: slot.value_KW}
    return arrays


def to_header(edit: SparseEdit, record: EditRecord) -> dict[str, str]:
    """The file's metadata: what the record says of base, space and locator, and each matrix' axis and shape."""
    layout = {name: [slot.axis, *slot.shape] for name, slot in sorted(edit.items())}
    locator = record.locator or ""
    return {"format": FORMAT, "base": record.base, "space": record.space, "locator": locator,
            "layout": json.dumps(layout)}  # fmt: skip


FORMAT = "privshard edit 1"


def from_arrays(arrays: Mapping[str, np.ndarray], header: Mapping[str, str], *, place: str) -> dict[str, SparseSlot]:
    """Inverse of `to_arrays` and `to_header`; VerificationError, naming `place`, for anything else."""
    try:
        layout: Mapping[str, Any] = json.loads(header["layout"]) if header["format"] == FORMAT else {}
        edit = {
            name: SparseSlot(axis, (out, width), arrays[name + INDEX], arrays[name + VALUE])
            for name, (axis, out, width) in layout.items()
        }
        whole = set(to_arrays(edit)) == set(arrays) and all(_fits(slot) for slot in edit.values())
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise _foreign(place, f"{type(error).__name__}: {error}") from error
    if not whole or not edit:
        raise _foreign(place, "its tensors don't fit its header")
    return edit


def total(edits: Sequence[SparseEdit]) -> dict[str, np.ndarray]:
    """The sum of edits by parameter name, accumulated in double precision and rounded once.

    Edits add: the order is the caller's (sorted ids), and the sum of none moves nothing.
    """
    sums: dict[str, np.ndarray] = {}
    for edit in edits:
        for name, slot in edit.items():
            dense = slot.dense().astype(np.float64)
            sums[name] = sums[name] + dense if name in sums else dense
    return {name: array.astype(np.float32) for name, array in sums.items()}


def num_weights(edit: SparseEdit) -> int:
    """How many weights an edit moves."""
    return sum(slot.value_KW.size for slot in edit.values())


def overlap(left: SparseEdit, right: SparseEdit) -> float:
    """The share of the smaller edit's neurons that the other moves as well, in [0, 1]."""
    both = sum(len(np.intersect1d(left[name].index_K, right[name].index_K)) for name in left.keys() & right.keys())
    sizes = [sum(len(slot.index_K) for slot in edit.values()) for edit in (left, right)]
    return both / min(sizes)


def _fits(slot: SparseSlot) -> bool:
    size, width = slot.shape[slot.axis], slot.shape[1 - slot.axis]
    index = slot.index_K
    kinds = index.dtype == np.int32 and slot.value_KW.dtype == np.float32
    sorted_once = len(index) > 0 and index[0] >= 0 and index[-1] < size and bool((np.diff(index) > 0).all())
    return kinds and index.ndim == 1 and sorted_once and slot.value_KW.shape == (len(index), width)


def _foreign(place: str, why: str) -> VerificationError:
    return VerificationError(
        f"{place}: expected an edit's indices and values, got another file ({why}).",
        remedy="Give a file that `privshard edit apply` wrote, or restore it from a backup.",
    )
