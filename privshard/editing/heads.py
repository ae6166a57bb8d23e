"""Attention heads as the neurons of an edit, in the style of RefineViT: whole heads are chosen by gradient.

B edits, K neurons of a slot, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from privshard.core.errors import InputError
from privshard.editing.masks import share_of
from privshard.editing.places import Slot
from privshard.models.vit import ViTView


def num_heads_kept(view: ViTView, keep: float, slots: Sequence[Slot]) -> int:
    """How many heads a share `keep` of all heads of attention slots is.

    keep: rho, in (0, 1]. InputError for slots that are not attention, and for a share that keeps no head.
    """
    blocks = {block.name: block for block in view.blocks}
    foreign = [slot.name for slot in slots if _parts(slot)[0] not in blocks]
    if foreign:
        raise InputError(
            f"heads: expected places of kind attention, got {', '.join(foreign)}.",
            remedy="Name attention places, such as attention:8-10, or take another editor.",
        )
    total = sum(blocks[name].num_heads for name in {_parts(slot)[0] for slot in slots})
    return share_of(total, "heads", keep, otherwise="; an editor that chooses single neurons can keep less")


def head_masks(view: ViTView, scores: Mapping[str, Tensor], keep: float, slots: Sequence[Slot]) -> dict[str, Tensor]:
    """The mask of the share `keep` of all heads with the largest summed scores.

    A head's neurons are its rows of qkv (query, key and value) and its columns of proj. scores: of attention slots
    alone, (B, K); InputError for others, and for a share that keeps no head.
    """
    kept = num_heads_kept(view, keep, slots)
    blocks = {block.name: block for block in view.blocks}
    totals: dict[str, Tensor] = {}
    for slot in slots:
        name, matrix = _parts(slot)
        by_head_BH = _by_head(scores[slot.name], blocks[name].num_heads, parts=3 if matrix == "qkv" else 1).sum(dim=-1)
        totals[name] = totals[name] + by_head_BH if name in totals else by_head_BH
    joined_BH = torch.cat(list(totals.values()), dim=1)
    order = torch.sort(joined_BH, dim=1, descending=True, stable=True).indices[:, :kept]
    chosen_BH = torch.zeros_like(joined_BH).scatter(1, order, 1.0)
    sizes = [part.shape[1] for part in totals.values()]
    chosen = dict(zip(totals, chosen_BH.split(sizes, dim=1), strict=True))
    masks = {}
    for slot in slots:
        name, matrix = _parts(slot)
        mask_BK = chosen[name].repeat_interleave(blocks[name].head_dim, dim=1)
        masks[slot.name] = mask_BK.repeat(1, 3) if matrix == "qkv" else mask_BK
    return masks


def _parts(slot: Slot) -> tuple[str, str]:
    """The block and the matrix ("qkv" or "proj") of an attention slot; no block for another slot."""
    name, _, matrix = slot.name.removesuffix(".weight").rpartition(".attn.")
    return name, matrix


def _by_head(score_BK: Tensor, num_heads: int, *, parts: int) -> Tensor:
    """(B, parts * H * E) -> (B, H, parts * E)."""
    split_BPHE = score_BK.unflatten(1, (parts, num_heads, -1))
    return split_BPHE.transpose(1, 2).flatten(2)
