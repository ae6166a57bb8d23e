"""The tied model: gradients through shared components, what is frozen, saving."""

from __future__ import annotations

import pytest
import torch
from tiny_decompositions import decomposition
from tiny_vits import images
from torch.func import functional_call

from privshard.core.errors import InputError
from privshard.decomposition.basis import Basis
from privshard.decomposition.tied import TiedModel, load_tied


def loss_of(logits):
    return torch.nn.functional.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1])


def key(name: str) -> str:
    return f"components.blocks/{name.replace('.', '/')}"


@pytest.mark.parametrize("frozen", [0, 2])
def test_gradients_are_autograds_on_the_expanded_model(frozen):
    """dloss/dA_n = sum_l a(l, n) dloss/dW_l, with dloss/dW_l from a plain model, all in double precision."""
    cut = decomposition().first(4, [5])
    tied = TiedModel(cut, frozen=frozen).double().train()
    batch = images(3, tied.export().double())
    loss_of(tied(batch)).backward()
    plain = tied.export().double()
    weights = {name: w.detach().clone().requires_grad_() for name, w in tied.block_weights().items()}
    rest = {name: p.detach().clone().requires_grad_() for name, p in plain.named_parameters() if name not in weights}
    loss_of(functional_call(plain, {**weights, **rest}, (batch,))).backward()
    a_LK = Basis().coefficients(5, components=4).astype("float32")
    found = {name: parameter.grad for name, parameter in tied.named_parameters()}
    for name in cut.stacks[0].shapes:
        expected = sum(
            torch.stack([float(a_LK[block, n]) * weights[f"blocks.{block}.{name}"].grad for n in range(frozen, 4)])
            for block in range(5)
        )
        torch.testing.assert_close(found[key(name)], expected, atol=1e-12, rtol=1e-9)
    for name, parameter in rest.items():
        torch.testing.assert_close(found[f"skeleton.{name}"], parameter.grad, atol=1e-12, rtol=1e-9)


def test_frozen_components_are_no_parameters_and_stay():
    cut = decomposition().first(4, None)
    tied = TiedModel(cut, frozen=3)
    assert all(p.shape[0] == 1 for name, p in tied.named_parameters() if name.startswith("components."))
    with torch.no_grad():
        for parameter in tied.parameters():
            parameter.add_(1.0)
    now = tied.to_decomposition()
    for name, stack in now.components["blocks"].items():
        assert (stack[:3] == cut.components["blocks"][name][:3]).all()
        assert (stack[3:] == cut.components["blocks"][name][3:] + 1).all()
    assert (now.plain[0]["norm.bias"] == cut.plain[0]["norm.bias"] + 1).all()


def test_training_and_evaluation_agree_up_to_rounding():
    tied = TiedModel(decomposition().first(4, [9]), frozen=1)
    trained = tied.train().block_weights()
    for name, value in tied.eval().block_weights().items():
        torch.testing.assert_close(trained[name], value, atol=1e-5, rtol=1e-4)


def test_autocast_leaves_the_sums_in_full_precision():
    tied = TiedModel(decomposition().first(4, [5])).train()
    plain = tied.block_weights()
    with torch.autocast("cpu", torch.bfloat16):
        cast = tied.block_weights()
    assert all(torch.equal(plain[name], cast[name]) for name in plain)


def test_precomputed_weights_are_the_same_model():
    tied = TiedModel(decomposition().first(2, [3])).eval()
    batch = images(2, tied.export())
    assert torch.equal(tied(batch), tied(batch, tied.block_weights()))


def test_a_trained_tied_model_is_saved_and_exported(tmp_path):
    tied = TiedModel(decomposition().first(2, [4]))
    optimizer = torch.optim.SGD(tied.parameters(), lr=0.1)
    batch = images(4, tied.export())
    loss_of(tied.train()(batch)).backward()
    optimizer.step()
    tied.save(tmp_path / "t.safetensors")
    tied.eval()
    with torch.no_grad():
        assert torch.equal(load_tied(tmp_path / "t.safetensors")(batch), tied(batch))
        assert torch.equal(tied.export()(batch), tied(batch))
    names = {name for name, _ in tied.export().named_parameters()}
    assert "blocks.3.attn.qkv.weight" in names


def test_a_decomposition_that_is_not_the_models_is_refused():
    cut = decomposition()
    cut.plain[0].pop("norm.bias")
    with pytest.raises(
        InputError, match=r"does not match the model, 1 names differ: norm\.bias: model \(24,\), file ab"
    ):
        TiedModel(cut)
