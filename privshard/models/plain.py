"""Load a plain model file: a finished classifier, its own head included, frozen and with its digest."""

from __future__ import annotations

import json
from pathlib import Path

import timm.data

from privshard.core.digest import tensors_digest
from privshard.core.errors import InputError
from privshard.core.model import BaseSpec
from privshard.models.base import Base, check_name, create_model, load_strictly, read_weights_file, transform_config
from privshard.models.vit import freeze, view_vit


def load_plain(path: str, *, model: str) -> Base:
    """The timm model `model` with every weight of the safetensors file at `path`, in fp32 on the CPU.

    The number of classes is that of the file's head. InputError for an unknown model, no such file, and weights that
    don't match by name and shape, showing both sides: none is ever left at random.
    """
    weights, _ = read_weights_file(Path(path))
    head = weights.get("head.weight")
    if head is None or head.ndim != 2:
        raise InputError(
            f"model {path}: expected a classifier with the weight of its head, head.weight, got none.",
            remedy="Give the weights of a whole timm vision transformer, under timm's names.",
        )
    spec = BaseSpec(model=model, num_classes=head.shape[0], weights=path)
    check_name(spec)
    network = create_model(spec, {}, pretrained=False)
    load_strictly(network, weights, source=path, with_head=True)
    freeze(network)
    config = transform_config(network, {})
    arrays = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    header = json.dumps({"model": model, "args": {}, "transform": config}, sort_keys=True)
    transform = timm.data.create_transform(**config, is_training=False)
    digest = tensors_digest(arrays, "base", header)
    return Base(spec, view_vit(network), transform, config, digest)  # pyright: ignore[reportArgumentType]
