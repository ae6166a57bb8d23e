"""Build any timm model by name: skeletons to decompose, teachers, models to analyse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import timm
import timm.data
import torch
from PIL.Image import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from privshard.core.errors import InputError
from privshard.models.architecture import Architecture, check_digest, read_architecture, refused


def build_model(
    name: str,
    args: Mapping[str, Any],
    *,
    num_classes: int | None = None,
    pretrained: bool = False,
    seed: int = 0,
    key: str = "model",
) -> nn.Module:
    """A timm model, initialized from `seed` without touching torch's global generator.

    num_classes: None keeps timm's own. key: what the recipe calls this model, for messages. Raises InputError for names
    and arguments that timm doesn't take, and for pretrained weights that can't be had.
    """
    if not timm.is_model(name):
        close = get_close_matches(name, timm.list_models(), n=3)
        hint = f"Close names: {', '.join(close)}." if close else "See timm.list_models() for the names."
        raise InputError(f"{key}.name: expected the name of a timm model, got {name!r}.", remedy=hint)
    given = {**args} if num_classes is None else {**args, "num_classes": num_classes}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return timm.create_model(name, pretrained=pretrained, **given)
    except Exception as error:
        raise refused(error, name, args, pretrained=pretrained, key=key) from error


def load_weights(model: nn.Module, path: Path, *, key: str = "model") -> None:
    """Load a safetensors file into `model`; every name and shape must match, the head's too."""
    try:
        given = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{key}.weights: expected a whole safetensors file at {path}, got none: {error}.") from error
    load_weights_from(model, given, source=str(path), key=key)


def load_weights_from(
    model: nn.Module, given: Mapping[str, Tensor | np.ndarray], *, source: str, key: str = "model"
) -> None:
    """Load tensors or arrays by name, in fp32; `source` is what messages call them."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in given.items()}
    odd = [name for name in sorted(wanted.keys() | found.keys()) if wanted.get(name) != found.get(name)]
    if odd:
        shown = "; ".join(f"{n}: model {wanted.get(n, 'absent')}, file {found.get(n, 'absent')}" for n in odd[:3])
        raise InputError(
            f"{key}.weights: {source} does not match the model, {len(odd)} names differ: {shown}.",
            remedy=f"Give the model's own weights under timm's names, or fix {key}.name and {key}.args.",
        )
    model.load_state_dict({name: torch.as_tensor(value).float() for name, value in given.items()})


def num_classes_in(path: Path, model: nn.Module) -> int | None:
    """How many classes the weights in a safetensors file tell apart, by its head; None if it isn't there."""
    classifier = getattr(model, "pretrained_cfg", {}).get("classifier") or "head"
    name = classifier if isinstance(classifier, str) else classifier[0]
    try:
        with safe_open(path, framework="pt") as file:
            return file.get_slice(f"{name}.weight").get_shape()[0]
    except (OSError, SafetensorError):
        return None


def model_of_file(path: Path) -> tuple[nn.Module, Architecture]:
    """The plain model in a file whose header names its architecture, checked against its digest, and that header."""
    remedy = "Name the model, and give plain weights beside it: privshard analyse MODEL --weights FILE"
    found = read_architecture(path, key="model", remedy=remedy)
    assert found is not None
    architecture, digest = found
    model = build_model(architecture.model, architecture.args, num_classes=architecture.num_classes)
    load_weights(model, path)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    check_digest(path, arrays, architecture, digest)
    return model.eval(), architecture


def transform_of(model: nn.Module) -> dict[str, Any]:
    """How timm prepares images for `model`: input_size, mean, std, interpolation, crop_pct.

    The size is that of the model as it was built, not of its name.
    """
    config = timm.data.resolve_model_data_config(model, use_test_size=False)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or config["input_size"][1:]
    return {
        "input_size": (3, *size),
        **{key: config[key] for key in ("mean", "std", "interpolation", "crop_pct")},
    }


def pixels_of(transform: Mapping[str, Any]) -> Callable[[Image], Tensor]:
    """timm's evaluation transform without the last step: an image becomes (3, H, W) in [0, 1]."""
    plain = {**transform, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    return timm.data.create_transform(**plain, is_training=False)  # pyright: ignore[reportReturnType]
