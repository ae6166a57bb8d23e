"""Load a base: a frozen timm vision transformer with its seeded head, its eval transform and their digest."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import timm
import timm.data
import torch
from PIL.Image import Image
from safetensors import SafetensorError, safe_open
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from privshard.core.digest import tensors_digest
from privshard.core.errors import InputError
from privshard.core.model import BaseSpec
from privshard.models.architecture import check_digest, read_architecture, refused
from privshard.models.vit import ViTView, freeze, seeded_head, view_vit

EMBEDDED_MODEL = "privshard_vit_32"
_EMBEDDED_FILE = "embedded_vit_32.safetensors"
CORE = "core/"
"""What names of a core's tensors begin with, where they lie beside those of a head or a base."""


@dataclass(frozen=True, eq=False)
class Base:
    """A frozen, public base. `state` holds its weights as numpy arrays, head included; `transform` maps a PIL image to
    the (3, H, W) tensor that the model expects; `digest` names model, weights, head, core and transform together.

    core: a displacement that was learnt from public rows, by the names of the weights, on the CPU; every displacement
    is one from there. Empty where there is none.
    """

    spec: BaseSpec
    view: ViTView
    transform: Callable[[Image], Tensor]
    transform_config: Mapping[str, Any]
    digest: str
    core: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def state(self) -> dict[str, np.ndarray]:
        """Weights by timm's names, and those of the core, by theirs after `CORE`."""
        weights = {name: tensor.cpu().numpy() for name, tensor in self.view.model.state_dict().items()}
        return weights | {CORE + name: tensor.numpy() for name, tensor in self.core.items()}


def load_base(
    spec: BaseSpec,
    *,
    state: Mapping[str, np.ndarray] | None = None,
    public: Mapping[str, np.ndarray] | None = None,
) -> Base:
    """Build the base that `spec` describes, in fp32 on the CPU.

    state: weights already loaded elsewhere (a worker gets them from the controller), core included; otherwise they come
    from the package, timm's own download, or the local safetensors file that `spec.weights` names. A classification
    head in the weights is replaced by the starting head. public: what was learnt from public rows, `head.weight` and
    `head.bias` or the core's tensors after `CORE`; a spec that names it can't be built without. Raises InputError for
    an unknown model, and for weights that don't match, showing both sides.
    """
    learnt = public if state is None else {name: array for name, array in state.items() if name.startswith(CORE)}
    core = {name.removeprefix(CORE): array for name, array in (learnt or {}).items() if name.startswith(CORE)}
    check_name(spec)
    weights, metadata = (None, _embedded_metadata(spec)) if state is not None else _read_weights(spec)
    model = create_model(spec, metadata, pretrained=state is None and spec.weights == "pretrained")
    view = view_vit(model)
    config = transform_config(model, metadata) | dict(spec.transform or {})
    if weights is not None:
        load_strictly(model, weights, source=spec.weights)
        _check_header(spec, weights)
    if state is None:
        for number, head in enumerate(view.heads):
            drawn = _starting_head(spec, model, public or {}, number=number)
            for parameter, value in zip(head.parameters(), drawn, strict=True):
                parameter.data.copy_(value)
    else:
        own = {name: torch.from_numpy(np.array(array)) for name, array in state.items() if not name.startswith(CORE)}
        model.load_state_dict(own)
    freeze(model)
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    arrays |= {CORE + name: array for name, array in core.items()}
    header = json.dumps({"model": spec.model, "args": dict(spec.args), "transform": config}, sort_keys=True)
    transform = timm.data.create_transform(**config, is_training=False)
    tensors = {name: torch.from_numpy(np.array(array, dtype=np.float32)) for name, array in core.items()}
    return Base(spec, view, transform, config, tensors_digest(arrays, "base", header), tensors)  # pyright: ignore


def _starting_head(
    spec: BaseSpec, model: VisionTransformer, public: Mapping[str, np.ndarray], *, number: int
) -> tuple[Tensor, Tensor]:
    """The weight and bias that a head of the spec's starts from. number: of the head, where there are several."""
    if spec.head != "public":
        return seeded_head(
            spec.num_classes,
            model.embed_dim,
            seed=spec.head_seed,
            std=spec.head_std,
            number=number,
            orthogonal=spec.head == "orthogonal",
        )
    weight, bias = (public.get(f"head.{name}") for name in ("weight", "bias"))
    wanted = (spec.num_classes, model.embed_dim)
    if weight is None or bias is None or weight.shape != wanted:
        raise InputError(
            f"base.head: expected a public head of shape {wanted} beside this base, got "
            f"{'none' if weight is None or bias is None else weight.shape}.",
            remedy="Open the workspace that holds it.",
        )
    return torch.from_numpy(np.array(weight)), torch.from_numpy(np.array(bias))


