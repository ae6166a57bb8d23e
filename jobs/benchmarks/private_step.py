"""One step of private training, by this library and by its peers, on the same machine in the same process.

    python -m jobs.benchmarks.private_step --model vit_large_patch16_224 --batch 4096 --json step.json

Rows of "this engine" work on cached constants, as training does, and hold every layer of a step: logits, cotangents,
norms, clipped sums, secure noise, optimizer. Peers get a smaller batch (--peer-batch), since a batch of theirs holds
activations; "cached" peers start from the tokens that enter the first trained block, the others from images.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import torch

from jobs.benchmarks._machine import count_flops, peaks
from jobs.benchmarks._measure import Measured, kernels, measure, peak_memory
from jobs.benchmarks._models import NUM_CLASSES, precision, random_images, random_vit
from jobs.benchmarks._report import finish, parser, row
from jobs.benchmarks._steps import LinearTail, Step, Tail, autocast, make_constants, peer
from privshard.core.method import Constants, LinearMethod, initial, pull
from privshard.tangent.engine import tangent_engine

PRIVATE, SUMS, PLAIN = "this engine, private", "this engine, private, before noise", "this engine, not private"
_COUNTED = 8
_STEPS = 8
"""Steps a timed call: in training one follows the other, and the next is prepared while the device works."""


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print, write."""
    options = _options(given)
    device, num = options.device, options.batch
    view = random_vit(options.model, device=device)
    blocks = len(view.blocks) if options.blocks == "all" else options.blocks  # its peers leave the embeddings too
    engine = tangent_engine(view, blocks=blocks)
    constants = make_constants(engine, view, num, device=device)
    floor_s = _floor(engine, constants, device=device, num=num)
    cases = _own_cases(engine, constants, device=device, num=num)
    measured = measure(cases, examples=_STEPS * num, device=device)
    profile = None
    if device.startswith("cuda"):
        profile = kernels(cases[PRIVATE])
        memory = _memory(Step(engine, constants, device=device, num=num, private=True, compiled=True, recorded=False))
        measured |= {name: replace(measured[name], **memory) for name in (PRIVATE, SUMS)}
    base_s = measured[PLAIN].median_s
    rows = [row(found, floor_s=_STEPS * floor_s, base_s=base_s) for found in measured.values()]
    del constants, cases
    for found in [] if options.no_peers else _peers(options):
        rows.append(row(found, base_s=base_s and base_s * found.examples / (_STEPS * num)))
    notes = {
        "engine": type(engine).__name__,
        "trained parameters": sum(prod(shape) for shape in engine.shapes().values()),
        "a line's time": f"of {_STEPS} steps for this engine, of one for its peers",
        "ratio to": f"{PLAIN}, by example",
        "floor": "a step's matrix products, and the cached constants read forward and back",
        "peaks": peaks(device, dtype=precision(device)).to_json(),
    }
    if profile is not None:
        notes |= {f"{PRIVATE}, on the device": profile}
    return finish("private_step", rows, arguments=options, notes=notes)


def _memory(step: Step) -> dict[str, int | None]:
    """What a GPU holds before and in a step that isn't recorded."""
    step()
    held, peak = peak_memory(step, device="cuda")
    return {"held_bytes": held, "peak_bytes": peak}


def _options(given: Sequence[str] | None) -> Namespace:
    found = parser((__doc__ or "").splitlines()[0], model="deit_tiny_patch16_224", batch=256)
    found.add_argument("--blocks", default=1, type=lambda text: text if text == "all" else int(text), help="or all")
    found.add_argument("--peer-batch", type=int, default=64, help="examples a batch of the peers")
    found.add_argument("--no-peers", action="store_true", help="this engine alone")
    return found.parse_args(given)


def _own_cases(engine: LinearMethod, constants: Constants, *, device: str, num: int) -> dict[str, Callable[[], object]]:
    on_gpu = device.startswith("cuda")
    make = partial(Step, engine, constants, device=device, num=num)
    private = make(private=True, compiled=on_gpu)
    cases: dict[str, Callable[[], object]] = {
        PRIVATE: private,
        SUMS: private.sums,
        PLAIN: make(private=False, compiled=on_gpu),
    }
    if on_gpu:
        cases["this engine, private, eager"] = make(private=True, compiled=False)

    def repeated(step: Callable[[], object]) -> None:
        for _ in range(_STEPS):
            step()

    return {name: partial(repeated, step) for name, step in cases.items()}


def _floor(engine: LinearMethod, constants: Constants, *, device: str, num: int) -> float:
    """The step's matrix products, counted on a few examples, and every cached byte read forward and back."""
    counted = min(num, _COUNTED)
    few = {name: tensor[:counted].float() for name, tensor in constants.items()}
    parameters = initial(engine, device=device)

    def step() -> None:
        logits_BC, pullback = pull(engine, few, parameters)
        pullback(torch.ones_like(logits_BC)).weighted_sum(torch.ones(counted, device=device))

    flops = count_flops(step) * num / counted
    num_bytes = 2 * sum(tensor.nbytes for tensor in constants.values())
    return peaks(device, dtype=precision(device)).floor_s(flops=flops, num_bytes=num_bytes)


def _peers(options: Namespace) -> list[Measured]:
    """Steps of the linearized and the non-linear model, on cached tokens or images, with and without Opacus."""
    device, num = options.device, options.peer_batch
    labels_B = torch.arange(num, device=device) % NUM_CLASSES
    results: list[Measured] = []
    kinds = ["linearized", "non-linear, cached", "non-linear, from images"]
    for kind in kinds[:2] if options.blocks == "all" else kinds:  # of all blocks, the tokens are nearly the images
        cases: dict[str, Callable[[], object]] = {}
        for title, mode in {"Opacus hooks": "hooks", "Opacus ghost": "ghost", "not private": None}.items():
            view = random_vit(options.model, device=device)
            depth = len(view.blocks)
            first = 0 if options.blocks == "all" else depth - options.blocks
            images = random_images(view, num, device=device)
            with torch.no_grad(), autocast(device):
                tokens = view.tokens(images, first_block=first).float()
            if kind == "linearized":
                cases[f"{kind}, {title}"] = peer(
                    LinearTail(view.model, blocks=depth - first), tokens, labels_B, mode=mode, device=device
                )
            else:
                cached = kind.endswith("cached")
                tail = Tail(view.model, first_block=first, cached=cached)
                x = tokens if cached else images
                cases[f"{kind}, {title}"] = peer(tail, x, labels_B, mode=mode, device=device)
        if kind == "linearized":
            tail = Tail(random_vit(options.model, device=device).model, first_block=first, cached=True)
            cases["linearized, torch.func.jvp, forward only"] = _jvp(tail, tokens, device=device)
        results += measure(cases, examples=num, device=device, repeats=3, limit_s=10.0).values()
        del cases
    return results


def _jvp(tail: Tail, tokens: torch.Tensor, *, device: str) -> Callable[[], object]:
    """f(x; w0) and J(x) D by forward-mode differentiation of the last blocks."""
    weights = {name: p.detach() for name, p in tail.named_parameters() if p.requires_grad}
    tangents = {name: torch.randn_like(weight) for name, weight in weights.items()}

    def forward(parameters: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.func.functional_call(tail, parameters, (tokens,))

    def run() -> object:
        math = torch.nn.attention.SDPBackend.MATH  # fused attention has no forward-mode derivative
        with torch.no_grad(), autocast(device), torch.nn.attention.sdpa_kernel(math):
            return torch.func.jvp(forward, (weights,), (tangents,))

    return run


if __name__ == "__main__":
    main(sys.argv[1:])
