"""What an edit and its locator cost: seconds of the same number of steps, and shares of one forward pass."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F

from jobs.benchmarks._editing_methods import Problem
from jobs.benchmarks._machine import count_flops
from jobs.benchmarks._measure import measure
from privshard.editing.learn import LearnOptions, learn
from privshard.editing.locator import Locator
from privshard.editing.masks import keep_top
from privshard.editing.tail import WeightTail, features


def timing(problem: Problem, locator: Locator, *, steps: int, batch: int, device: str) -> dict[str, Any]:
    """One image edited with all `steps` (prefix, locator and mask included) against full fine-tuning by torch's own
    RMSprop; the locator against the forward pass it follows, for one image and for a batch, in time and operations."""
    image, label = problem.images[:1], problem.labels_B[:1]
    options = LearnOptions(lr=5e-5, steps=steps, stop_early=False)
    tail = WeightTail(problem.view, problem.first_block)

    def edit() -> None:
        with torch.no_grad():
            tokens = problem.view.tokens(image, first_block=problem.first_block)
        scores = locator.scores(features(problem.view, tokens, first_block=problem.first_block))
        learn(tail, tokens, label, keep_top(scores, 0.25, problem.slots), problem.slots, options=options)

    tuned = copy.deepcopy(problem.view.model).requires_grad_(True)

    def fine_tune() -> None:
        optimizer = torch.optim.RMSprop(tuned.parameters(), lr=0.0)
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(tuned(image), label).backward()
            optimizer.step()

    edits = measure({"edit": edit, "fine-tuning": fine_tune}, examples=1, device=device, warm_up=1, repeats=3)
    model = problem.view.model
    shares: dict[str, Any] = {}
    for size in (1, batch):
        images = problem.unlabeled[:1].repeat(size, 1, 1, 1)
        with torch.no_grad():
            feature = features(problem.view, problem.view.tokens(images, first_block=0), first_block=0)
            found = measure(
                {"forward": lambda images=images: model(images), "locator": lambda f=feature: locator.scores(f)},
                examples=size, device=device, repeats=15,
            )  # fmt: skip
            flops = [count_flops(lambda f=feature: locator.scores(f)), count_flops(lambda images=images: model(images))]
        shares[f"batch {size}"] = {
            "forward_s": found["forward"].median_s,
            "locator_s": found["locator"].median_s,
            "share_of_time": _ratio(found["locator"].median_s, found["forward"].median_s),
            "share_of_operations": _ratio(*flops),
        }
    return {
        "steps": steps,
        "edit_s": edits["edit"].median_s,
        "fine_tuning_s": edits["fine-tuning"].median_s,
        "edit_over_fine_tuning": _ratio(edits["edit"].median_s, edits["fine-tuning"].median_s),
        "locator": shares,
        "locator_parameters": locator.network.num_parameters,
    }


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
