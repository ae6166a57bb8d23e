"""Drawn images: their form, their randomness, and that the views of a scene belong together."""

import pytest
import torch
from torch.nn import functional

from jobs.pretrain import draw
from jobs.pretrain.draw import IMAGE_SIZE, KINDS, SKETCH_SIZE, Kind, canvas, counts, draw_pairs, draw_views

NUM = 16

every_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def one_view(kind: Kind, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = seeded(seed)
    return draw_views(generator, kind, draw.sample_scenes(generator, kind, NUM))


@every_kind
def test_views_are_images_in_range(kind):
    image_B3HW, sketch_B4hw = one_view(kind, seed=0)
    assert image_B3HW.shape == (NUM, 3, IMAGE_SIZE, IMAGE_SIZE)
    assert sketch_B4hw.shape == (NUM, 4, SKETCH_SIZE, SKETCH_SIZE)
    for tensor in (image_B3HW, sketch_B4hw):
        assert tensor.dtype == torch.float32
        assert tensor.isfinite().all()
        assert tensor.min() >= 0
        assert tensor.max() <= 1 + 1e-6


@every_kind
def test_views_show_something(kind):
    image_B3HW, sketch_B4hw = one_view(kind, seed=1)
    assert image_B3HW.flatten(1).std(dim=1).median() > 0.05
    assert (sketch_B4hw[0] - sketch_B4hw[-1]).abs().max() > 0.05


@every_kind
def test_a_seed_repeats_and_another_differs(kind):
    first, again, other = one_view(kind, seed=2), one_view(kind, seed=2), one_view(kind, seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@every_kind
def test_renders_of_one_scene_are_nearer_than_renders_of_two(kind):
    generator = seeded(4)
    scene = kind.sample(generator, 48)
    (first_B3HW, first_BHW), (second_B3HW, second_BHW) = (
        kind.render(kind.jitter(generator, scene), canvas(48, generator.device)) for _ in range(2)
    )
    first_BX = (first_B3HW * first_BHW[:, None]).flatten(1)
    second_BX = (second_B3HW * second_BHW[:, None]).flatten(1)
    distance_BB = torch.cdist(first_BX, second_BX)
    same = distance_BB.diagonal().mean()
    others = (distance_BB.sum() - distance_BB.trace()) / (48 * 47)
    assert same < 0.95 * others


def test_both_views_of_a_settled_scene_have_one_sketch():
    (pairs,) = draw_pairs(seeded(5), 40)
    first_B4hw, second_B4hw = pairs.sketch_B4hw.chunk(2)
    settled_B = torch.tensor([kind.settle is not None for kind in KINDS])[pairs.kind_B.chunk(2)[0]]
    assert torch.equal(first_B4hw[settled_B], second_B4hw[settled_B])
    assert not torch.equal(pairs.image_B3HW.chunk(2)[0], pairs.image_B3HW.chunk(2)[1])


def test_batches_drawn_at_once_have_the_shares_of_the_kinds_and_differ():
    batches = draw_pairs(seeded(6), 40, batches=2)
    for pairs in batches:
        assert pairs.kind_B.bincount().tolist() == [2 * count for count in counts(40)]
        assert len(pairs.image_B3HW) == len(pairs.sketch_B4hw) == len(pairs.kind_B)
    assert not torch.equal(batches[0].image_B3HW, batches[1].image_B3HW)


def test_a_family_differs_in_its_first_or_second_slot_only():
    glyph = KINDS[0]
    scene = draw.share_slots(seeded(7), glyph.sample(seeded(8), 20), 2)
    turn_BS = scene["turn"].unflatten(0, (10, 2))
    same_BS = turn_BS[:, 0] == turn_BS[:, 1]
    assert same_BS[:, 2:].all()
    assert not same_BS.all(dim=1).any()


def test_glyphs_fill_three_quarters_of_the_canvas():
    glyph = KINDS[0]
    start_BP2, end_BP2 = draw.glyphs.glyph_segments(glyph.jitter(seeded(9), glyph.sample(seeded(9), 50)))
    extent_B = torch.cat([start_BP2, end_BP2], dim=1).abs().flatten(1).amax(dim=1)
    torch.testing.assert_close(extent_B, torch.full_like(extent_B, 0.75))


def test_a_scan_is_an_average_enlarged_bicubically(monkeypatch):
    monkeypatch.setattr(draw, "SCAN_SIZES", (10,))
    image_B3HW = torch.rand(4, 3, IMAGE_SIZE, IMAGE_SIZE, generator=seeded(10))
    small_B3hw = functional.adaptive_avg_pool2d(image_B3HW, 10)
    expected_B3HW = functional.interpolate(small_B3hw, size=IMAGE_SIZE, mode="bicubic")
    torch.testing.assert_close(draw.scan(seeded(11), image_B3HW), expected_B3HW)
