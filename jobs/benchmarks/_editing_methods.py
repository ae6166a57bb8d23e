"""The editors that the benchmark compares, each with its strengths and with the settings that are tuned for it.

A method turns a problem, a setting and a strength into predictions under every edit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from privshard.editing.functional import learn_parameters, predict_with, start_from, unfused
from privshard.editing.heads import head_masks
from privshard.editing.learn import LearnOptions, learn
from privshard.editing.locator import Locator
from privshard.editing.low_rank import learn_low_rank
from privshard.editing.masks import everything, gradient_scores, keep_top, magnitude_scores, random_scores
from privshard.editing.places import Place, Slot, slots_of
from privshard.editing.rank_one import learn_rank_one, second_moment
from privshard.editing.tail import Moved, WeightTail, features
from privshard.models.vit import ViTView

SHARES = (0.75, 0.5, 0.25, 0.1, 0.05)
Predict = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) -> predictions (B) under one edit."""


@dataclass(frozen=True, eq=False)
class Problem:
    """Images to edit, one an edit, with the labels they are to get; `steps` for every method alike.

    places: of the masked editors. unlabeled: images for what an editor wants to know about images in general.
    """

    view: ViTView
    images: Tensor
    labels_B: Tensor
    places: tuple[Place, ...]
    unlabeled: Tensor
    steps: int
    seed: int
    chunk: int
    locators: Mapping[str, Locator] = field(default_factory=dict)

    @property
    def first_block(self) -> int:
        """The first block of the places."""
        return min(place.block for place in self.places)

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """The matrices of the places."""
        return slots_of(self.view, self.places)

    @cached_property
    def attention(self) -> tuple[Slot, ...]:
        """The attention matrices of the same blocks."""
        blocks = sorted({place.block for place in self.places})
        return slots_of(self.view, [Place(block, "attention") for block in blocks])

    @torch.no_grad()
    def tokens(self, block: int) -> Tensor:
        """What enters a block."""
        return self.view.tokens(self.images, first_block=block)


Run = Callable[[Problem, Mapping[str, Any], float], list[Predict]]


@dataclass(frozen=True)
class Editor:
    """strengths: the points of its curve. settings: what is tuned, each a choice for the whole curve."""

    name: str
    strengths: tuple[float, ...]
    settings: tuple[Mapping[str, Any], ...]
    run: Run


def masks_of(problem: Problem, kind: str, setting: Mapping[str, Any], keep: float) -> dict[str, Tensor]:
    """The mask of one masked editor for every image."""
    tail, slots = WeightTail(problem.view, problem.first_block), problem.slots
    tokens = problem.tokens(problem.first_block)
    if kind == "locator":
        feature_BD = features(problem.view, tokens, first_block=problem.first_block)
        return keep_top(problem.locators[setting["locator"]].scores(feature_BD), keep, slots)
    if kind == "gradient":
        return keep_top(gradient_scores(tail, tokens, problem.labels_B, slots), keep, slots)
    if kind == "magnitude":
        return keep_top(magnitude_scores(tail, slots, num=len(tokens)), keep, slots)
    generator = torch.Generator().manual_seed(problem.seed)
    scores = random_scores(slots, num=len(tokens), generator=generator)
    return keep_top({name: score.to(tokens.device) for name, score in scores.items()}, keep, slots)


def masked_editor(kind: str) -> Run:
    """Learn on the neurons that a locator, the gradient, the magnitude or chance chooses."""

    def run(problem: Problem, setting: Mapping[str, Any], strength: float) -> list[Predict]:
        masks = masks_of(problem, kind, setting, strength)
        return _learnt(problem, problem.slots, masks, LearnOptions(lr=setting["lr"], steps=problem.steps))

    return run


def penalized_editor(kind: str) -> Run:
    """Learn on all weights of the places, with a penalty of the given strength ("l1" or "l2")."""

    def run(problem: Problem, setting: Mapping[str, Any], strength: float) -> list[Predict]:
        masks = everything(problem.slots, like=problem.images, num=len(problem.images))
        options = replace(LearnOptions(lr=setting["lr"], steps=problem.steps), **{kind: strength})
        return _learnt(problem, problem.slots, masks, options)

    return run


def heads_editor(problem: Problem, setting: Mapping[str, Any], strength: float) -> list[Predict]:
    """Learn on the attention heads with the largest gradient."""
    tail, slots = WeightTail(problem.view, problem.first_block), problem.attention
    scores = gradient_scores(tail, problem.tokens(problem.first_block), problem.labels_B, slots)
    masks = head_masks(problem.view, scores, strength, slots)
    return _learnt(problem, slots, masks, LearnOptions(lr=setting["lr"], steps=problem.steps))


