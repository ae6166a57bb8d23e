"""Inner products of gradients from their factors, against gradients that were formed."""

from __future__ import annotations

import pytest
import torch
from tiny_vits import images, random_tensors, tiny_vit

from privshard.core.errors import InputError
from privshard.models.vit import freeze, view_vit
from privshard.tangent.engine import tangent_engine
from privshard.tangent.gram import cross_gram, gram_width
from privshard.tangent.places import Direct, Outer, Places
from privshard.training.head import HeadMethod


def formed(gradients: Places, num: int) -> torch.Tensor:
    """Each example's gradient, one flat row: one weighted sum an example."""
    rows = []
    for index in range(num):
        weight_B = torch.zeros(num).double()
        weight_B[index] = 1
        tensors = gradients.weighted_sum(weight_B)
        rows.append(torch.cat([tensors[name].flatten() for name in sorted(tensors)]))
    return torch.stack(rows)


@pytest.mark.parametrize(("family", "blocks"), [("deit3", 1), ("vit", 2), ("avg_pool", 1), ("registers", "all")])
def test_the_cross_gram_is_that_of_the_formed_gradients(family, blocks):
    model = freeze(tiny_vit(family))
    method = tangent_engine(view_vit(model), blocks=blocks)
    parts = []
    for seed, num in ((0, 3), (1, 4)):
        constants = method.encode(images(num, model, seed=seed))
        cotangent = random_tensors({"c": (num, 5)}, seed=seed)["c"]
        parts.append((method.gradients(constants, random_tensors(method.shapes()), cotangent), num))
    (left, rows), (right, columns) = parts
    expected = formed(left, rows) @ formed(right, columns).mT
    torch.testing.assert_close(cross_gram(left, right), expected, rtol=1e-10, atol=1e-10 * float(expected.abs().max()))
    torch.testing.assert_close(cross_gram(left, left).diagonal(), left.squared_norms(torch.arange(rows), rows))


@pytest.mark.parametrize("tokens", [1, 2, 50])
def test_few_and_many_tokens_give_the_same(tokens):
    generator = torch.Generator().manual_seed(tokens)
    b, a = (torch.randn(4, tokens, 2, width, generator=generator).double() for width in (3, 7))
    places = Places([Outer("w", b, a)])
    expected = torch.einsum("btgo,btgi,msgo,msgi->bm", b, a, b, a)
    torch.testing.assert_close(cross_gram(places, places), expected, rtol=1e-12, atol=1e-12)
    assert gram_width(places) == 2 * min(tokens**2 * 10, 21)
    assert gram_width(Places([*places.places, Direct("b", torch.zeros(4, 7))])) == gram_width(places) + 7


def test_gradients_of_different_methods_are_refused():
    model = freeze(tiny_vit())
    view, x, cotangent = view_vit(model), images(2, model), torch.ones(2, 5).double()
    found = [
        method.gradients(method.encode(x), {}, cotangent)
        for method in (HeadMethod(view), tangent_engine(view, blocks=1))
    ]
    with pytest.raises(InputError, match="of one method"):
        cross_gram(*found)
    one, other = (Places([Direct(name, torch.zeros(2, 3))]) for name in ("head.bias", "norm.bias"))
    with pytest.raises(InputError, match="of one method"):
        cross_gram(one, other)
