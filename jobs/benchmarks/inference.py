"""What a composed model costs, with one displacement and with many, against the base that it moves."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from jobs.benchmarks._machine import count_flops, peaks
from jobs.benchmarks._measure import measure
from jobs.benchmarks._models import precision, random_images, random_vit, weight_bytes
from jobs.benchmarks._report import finish, parser, row
from privshard.composition.inference import ComposedModel, logits_of_each, stacked
from privshard.tangent.block_engine import BlockEngine
from privshard.tangent.engine import tangent_engine

BASE, ONE = "base", "composed"


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Run it; the report."""
    arguments = _arguments(given)
    device, batch, num = arguments.device, arguments.batch, arguments.components
    on_gpu, dtype = device.startswith("cuda"), precision(device)
    view = random_vit(arguments.model, device=device)
    method = tangent_engine(view, blocks=arguments.blocks)
    images = random_images(view, batch, device=device)
    displacements = [_displacement(method.shapes(), seed=seed, device=device) for seed in range(num)]
    stack_S = stacked(displacements)
    dual = BlockEngine(view, first_block=len(view.blocks) - arguments.blocks)

    def composed(engine: Any) -> nn.Module:
        return ComposedModel(engine, model=view.model, parts=[(1.0, displacements[0])])

    def together(x: Tensor) -> Tensor:
        return logits_of_each(method, method.encode(x), stack_S)

    def one_by_one(x: Tensor) -> Tensor:
        constants = method.encode(x)
        return torch.stack([method.logits(constants, displacement) for displacement in displacements])

    functions: dict[str, Callable[[Tensor], Tensor]] = {
        BASE: view.model,
        ONE: composed(method),
        "composed, by the dual stream": composed(dual),
        f"{num} components, at once": together,
    }
    cases = {f"{name}, eager": _run(function, images, dtype) for name, function in functions.items()}
    if on_gpu:
        cases[f"{num} components, one by one, eager"] = _run(one_by_one, images, dtype)
        for name, function in functions.items():
            cases[f"{name}, compiled"] = _run(torch.compile(function, dynamic=False), images, dtype)
    measured = measure(cases, examples=batch, device=device, repeats=arguments.repeats, limit_s=12)
    limits = peaks(device, dtype=dtype)
    few = images[:2]
    floors = {}
    for name, function in functions.items():
        with torch.no_grad():
            flops = batch * count_flops(lambda function=function: function(few)) // len(few)
        moved = num if name.startswith(str(num)) else int(name != BASE)
        moved_bytes = moved * sum(tensor.numel() for tensor in displacements[0].values()) * dtype.itemsize
        num_bytes = images.nbytes + weight_bytes(view.model, dtype=dtype) + moved_bytes
        floors[name] = limits.floor_s(flops=flops, num_bytes=num_bytes)
    kind = "compiled" if on_gpu else "eager"
    base = measured[f"{BASE}, {kind}"]
    rows = [
        row(found, base_s=base.median_s, floor_s=floors.get(name.rsplit(", ", 1)[0]))
        for name, found in measured.items()
    ]
    notes = {
        "ratio to": base.name,
        f"composed against base ({kind})": _ratio(measured[f"{ONE}, {kind}"], base),
        f"{num} components against one ({kind})": _ratio(
            measured[f"{num} components, at once, {kind}"], measured[f"{ONE}, {kind}"]
        ),
        "largest difference to the dual stream, of the largest logit": _difference(
            functions[ONE], functions["composed, by the dual stream"], few
        ),
        "precision": str(dtype).removeprefix("torch."),
        "peaks": limits.to_json(),
    }
    return finish("inference", rows, arguments=arguments, notes=notes)


def _arguments(given: Sequence[str] | None) -> Any:
    found = parser(__doc__ or "", model="vit_base_patch16_224", batch=256)
    found.add_argument("--blocks", type=int, default=1, help="linearized blocks")
    found.add_argument("--components", type=int, default=32, help="displacements that share one pass of the base")
    found.add_argument("--repeats", type=int, default=9, help="timed passes of each kind")
    return found.parse_args(given)


def _displacement(shapes: Any, *, seed: int, device: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.01 * torch.randn(shape, generator=generator).to(device) for name, shape in shapes.items()}


def _run(function: Callable[[Tensor], Tensor], images: Tensor, dtype: torch.dtype) -> Callable[[], object]:
    def run() -> object:
        with torch.no_grad(), torch.autocast(images.device.type, dtype=dtype, enabled=dtype != torch.float32):
            return function(images)

    return run


def _ratio(found: Any, base: Any) -> float | None:
    return None if found.median_s is None or base.median_s is None else found.median_s / base.median_s


def _difference(one: Callable[[Tensor], Tensor], other: Callable[[Tensor], Tensor], images: Tensor) -> float:
    """In fp32, without autocast: both are the same function."""
    with torch.no_grad():
        left, right = one(images), other(images)
    return float((left - right).abs().max() / right.abs().max())


if __name__ == "__main__":
    main(sys.argv[1:])
