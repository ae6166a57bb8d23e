"""One step of private training, by this library and by its peers, on the same machine in the same process.

    python -m jobs.benchmarks.private_step --model vit_large_patch16_224 --batch 4096 --json step.json

Rows of "this engine" work on cached constants, as training does, and hold every layer of a step: logits, cotangents,
norms, clipped sums, secure noise, optimizer. Peers get a smaller batch (--peer-batch), since a batch of theirs holds
activations; "cached" peers start from the tokens that enter the first trained block, the others from images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from jobs.benchmarks._machine import count_flops, peaks
from jobs.benchmarks._measure import Measured, measure
from jobs.benchmarks._report import finish, parser, row
from jobs.benchmarks._steps import (
    NUM_CLASSES,
    LinearTail,
    Step,
    Tail,
    autocast,
    dtype_on,
    make_constants,
    make_engine,
    make_images,
    make_vit,
    peer,
)
from privshard.core.method import initial, pull
from privshard.models.vit import view_vit

_COUNTED = 8


def main() -> dict:
    """Measure, print, write."""
    arguments = parser(__doc__ or "", model="deit_tiny_patch16_224", batch=256)
    arguments.add_argument("--blocks", default="1", help="how many last blocks train, or all")
    arguments.add_argument("--peer-batch", type=int, default=64, help="examples a batch of the peers")
    arguments.add_argument("--no-peers", action="store_true", help="this engine alone")
    options = arguments.parse_args()
    device, batch = options.device, options.batch
    blocks = "all" if options.blocks == "all" else int(options.blocks)
    model = make_vit(options.model, device=device)
    engine = make_engine(model, blocks=blocks)
    constants = make_constants(engine, partial(make_images, model, device=device), batch, device=device)
    cases = _own_cases(engine, constants, device=device, num=batch)
    found = measure(cases, examples=batch, device=device)
    floor_s = _floor(engine, constants, device=device, num=batch)
    base_s = found["this engine, not private"].median_s
    rows = [row(item, floor_s=floor_s, base_s=base_s) for item in found.values()]
    per_example = base_s / batch if base_s else None
    del constants, cases
    if not options.no_peers:
        for item in _peers(options, blocks, device=device):
            scaled = per_example * item.examples if per_example else None
            rows.append(row(item, base_s=scaled))
    notes = {
        "engine": type(engine).__name__,
        "trained parameters": sum(int(torch.tensor(shape).prod()) for shape in engine.shapes().values()),
        "ratio": "time an example as a multiple of 'this engine, not private'",
        "floor": f"matrix products and cached bytes of a step at the {peaks(device, dtype=dtype_on(device))}",
    }
    return finish("private_step", rows, arguments=options, notes=notes)


def _own_cases(engine, constants, *, device: str, num: int) -> dict[str, Callable[[], object]]:
    make = partial(Step, engine, constants, device=device, num=num)
    on_gpu = device.startswith("cuda")
    private, plain, eager = (
        make(private=True, compiled=on_gpu),
        make(private=False, compiled=on_gpu),
        make(private=True, compiled=False),
    )
    cases: dict[str, Callable[[], object]] = {
        "this engine, private": private,
        "this engine, private, before noise": private.sums,
        "this engine, not private": plain,
    }
    return cases | ({"this engine, private, eager": eager} if on_gpu else {})


def _floor(engine, constants, *, device: str, num: int) -> float:
    """The step's matrix products, counted on a few examples, and every cached byte read forward and back."""
    few = {name: tensor[:_COUNTED].float() for name, tensor in constants.items()}
    parameters = initial(engine, device=device)

    def step() -> None:
        logits_BC, pullback = pull(engine, few, parameters)
        pullback(torch.ones_like(logits_BC)).weighted_sum(torch.ones(_COUNTED, device=device))

    flops = count_flops(step) * num / _COUNTED
    num_bytes = 2 * sum(tensor.nbytes for tensor in constants.values())
    return peaks(device, dtype=dtype_on(device)).floor_s(flops=flops, num_bytes=num_bytes)


def _peers(options, blocks: int | str, *, device: str) -> list[Measured]:
    num = options.peer_batch
    labels_B = torch.arange(num, device=device) % NUM_CLASSES

    def cases(kind: str) -> dict[str, Callable[[], object]]:
        model = make_vit(options.model, device=device)
        depth = len(model.blocks)  # pyright: ignore
        count = depth if blocks == "all" else int(blocks)
        images = make_images(model, num, device=device)
        with torch.no_grad(), autocast(device):
            tokens = view_vit(model).tokens(images, first_block=depth - count).float()
        found: dict[str, Callable[[], object]] = {}
        modes = {"Opacus hooks": "hooks", "Opacus ghost": "ghost", "not private": None}
        for title, mode in modes.items():
            fresh = make_vit(options.model, device=device)
            if kind == "linearized":
                module, x = LinearTail(fresh, blocks=count), tokens
            else:
                module, x = Tail(fresh, first_block=depth - count, cached=kind.endswith("cached")), images
                x = tokens if kind.endswith("cached") else images
            found[f"{kind}, {title}"] = peer(module, x, labels_B, mode=mode, device=device)
        if kind == "linearized":
            found["linearized, torch.func.jvp, forward only"] = _jvp(fresh, tokens, depth - count, device=device)
        return found

    results: list[Measured] = []
    for kind in ("linearized", "non-linear, cached", "non-linear"):
        results += measure(cases(kind), examples=num, device=device, repeats=3, limit_s=10.0).values()
    return results


def _jvp(model: nn.Module, tokens: torch.Tensor, first: int, *, device: str) -> Callable[[], object]:
    """f(x; w0) and J(x) D by forward-mode differentiation of the last blocks."""
    tail = Tail(model, first_block=first, cached=True)
    weights = {name: p.detach() for name, p in tail.named_parameters() if p.requires_grad}
    tangents = {name: torch.randn_like(weight) for name, weight in weights.items()}

    def forward(parameters):
        return torch.func.functional_call(tail, parameters, (tokens,))

    def run() -> object:
        math = torch.nn.attention.SDPBackend.MATH
        with torch.no_grad(), autocast(device), torch.nn.attention.sdpa_kernel(math):
            return torch.func.jvp(forward, (weights,), (tangents,))

    return run


if __name__ == "__main__":
    main()
