"""Blocks compiled for all models at once: how many graphs, where, and that they compute the same."""

from __future__ import annotations

import gc

import pytest
import torch
from tiny_decompositions import decomposition, vit
from torch import nn

from privshard.core.errors import ResourceError
from privshard.core.execution import ExecutionFlags
from privshard.decomposition.regional import MIN_COMPILED_IMAGES, compiled_blocks, training_pays
from privshard.decomposition.tied import TiedModel
from privshard.training import encoding


def gradients(model: nn.Module, *, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """Logits and gradients of one batch in training."""
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model.train().zero_grad()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        logits = model(images)
    logits.float().square().sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return {**found, "logits": logits.detach()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_models_of_all_depths_share_a_graph(graphs, dtype):
    for depth in (2, 5, 3):
        model = vit(depth)
        eager = gradients(model, dtype=dtype)
        with compiled_blocks(model):
            found = gradients(model, dtype=dtype)
        for name, value in eager.items():
            torch.testing.assert_close(found[name], value, msg=name)
        del model
        gc.collect()  # what was compiled outlives the model that it was compiled for
    assert len(graphs) == 1


def test_tied_models_share_a_graph_whatever_is_frozen(graphs):
    for depth, components, frozen in ((6, 3, 0), (6, 3, 2), (3, 2, 1)):
        model = TiedModel(decomposition().first(components, [depth]), frozen=frozen)
        eager = gradients(model)
        with compiled_blocks(model):
            found = gradients(model)
        assert eager.keys() == found.keys()
        for name, value in eager.items():
            torch.testing.assert_close(found[name], value, msg=name)
    assert len(graphs) == 1


def test_afterwards_the_model_is_eager_again(graphs):
    model = vit(2)
    with pytest.raises(KeyError), compiled_blocks(model):
        raise KeyError
    gradients(model)
    assert not graphs
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_model_without_blocks_stays_eager(graphs):
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 2))
    with compiled_blocks(model):
        gradients(model)
    assert not graphs


def test_when_a_training_is_compiled(monkeypatch):
    enough = MIN_COMPILED_IMAGES
    monkeypatch.setattr(encoding, "find_spec", lambda name: name == "triton")
    monkeypatch.setattr(encoding, "_compiler", lambda: "cc")
    assert training_pays(ExecutionFlags(), device="cuda:0", num_images=enough)
    assert not training_pays(ExecutionFlags(), device="cuda:0", num_images=enough - 1)
    assert not training_pays(ExecutionFlags(), device="cpu", num_images=enough)
    assert not training_pays(ExecutionFlags(compile=False), device="cuda", num_images=enough)
    assert training_pays(ExecutionFlags(compile=True), device="cpu", num_images=1)
    monkeypatch.setattr(encoding, "_compiler", lambda: None)
    assert not training_pays(ExecutionFlags(), device="cuda", num_images=enough)
    with pytest.raises(ResourceError, match="expected a C compiler to compile with"):
        training_pays(ExecutionFlags(compile=True), device="cuda", num_images=1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_generated_code_trains_the_same(dtype):
    """A few steps with the real compiler, of a plain and a tied model: one graph each, agreement to rounding."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for number, make in enumerate((lambda: vit(3), lambda: TiedModel(decomposition().first(3, [3]), frozen=1))):
        losses = []
        for compiled in (False, True):
            model = make()
            optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
            losses.append([])
            for _ in range(4):
                if compiled:
                    with compiled_blocks(model):
                        found = gradients(model, dtype=dtype)
                else:
                    found = gradients(model, dtype=dtype)
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                losses[-1].append(found["logits"].float())
        tolerance = 1e-4 if dtype == torch.float32 else 5e-2
        torch.testing.assert_close(losses[0], losses[1], atol=tolerance, rtol=tolerance)
        assert (losses[0][0] - losses[0][-1]).abs().max() > 1e-3  # it moved
        assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == number + 1
