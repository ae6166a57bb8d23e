"""Least-squares decompositions: against numpy's solver, planted components, and their own residuals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_decompositions import SWIN, VIT, decomposition, state_of, swin, vit
from tiny_vits import images

from privshard.core.errors import InputError
from privshard.decomposition.basis import Basis
from privshard.decomposition.recompose import expanded
from privshard.decomposition.start import fit, random_start


def test_the_components_are_numpys_least_squares():
    state = state_of(vit(5))
    found = fit(state, VIT, basis=Basis("legendre"), components=3)
    a_LK = Basis("legendre").coefficients(5, components=3)
    for name, stack in found.decomposition.components["blocks"].items():
        blocks = np.stack([state[f"blocks.{block}.{name}"].ravel() for block in range(5)]).astype(np.float64)
        expected, *_ = np.linalg.lstsq(a_LK, blocks, rcond=None)
        np.testing.assert_allclose(stack.reshape(3, -1), expected, atol=1e-6)
        left = np.linalg.norm(blocks - a_LK @ expected) / np.linalg.norm(blocks)
        assert found.residuals["blocks"][name][-1] == pytest.approx(left, rel=1e-5)


def test_planted_components_are_found_again():
    planted = decomposition(depth=3, components=3).first(3, [8])
    found = fit(expanded(planted), VIT, basis=Basis(), components=3)
    for name, stack in found.decomposition.components["blocks"].items():
        np.testing.assert_allclose(stack, planted.components["blocks"][name], atol=1e-5)
    assert max(left[-1] for left in found.residuals["blocks"].values()) < 1e-6


def test_residuals_are_of_what_is_recomposed_from_the_first_components():
    state = state_of(vit(6))
    found = fit(state, VIT, basis=Basis(), components=4)
    for k in (1, 2, 4):
        again = expanded(found.decomposition.first(k, None))
        for name, left in found.residuals["blocks"].items():
            before, after = (
                np.stack([weights[f"blocks.{block}.{name}"] for block in range(6)]) for weights in (state, again)
            )
            assert left[k - 1] == pytest.approx(np.linalg.norm(before - after) / np.linalg.norm(before), rel=1e-4)


def test_as_many_components_as_blocks_leave_rounding_alone():
    model = vit(6)
    found = fit(state_of(model), VIT, basis=Basis(), components=6)
    assert max(left[-1] for left in found.residuals["blocks"].values()) < 1e-6
    again = vit(6)
    again.load_state_dict({name: torch.from_numpy(a) for name, a in expanded(found.decomposition).items()})
    with torch.no_grad():
        torch.testing.assert_close(again(images(2, model)), model(images(2, model)), atol=1e-4, rtol=1e-4)


def test_a_swins_stages_take_as_many_components_as_they_have_blocks():
    found = fit(state_of(swin()), SWIN, basis=Basis(), components=4).decomposition
    held = {prefix: len(named["norm1.bias"]) for prefix, named in found.components.items()}
    assert held == {"layers.0.blocks": 2, "layers.1.blocks": 2, "layers.2.blocks": 4, "layers.3.blocks": 2}
    assert found.num_components == 4


@pytest.mark.parametrize("components", [0, 7])
def test_more_components_than_blocks_are_refused(components):
    with pytest.raises(InputError, match=f"expected 1 to 6, the number of blocks, got {components}"):
        fit(state_of(vit(6)), VIT, basis=Basis(), components=components)


def test_weights_in_other_precision_are_refused():
    state = {name: array.astype(np.float64) for name, array in state_of(vit(2)).items()}
    with pytest.raises(InputError, match="expected weights in single precision alone, got float64"):
        fit(state, VIT, basis=Basis(), components=1)


def test_a_random_start_is_the_first_block_alone():
    state = state_of(vit(3))
    start = random_start(state, VIT, basis=Basis())
    assert start.num_components == 1
    for name, stack in start.components["blocks"].items():
        assert np.array_equal(stack[0], state[f"blocks.0.{name}"])
    assert np.array_equal(start.plain[0]["pos_embed"], state["pos_embed"])
