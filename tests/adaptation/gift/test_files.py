"""Generator files and merged weights say what they are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import save_file as save_plain

from privshard.adaptation.gift import files
from privshard.core.errors import InputError, VerificationError
from privshard.core.model import BaseSpec

HEADER = files.Header(
    format=files.GENERATOR,
    base="b" * 64,
    base_spec=BaseSpec("vit_tiny", 3, weights="w.safetensors", args={"img_size": 32}),
    method="gift",
    options={"rank": 4, "layers": ["attn.proj"]},
    sources={"c" * 64: 1.0},
    classes=("ä", "b", "c"),
)
ARRAYS = {"gift.all.phi": np.arange(6, dtype=np.float32).reshape(2, 3)}


@pytest.mark.parametrize("format", [files.GENERATOR, files.MERGED])
def test_a_file_comes_back_as_it_was(tmp_path, format):
    header = dataclasses.replace(HEADER, format=format)
    files.save_file(tmp_path / "x.safetensors", header, ARRAYS)
    found, arrays = files.load_file(tmp_path / "x.safetensors", format=format)
    assert found == header == files.read_header(tmp_path / "x.safetensors")
    assert arrays.keys() == ARRAYS.keys()
    assert arrays["gift.all.phi"].tobytes() == ARRAYS["gift.all.phi"].tobytes()


def test_another_kind_of_file_is_refused_by_what_it_is(tmp_path):
    path = tmp_path / "x.safetensors"
    files.save_file(path, dataclasses.replace(HEADER, format=files.MERGED), ARRAYS)
    with pytest.raises(
        InputError, match=r"expected a generator file .*, got privshard-merged-1, gift .* on base vit_ti"
    ):
        files.load_file(path, format=files.GENERATOR)
    save_plain(ARRAYS, path)
    assert files.read_header(path) is None
    with pytest.raises(InputError, match=r"expected merged weights .*, got weights without privshard's header"):
        files.load_file(path, format=files.MERGED)


def test_a_missing_or_broken_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none.safetensors: expected a safetensors file, found none"):
        files.read_header(tmp_path / "none.safetensors")
    (tmp_path / "half.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{")
    with pytest.raises(VerificationError, match=r"half.safetensors"):
        files.read_header(tmp_path / "half.safetensors")


def test_a_generator_is_named_by_its_parameters():
    assert files.generator_digest(ARRAYS) == files.generator_digest(dict(ARRAYS))
    assert files.generator_digest(ARRAYS) != files.generator_digest({"gift.all.phi": ARRAYS["gift.all.phi"] + 1})
