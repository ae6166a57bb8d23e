"""The canary: a unit whose clipped gradient is C along one coordinate of its own, and nothing elsewhere.

B examples, K canaries, P coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from privshard.core.displacement import Space
from privshard.core.errors import InputError
from privshard.core.method import Constants, Method

PARAMETER = "canary.direction"
LABEL = 1
_LARGE = 10.0


@dataclass
class Witness:
    """What canaries see from inside a training: how often each took part, and how many took part together."""

    inclusions_P: Tensor
    batch_sizes: list[int] = field(default_factory=list)


class CanaryMethod:
    """`privshard.core.method.Method` of canaries: canary k has the gradient |g_k| e_k, orthogonal to all others.

    This is the worst case of a clipped Gaussian mechanism, where a unit moves the release by exactly C in a direction
    that the attacker knows. Coordinates are independent mechanisms, since no clipping of one canary depends on
    another: a single run holds as many experiments as there are coordinates. Raw norms are C or ten times that: of
    even canaries C until their coordinate has moved and 10 C afterwards, of odd ones the reverse. So every batch holds
    both, and a norm that is computed once and kept, or for the batch as a whole, shows.

    num_coordinates: P; constants have one `coordinate` a canary, below P. max_grad_norm: C.
    """

    name = "canary"
    space: Space = "tangent"
    batch_scale = 1
    wide: frozenset[str] = frozenset()
    indexed: frozenset[str] = frozenset()
    radius: float | None = None

    def __init__(self, num_coordinates: int, *, max_grad_norm: float) -> None:
        self._num = num_coordinates
        self._norm = max_grad_norm
        self.witness = Witness(torch.zeros(num_coordinates, dtype=torch.int64))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """One parameter with a number for every coordinate."""
        return {PARAMETER: (self._num,)}

    def encode(self, images: Tensor) -> Constants:
        """Refused: canaries are gradients, not images."""
        raise InputError("canary: expected coordinates, got images.")

    def features(self, constants: Constants) -> Tensor:
        """None: a vector of length 0 each."""
        return constants["coordinate"].new_zeros(len(constants["coordinate"]), 0).float()

    def centered(self, mean_D: Tensor) -> Method:
        """This method: there is nothing to centre."""
        return self

    def uncentered(self, displacement: Mapping[str, Tensor], mean_D: Tensor) -> dict[str, Tensor]:
        """The displacement as it is."""
        return dict(displacement)

    def logits(self, constants: Constants, displacement: Mapping[str, Tensor]) -> Tensor:
        """(2 |g_k| times the coordinate's displacement, 0), (B, 2): whoever asks the model sees how far it moved.

        |g_k| is the raw norm at zero displacement, where this has the gradient |g_k| e_k by cross entropy at label 1.
        """
        at_B = constants["coordinate"]
        moved_B = 2 * self._norms(at_B, torch.zeros_like(at_B)) * displacement[PARAMETER][at_B]
        return torch.stack([moved_B, torch.zeros_like(moved_B)], 1)

    def gradients(self, constants: Constants, displacement: Mapping[str, Tensor], cotangent_BC: Tensor) -> Spikes:
        """|g| e_k for every canary of the batch, which the witness records; its direction never changes."""
        at_B = constants["coordinate"]
        self.witness.inclusions_P[at_B] += 1
        self.witness.batch_sizes.append(len(at_B))
        return Spikes(at_B, self._norms(at_B, displacement[PARAMETER][at_B]), self._num)

    def _norms(self, at_B: Tensor, moved_B: Tensor) -> Tensor:
        """Raw norms of canaries whose coordinates have moved by so much."""
        large_B = (moved_B != 0) == (at_B % 2 == 0)
        return torch.where(large_B, _LARGE * self._norm, self._norm)


@dataclass(frozen=True)
class Spikes:
    """Gradients with one non-zero entry each (`privshard.core.method.UnitGradients`); one row a unit."""

    at_B: Tensor
    value_B: Tensor
    num_coordinates: int

    def bounded(self) -> Spikes:
        """These, which are fp32."""
        return self

    def squared_norms(self, unit_B: Tensor | None, num_units: int) -> Tensor:
        """value^2, unit by unit."""
        if unit_B is None:
            return self.value_B.float().square()
        return torch.zeros(num_units).index_add_(0, unit_B, self.value_B.float().square())

    def weighted_sum(self, weight_B: Tensor) -> dict[str, Tensor]:
        """weight times value at every coordinate."""
        kept = weight_B != 0
        total_P = torch.zeros(self.num_coordinates)
        return {PARAMETER: total_P.index_add_(0, self.at_B[kept], (weight_B * self.value_B)[kept].float())}


def canary_constants(coordinates_K: Tensor) -> Constants | None:
    """The constants of canaries at these coordinates; None without any, as of an empty shard."""
    return {"coordinate": coordinates_K} if len(coordinates_K) else None
