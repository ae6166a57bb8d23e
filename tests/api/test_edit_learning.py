"""Learning an edit: alone where it holds so, in the presence of others where not; keys over batches."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_edits import make_tiny
from tiny_vits import random_tensors

from privshard.api import edit_learning
from privshard.api.edit_editors import Chosen
from privshard.api.edit_learning import learn_edit
from privshard.editing.measure import predictions
from privshard.editing.rank_one import second_moment
from privshard.editing.tail import EditedTail


@pytest.mark.parametrize("editor", ["heads", "gradient"])
def test_an_edit_is_learnt_beside_others_only_where_it_would_not_hold(editor):
    tiny = make_tiny(places="attention:1")
    held = random_tensors({slot.name: (1, *slot.shape) for slot in tiny.slots}, seed=1)
    chosen = Chosen(editor, tiny.places, tiny.slots, 0.5, 3e-2)
    told: Any = {"contents": (), "chosen": chosen, "steps": 100, "unlabeled": None}
    target: Any = None  # read for rank-one edits alone
    found = {}
    for scale in (1e-6, 3.0):
        now = EditedTail(tiny.tail, {name: scale * delta for name, delta in held.items()})
        tokens, label = tiny.tokens[:1], tiny.labels[:1]
        edit = learn_edit(target, tiny.tail, now, tokens=tokens, labels_B=label, **told)
        assert edit is not None
        assert torch.equal(predictions(now, tokens, edit.moved), label)
        found[scale] = edit
    assert [edit.beside for edit in found.values()] == [False, True]
    few = replace(chosen, lr=1e-12)
    assert (
        learn_edit(target, tiny.tail, tiny.tail, tokens=tokens, labels_B=label, **{**told, "chosen": few, "steps": 1})
        is None
    )


def test_the_moment_of_batches_is_that_of_all_images(monkeypatch):
    tiny = make_tiny()
    pixels = tiny.images[:3]
    monkeypatch.setattr(edit_learning, "read_pictures", lambda path: [type("Row", (), {"image": b""})] * 3)
    monkeypatch.setattr(edit_learning, "image_batches", lambda contents, **how: pixels.split(how["batch_size"]))
    target: Any = type(
        "Target", (), {
            "base": type("Base", (), {"view": tiny.view, "transform": None}),
            "flags": type("Flags", (), {"micro_batch": 2}),
            "device": "cpu",
        },
    )  # fmt: skip
    tokens = tiny.view.tokens(pixels, first_block=1)
    got = edit_learning._moment(target, "folder", 1)
    torch.testing.assert_close(got, second_moment(tiny.view.blocks[1], tokens), rtol=1e-10, atol=1e-12)
