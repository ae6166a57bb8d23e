"""Factored gradients against gradients that are written out, and their edge cases."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privshard.tangent.places import Direct, Outer, Places

DOUBLE = torch.float64


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def make_places(num: int, *, tokens: int = 3, groups: int = 2, out: int = 4, inside: int = 5, seed: int = 0) -> Places:
    """One weight of two places, one bias of two, one weight alone."""
    return Places(
        [
            Outer("w", draw(num, tokens, groups, out, seed=seed), draw(num, tokens, groups, inside, seed=seed + 1)),
            Outer("w", draw(num, 1, 1, out, seed=seed + 2), draw(num, 1, 1, inside, seed=seed + 3)),
            Direct("b", draw(num, 3, seed=seed + 4)),
            Direct("b", draw(num, 2, seed=seed + 5)),
            Outer("v", draw(num, tokens, 1, 2, seed=seed + 6), draw(num, tokens, 1, 2, seed=seed + 7)),
        ]
    )


def written_out(places: Places) -> list[dict[str, torch.Tensor]]:
    """The gradient of each example by name, one outer product at a time."""
    first = places.places[0]
    assert isinstance(first, Outer)
    examples = []
    for i in range(len(first.b_BTGO)):
        rows: dict[str, list[torch.Tensor]] = {}
        for place in places.places:
            if isinstance(place, Direct):
                rows.setdefault(place.name, []).append(place.g_BP[i])
                continue
            b_TGO, a_TGI = place.b_BTGO[i], place.a_BTGI[i]
            for g in range(b_TGO.shape[1]):
                total = sum(torch.outer(b_TGO[t, g], a_TGI[t, g]) for t in range(len(b_TGO)))
                rows.setdefault(place.name, []).append(total)
        examples.append({name: torch.cat(parts) for name, parts in rows.items()})
    return examples


def norms_by_loop(places: Places, units: list[int], num_units: int) -> torch.Tensor:
    examples = written_out(places)
    out = []
    for unit in range(num_units):
        mine = [example for example, owner in zip(examples, units, strict=True) if owner == unit]
        sums = [sum(example[name] for example in mine) for name in ("w", "b", "v")] if mine else []
        out.append(sum(float(total.square().sum()) for total in sums))
    return torch.tensor(out, dtype=DOUBLE)


# (tokens, out, inside): by Gram matrices where tokens * (out + inside) <= out * inside, else written out
SHAPES = {"rank one": (1, 4, 5), "Gram": (2, 8, 9), "written out": (9, 4, 5)}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize(
    "units",
    [[0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 2, 2], [2, 0, 1, 0, 2, 2], [0, 0, 0, 0, 0, 0], [5, 4, 3, 2, 1, 0]],
    ids=["examples", "in order", "interleaved", "one unit", "backwards"],
)
def test_squared_norms(shape, units):
    tokens, out, inside = shape
    places = make_places(6, tokens=tokens, out=out, inside=inside)
    found = places.squared_norms(torch.tensor(units), max(units) + 1)
    torch.testing.assert_close(found, norms_by_loop(places, units, max(units) + 1), rtol=1e-12, atol=1e-12)


def test_units_without_examples_have_norm_zero():
    places = make_places(3)
    found = places.squared_norms(torch.tensor([1, 4, 4]), 6)
    torch.testing.assert_close(found, norms_by_loop(places, [1, 4, 4], 6), rtol=1e-12, atol=0)
    assert found[[0, 2, 3, 5]].tolist() == [0.0] * 4


def test_as_many_units_as_examples_but_not_one_each():
    places = make_places(3)
    found = places.squared_norms(torch.tensor([1, 1, 2]), 3)
    torch.testing.assert_close(found, norms_by_loop(places, [1, 1, 2], 3), rtol=1e-12, atol=0)


@pytest.mark.parametrize("num_units", [0, 2])
def test_no_examples_at_all(num_units):
    places = make_places(0)
    assert places.squared_norms(torch.zeros(0, dtype=torch.long), num_units).tolist() == [0.0] * num_units
    sums = places.weighted_sum(torch.zeros(0, dtype=DOUBLE))
    assert {name: tuple(total.shape) for name, total in sums.items()} == {"w": (12, 5), "b": (5,), "v": (2, 2)}
    assert not any(total.any() for total in sums.values())


def test_examples_that_cancel_have_norm_zero():
    places = make_places(1)
    doubled = Places(
        [
            Outer(p.name, torch.cat([p.b_BTGO, -p.b_BTGO]), torch.cat([p.a_BTGI] * 2))
            if isinstance(p, Outer)
            else Direct(p.name, torch.cat([p.g_BP, -p.g_BP]))
            for p in places.places
        ]
    )
    alone = places.squared_norms(torch.tensor([0]), 1)
    assert abs(doubled.squared_norms(torch.tensor([0, 0]), 1)) < 1e-13 * alone


@settings(deadline=None, max_examples=30)
@given(st.lists(st.sampled_from([-2.0, 0.0, 0.5, 1.0]), min_size=5, max_size=5), st.integers(0, 100))
def test_weighted_sum(weights, seed):
    places = make_places(5, seed=seed)
    found = places.weighted_sum(torch.tensor(weights, dtype=DOUBLE))
    examples = written_out(places)
    for name in ("w", "b", "v"):
        expected = sum(weight * example[name] for weight, example in zip(weights, examples, strict=True))
        torch.testing.assert_close(found[name], expected, rtol=1e-12, atol=1e-12)


def test_places_of_one_name_are_consecutive_rows():
    places = make_places(1)
    found = places.weighted_sum(torch.ones(1, dtype=DOUBLE))
    first, second = places.places[0], places.places[1]
    assert isinstance(first, Outer)
    assert isinstance(second, Outer)
    torch.testing.assert_close(found["w"][:4], first.b_BTGO[0, :, 0].mT @ first.a_BTGI[0, :, 0])
    torch.testing.assert_close(found["w"][8:], torch.outer(second.b_BTGO[0, 0, 0], second.a_BTGI[0, 0, 0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_an_example_of_weight_zero_contributes_nothing_whatever_it_holds(bad):
    places = make_places(4)
    weight = torch.tensor([1.0, 0.0, 0.5, 0.0], dtype=DOUBLE)
    clean = places.weighted_sum(weight)
    for place in places.places:
        for factor in (place.b_BTGO, place.a_BTGI) if isinstance(place, Outer) else (place.g_BP,):
            factor[1] = bad
    poisoned = places.weighted_sum(weight)
    assert all(torch.equal(poisoned[name], clean[name]) for name in clean)


def test_a_unit_that_is_not_finite_leaves_the_norms_of_others():
    places, units = make_places(4), torch.tensor([0, 1, 1, 2])
    clean = places.squared_norms(units, 3)
    first = places.places[0]
    assert isinstance(first, Outer)
    first.b_BTGO[2] = math.nan
    found = places.squared_norms(units, 3)
    assert torch.equal(found[[0, 2]], clean[[0, 2]])
    assert not torch.isfinite(found[1])


@pytest.mark.parametrize("weight", [0.37, 0.61, 0.9])
def test_norms_in_half_precision_bound_what_is_added_even_where_tokens_cancel(weight):
    generator = torch.Generator().manual_seed(0)
    a_BTGI = torch.randn(64, 1, 1, 9, generator=generator).expand(-1, 2, -1, -1).bfloat16()
    b_B1GO = torch.randn(64, 1, 1, 7, generator=generator)
    nearly = 1 + 0.01 * torch.randn(64, 1, 1, 7, generator=generator)
    place = Outer("w", torch.cat([b_B1GO, -b_B1GO * nearly], dim=1).bfloat16(), a_BTGI)
    norms_B = Places([place]).squared_norms(None, 64).sqrt()
    added = [float(place.weighted_sum(weight * torch.eye(64)[row]).norm()) for row in range(64)]
    written_out = [float(norm) for norm in place.squared_norms(None).sqrt()]
    assert all(length <= weight * float(norm) * (1 + 1e-6) for length, norm in zip(added, norms_B, strict=True))
    assert any(length > weight * norm for length, norm in zip(added, written_out, strict=True))  # rounding does add


def test_factors_of_two_types_are_taken_in_the_wider():
    place = Outer("w", torch.randn(3, 2, 1, 4), torch.randn(3, 2, 1, 5).bfloat16())
    wide = Outer("w", place.b_BTGO, place.a_BTGI.float())
    weight_B = torch.tensor([0.37, 1.0, 0.61])
    assert torch.equal(place.weighted_sum(weight_B), wide.weighted_sum(weight_B))
    assert torch.equal(Places([place]).squared_norms(None, 3), Places([wide]).squared_norms(None, 3))


def test_what_rounding_may_add_to_a_unit_adds_up_over_its_tokens_and_examples():
    """Rounding errors of one unit may all point the same way: lengths add, not their squares."""
    b, a = (torch.ones(3, 2, 1, width, dtype=torch.bfloat16) for width in (4, 9))  # |b_t| |a_t| = 6
    slots_UM = torch.tensor([[0, 1], [2, 3]])  # 3: no example
    assert Outer("w", b, a).squared_slack(slots_UM).tolist() == [24.0**2, 12.0**2]
    assert Outer("w", b, a).squared_slack(None).tolist() == [12.0**2] * 3
    assert Outer("w", b, a, scale=0.5).squared_slack(None).tolist() == [6.0**2] * 3
