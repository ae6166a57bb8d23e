"""`edit search`: try groups of blocks and kinds on natural errors, and say where a model may best be edited."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from privshard.api.edit_target import Target, open_target
from privshard.core.errors import InputError
from privshard.core.jobs import OnProgress, Progress
from privshard.data.pictures import read_pictures
from privshard.data.shards import read_partition
from privshard.editing.groups import ErrorGroup, error_groups
from privshard.editing.learn import LearnOptions, learn
from privshard.editing.masks import gradient_scores, keep_top
from privshard.editing.measure import MARGIN, Measures, measure, sensitive
from privshard.editing.places import KINDS, Place, slots_of
from privshard.editing.search import greedy_search
from privshard.editing.tail import Tail
from privshard.store.layout import eval_dir


def edit_search(
    place: str,
    *,
    data: str | None = None,
    sensitive_data: str | None = None,
    keep: float = 0.25,
    lr: float | None = None,
    steps: int = 50,
    least: int = 3,
    num_groups: int = 8,
    group: int = 3,
    max_groups: int = 2,
    margin: float = MARGIN,
    plot: str | None = None,
    model: str | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Where to edit: a greedy search over groups of `group` consecutive blocks and kinds (FFN, attention).

    data: labelled pictures on which the model makes errors that come in groups of at least `least` (a workspace has
    its held-out rows); one image of each group is edited, by gradient mask, and measured on the others. sensitive_data:
    labelled pictures for locality, by default the same. plot: a file (.svg or .png) for the Pareto plot.
    """
    from privshard.api.edit_editors import LR

    started, tell = time.perf_counter(), on_progress or (lambda _: None)
    with open_target(place, model=model) as target:
        options = LearnOptions(
            lr=LR["weight" if target.point is None else "tangent"] if lr is None else lr, steps=steps
        )
        rows = _rows(target, data)
        others = rows if sensitive_data is None else _rows(target, sensitive_data)
        whole = target.tail([Place(target.first_block, "ffn")])
        labels, predictions, _ = _judge(target, whole, rows, margin)
        groups = error_groups(labels, predictions, least=least)[:num_groups]
        _, _, chosen = _judge(target, whole, others, margin)
        if not groups or not len(chosen):
            raise InputError(
                f"search: expected errors that come in groups of {least} and sensitive examples, got {len(groups)} "
                f"groups and {len(chosen)} examples.",
                remedy="Give more labelled images, or lower --least and raise --margin.",
            )
        evaluate = _Evaluation(target, rows, groups, [others[at] for at in chosen.tolist()], keep, options)
        places, tried = greedy_search(
            evaluate,
            blocks=range(target.first_block, target.depth),
            kinds=KINDS,
            group=group,
            max_groups=max_groups,
            on_done=lambda done: tell(Progress("search", None, "search", done, 0)),
        )
        if plot is not None:
            from privshard.report.edit_plots import pareto_plot

            pareto_plot(Path(plot), [candidate.to_json() for candidate in tried], chosen=",".join(map(str, places)))
        return {
            "target": target.place,
            "places": ",".join(map(str, places)),
            "candidates": [candidate.to_json() for candidate in tried],
            "groups": [{"name": found.name, "num_images": len(found.rows)} for found in groups],
            "num_sensitive": len(chosen),
            "plot": plot,
            "elapsed_s": time.perf_counter() - started,
        }


Row = tuple[bytes, int]


def _rows(target: Target, path: str | None) -> list[Row]:
    if path is not None:
        return [(row.image, target.class_of(row.label)) for row in read_pictures(path)]
    if target.workspace is None:
        raise InputError("data: expected labelled pictures, got none.", remedy="--data PATH")
    held_out = read_partition(target.store, eval_dir())
    return [(image, target.class_of(name)) for image, name in zip(held_out.images, held_out.labels, strict=True)]


@torch.no_grad()
def _judge(target: Target, tail: Tail, rows: Sequence[Row], margin: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, predictions, and the numbers of sensitive rows."""
    parts = []
    for start in range(0, len(rows), target.flags.micro_batch):
        images = [image for image, _ in rows[start : start + target.flags.micro_batch]]
        parts.append(tail.logits(target.tokens(images, tail), {}))
    logits_BC = torch.cat(parts)
    labels_B = torch.tensor([index for _, index in rows], device=target.device)
    unsure = sensitive(logits_BC, labels_B, margin=margin).nonzero()[:, 0]
    return labels_B.cpu().numpy(), logits_BC.argmax(dim=1).cpu().numpy(), unsure.cpu().numpy()


class _Evaluation:
    """Edits the first image of each group at given places; the mean of what that does. Tokens are kept by block."""

    def __init__(
        self,
        target: Target,
        rows: Sequence[Row],
        groups: Sequence[ErrorGroup],
        unsure: Sequence[Row],
        keep: float,
        options: LearnOptions,
    ) -> None:
        self._target, self._keep, self._options = target, keep, options
        self._groups = [[rows[at] for at in found.rows] for found in groups]
        self._unsure = unsure
        self._tokens: dict[int, tuple[list[torch.Tensor], torch.Tensor]] = {}

    def __call__(self, places: tuple[Place, ...]) -> Measures:
        target = self._target
        tail, slots = target.tail(places), slots_of(target.base.view, places)
        groups, unsure = self._at(tail)
        labels = [torch.tensor([index for _, index in rows], device=target.device) for rows in self._groups]
        first_BND, first_B = torch.cat([t[:1] for t in groups]), torch.cat([label[:1] for label in labels])
        masks = keep_top(gradient_scores(tail, first_BND, first_B, slots), self._keep, slots)
        learnt = learn(tail, first_BND, first_B, masks, slots, options=self._options)
        with torch.no_grad():
            before = tail.logits(unsure, {}).argmax(dim=1)
        found = [
            measure(
                tail,
                {name: delta[at : at + 1] for name, delta in learnt.moved.items()},
                edited=(tokens[:1], label[:1]),
                likes=(tokens[1:], label[1:]),
                sensitive_tokens=unsure,
                sensitive_before=before,
            )
            for at, (tokens, label) in enumerate(zip(groups, labels, strict=True))
        ]
        means = [
            float(np.mean([getattr(m, name) for m in found])) for name in ("success", "generalization", "locality")
        ]
        return Measures(*means)

    def _at(self, tail: Tail) -> tuple[list[torch.Tensor], torch.Tensor]:
        if tail.first_block not in self._tokens:
            groups = [self._target.tokens([image for image, _ in rows], tail) for rows in self._groups]
            unsure = self._target.tokens([image for image, _ in self._unsure], tail)
            self._tokens[tail.first_block] = (groups, unsure)
        return self._tokens[tail.first_block]
