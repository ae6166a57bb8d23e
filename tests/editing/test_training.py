"""Locators: training that resumes bit for bit, what is learnt, files, and refusals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_edits import make_tiny
from tiny_vits import images

from privshard.core.errors import InputError, VerificationError
from privshard.editing import training
from privshard.editing.episodes import cutmix
from privshard.editing.hypernetwork import Hypernetwork, shape_for
from privshard.editing.locator import read_locator
from privshard.editing.meta import fit_loss, free_masks
from privshard.editing.tail import features
from privshard.editing.training import LocatorOptions, train_locator
from privshard.store.objects import ObjectStore
from privshard.store.tensors import load_tensors

OPTIONS = LocatorOptions(episodes=13, batch=4, fit_steps=30, fit_batch=8, depth=1)


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(training, "EVERY", 10)


def train(tiny, folder, *, options=OPTIONS, stop_after: int | None = None, identity="images", num=6):
    pixels, seen = images(num, tiny.model), []

    def on_done(stage, done, total):
        seen.append((stage, done, total))
        if len(seen) == stop_after:
            raise KeyboardInterrupt

    locator = train_locator(
        tiny.tail, lambda rows: pixels[list(rows)], num_images=num, places=tiny.places, base="b" * 64,
        identity=identity, state=ObjectStore(folder), options=options, on_done=on_done,
    )  # fmt: skip
    return locator, seen


def test_an_interrupted_training_gives_the_same_locator(tmp_path):
    tiny = make_tiny(dtype=torch.float32)
    whole, seen = train(tiny, tmp_path / "whole")
    assert seen == [
        ("episodes", 4, 13),
        ("episodes", 8, 13),
        ("episodes", 12, 13),
        ("fit", 10, 30),
        ("fit", 20, 30),
        ("fit", 30, 30),
    ]
    for stop in (2, 5):
        with pytest.raises(KeyboardInterrupt):
            train(tiny, tmp_path / f"part{stop}", stop_after=stop)
        again, _ = train(tiny, tmp_path / f"part{stop}")
        assert again.digest == whole.digest


def test_an_episode_mends_the_mixed_image_towards_the_whole_ones_prediction(tmp_path):
    tiny = make_tiny(dtype=torch.float32)
    train(tiny, tmp_path, options=replace(OPTIONS, episodes=4, fit_steps=1, seed=1))
    kept, _ = load_tensors(ObjectStore(tmp_path), "episodes-00000.safetensors")
    generator = torch.Generator().manual_seed(1_000_003)
    whole = images(6, tiny.model)[torch.randperm(6, generator=generator)[:4]]
    mixed = cutmix(whole, patch_size=tiny.view.model.patch_embed.patch_size, generator=generator)
    with torch.no_grad():
        tokens, target = tiny.view.tokens(mixed, first_block=1), tiny.model(whole)
    expected = free_masks(tiny.tail, tokens, target, tiny.slots, options=OPTIONS.meta)
    agree = (torch.from_numpy(kept["v"]) > 0) == (expected > 0)  # signs: sums over another batch round otherwise
    assert agree.double().mean() > 0.98
    told = features(tiny.view, tokens, first_block=1)
    torch.testing.assert_close(torch.from_numpy(kept["feature"]), told, rtol=1e-4, atol=1e-5)


def test_parts_of_another_training_are_not_resumed(tmp_path):
    tiny = make_tiny(dtype=torch.float32)
    train(tiny, tmp_path)
    with pytest.raises(InputError, match="another locator's training; images differ"):
        train(tiny, tmp_path, identity="others")


def test_the_fit_reaches_the_masks_it_is_given():
    tiny = make_tiny(dtype=torch.float32)
    network = Hypernetwork(shape_for(width=24, num_heads=3, depth=2, slots=tiny.slots), seed=0)
    feature = torch.randn(4, 24, generator=torch.Generator().manual_seed(1))
    target = (torch.rand(4, sum(s.size for s in tiny.slots), generator=torch.Generator().manual_seed(2)) < 0.3).float()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    first = fit_loss(network(feature), target, tiny.slots).item()
    for _ in range(80):
        optimizer.zero_grad()
        loss = fit_loss(network(feature), target, tiny.slots)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * first


def test_a_file_gives_the_locator_back_and_nothing_else(tmp_path):
    tiny = make_tiny(dtype=torch.float32)
    locator, _ = train(tiny, tmp_path)
    arrays, header = locator.arrays(), locator.header()
    back = read_locator(arrays, header, place="f", base="b" * 64)
    feature = torch.randn(2, 24)
    assert back.digest == locator.digest
    assert all(torch.equal(back.scores(feature)[name], score) for name, score in locator.scores(feature).items())
    with pytest.raises(InputError, match="expected one of base cccc"):
        read_locator(arrays, header, place="f", base="c" * 64)
    name = next(iter(arrays))
    for broken in (
        {key: value for key, value in arrays.items() if key != name},
        {**arrays, "more": np.zeros(1, dtype=np.float32)},
        {**arrays, name: arrays[name] + 1},
        {**arrays, name: arrays[name][..., :-1]},
    ):
        with pytest.raises(VerificationError, match="its weights can't be loaded"):
            read_locator(broken, header, place="f", base="b" * 64)
    for change in ({"format": "x"}, {"layout": "{}"}, {"digest": "0"}):
        with pytest.raises(VerificationError, match="its weights can't be loaded"):
            read_locator(arrays, {**header, **change}, place="f", base="b" * 64)


def test_sizes_come_from_the_model():
    tiny = make_tiny()
    with pytest.raises(InputError, match="divisor of the width"):
        shape_for(width=24, num_heads=5, depth=1, slots=tiny.slots)
    network = Hypernetwork(shape_for(width=24, num_heads=3, depth=1, slots=tiny.slots), seed=0)
    scores = network(torch.randn(2, 24))
    assert {name: tuple(score.shape) for name, score in scores.items()} == {s.name: (2, s.size) for s in tiny.slots}


@pytest.mark.parametrize("values", [{"episodes": 1}, {"batch": 1}, {"depth": 0}, {"fit_steps": 0}])
def test_options_out_of_range_are_refused(values):
    with pytest.raises(InputError, match="expected at least"):
        LocatorOptions(**values)


def test_one_image_is_too_few(tmp_path):
    with pytest.raises(InputError, match="at least two to mix"):
        train(make_tiny(dtype=torch.float32), tmp_path, num=1)
