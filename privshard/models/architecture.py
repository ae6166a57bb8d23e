"""The header that lets a weights file name its own architecture, without timm or torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from privshard.core.digest import canonical_json
from privshard.core.errors import InputError

HEADER = "privshard"
"""The key of a safetensors file's metadata that holds the header, as JSON."""
_REMEDY = "Make the file again with `privshard recompose`, or name base.model and base.args for plain timm weights."


@dataclass(frozen=True)
class Architecture:
    """What a plain timm model is, apart from its weights.

    model, args: timm's name and the arguments beside num_classes. classes: what the head tells apart, or none.
    transform: mean, std, interpolation and crop_pct of the images it learnt on; none means timm's own for the model.
    made_from: where the weights come from, for people and auditors; it decides nothing.
    """

    model: str
    args: Mapping[str, Any]
    num_classes: int
    classes: tuple[str, ...] | None = None
    transform: Mapping[str, Any] | None = None
    made_from: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form."""
        return {**asdict(self), "classes": None if self.classes is None else list(self.classes)}

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Architecture:
        """Inverse of `to_json`."""
        classes = value["classes"]
        return Architecture(**{**value, "classes": None if classes is None else tuple(classes)})


def model_header(architecture: Architecture, digest: str) -> dict[str, str]:
    """The metadata of a model file."""
    header = {"kind": "model", "architecture": architecture.to_json(), "digest": digest}
    return {"format": "pt", HEADER: json.dumps(header, sort_keys=True)}


def read_architecture(
    path: Path, *, required: bool = True, key: str = "base.weights", remedy: str = _REMEDY
) -> tuple[Architecture, str] | None:
    """What a model file says it is, and the digest that it gives its content; None where it says nothing.

    Reads the header alone. Raises InputError where there is none although it is `required`, and where the file holds
    something else than a plain model. key, remedy: what the caller calls the file, and how else to give a model.
    """
    header = read_header(path, key=key) if required or path.is_file() else None
    if header is None and not required:
        return None
    kind = None if header is None else header.get("kind")
    if header is None or kind != "model":
        what = "weights without it" if header is None else f"a {kind}"
        raise InputError(
            f"{key}: expected a file whose header names its architecture, got {what} in {path}.",
            remedy=remedy if kind != "decomposition" else f"Recompose it first: privshard recompose {path} --out FILE",
        )
    try:
        return Architecture.from_json(header["architecture"]), str(header["digest"])
    except (KeyError, TypeError, ValueError) as error:
        raise _lies(path, f"unreadable ({error})") from None


def read_header(path: Path, *, key: str = "base.weights") -> dict[str, Any] | None:
    """The header of a safetensors file as it stands; None where it has none of ours. key: what messages call it."""
    try:
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            metadata = json.loads(file.read(min(size, 1 << 27))).get("__metadata__", {})
        text = metadata.get(HEADER)
        return None if text is None else json.loads(text)
    except OSError as error:
        raise InputError(
            f"{key}: expected a safetensors file, found nothing readable at {path} ({error.strerror}).",
            remedy="Correct the path; of a decomposition's folder, `privshard recompose` makes such a file.",
        ) from None
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(
            f"{key}: {path} is not a whole safetensors file: {error}.", remedy="Name another file, or copy it again."
        ) from None


def refused(error: Exception, model: str, args: Mapping[str, Any], *, pretrained: bool, key: str) -> InputError:
    """What to say where timm made no model. It checks few arguments: a wrong one raises whatever breaks first."""
    why = str(error).rstrip(".")
    if pretrained and isinstance(error, OSError | RuntimeError):
        return InputError(
            f"{key}.weights: timm could not load pretrained weights for {model}: {why}.",
            remedy=f"Check the network, or set {key}.weights to a local safetensors file.",
        )
    return InputError(
        f"{key}.args: timm's {model} does not accept {dict(args)}: {why}.",
        remedy="Use arguments that timm.create_model takes for this model.",
    )


def content_digest(arrays: Mapping[str, np.ndarray], description: Mapping[str, Any]) -> str:
    """SHA-256 over the arrays, sorted by name, with type and shape, after what they are said to be.

    Copies nothing, so arrays may be maps of a file.
    """
    state = hashlib.sha256(canonical_json(description))
    for name in sorted(arrays):
        array = arrays[name]
        state.update(f"\0{name}\0{array.dtype.str}\0{tuple(array.shape)}\0".encode())
        state.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return state.hexdigest()


def check_digest(path: Path, arrays: Mapping[str, np.ndarray], architecture: Architecture, digest: str) -> None:
    """InputError unless the file holds what its header says."""
    if content_digest(arrays, architecture.to_json()) != digest:
        raise _lies(path, f"with digest {digest[:12]}…, which is not that of its weights and architecture")


def check_agrees(path: Path, architecture: Architecture, *, model: str | None, args: Mapping[str, Any]) -> None:
    """InputError where a recipe names another architecture than the file does."""
    if model is not None and (model != architecture.model or (args and dict(args) != dict(architecture.args))):
        raise InputError(
            f"base.weights: {path} says that it is {architecture.model} with {dict(architecture.args)}, but the recipe "
            f"says {model} with {dict(args)}.",
            remedy="Leave base.model and base.args out: this file names them itself.",
        )


def _lies(path: Path, what: str) -> InputError:
    return InputError(f"base.weights: expected a true header in {path}, got one {what}.", remedy=_REMEDY)
