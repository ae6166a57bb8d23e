"""Time and memory of one training step of every adapter, beside LoRA as Hugging Face peft trains it.

    python -m jobs.benchmarks.adaptation_step --model vit_base_patch16_224 --device cuda --batch 64

A step starts from images: the frozen part, logits, gradients, AdamW on the adapter and a head. "peft lora" is peft's
own model under autograd; the others are this library's methods. "private" steps have exact per-example norms and clip.
Ratios are multiples of "peft lora".
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from jobs.benchmarks._machine import count_flops, peaks
from jobs.benchmarks._measure import measure
from jobs.benchmarks._report import finish, parser, row
from privshard.api.methods import make_method
from privshard.api.recipe_methods import METHODS, method_options
from privshard.core.jobs import MethodSpec
from privshard.core.method import Method, initial, pull
from privshard.models.vit import freeze, view_vit
from privshard.privacy.clipping import clip_factors
from privshard.training.loss import cotangent

PEER = "peft lora"
NUM_CLASSES = 100
LINEAR = ("tangent", "head")
PRIVATE = ("lora", "gift")
Step = Callable[[], object]


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print and return the report."""
    arguments = parser(__doc__ or "", model="vit_base_patch16_224", batch=64)
    arguments.add_argument("--img-size", type=int, help="pixels; the model's own unless given")
    arguments.add_argument("--repeats", type=int, default=7, help="timed calls of each case, at most")
    asked = arguments.parse_args(given)
    device, dtype = asked.device, torch.bfloat16 if asked.device.startswith("cuda") else torch.float32
    size = {} if asked.img_size is None else {"img_size": asked.img_size}
    make = partial(timm.create_model, asked.model, num_classes=NUM_CLASSES, **size)
    model = freeze(make()).to(device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(asked.batch, 3, *model.patch_embed.img_size, generator=generator).to(device)  # pyright: ignore
    labels = torch.randint(NUM_CLASSES, (asked.batch,), generator=generator).to(device)
    mode = partial(torch.autocast, torch.device(device).type, dtype=dtype, enabled=dtype != torch.float32)
    cases: dict[str, Step] = {PEER: _peft_step(freeze(make()).to(device), images, labels, mode)}
    for name in METHODS:
        if name in LINEAR:
            continue
        method = make_method(MethodSpec(name, method_options(name, {})), view_vit(model))
        for private in (False, True) if name in PRIVATE else (False,):
            shown = f"{name}, private" if private else name
            cases[shown] = _step(method, images, labels, mode, private=private)
    found = measure(cases, examples=asked.batch, device=device, repeats=asked.repeats)
    flops = 2 * asked.batch * count_flops(lambda: model(images[:1]))
    num_bytes = 2 * sum(parameter.nbytes for parameter in model.parameters())
    limits = peaks(device, dtype=dtype)
    floor_s = limits.floor_s(flops=flops, num_bytes=num_bytes)
    base, rows = found[PEER], []
    for one in found.values():
        memory = one.peak_bytes / base.peak_bytes if one.peak_bytes and base.peak_bytes else None
        rows.append({**row(one, floor_s=floor_s, base_s=base.median_s), "memory_ratio": memory})
    shares = {item["name"]: round(item["memory_ratio"], 3) for item in rows if item["memory_ratio"]}
    notes = {
        "ratio": f"time over {PEER}",
        "peak memory over it": shares,
        "floor": f"one forward pass and one to the inputs' gradients, by {limits.source} peaks",
    }
    return finish("adaptation_step", rows, arguments=asked, notes=notes)


def _peft_step(
    model: torch.nn.Module, images: Tensor, labels: Tensor, mode: Callable[[], AbstractContextManager[Any]]
) -> Step:
    """peft's model, autograd and AdamW."""
    from peft import LoraConfig, get_peft_model

    wrapped = get_peft_model(model, LoraConfig(r=8, lora_alpha=8, target_modules=["attn.proj"]))  # pyright: ignore
    model.get_submodule("head").requires_grad_(True)
    trained = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)

    def step() -> None:
        with mode():
            logits = wrapped(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _step(
    method: Method, images: Tensor, labels: Tensor, mode: Callable[[], AbstractContextManager[Any]], *, private: bool
) -> Step:
    """The library's step on one batch: `training.step` without the bookkeeping of units."""
    start = initial(method, device=images.device)
    parameters = {name: torch.nn.Parameter(value) for name, value in start.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3)

    def step() -> None:
        with mode():
            constants = method.encode(images)
            logits, pullback = pull(method, constants, {name: value.data for name, value in parameters.items()})
            gradients = pullback(cotangent("cross_entropy", logits.float(), labels) / len(images))
        gradients = gradients.bounded()
        if private:
            weight_B = clip_factors(gradients.squared_norms(None, len(images)), max_grad_norm=1.0 / len(images))
        else:
            weight_B = torch.ones(len(images), device=images.device)
        for name, total in gradients.weighted_sum(weight_B).items():
            parameters[name].grad = total
        optimizer.step()

    return step


if __name__ == "__main__":
    main(sys.argv[1:])
