"""Time and memory of one training step of every adapter, beside LoRA as Hugging Face peft trains it.

    python -m jobs.benchmarks.adaptation_step --model vit_base_patch16_224 --device cuda --batch 64

A step starts from images: the frozen part, logits, gradients, AdamW on the adapter and a head. "peft lora" is peft's
own model under autograd; the others are this library's methods, as training computes their steps: without privacy the
sum of all gradients; "private" ones have exact per-example norms and clip. Ratios are multiples of "peft lora". Memory
is measured with one method alone on the device: its own model, its own optimizer's state, and nobody else's.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from jobs.benchmarks._machine import count_flops, peaks
from jobs.benchmarks._measure import measure, peak_memory
from jobs.benchmarks._report import finish, parser, row
from privshard.api.methods import make_method
from privshard.api.recipe_methods import METHODS, method_options
from privshard.core.jobs import MethodSpec
from privshard.core.method import ParameterMethod, initial
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
    model = freeze(timm.create_model(asked.model, num_classes=NUM_CLASSES, **size))
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(asked.batch, 3, *model.patch_embed.img_size, generator=generator).to(device)  # pyright: ignore
    labels = torch.randint(NUM_CLASSES, (asked.batch,), generator=generator).to(device)
    mode = partial(torch.autocast, torch.device(device).type, dtype=dtype, enabled=dtype != torch.float32)

    def own() -> torch.nn.Module:
        return copy.deepcopy(model).to(device)

    cases: dict[str, Callable[[], Step]] = {PEER: lambda: _peft_step(own(), images, labels, mode)}
    for name in METHODS:
        if name in LINEAR:
            continue
        for private in (False, True) if name in PRIVATE else (False,):
            shown = f"{name}, private" if private else name
            cases[shown] = partial(_named_step, name, own, images, labels, mode, private=private)
    alone = {name: _memory_alone(case, device=device) for name, case in cases.items()}
    steps = {name: case() for name, case in cases.items()}
    found = measure(steps, examples=asked.batch, device=device, repeats=asked.repeats, memory=False)
    found = {name: replace(one, **alone[name]) for name, one in found.items()}
    model.to(device)
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


def _named_step(
    name: str,
    own: Callable[[], torch.nn.Module],
    images: Tensor,
    labels: Tensor,
    mode: Callable[[], AbstractContextManager[Any]],
    *,
    private: bool,
) -> Step:
    method = make_method(MethodSpec(name, method_options(name, {})), view_vit(own()))
    assert isinstance(method, ParameterMethod)
    return _step(method, images, labels, mode, private=private)


def _step(
    method: ParameterMethod,
    images: Tensor,
    labels: Tensor,
    mode: Callable[[], AbstractContextManager[Any]],
    *,
    private: bool,
) -> Step:
    """The library's step on one batch: `training.step` without the bookkeeping of units."""
    start = initial(method, device=images.device)
    parameters = {name: torch.nn.Parameter(value) for name, value in start.items()}
    optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3)

    def step() -> None:
        values = {name: value.data for name, value in parameters.items()}
        total = _clipped(values) if private else _whole(values)
        for name, value in total.items():
            parameters[name].grad = value
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def _whole(values: dict[str, Tensor]) -> dict[str, Tensor]:
        with mode():
            logits, pullback = method.pull_sum(method.encode(images), values)
        return pullback(cotangent("cross_entropy", logits.float(), labels) / len(images))

    def _clipped(values: dict[str, Tensor]) -> dict[str, Tensor]:
        with mode():
            logits, pullback = method.pull(method.encode(images), values)
            gradients = pullback(cotangent("cross_entropy", logits.float(), labels) / len(images))
        gradients = gradients.bounded()
        norms_B = gradients.squared_norms(None, len(images))
        return gradients.weighted_sum(clip_factors(norms_B, max_grad_norm=1.0 / len(images)))

    return step


def _memory_alone(case: Callable[[], Step], *, device: str) -> dict[str, int | None]:
    """What is held before a step of one case, and its peak, while nothing of the others is there."""
    try:
        step = case()
        step()
        held, peak = peak_memory(step, device=device)
    except Exception:  # what a case can't do is said where its time is measured
        held = peak = None
    return {"held_bytes": held, "peak_bytes": peak}


if __name__ == "__main__":
    main(sys.argv[1:])
