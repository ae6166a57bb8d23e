import math
from dataclasses import replace

import pytest
import torch
from opacus.optimizers import DPOptimizer
from opacus.optimizers import optimizer as opacus_optimizer

from privshard.core.errors import BudgetError, InputError, VerificationError
from privshard.core.privacy import MechanismPlan
from privshard.privacy.clipping import clip_factors
from privshard.privacy.optimizer import PrivateOptimizer
from privshard.privacy.stream import ChaChaStream, insecure_key

SHAPES = {"head.bias": (3,), "blocks.0.weight": (4, 5), "blocks.0.bias": (7,)}
PLAN = MechanismPlan(
    unit="example",
    sample_rate=0.25,
    steps=3,
    max_grad_norm=0.7,
    noise_multiplier=1.3,
    expected_units=12.5,
    delta=1e-5,
    accountant="rdp",
)


def stream(shard=0, attempt=0):
    return ChaChaStream(insecure_key(0, shard=shard, attempt=attempt), purpose="noise")


def parameters(shapes=SHAPES):
    return {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()}


def private(plan=PLAN, named=None, noise=None, **options):
    named = parameters() if named is None else named
    inner = torch.optim.SGD(named.values(), **{"lr": 1.0, **options})
    return named, PrivateOptimizer(inner, named_parameters=named, plan=plan, stream=noise or stream())


def test_equals_opacus_on_per_example_gradients_and_the_same_noise(monkeypatch):
    generator = torch.Generator().manual_seed(1)
    batches = [
        {name: 0.3 * torch.randn(size, *SHAPES[name], generator=generator) for name in SHAPES} for size in (6, 1, 9)
    ]
    noise = stream()

    def from_our_stream(std, reference, generator=None, secure_mode=False):
        return (noise.normal(reference.numel()) * std).view_as(reference).to(reference.dtype)

    monkeypatch.setattr(opacus_optimizer, "_generate_noise", from_our_stream)
    theirs = {name: p for name, p in sorted(parameters().items())}
    reference = DPOptimizer(
        torch.optim.SGD(theirs.values(), lr=0.1, momentum=0.9),
        noise_multiplier=PLAN.noise_multiplier,
        max_grad_norm=PLAN.max_grad_norm,
        expected_batch_size=PLAN.expected_units,
    )
    ours, optimizer = private(lr=0.1, momentum=0.9)
    for batch in batches:
        for name, parameter in theirs.items():
            parameter.grad_sample = batch[name]
        reference.step()
        reference.zero_grad()
        squares = sum(g.flatten(1).square().sum(1) for g in batch.values())
        factors = clip_factors(squares, max_grad_norm=PLAN.max_grad_norm)
        optimizer.release({name: torch.einsum("u,u...->...", factors, g) for name, g in batch.items()})
    assert any((factors < 1).tolist())
    for name in SHAPES:
        torch.testing.assert_close(ours[name], theirs[name], rtol=2e-6, atol=2e-7)
    optimizer.check_complete()


def test_the_noise_has_the_standard_deviation_of_the_plan():
    named = parameters({"w": (300, 400)})
    plan = replace(PLAN, steps=1)
    _, optimizer = private(plan, named)
    optimizer.release(None)
    drawn = named["w"].detach().double().flatten() * plan.expected_units
    n, std = drawn.numel(), plan.noise_multiplier * plan.max_grad_norm
    assert abs(drawn.mean().item()) < 5 * std / math.sqrt(n)
    assert abs(drawn.std().item() / std - 1) < 5 / math.sqrt(2 * n)


def test_an_empty_batch_is_a_noisy_step_like_any_other():
    named, optimizer = private()
    zero, same = private()
    optimizer.release(None)
    same.release({name: torch.zeros(shape) for name, shape in SHAPES.items()})
    assert all(torch.equal(named[name], zero[name]) and named[name].abs().min() > 0 for name in SHAPES)
    assert optimizer.events == same.events


