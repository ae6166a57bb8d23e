"""Locators: a trained hypernetwork and the base it belongs to, saved and loaded without ever guessing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privshard.core.digest import tensors_digest
from privshard.core.errors import InputError, VerificationError
from privshard.editing.hypernetwork import Hypernetwork, HypernetworkShape
from privshard.editing.places import Place, Slot, first_block_of, parse_places
from privshard.editing.scoring import Scorer, scorer

FORMAT = "privshard locator 1"


@dataclass(frozen=True, eq=False)
class Locator:
    """A hypernetwork, the digest of the base on which it was trained, and the places that it scores.

    depth: of the base, in blocks. trained: how it was trained, as plain JSON, public.
    """

    network: Hypernetwork
    base: str
    places: tuple[Place, ...]
    depth: int
    trained: Mapping[str, Any]

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The weight matrices whose neurons it scores."""
        return self.network.shape.slot_views

    @property
    def first_block(self) -> int:
        """The first block that it may edit."""
        return first_block_of(self.places)

    @cached_property
    def digest(self) -> str:
        """Content digest, of weights, shape, places and base."""
        return tensors_digest(self.arrays(), "locator", self.base, json.dumps(self._layout(), sort_keys=True))

    def scores(self, feature_BD: Tensor) -> dict[str, Tensor]:
        """Scores (B, K) of each slot's neurons for images of these features, on the network's device."""
        device = self.network.tokens_SD.device
        if device not in self._scorers:
            self._scorers[device] = scorer(self.network)
        return self._scorers[device].scores(feature_BD)

    @cached_property
    def _scorers(self) -> dict[torch.device, Scorer]:
        """By device: a locator may be moved, but its weights don't change."""
        return {}

    def arrays(self) -> dict[str, np.ndarray]:
        """Its weights by name, fp32."""
        return {name: tensor.detach().cpu().float().numpy() for name, tensor in self.network.state_dict().items()}

    def header(self) -> dict[str, str]:
        """The metadata of its file."""
        layout = json.dumps(self._layout(), sort_keys=True)
        return {"format": FORMAT, "base": self.base, "digest": self.digest, "layout": layout,
                "trained": json.dumps(dict(self.trained), sort_keys=True)}  # fmt: skip

    def _layout(self) -> dict[str, Any]:
        places = ",".join(map(str, self.places))
        return {"shape": self.network.shape.to_json(), "places": places, "depth": self.depth}


def read_locator(arrays: Mapping[str, np.ndarray], header: Mapping[str, str], *, place: str, base: str) -> Locator:
    """A locator from its file's content.

    InputError where it is of another base than `base`, showing both. VerificationError, naming `place`, where the
    file is no locator, lacks a weight or has one too many, or has another digest than it says: weights are never
    loaded in part.
    """
    if header.get("format") != FORMAT:
        raise _broken(place, f"its format is {header.get('format', 'absent')!r}")
    if header.get("base") != base:
        raise InputError(
            f"locator {place}: expected one of base {base[:12]}, got one of base {str(header.get('base'))[:12]}.",
            remedy="Train a locator on this model: privshard edit train-locator.",
        )
    try:
        layout = json.loads(header["layout"])
        shape = HypernetworkShape.from_json(layout["shape"])
        places = parse_places(layout["places"], depth=int(layout["depth"]))
        network = Hypernetwork(shape, seed=0)
        network.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in arrays.items()})
        trained = json.loads(header["trained"])
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise _broken(place, f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    locator = Locator(network.eval().requires_grad_(False), base, places, int(layout["depth"]), trained)
    if locator.digest != header.get("digest"):
        raise _broken(place, f"expected digest {str(header.get('digest'))[:12]}, got {locator.digest[:12]}")
    return locator


def _broken(place: str, why: str) -> VerificationError:
    return VerificationError(
        f"locator {place}: its weights can't be loaded ({why}).",
        remedy="Restore the file from a backup, or train it again: privshard edit train-locator.",
    )
