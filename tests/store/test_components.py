"""A component's files: complete, verified by digest, never another's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from privshard.core.errors import InputError, VerificationError
from privshard.core.model import ComponentRecord
from privshard.core.privacy import PrivacySpend
from privshard.store import components
from privshard.store.objects import ObjectStore

SPEND = PrivacySpend(epsilon=2.5, delta=1e-5, unit="subject", accountant="rdp")


def make(space="tangent", *, fill=1.0, shard=0, attempt=0):
    tensors = {"head.weight": torch.full((2, 3), fill), "head.bias": torch.tensor([0.1, -0.0])}
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    identity = components.component_id(arrays, base="b" * 64, space=space, shard=shard, attempt=attempt)
    record = ComponentRecord(
        identity, shard, attempt, "tangent", "b" * 64, "r", SPEND, secure_randomness=True, space=space
    )
    return record, arrays


@pytest.fixture
def store(tmp_path):
    return ObjectStore(tmp_path)


@pytest.mark.parametrize("space", ["tangent", "weight"])
def test_a_component_comes_back_whole(store, space):
    record, arrays = make(space)
    components.save_component(store, record, arrays, private={"examples": ["aa"]})
    loaded, tensors = components.load_component(store, record.id)
    assert loaded == record
    assert {name: array.tobytes() for name, array in tensors.items()} == {n: a.tobytes() for n, a in arrays.items()}
    assert store.read_json(f"private/{record.id}.json") == {"examples": ["aa"]}
    assert components.component_ids(store) == [record.id]


@pytest.mark.parametrize("kind", ["parameters", "curvature"])
def test_what_stands_beside_a_component_comes_and_goes_with_it(store, kind):
    record, arrays = make("weight")
    tensors = {"gift.all.phi": np.arange(6, dtype=np.float32).reshape(2, 3)}
    record = dataclasses.replace(record, **{kind: getattr(components, f"{kind}_digest")(tensors)})
    components.save_component(store, record, arrays, private={}, **{kind: tensors})
    load = getattr(components, f"load_{kind}")
    assert {name: array.tobytes() for name, array in load(store, record.id).items()} == {
        name: array.tobytes() for name, array in tensors.items()
    }
    path = f"{kind}/{record.id}.safetensors"
    data = bytearray(store.read(path))
    data[-1] ^= 1
    store.write(path, bytes(data))
    with pytest.raises(VerificationError, match=f"expected {kind} of digest"):
        load(store, record.id)
    components.delete_component(store, record.id)
    assert store.list() == []


def test_parameters_that_the_record_does_not_name_are_refused(store):
    record, arrays = make()
    with pytest.raises(InputError, match="expected parameters of digest None, got"):
        components.save_component(store, record, arrays, private={}, parameters={"a": np.zeros(1, dtype=np.float32)})
    with pytest.raises(InputError, match="expected curvature of digest None, got"):
        components.save_component(store, record, arrays, private={}, curvature={"a": np.zeros(1, dtype=np.float32)})
    components.save_component(store, record, arrays, private={})
    assert components.load_parameters(store, record.id) == components.load_curvature(store, record.id) == {}


def test_wrong_id_space_or_base_is_refused_before_anything_is_written(store):
    record, arrays = make()
    for wrong in ({"id": "0" * 64}, {"space": "weight"}, {"base": "c" * 64}):
        with pytest.raises(InputError, match="digest of its tensors"):
            components.save_component(store, dataclasses.replace(record, **wrong), arrays, private={})
    assert store.list() == []


def test_saving_again_changes_nothing(store):
    record, arrays = make()
    for _ in range(2):
        components.save_component(store, record, arrays, private={"examples": ["aa"]})
    assert components.load_record(store, record.id) == record


def test_equal_tensors_of_two_trainings_are_two_components(store):
    for shard, attempt in ((0, 0), (1, 0), (0, 1)):
        record, arrays = make(shard=shard, attempt=attempt)
        components.save_component(store, record, arrays, private={"examples": [f"{shard}{attempt}"]})
    assert len(components.component_ids(store)) == 3


def test_flipped_bit_in_a_tensor_is_found(store):
    record, arrays = make()
    components.save_component(store, record, arrays, private={})
    path = f"components/{record.id}.safetensors"
    data = bytearray(store.read(path))
    data[-1] ^= 1
    store.write(path, bytes(data))
    with pytest.raises(VerificationError, match=record.id):
        components.load_component(store, record.id)


def test_exchanged_files_are_found(store):
    (one, arrays), (two, others) = make(), make(fill=2.0)
    (weight, same) = make("weight")
    for record, tensors in ((one, arrays), (two, others), (weight, same)):
        components.save_component(store, record, tensors, private={})
    store.write(f"components/{one.id}.safetensors", store.read(f"components/{two.id}.safetensors"))
    with pytest.raises(VerificationError, match="expected tensors of this digest"):
        components.load_component(store, one.id)
    store.write(f"components/{one.id}.safetensors", store.read(f"components/{weight.id}.safetensors"))
    with pytest.raises(VerificationError, match="tangent space, its tensors say"):
        components.load_component(store, one.id)
    store.write(f"components/{one.id}.json", store.read(f"components/{two.id}.json"))
    with pytest.raises(VerificationError, match=f"{one.id}: its record is of {two.id}"):
        components.load_component(store, one.id)


@pytest.mark.parametrize("text", [b"[]", b"{}", b"{", b'{"spend": {}}'])
def test_foreign_record_is_named(store, text):
    store.write("components/aa.json", text)
    with pytest.raises(VerificationError, match="aa"):
        components.load_component(store, "aa")


def test_interrupted_save_and_deletion_are_seen_and_repeatable(store, monkeypatch):
    record, arrays = make()
    write = ObjectStore.write

    def stop_at_record(self, path, data):
        if path == f"components/{record.id}.json":
            raise KeyboardInterrupt
        write(self, path, data)

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "write", stop_at_record)
        with pytest.raises(KeyboardInterrupt):
            components.save_component(store, record, arrays, private={"examples": ["aa"]})
    assert components.component_ids(store) == [record.id]
    with pytest.raises(VerificationError, match=record.id):
        components.load_component(store, record.id)
    components.save_component(store, record, arrays, private={"examples": ["aa"]})
    components.delete_component(store, record.id)
    components.delete_component(store, record.id)
    assert components.component_ids(store) == store.list() == []


def test_an_id_is_one_path_segment(store):
    for name in ("../secret", "a/b", "", ".hidden"):
        with pytest.raises(InputError, match="name"):
            components.load_component(store, name)


def test_records_of_older_workspaces_are_tangent():
    value = make()[0].to_json()
    del value["space"], value["parameters"]
    assert ComponentRecord.from_json(value).space == "tangent"
    assert ComponentRecord.from_json(value).parameters is None
