"""Learning with any parameters of a whole model, many edits at once: for baselines that keep no prefix.

B images, one edit each; P parameters by name, with B leading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from privshard.editing.learn import DECAY, TINY, LearnOptions

Parameters = dict[str, Tensor]


def unfused(model: nn.Module) -> nn.Module:
    """`model` with attention written out, which `vmap` can batch over weights."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # pyright: ignore[reportArgumentType]
    return model


def learn_parameters(
    model: nn.Module, images: Tensor, labels_B: Tensor, start: Parameters, *, options: LearnOptions
) -> tuple[Parameters, Tensor]:
    """Train the named parameters of `model` on each image by itself, by RMSprop; they, and the steps each took.

    start: parameter name -> (B, ...). All others stay as they are. Stops for each image as `learn` does; the penalties
    of `options` are on the distance from `start`.
    """
    frozen = {name: tensor.detach() for name, tensor in model.state_dict().items() if name not in start}

    def loss_of(moving: Parameters, origin: Parameters, image: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        logits_1C = functional_call(model, ({**frozen, **moving},), (image.unsqueeze(0),))
        loss = F.cross_entropy(logits_1C, label.unsqueeze(0))
        total = loss
        if options.l1 or options.l2:
            for name, value in moving.items():
                delta = value - origin[name]
                total = total + options.l1 * delta.abs().sum() + options.l2 * delta.square().sum()
        return total, torch.stack([loss, (logits_1C.argmax() == label).to(loss.dtype)])

    step: Callable = vmap(grad_and_value(loss_of, has_aux=True), in_dims=(0, 0, 0, 0))
    moving = {name: tensor.clone() for name, tensor in start.items()}
    squares = {name: torch.zeros_like(tensor) for name, tensor in start.items()}
    steps_B = torch.zeros_like(labels_B)
    for _ in range(options.steps):
        gradients, (_, seen_B2) = step(moving, start, images, labels_B)
        done_B = (seen_B2[:, 1] > 0) & (seen_B2[:, 0] <= options.loss_below)
        active_B = ~done_B | (not options.stop_early)
        if options.stop_early and not bool(active_B.any()):
            break
        steps_B = steps_B + active_B
        for name, gradient in gradients.items():
            gate = active_B.to(gradient.dtype).view(-1, *[1] * (gradient.ndim - 1))
            squares[name].mul_(DECAY).addcmul_(gradient, gradient, value=1 - DECAY)
            moving[name].sub_(gate * options.lr * gradient / (squares[name].sqrt() + TINY))
    return moving, steps_B


def start_from(model: nn.Module, names: Mapping[str, Tensor], *, num: int) -> Parameters:
    """Each named parameter, repeated for every edit."""
    return {name: tensor.detach().unsqueeze(0).repeat(num, *[1] * tensor.ndim) for name, tensor in names.items()}


@torch.no_grad()
def predict_with(model: nn.Module, parameters: Parameters, images: Tensor, *, batch: int = 256) -> Tensor:
    """Predictions of `model` under one edit's parameters (no leading axis)."""
    frozen = {name: tensor for name, tensor in model.state_dict().items() if name not in parameters}
    everything = {**frozen, **parameters}
    parts = [functional_call(model, (everything,), (part,)).argmax(dim=1) for part in images.split(batch)]
    return torch.cat(parts)