def test_noise_is_drawn_in_sorted_order_of_names_whatever_the_order_given():
    forwards, one = private()
    backwards, other = private(named=parameters(dict(reversed(SHAPES.items()))))
    one.release(None)
    other.release(None)
    assert all(torch.equal(forwards[name], backwards[name]) for name in SHAPES)


def test_noise_differs_between_steps_shards_and_attempts_and_repeats_for_equal_seeds():
    def trained(shard, attempt):
        named, optimizer = private(noise=stream(shard, attempt))
        seen = []
        for _ in range(2):
            optimizer.release(None)
            seen.append(named["head.bias"].detach().clone())
        return torch.cat([seen[0], seen[1] - seen[0]])

    runs = torch.stack([trained(s, a) for s in (0, 1) for a in (0, 1)]).flatten()
    assert len(runs.unique()) == len(runs)
    assert torch.equal(trained(1, 1), trained(1, 1))


def test_without_noise_the_same_path_is_a_plain_step():
    named, optimizer = private(replace(PLAN, noise_multiplier=0.0))
    sums = {name: torch.full(shape, 2.5) for name, shape in SHAPES.items()}
    optimizer.release(sums)
    assert all(torch.equal(p, torch.full_like(p, -2.5 / 12.5)) for p in named.values())
    assert optimizer._stream.position == 0
    assert [event.noise_multiplier for event in optimizer.events] == [0.0]


def test_what_ran_is_what_was_accounted():
    _, optimizer = private()
    for _ in range(2):
        optimizer.release(None)
    with pytest.raises(VerificationError, match="steps=2"):
        optimizer.check_complete()
    optimizer.release(None)
    optimizer.check_complete()
    assert optimizer.events == PLAN.events
    with pytest.raises(BudgetError, match="all were taken"):
        optimizer.release(None)


@pytest.mark.parametrize("setting", ["noise_multiplier", "max_grad_norm", "expected_batch_size"])
def test_settings_can_not_drift_from_the_plan(setting):
    _, optimizer = private()
    setattr(optimizer, setting, 0.1)
    with pytest.raises(VerificationError, match="plan says"):
        optimizer.release(None)


def test_a_non_finite_sum_never_becomes_a_non_finite_weight():
    named, optimizer = private()
    clean, same = private()
    sums = {name: torch.ones(shape) for name, shape in SHAPES.items()}
    broken = {**sums, "head.bias": torch.tensor([math.nan, 1.0, math.inf])}
    optimizer.release(broken)
    same.release({**sums, "head.bias": torch.tensor([0.0, 1.0, 0.0])})
    assert all(torch.equal(named[name], clean[name]) for name in SHAPES)


def test_names_and_shapes_of_the_sums_are_checked():
    _, optimizer = private()
    sums = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    for wrong in ({**sums, "other": torch.zeros(1)}, {**sums, "head.bias": torch.zeros(4)}, {}):
        with pytest.raises(InputError, match="clipped sums"):
            optimizer.release(wrong)
    assert optimizer.events == ()


def test_steps_around_the_mechanism_are_refused():
    named, optimizer = private()
    with pytest.raises(InputError, match="release"):
        optimizer.step()
    with pytest.raises(InputError, match="named_parameters"):
        PrivateOptimizer(
            torch.optim.SGD(named.values(), lr=1.0),
            named_parameters={"head.bias": named["head.bias"]},
            plan=PLAN,
            stream=stream(),
        )


@pytest.mark.gpu
def test_both_devices_take_the_same_step():
    found = []
    for device in ("cpu", "cuda"):
        named = {name: torch.nn.Parameter(torch.zeros(shape, device=device)) for name, shape in SHAPES.items()}
        named, optimizer = private(named=named, lr=0.1, momentum=0.9)
        for step in range(PLAN.steps):
            optimizer.release({name: torch.full(shape, 0.1 * step, device=device) for name, shape in SHAPES.items()})
        found.append({name: parameter.detach().cpu() for name, parameter in named.items()})
    for name in SHAPES:
        torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-6, atol=1e-7)
