"""A rank-one closed-form editor in the style of ROME: one key of one feed-forward network gets a new value.

The idea is that of "Locating and Editing Factual Associations in GPT" (Meng et al., 2022), for the class token of a
vision transformer. B images, N tokens, D width, K hidden neurons.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from privshard.core.errors import InputError
from privshard.editing.learn import DECAY, TINY, LearnOptions
from privshard.editing.tail import WeightTail
from privshard.models.vit import BlockView, ViTView


@torch.no_grad()
def keys(block: BlockView, tokens_BND: Tensor) -> Tensor:
    """What fc2 of a block multiplies, (B, N, K), from the tokens that enter the block."""
    out = block.module.attn(block.norm1(tokens_BND))  # pyright: ignore[reportCallIssue]
    x_BND = tokens_BND + (out if block.ls1 is None else block.ls1(out))
    hidden = block.act(block.fc1(block.norm2(x_BND)))
    return hidden if block.mlp_norm is None else block.mlp_norm(hidden)


def second_moment(block: BlockView, tokens_BND: Tensor) -> Tensor:
    """The mean (K, K) of k k^T over all tokens of unlabeled images, in double precision: what an edit must not mind."""
    flat_MK = keys(block, tokens_BND).flatten(0, 1).double()
    return flat_MK.mT @ flat_MK / len(flat_MK)


def learn_rank_one(
    view: ViTView,
    tokens_BND: Tensor,
    labels_B: Tensor,
    *,
    block: int,
    moment_KK: Tensor,
    ridge: float,
    options: LearnOptions,
) -> tuple[dict[str, Tensor], Tensor]:
    """dW = u (C^-1 k)^T / (k^T C^-1 k) of fc2, so that (W + dW) k = W k + u: (B, out, in) by name, and the steps.

    k is the class token's key. u is what, added to the block's feed-forward output at the class token, makes the image
    right; it is found by RMSprop. C is the second moment of keys plus `ridge` times its mean diagonal.

    tokens_BND enter `block`. InputError for a model without a class token. Test: tests/editing/test_rank_one.py.
    """
    if not view.pools_class_token:
        raise InputError("rank-one editor: expected a model whose head reads its class token, got another.")
    at = view.blocks[block]
    u_BD, steps_B = _values(view, tokens_BND, labels_B, block=block, options=options)
    key_BK = keys(at, tokens_BND)[:, 0].double()
    ridge_KK = torch.eye(len(moment_KK), dtype=torch.float64, device=moment_KK.device)
    ridge_KK = ridge_KK * (ridge * moment_KK.diagonal().mean())
    direction_BK = torch.linalg.solve(moment_KK.double() + ridge_KK, key_BK.mT).mT
    direction_BK = direction_BK / (direction_BK * key_BK).sum(dim=1, keepdim=True)
    delta = u_BD.double().unsqueeze(2) * direction_BK.unsqueeze(1)
    return {f"{at.name}.mlp.fc2.weight": delta.to(tokens_BND.dtype)}, steps_B


def _values(
    view: ViTView, tokens_BND: Tensor, labels_B: Tensor, *, block: int, options: LearnOptions
) -> tuple[Tensor, Tensor]:
    """The change u (B, D) of the feed-forward output at the class token that makes each image right."""
    at, tail = view.blocks[block], WeightTail(view, block + 1)
    with torch.no_grad():
        after_BND = at.module(tokens_BND)
    u_BD = torch.zeros_like(after_BND[:, 0])
    squares = torch.zeros_like(u_BD)
    steps_B = torch.zeros_like(labels_B)
    for _ in range(options.steps):
        leaf = u_BD.detach().requires_grad_()
        with torch.enable_grad():
            change_BD = leaf if at.ls2 is None else at.ls2(leaf)
            moved_BND = torch.cat([after_BND[:, :1] + change_BD.unsqueeze(1), after_BND[:, 1:]], dim=1)
            logits_BC = tail.logits(moved_BND, {})
            loss_B = F.cross_entropy(logits_BC, labels_B, reduction="none")
            (gradient,) = torch.autograd.grad(loss_B.sum(), [leaf])
        active_B = ~((logits_BC.argmax(dim=1) == labels_B) & (loss_B <= options.loss_below))
        if not bool(active_B.any()):
            break
        steps_B = steps_B + active_B
        squares = DECAY * squares + (1 - DECAY) * gradient.square()
        u_BD = u_BD - active_B.to(u_BD.dtype).unsqueeze(1) * options.lr * gradient / (squares.sqrt() + TINY)
    return u_BD.detach(), steps_B
