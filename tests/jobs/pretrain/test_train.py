"""The pretraining job: its loss, the file that it writes, and the file that the package ships."""

import json
from importlib import resources
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from jobs.pretrain import probe, train
from jobs.pretrain.draw import draw_pairs


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def embedded() -> Path:
    return Path(str(resources.files("privshard.models") / "assets" / "embedded_vit_32.safetensors"))


def smoke(path: Path) -> Path:
    train.main(["--out", str(path), "--steps", "2", "--batch", "8", "--device", "cpu"])
    return path


def test_nt_xent_counts_only_the_other_views_of_the_kind():
    generator = torch.Generator().manual_seed(0)
    view_BD = torch.randn(10, 6, generator=generator)
    kind_B = torch.tensor([0, 0, 0, 1, 1] * 2)
    loss, found_B = train.nt_xent(view_BD, kind_B, temperature=0.5)
    unit_BD = view_BD / view_BD.norm(dim=1, keepdim=True)
    terms, found = [], []
    for i in range(10):
        others = [j for j in range(10) if j != i and kind_B[j] == kind_B[i]]
        scores = {j: float(unit_BD[i] @ unit_BD[j]) / 0.5 for j in others}
        positive = (i + 5) % 10
        terms.append(torch.tensor(list(scores.values())).logsumexp(dim=0).item() - scores[positive])
        found.append(max(scores, key=scores.__getitem__) == positive)
    assert loss.item() == pytest.approx(sum(terms) / 10, rel=1e-5)
    assert found_B.tolist() == found


def test_a_short_run_writes_a_file_that_loads_strictly_and_repeats(tmp_path, capsys):
    path = smoke(tmp_path / "base.safetensors")
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    encoder = probe.load_encoder(path)
    assert encoder.embed_dim == train.ARCHITECTURE["embed_dim"]
    assert [file.name for file in tmp_path.iterdir()] == ["base.safetensors"]
    again = probe.load_encoder(smoke(tmp_path / "again.safetensors")).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in encoder.state_dict().items())


def test_training_moves_the_weights(tmp_path):
    trained = probe.load_encoder(smoke(tmp_path / "base.safetensors")).state_dict()
    initial = train.build_encoder(train.ARCHITECTURE, seed=0).half().float().state_dict()
    assert not torch.equal(trained["blocks.0.attn.qkv.weight"], initial["blocks.0.attn.qkv.weight"])


@torch.no_grad()
def test_standardizing_leaves_mean_zero_and_deviation_one_in_every_coordinate():
    encoder = train.build_encoder(train.ARCHITECTURE, seed=0)
    image_B3HW = torch.rand(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    train.standardize_features(encoder, image_B3HW)
    feature_BD = encoder(train.normalize(image_B3HW))
    torch.testing.assert_close(feature_BD.mean(dim=0), torch.zeros(192), atol=2e-3, rtol=0)
    torch.testing.assert_close(feature_BD.std(dim=0), torch.ones(192), atol=2e-3, rtol=0)


def test_weights_that_are_not_finite_are_refused_and_leave_no_file(tmp_path):
    encoder = train.build_encoder(train.ARCHITECTURE, seed=0)
    with torch.no_grad():
        encoder.norm.weight[0] = torch.nan
    with pytest.raises(RuntimeError, match=r"norm\.weight"):
        train.write_base(encoder, tmp_path / "base.safetensors", source="test")
    assert not list(tmp_path.iterdir())


def test_the_shipped_base_loads_strictly_and_is_small():
    encoder = probe.load_encoder(embedded())
    assert all(value.isfinite().all() for value in encoder.state_dict().values())
    assert not any(name.startswith("head") for name in encoder.state_dict())
    assert embedded().stat().st_size <= 8_000_000
    with safe_open(embedded(), framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["architecture"]) == train.ARCHITECTURE
    assert json.loads(metadata["mean"]) == json.loads(metadata["std"]) == [0.5, 0.5, 0.5]
    assert metadata["source"].startswith(train.SOURCE)


@torch.no_grad()
def test_the_shipped_base_has_standardized_features_that_tell_glyphs_apart():
    encoder = probe.load_encoder(embedded()).eval()
    (pairs,) = draw_pairs(torch.Generator().manual_seed(99), 100)
    feature_BD = encoder(train.normalize(pairs.image_B3HW))
    assert feature_BD.mean().abs() < 0.05
    assert feature_BD.std() == pytest.approx(1, abs=0.1)
    _, found_B = train.nt_xent(feature_BD, pairs.kind_B, temperature=1.0)
    assert found_B[pairs.kind_B == 0].float().mean() > 0.2  # chance: 1 in 69


def test_the_probe_separates_separable_features():
    label_N = torch.arange(200) % 4
    feature_ND = torch.nn.functional.one_hot(label_N, 4).double() + 0.01
    score = probe.fit_and_score(feature_ND[:100], label_N[:100], feature_ND[100:], label_N[100:], num_classes=4)
    assert score == 1.0
