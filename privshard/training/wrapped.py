"""What a linear method around another one passes on as it is.

B examples, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from privshard.core.displacement import Space
from privshard.core.method import Constants, LinearMethod


class WrappedMethod:
    """The part of `privshard.core.method.LinearMethod` that belongs to `inner`: its constants, features and shapes."""

    def __init__(self, inner: LinearMethod) -> None:
        self._inner = inner
        self.name: str = inner.name
        self.space: Space = inner.space
        self.batch_scale: int = inner.batch_scale
        self.wide: frozenset[str] = inner.wide
        self.indexed: frozenset[str] = inner.indexed
        self.radius: float | None = inner.radius
        self.has_core: bool = getattr(inner, "has_core", False)
        self.engine: str | None = getattr(inner, "engine", None)
        self.compiled_after: int | None = getattr(inner, "compiled_after", None)

    def features(self, constants: Constants) -> Tensor:
        """The head's input (B, D)."""
        return self._inner.features(constants)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name -> shape."""
        return self._inner.shapes()

    def encode(self, images: Tensor) -> Constants:
        """What is computed once of images (B, 3, H, W)."""
        return self._inner.encode(images)

    def uncentered(self, displacement: Mapping[str, Tensor], mean_D: Tensor) -> dict[str, Tensor]:
        """A displacement in the inner method's coordinates, back to those of the base."""
        return self._inner.uncentered(displacement, mean_D)

    def _centered_inner(self, mean_D: Tensor) -> LinearMethod:
        centred = self._inner.centered(mean_D)
        assert isinstance(centred, LinearMethod)
        return centred
