"""One pass of the base: order, types, memory, shapes; compiled against eager."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_vits import images

from privshard.core.errors import InputError, ResourceError
from privshard.core.execution import ExecutionFlags
from privshard.training import encoding
from privshard.training.encoding import encode, worth_compiling
from privshard.training.outputs import Held
from privshard.training.staging import staged

SIZES = (2, 2, 1)


def batches(model):
    x = images(sum(SIZES), model)
    return x, list(x.split(SIZES))


def test_keeps_order_and_gives_single_precision(make_method):
    method, model = make_method("class row")
    x, parts = batches(model)
    counts = []
    found = encode(method, parts, num_rows=5, batch_size=2, device="cpu", on_batch=counts.append)
    assert counts == list(SIZES)
    torch.testing.assert_close(found["logits"], model(x), rtol=1e-5, atol=1e-5)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}


def test_bfloat16_rounds_the_wide_constants_alone(make_method):
    method, model = make_method("class row")
    _, parts = batches(model)
    exact = encode(method, parts, num_rows=5, batch_size=2, device="cpu")
    rough = encode(method, parts, num_rows=5, batch_size=2, device="cpu", dtype=torch.bfloat16)
    assert {name for name, tensor in rough.items() if tensor.dtype == torch.bfloat16} == method.wide & rough.keys()
    assert {name: tensor.shape for name, tensor in rough.items()} == {name: t.shape for name, t in exact.items()}
    difference = float((rough["logits"] - exact["logits"]).abs().max() / exact["logits"].abs().max())
    assert 1e-6 < difference < 5e-2  # it did run in bfloat16


@pytest.mark.parametrize("kind", ["class row", "block", "head"])
def test_padding_to_one_shape_changes_only_rounding(make_method, monkeypatch, kind):
    method, model = make_method(kind)
    _, parts = batches(model)
    expected = encode(method, parts, num_rows=5, batch_size=2, device="cpu")
    seen = []
    real = type(method).encode
    monkeypatch.setattr(type(method), "encode", lambda self, x: seen.append(len(x)) or real(self, x))
    monkeypatch.setattr(encoding, "_compiled", lambda: encoding._constants)
    found = encode(method, parts, num_rows=5, batch_size=2, device="cpu", compiled=True)
    assert seen == [2, 2, 2]
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)


def test_results_go_to_the_place_that_was_given(make_method):
    method, model = make_method("head")
    _, parts = batches(model)
    starts = []

    class Watched(Held):
        def put(self, start, part):
            starts.append(start)
            super().put(start, part)

    found = encode(
        method,
        parts,
        num_rows=5,
        batch_size=2,
        device="cpu",
        place=lambda kinds: Watched(kinds, num_rows=5, device="cpu"),
    )
    assert starts == [0, 2, 4]
    expected = encode(method, parts, num_rows=5, batch_size=2, device="cpu")
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_no_image_and_another_number_of_images(make_method):
    method, model = make_method("head")
    _, parts = batches(model)
    assert encode(method, [], num_rows=0, batch_size=2, device="cpu") is None
    for wrong in (4, 6):
        with pytest.raises(InputError, match=f"expected {wrong} images, got 5"):
            encode(method, parts, num_rows=wrong, batch_size=2, device="cpu")
    with pytest.raises(InputError, match="expected 5 images, got 0"):
        encode(method, [], num_rows=5, batch_size=2, device="cpu")


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a compiler of C++, minutes of it on a busy machine
@pytest.mark.parametrize("kind", ["class row", "block", "head"])
def test_compiled_agrees_with_eager(make_method, kind):
    method, model = make_method(kind)
    _, parts = batches(model)
    expected = encode(method, parts, num_rows=5, batch_size=2, device="cpu")
    found = encode(method, parts, num_rows=5, batch_size=2, device="cpu", compiled=True)
    for name, tensor in expected.items():
        assert float((found[name] - tensor).abs().max()) <= 1e-4 * float(tensor.abs().max()), name


def test_traced_for_the_compiler_agrees_with_eager(make_method, monkeypatch):
    """The graph that is compiled, whole, without generating code."""
    method, model = make_method("class row")
    _, parts = batches(model)
    expected = encode(method, parts, num_rows=5, batch_size=2, device="cpu")
    traced = torch.compile(encoding._constants, backend="eager", fullgraph=True, dynamic=False)
    monkeypatch.setattr(encoding, "_compiled", lambda: traced)
    found = encode(method, parts, num_rows=5, batch_size=2, device="cpu", compiled=True)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-5)


def test_what_is_compiled(monkeypatch):
    monkeypatch.setattr(encoding, "find_spec", lambda name: SimpleNamespace())
    monkeypatch.setattr(encoding.shutil, "which", lambda name: "/bin/cc" if name == "gcc" else None)
    flags = {asked: ExecutionFlags(compile=asked) for asked in ("auto", True, False)}

    def asked(what, device="cuda", num_images=encoding.MIN_COMPILED_IMAGES):
        return worth_compiling(flags[what], device=device, num_images=num_images)

    assert asked("auto")
    assert asked("auto", "cuda:1")
    assert not asked("auto", "cpu")
    assert not asked("auto", num_images=encoding.MIN_COMPILED_IMAGES - 1)
    assert asked(True, "cpu", 1)
    assert not asked(False)
    monkeypatch.setattr(encoding, "find_spec", lambda name: None)
    assert not asked("auto")
    assert asked(True, "cpu")  # without a GPU, triton isn't needed
    with pytest.raises(ResourceError, match="expected triton"):
        asked(True)
    monkeypatch.setattr(encoding.shutil, "which", lambda name: None)
    with pytest.raises(ResourceError, match="a C compiler"):
        asked(True, "cpu")


def test_staging_pads_and_tells_how_many_count():
    parts = [torch.ones(2, 3), torch.ones(1, 3)]
    found = list(staged(parts, device="cpu", size=2))
    assert [num for _, num in found] == [2, 1]
    assert found[1][0].tolist() == [[1, 1, 1], [0, 0, 0]]
    assert [len(rows) for rows, _ in staged(parts, device="cpu", size=None)] == [2, 1]


@pytest.mark.gpu
def test_staging_on_a_gpu_overwrites_nothing_that_is_in_use():
    parts = [torch.full((64, 1000), float(number)) for number in range(20)]
    sums = []
    for rows, _ in staged(parts, device="cuda", size=64):
        for _ in range(50):  # work that is still to be done when the next batch is copied
            rows = rows + 0
        sums.append(rows.sum())
    assert [float(total) for total in sums] == [64000.0 * number for number in range(20)]
