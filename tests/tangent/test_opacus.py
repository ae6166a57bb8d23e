"""The linearized model under Opacus' own PrivacyEngine, and Opacus' per-sample gradients as the engines' oracle."""

from __future__ import annotations

import pytest
import torch
from opacus import PrivacyEngine
from opacus.grad_sample import GradSampleModule
from tiny_vits import CLASS_ROW, images, tiny_vit
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from privshard.privacy.clipping import clip_factors
from privshard.tangent import LinearizedViT, linearize
from privshard.tangent.block_engine import BlockEngine
from privshard.tangent.class_row import ClassRowEngine
from privshard.tangent.engine import tangent_engine

pytestmark = [
    pytest.mark.filterwarnings("ignore:Secure RNG turned off"),
    # the base has no trainable input: Opacus' hooks see gradients of outputs alone, which is all that they need
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
]

NUM = 8


def make_lin(family: str, blocks: int, *, dtype: torch.dtype = torch.float32) -> LinearizedViT:
    """A linearized model whose own displacement is not at zero."""
    lin = linearize(tiny_vit(family, dtype=dtype), blocks=blocks)
    generator = torch.Generator().manual_seed(2)
    for parameter in trainable(lin):
        parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return lin


def trainable(module: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("mode", ["hooks", "ghost"])
@pytest.mark.parametrize("family", ["vit", "dinov2", "qk_norm", "avg_pool"])
def test_trains_under_the_privacy_engine(family, mode):
    lin = linearize(tiny_vit(family, dtype=torch.float32), blocks=2).train()
    base = {name: tensor.clone() for name, tensor in lin.model.state_dict().items()}
    x, labels = images(NUM, lin.model), torch.arange(NUM) % 5
    engine, criterion = PrivacyEngine(), nn.CrossEntropyLoss()
    model, optimizer, *rest = engine.make_private(
        module=lin,
        optimizer=torch.optim.SGD(trainable(lin), lr=0.1),
        criterion=criterion,
        data_loader=DataLoader(TensorDataset(x, labels), batch_size=2),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=True,
        noise_generator=torch.Generator().manual_seed(0),
        grad_sample_mode=mode,
    )
    criterion, loader = rest if mode == "ghost" else (criterion, rest[0])
    sizes = []
    for _ in range(3):
        for batch, target in loader:
            optimizer.zero_grad()
            criterion(model(batch), target).backward()
            optimizer.step()
            sizes.append(len(batch))
    assert len(set(sizes)) > 1  # Poisson batches
    assert lin.training
    assert not lin.model.training
    assert lin.displacement().norm() > 0
    assert engine.get_epsilon(delta=1e-5) > 0
    assert all(torch.equal(tensor, base[name]) for name, tensor in lin.model.state_dict().items())


def test_an_empty_poisson_batch_has_logits_and_gradients():
    wrapped = GradSampleModule(make_lin("vit", 1))
    wrapped(images(0, wrapped.model)).sum().backward()
    assert {len(parameter.grad_sample) for parameter in trainable(wrapped)} == {0}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize(
    ("kind", "family", "blocks"),
    [
        *(("class row", family, 1) for family in CLASS_ROW),
        *(("block", family, 2) for family in ("vit", "dinov2", "qk_norm", "scale_norms", "avg_pool")),
        *(("block", family, "all") for family in ("clip", "distilled")),
    ],
)
def test_norms_and_clipped_sums_are_those_of_opacus(kind, family, blocks, dtype, tolerance):
    lin = make_lin(family, blocks, dtype=dtype)
    x, labels_B = images(NUM, lin.model), torch.arange(NUM) % 5
    wrapped = GradSampleModule(lin, loss_reduction="sum")
    logits_BC = wrapped(x)
    nn.functional.cross_entropy(logits_BC, labels_B, reduction="sum").backward()
    names, shapes = {id(parameter): name for name, parameter in lin._own().items()}, lin.shapes()
    samples = {names[id(parameter)]: parameter.grad_sample for parameter in trainable(wrapped)}
    samples = {name: sample.reshape(NUM, *shapes[name]) for name, sample in samples.items()}

    engine = tangent_engine(lin.view, blocks=blocks) if kind == "class row" or blocks == "all" else None
    engine = engine or BlockEngine(lin.view, first_block=3 - blocks)
    constants, displacement = engine.encode(x), lin.displacement().tensors
    torch.testing.assert_close(engine.logits(constants, displacement), logits_BC.detach(), rtol=1e-4, atol=1e-5)
    cotangent_BC = torch.softmax(logits_BC.detach(), 1) - nn.functional.one_hot(labels_B, 5)
    gradients = engine.gradients(constants, displacement, cotangent_BC)
    assert samples.keys() == engine.shapes().keys()

    squared_B = sum(sample.double().square().flatten(1).sum(1) for sample in samples.values())
    found_B = gradients.squared_norms(torch.arange(NUM), NUM)
    torch.testing.assert_close(found_B.double(), squared_B, rtol=tolerance, atol=0)

    bound = float(squared_B.median().sqrt())
    clipped_B = (bound / squared_B.sqrt()).clamp(max=1)
    found = gradients.weighted_sum(clip_factors(found_B, max_grad_norm=bound))
    sums = {name: torch.einsum("b,b...->...", clipped_B, sample.double()) for name, sample in samples.items()}
    largest = max(float(total.abs().max()) for total in sums.values())
    for name, total in sums.items():
        scale = max(float(total.abs().max()), 0.01 * largest)
        assert float((found[name].double() - total).abs().max()) <= tolerance * scale, name


def test_subjects_are_sums_of_opacus_per_sample_gradients():
    lin = make_lin("dinov2", 1, dtype=torch.float64)
    x, unit_B = images(NUM, lin.model), torch.tensor([2, 0, 1, 2, 2, 0, 1, 2])
    cotangent_BC = torch.randn(NUM, 5, generator=torch.Generator().manual_seed(3)).double()
    wrapped = GradSampleModule(lin, loss_reduction="sum")
    (wrapped(x) * cotangent_BC).sum().backward()
    expected_U = torch.zeros(3, dtype=torch.float64)
    for parameter in trainable(wrapped):
        by_unit = torch.zeros(3, *parameter.shape).double().index_add(0, unit_B, parameter.grad_sample)
        expected_U += by_unit.square().flatten(1).sum(1)
    engine = ClassRowEngine(lin.view)
    found_U = engine.gradients(engine.encode(x), {}, cotangent_BC).squared_norms(unit_B, 3)
    torch.testing.assert_close(found_U, expected_U, rtol=1e-12, atol=0)
