"""Recomposed models: exact at the original size, the right sums at others, written whole without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from oracles import blocks_by_loop
from safetensors.torch import load_file
from tiny_decompositions import SWIN, decomposition, state_of, swin
from tiny_vits import images

from privshard.core.errors import InputError
from privshard.decomposition.basis import Basis
from privshard.decomposition.files import open_decomposition, write_decomposition
from privshard.decomposition.recompose import num_parameters, write_free, write_tied
from privshard.decomposition.start import fit
from privshard.decomposition.tied import TiedModel, load_tied
from privshard.models.build import model_of_file


@pytest.mark.parametrize("basis", [Basis(), Basis("legendre", 1), Basis("fourier", 0, "unit")], ids=str)
def test_all_components_at_the_original_depth_are_the_decomposed_model_bit_for_bit(tmp_path, basis):
    whole = decomposition(basis=basis)
    made = write_free(tmp_path / "m.safetensors", whole.first(None, None), source="s", threads=2)
    model, architecture = model_of_file(tmp_path / "m.safetensors")
    tied = TiedModel(whole).eval()
    batch = images(3, model)
    with torch.no_grad():
        assert torch.equal(model(batch), tied(batch))
        assert torch.equal(model(batch), tied.export()(batch))
    assert architecture.args == {"img_size": 32, "embed_dim": 24, "depth": 6}
    assert made.parameters == made.stored == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("depth", "components"), [(1, 1), (2, 6), (4, 3), (9, 5)])
def test_any_depth_is_the_sum_of_the_first_components(tmp_path, depth, components):
    whole = decomposition()
    cut = whole.first(components, [depth])
    made = write_free(tmp_path / "m.safetensors", cut, source="s")
    weights = load_file(tmp_path / "m.safetensors")
    a_LK = Basis().coefficients(depth, components=components)
    for name, stack in whole.components["blocks"].items():
        expected = blocks_by_loop(a_LK, stack[:components])
        for block in range(depth):
            np.testing.assert_allclose(weights[f"blocks.{block}.{name}"], expected[block], atol=2e-5)
    for name, array in whole.plain[0].items():
        assert np.array_equal(weights[name], array)
    assert made.depths == (depth,)
    assert num_parameters(cut) == sum(tensor.numel() for tensor in weights.values())


def test_a_swin_is_recomposed_stage_by_stage(tmp_path):
    original = swin()
    found = fit(state_of(original), SWIN, basis=Basis(), components=4).decomposition
    write_free(tmp_path / "m.safetensors", found.first(None, [2, 2, 4, 2]), source="s")
    model, _ = model_of_file(tmp_path / "m.safetensors")
    batch = torch.randn(2, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():  # as many components as blocks in every stage: the fit is exact but for rounding
        torch.testing.assert_close(model(batch), original(batch), atol=1e-4, rtol=1e-3)
    write_free(tmp_path / "n.safetensors", found.first(3, [2, 2, 6, 4]), source="s")
    assert model_of_file(tmp_path / "n.safetensors")[1].args["depths"] == [2, 2, 6, 4]


def test_the_same_decomposition_gives_the_same_file(tmp_path):
    for name, threads in (("a", 1), ("b", 3)):
        write_free(tmp_path / name, decomposition().first(2, [5]), source="s", threads=threads)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_check_that_fails_publishes_nothing(tmp_path):
    def check() -> None:
        raise InputError("no.")

    with pytest.raises(InputError, match="no"):
        write_free(tmp_path / "m.safetensors", decomposition().first(1, [1]), source="s", check=check)
    assert list(tmp_path.iterdir()) == []


def test_more_components_than_trained_and_depth_zero_are_refused():
    whole = decomposition(components=3)
    with pytest.raises(InputError, match="components: expected 1 to 3, which were trained, got 4"):
        whole.first(4, None)
    with pytest.raises(InputError, match="components: expected 1 to 3, which were trained, got 0"):
        whole.first(0, None)
    with pytest.raises(InputError, match="depth: expected at least 1, got 0"):
        whole.first(1, [0])


def test_plain_parts_are_those_of_the_phase_that_trained_the_last_component():
    one = decomposition(components=6)
    plain = tuple({"norm.bias": np.full(24, float(phase), np.float32)} for phase in range(3))
    phased = replace(one, counts=(1, 4, 6), plain=plain)
    found = [float(phased.first(k, None).plain[0]["norm.bias"][0]) for k in range(1, 7)]
    assert found == [0, 1, 1, 1, 2, 2]


def test_tied_files_load_and_are_recomposed_like_their_source(tmp_path):
    cut = decomposition().first(3, [8])
    made = write_tied(tmp_path / "t.safetensors", cut, source="s")
    write_free(tmp_path / "m.safetensors", cut, source="s")
    tied, (model, _) = load_tied(tmp_path / "t.safetensors"), model_of_file(tmp_path / "m.safetensors")
    batch = images(2, model)
    with torch.no_grad():
        assert torch.equal(tied(batch), model(batch))
    assert made.parameters == num_parameters(cut)
    assert made.stored < made.parameters
    with open_decomposition(tmp_path / "t.safetensors", check=True) as again:
        assert (again.stacks[0].depth, again.num_components, again.digest) == (8, 3, made.digest)


def test_a_decomposition_of_several_phases_is_no_tied_model(tmp_path):
    one = decomposition(components=2)
    write_decomposition(tmp_path / "d.safetensors", replace(one, counts=(1, 2), plain=(one.plain[0],) * 2))
    with pytest.raises(InputError, match="Expected a tied model, got a decomposition of 2 phases"):
        load_tied(tmp_path / "d.safetensors")


def test_recomposing_needs_neither_torch_nor_timm(tmp_path):
    write_decomposition(tmp_path / "d.safetensors", decomposition())
    program = (
        "import sys; from privshard import api; "
        f"api.recompose({str(tmp_path / 'd.safetensors')!r}, out={str(tmp_path / 'm.safetensors')!r}, depth=3); "
        "print([name for name in ('torch', 'timm', 'ray', 'opacus', 'pyarrow', 'pydantic') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
