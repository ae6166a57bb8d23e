"""LoRA against peft's own model: where it starts, what it computes, what a component holds."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from tiny_vits import images, tiny_vit

from privshard.adaptation import lora
from privshard.adaptation.lora import LoraAdapter
from privshard.adaptation.method import AdapterMethod
from privshard.core.errors import InputError
from privshard.models.vit import freeze, view_vit

TARGETS = ("attn.qkv", "attn.proj", "mlp.fc2")


@pytest.fixture
def view():
    return view_vit(freeze(tiny_vit()))


def peft_model(view, *, rank: int, alpha: float, seed: int):
    """The same model and start, all by peft."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS))
    return get_peft_model(copy.deepcopy(view.model), config)


def set_factors(model, parameters) -> None:
    for name, value in parameters.items():
        layer, factor = name.rsplit(".", 1)
        getattr(model.get_submodule(f"base_model.model.{layer}"), factor)["default"].weight.data.copy_(value)


def test_logits_gradients_and_merged_weights_are_pefts(view):
    adapter = LoraAdapter(view, rank=4, alpha=6.0, targets=TARGETS)
    method = AdapterMethod(view, adapter)
    model = peft_model(view, rank=4, alpha=6.0, seed=0)
    generator = torch.Generator().manual_seed(1)
    parameters = {
        name: 0.3 * torch.randn(value.shape, generator=generator).double() for name, value in adapter.initial(0).items()
    }
    set_factors(model, parameters)
    head = {f"head.{name}": torch.zeros_like(value) for name, value in view.head.named_parameters()}
    x = images(3, view.model)
    logits, pullback = method.pull(method.encode(x), {**parameters, **head})
    plain = model(x)
    torch.testing.assert_close(logits, plain)
    cotangent = torch.randn(plain.shape, generator=generator).double()
    found = pullback(cotangent).weighted_sum(torch.ones(3).double())
    plain.backward(cotangent)
    for name in parameters:
        layer, factor = name.rsplit(".", 1)
        weight = getattr(model.get_submodule(f"base_model.model.{layer}"), factor)["default"].weight
        torch.testing.assert_close(found[name], weight.grad)
    merged = dict(model.merge_and_unload().named_parameters())
    base = dict(view.model.named_parameters())
    for name, value in adapter.displacement(parameters).items():
        torch.testing.assert_close(base[name] + value, merged[name])


def test_it_starts_where_peft_starts_and_leaves_the_global_randomness_alone(view):
    adapter = LoraAdapter(view, rank=4, targets=TARGETS)
    model = peft_model(view, rank=4, alpha=8.0, seed=7)
    state = torch.get_rng_state()
    start = adapter.initial(7)
    assert torch.equal(torch.get_rng_state(), state)
    spread = []
    for name, value in start.items():
        layer, factor = name.rsplit(".", 1)
        weight = getattr(model.get_submodule(f"base_model.model.{layer}"), factor)["default"].weight
        assert value.shape == weight.shape
        assert (value == 0).all() == (factor == "lora_B")
        spread.append((value.std(), weight.std()) if factor == "lora_A" else (value.max(), weight.max()))
    mine, theirs = (torch.stack([pair[side].double() for pair in spread]) for side in (0, 1))
    torch.testing.assert_close(mine, theirs, rtol=0.25, atol=0)
    other = adapter.initial(8)
    assert not torch.equal(start["blocks.0.attn.proj.lora_A"], other["blocks.0.attn.proj.lora_A"])


def test_what_does_not_fit_is_refused(view, monkeypatch):
    with pytest.raises(InputError, match=r"method.rank: expected 1 to 24, the width of blocks\.0\.attn\.proj, got 25"):
        LoraAdapter(view, rank=25)
    with pytest.raises(InputError, match=r"method\.alpha"):
        LoraAdapter(view, alpha=0.0)
    with pytest.raises(InputError, match=r"attn.qkv, attn.proj, mlp.fc1, mlp.fc2.*got norm1"):
        LoraAdapter(view, targets=("norm1",))
    with pytest.raises(InputError, match="each once"):
        LoraAdapter(view, targets=("attn.proj", "attn.proj"))
    monkeypatch.setattr(lora, "find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "peft", raising=False)
    with pytest.raises(InputError, match=r"peft.*pip install 'privshard\[lora\]'"):
        LoraAdapter(view)