def full_editor(problem: Problem, setting: Mapping[str, Any], strength: float) -> list[Predict]:
    """Learn on every parameter of the model; the strength multiplies the learning rate."""
    model = unfused(copy.deepcopy(problem.view.model))
    options = LearnOptions(lr=setting["lr"] * strength, steps=problem.steps)
    found: list[Predict] = []
    for start in range(0, len(problem.images), problem.chunk):
        rows = slice(start, start + problem.chunk)
        begin = start_from(model, dict(model.named_parameters()), num=len(problem.images[rows]))
        moved, _ = learn_parameters(model, problem.images[rows], problem.labels_B[rows], begin, options=options)
        for at in range(len(problem.images[rows])):
            own = {name: value[at].clone() for name, value in moved.items()}
            found.append(lambda images, own=own: predict_with(model, own, images))
    return found


def low_rank_editor(problem: Problem, setting: Mapping[str, Any], strength: float) -> list[Predict]:
    """LoRA by peft, of rank `strength`, on all matrices of the blocks of the places."""
    slots = (*problem.slots, *problem.attention)
    slots = tuple({slot.name: slot for slot in slots}.values())
    options = LearnOptions(lr=setting["lr"], steps=problem.steps)
    found: list[Predict] = []
    for start in range(0, len(problem.images), problem.chunk):
        rows = slice(start, start + problem.chunk)
        moved, _ = learn_low_rank(
            problem.view.model, problem.images[rows], problem.labels_B[rows], slots,
            rank=int(strength), options=options, seed=problem.seed,
        )  # fmt: skip
        found += _predictors(problem.view, problem.first_block, moved)
    return found


def rank_one_editor(problem: Problem, setting: Mapping[str, Any], strength: float) -> list[Predict]:
    """The rank-one closed form on one feed-forward network; the strength is the ridge of the keys' second moment."""
    block = setting["block"]
    with torch.no_grad():
        general = problem.view.tokens(problem.unlabeled, first_block=block)
    moment_KK = second_moment(problem.view.blocks[block], general)
    moved, _ = learn_rank_one(
        problem.view, problem.tokens(block), problem.labels_B, block=block, moment_KK=moment_KK, ridge=strength,
        options=LearnOptions(lr=setting["lr"], steps=problem.steps),
    )  # fmt: skip
    return _predictors(problem.view, block, moved)


def editors(places: Sequence[Place], locators: Sequence[str]) -> tuple[Editor, ...]:
    """All of them, the learned locator first. Every one has a few settings to be tuned."""
    rates = tuple({"lr": lr} for lr in (2e-5, 5e-5, 2e-4))
    low_rates = tuple({"lr": lr} for lr in (5e-4, 2e-3, 5e-3))
    blocks = sorted({place.block for place in places})
    located = tuple({"lr": rate["lr"], "locator": name} for name in locators for rate in rates)
    rank_one = tuple({"lr": lr, "block": block} for block in (blocks[0], blocks[-1]) for lr in (0.02, 0.1))
    return (
        Editor("locator", SHARES, located, masked_editor("locator")),
        Editor("gradient mask", SHARES, rates, masked_editor("gradient")),
        Editor("magnitude mask", SHARES, rates, masked_editor("magnitude")),
        Editor("random mask", SHARES, rates, masked_editor("random")),
        Editor("FT-L1", (1e-5, 1e-4, 3e-4, 1e-3, 3e-3), rates, penalized_editor("l1")),
        Editor("FT-L2", (0.1, 1.0, 10.0, 100.0, 1000.0), rates, penalized_editor("l2")),
        Editor("fine-tuning", (4.0, 2.0, 1.0, 0.5, 0.25), rates, full_editor),
        Editor("LoRA", (16.0, 8.0, 4.0, 2.0, 1.0), low_rates, low_rank_editor),
        Editor("rank one", (1e-4, 1e-3, 1e-2, 1e-1, 1.0), rank_one, rank_one_editor),
        Editor("attention heads", (1.0, 0.67, 0.45, 0.23, 0.12), rates, heads_editor),
    )


def _learnt(
    problem: Problem, slots: Sequence[Slot], masks: Mapping[str, Tensor], options: LearnOptions
) -> list[Predict]:
    tail = WeightTail(problem.view, problem.first_block)
    tokens = problem.tokens(problem.first_block)
    learnt = learn(tail, tokens, problem.labels_B, masks, slots, options=options)
    return _predictors(problem.view, problem.first_block, learnt.moved)


def _predictors(view: ViTView, first_block: int, moved: Moved) -> list[Predict]:
    """One predictor an edit. Tokens that enter `first_block` are computed for every call: none is kept."""
    tail = WeightTail(view, first_block)

    @torch.no_grad()
    def predict(images: Tensor, at: int) -> Tensor:
        own = {name: delta[at : at + 1] for name, delta in moved.items()}
        return tail.logits(view.tokens(images, first_block=first_block), own).argmax(dim=1)

    num = len(next(iter(moved.values())))
    return [lambda images, at=at: predict(images, at) for at in range(num)]
