"""The protocol by which a shard learns a displacement of a base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from privshard.core.displacement import Space

Constants = dict[str, Tensor]


class UnitGradients(Protocol):
    """The gradients of a batch, one for each example, in whatever factored form the method has them."""

    def float(self) -> UnitGradients:
        """The same gradients in fp32."""
        ...

    def squared_norms(self, unit_B: Tensor, num_units: int) -> Tensor:
        """Squared Euclidean norm (U,) of each unit's gradient: the sum over its examples, all parameters together.

        unit_B: the unit, 0 to num_units - 1, of each example; units of a batch are complete in it.
        """
        ...

    def weighted_sum(self, weight_B: Tensor) -> dict[str, Tensor]:
        """Parameter name -> sum over examples of weight times gradient. An example of weight 0 contributes nothing,
        whatever its gradient is, not even if it isn't finite."""
        ...


class Method(Protocol):
    """How a displacement acts, and the gradients that teach it. Stateless; B examples, C classes."""

    name: str
    space: Space
    batch_scale: int
    """How many examples' gradients need about the memory of encoding one image."""

    wide: frozenset[str]
    """Names of the constants that may be kept in a half-precision type: the large ones."""
    radius: float | None
    """About the norm of a feature, the head's input: a public constant to which features are clipped before their
    mean is released. None where the method can't be centred."""

    def features(self, constants: Constants) -> Tensor:
        """The head's input (B, D)."""
        ...

    def centered(self, mean_D: Tensor) -> Method:
        """The same method in other coordinates: its displacements act on feature - mean in the head. Better
        conditioned, since features share a large mean that the bias could as well carry."""
        ...

    def uncentered(self, displacement: Mapping[str, Tensor], mean_D: Tensor) -> dict[str, Tensor]:
        """A displacement learnt by `centered(mean_D)`, in the coordinates of the base itself."""
        ...

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name of the base -> shape of its displacement."""
        ...

    def encode(self, images: Tensor) -> Constants:
        """What the frozen base computes once for images (B, 3, H, W): tensors with B leading. Personal data."""
        ...

    def logits(self, constants: Constants, displacement: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, C) of the base displaced by `displacement`."""
        ...

    def gradients(
        self, constants: Constants, displacement: Mapping[str, Tensor], cotangent_BC: Tensor
    ) -> UnitGradients:
        """Per-example gradients of <cotangent, logits> with respect to the displacement."""
        ...
