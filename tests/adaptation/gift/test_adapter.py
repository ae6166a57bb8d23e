"""GIFT's per-example gradients against vmap(grad), and its displacement against the residuals by their definition."""

from __future__ import annotations

import pytest
import torch
from tiny_vits import images, random_tensors, tiny_vit

from privshard.adaptation.gift.adapter import GiftAdapter
from privshard.adaptation.gift.spec import GiftSpec
from privshard.adaptation.method import AdapterMethod
from privshard.models.vit import freeze, view_vit

PACA = {"generator": "paca", "rank": 4, "clusters": 5}
CASES: dict[str, tuple[str, dict]] = {
    "default": ("vit", {"rank": 4}),
    "last block alone": ("vit", {"rank": 2, "layers": ("blocks.2.attn.proj",)}),
    "fused qkv shared": ("vit", {"rank": 3, "layers": ("attn.q", "attn.k", "attn.v", "attn.proj")}),
    "fused qkv by kind": ("no_qkv_bias", {"rank": 3, "layers": ("attn.q", "attn.v"), "sharing": "kind"}),
    "everything by kind": ("deit3", {"rank": 3, "layers": ("*",), "sharing": "kind"}),
    "by block": ("registers", {"rank": 3, "layers": ("attn.k", "attn.proj"), "sharing": "block"}),
    "by layer": ("qk_norm", {"rank": 3, "layers": ("mlp.fc1", "mlp.fc2"), "sharing": "layer"}),
    "paca": ("vit", PACA),
    "paca deep, by kind": ("avg_pool", {**PACA, "layers": ("attn.v", "mlp.fc2"), "sharing": "kind", "depth": 2}),
}


def _method(family: str, options: dict) -> tuple[AdapterMethod, dict[str, torch.Tensor], torch.nn.Module]:
    """A method on a random base in double precision, and parameters away from every special point."""
    model = freeze(tiny_vit(family))
    method = AdapterMethod(view_vit(model), GiftAdapter(view_vit(model), GiftSpec(**options)))
    start = {name: value.double() for name, value in method.initial().items()}
    moved = random_tensors({name: tuple(value.shape) for name, value in start.items()}, seed=1)
    return method, {name: start[name] + 0.3 * moved[name] for name in start}, model


def _oracle(method: AdapterMethod, model: torch.nn.Module, x: torch.Tensor, c: torch.Tensor, theta: dict) -> dict:
    """vmap(grad) of <cotangent, logits of the plain model with its weights replaced>."""
    base = dict(model.named_parameters())

    def value(theta, image, cotangent):
        changed = method.adapter.changed({name: v for name, v in theta.items() if name.startswith("gift.")})
        head = {name: base[name] + theta[name] for name in ("head.weight", "head.bias")}
        return (torch.func.functional_call(model, {**changed, **head}, (image[None],))[0] * cotangent).sum()

    for module in model.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    return torch.func.vmap(torch.func.grad(value), in_dims=(None, 0, 0))(theta, x, c)


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_exact(case):
    method, theta, model = _method(*CASES[case])
    x, c = images(5, model), torch.randn(5, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    want = _oracle(method, model, x, c, theta)
    logits, pullback = method.pull(method.encode(x), theta)
    gradients = pullback(c)
    unit_B = torch.tensor([0, 1, 0, 2, 1])
    units = {n: torch.stack([g[unit_B == u].sum(0) for u in range(3)]) for n, g in want.items()}
    torch.testing.assert_close(
        gradients.squared_norms(unit_B, 3), sum(g.flatten(1).square().sum(1) for g in units.values()), rtol=1e-9, atol=0
    )
    weight_B = torch.tensor([0.5, 0.0, 1.0, 2.0, 0.25], dtype=torch.float64)
    sums = gradients.weighted_sum(weight_B)
    assert sums.keys() == theta.keys()
    for name, found in sums.items():
        assert found.shape == theta[name].shape
        torch.testing.assert_close(found, torch.tensordot(weight_B, want[name], dims=1), rtol=1e-8, atol=1e-10)
        assert float(found.abs().max()) > 0, name
    torch.testing.assert_close(logits, model_logits(method, model, x, theta))


def model_logits(method, model, x, theta):
    base = dict(model.named_parameters())
    moved = {name: base[name] + value for name, value in method.displacement(theta).items()}
    return torch.func.functional_call(model, moved, (x,))