def constructor(base: Base) -> tuple[str, dict[str, Any]]:
    """What makes an empty model that the base's weights load into, without privshard: a callable of timm by its full
    name, and its arguments."""
    spec = base.spec
    sizes = {**spec.args, "num_classes": spec.num_classes}
    if spec.model != EMBEDDED_MODEL:
        return "timm.create_model", {"model_name": spec.model, **sizes}
    architecture = json.loads(_embedded_metadata(spec)["architecture"])
    return "timm.models.vision_transformer.VisionTransformer", {**architecture, **sizes}


def check_name(spec: BaseSpec) -> None:
    """InputError, with close names, unless timm or the package knows the model."""
    if spec.model != EMBEDDED_MODEL and not timm.is_model(spec.model):
        close = get_close_matches(spec.model, timm.list_models("*vit*") + timm.list_models("deit*"), n=3)
        hint = f"Close names: {', '.join(close)}." if close else "See timm.list_models('vit*') for the names."
        raise InputError(f"base.model: expected the name of a timm model, got {spec.model!r}.", remedy=hint)


def create_model(spec: BaseSpec, metadata: Mapping[str, str], *, pretrained: bool) -> VisionTransformer:
    """The timm model, with a head of the right size."""
    make: Any
    if spec.model == EMBEDDED_MODEL:
        make = partial(VisionTransformer, **json.loads(metadata["architecture"]))
    else:
        make = partial(timm.create_model, spec.model, pretrained=pretrained)
    try:
        return make(**{**spec.args, "num_classes": spec.num_classes})
    except Exception as error:
        raise refused(error, spec.model, spec.args, pretrained=pretrained, key="base") from error


def transform_config(model: VisionTransformer, metadata: Mapping[str, str]) -> dict[str, Any]:
    """timm's own evaluation transform for the model; the embedded base names its mean and standard deviation."""
    if "architecture" in metadata:
        named = {key: tuple(json.loads(metadata[key])) for key in ("mean", "std")}
        return {"input_size": (3, *model.patch_embed.img_size), "interpolation": "bicubic", "crop_pct": 1.0, **named}
    return dict(timm.data.resolve_model_data_config(model, use_test_size=False)) | {
        "input_size": (3, *model.patch_embed.img_size)
    }


def _embedded_metadata(spec: BaseSpec) -> Mapping[str, str]:
    return read_weights_file(_embedded_path())[1] if spec.model == EMBEDDED_MODEL else {}


def _read_weights(spec: BaseSpec) -> tuple[dict[str, Tensor] | None, Mapping[str, str]]:
    if spec.model == EMBEDDED_MODEL:
        if spec.weights != "embedded":
            raise InputError(f"base.weights: {EMBEDDED_MODEL} has its own weights, got {spec.weights!r}.")
        return read_weights_file(_embedded_path())
    if spec.weights == "embedded":
        raise InputError(
            f"base.weights: the package holds weights for {EMBEDDED_MODEL} only, not for {spec.model!r}.",
            remedy="Set base.weights to 'pretrained' or to a local safetensors file.",
        )
    return (None, {}) if spec.weights == "pretrained" else (read_weights_file(Path(spec.weights))[0], {})


def _embedded_path() -> Path:
    return Path(str(resources.files("privshard.models") / "assets" / _EMBEDDED_FILE))


def read_weights_file(path: Path) -> tuple[dict[str, Tensor], Mapping[str, str]]:
    """Tensors of a safetensors file in fp32, and its metadata; InputError where it is missing or damaged."""
    if not path.is_file():
        raise InputError(
            f"base.weights: expected a safetensors file, found nothing at {path}.",
            remedy="Give the path of a local file, or 'pretrained'.",
        )
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name).float() for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise InputError(
            f"base.weights: {path} is not a whole safetensors file: {error}.", remedy="Download it again."
        ) from error


def _check_header(spec: BaseSpec, weights: Mapping[str, Tensor]) -> None:
    """Where a local file says what it is, that must be true of its content."""
    found = None if spec.weights == "embedded" else read_architecture(Path(spec.weights), required=False)
    if found is not None:
        check_digest(Path(spec.weights), {name: tensor.numpy() for name, tensor in weights.items()}, *found)


def load_strictly(
    model: VisionTransformer, weights: Mapping[str, Tensor], *, source: str, with_head: bool = False
) -> None:
    """Load what has to match by name and shape: everything, or everything but the head."""
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items() if with_head or not _in_head(name)}
    given = {name: tuple(t.shape) for name, t in weights.items() if with_head or not _in_head(name)}
    odd = [name for name in sorted(wanted.keys() | given.keys()) if wanted.get(name) != given.get(name)]
    if odd:
        shown = "; ".join(f"{n}: model {wanted.get(n, 'absent')}, file {given.get(n, 'absent')}" for n in odd[:3])
        raise InputError(
            f"base.weights: {source} does not match the model, {len(odd)} names differ: {shown}.",
            remedy="Give the model's own weights under timm's names, or fix base.model and base.args.",
        )
    model.load_state_dict({name: weights[name] for name in wanted}, strict=with_head)


def _in_head(name: str) -> bool:
    return name.startswith(("head.", "head_dist."))
