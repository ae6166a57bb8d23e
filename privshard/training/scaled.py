"""A method in coordinates in which some parameters move further than others: per-layer scales.

B examples, C classes, U units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from torch import Tensor

from privshard.core.errors import InputError
from privshard.core.method import Constants, LinearMethod, Method, Pullback, UnitGradients, pull
from privshard.tangent.places import Places
from privshard.training.wrapped import WrappedMethod


class ScaledMethod(WrappedMethod):
    """`privshard.core.method.Method` that learns u with D = s * u, s_p > 0 a public constant of each parameter p.

    The gradient for u is s * g, g the one for D. What that changes:

    - clipping: a unit's norm is |s * g|^2 = sum_p s_p^2 |g_p|^2, so C bounds another ellipsoid. A layer with a larger
      scale takes a larger share of the norm, and of the signal; noise N(0, (z C)^2) in u is N(0, (s_p z C)^2) in D. The
      guarantee stays that of the plan, because the clipped vector is the one that noise is added to and s is public.
      Only ratios matter: scaling all s_p and C by one factor, and lr by its inverse square, changes nothing.
    - a step of size lr in u is one of lr s_p^2 in D.
    - a ridge |u|^2 is sum_p |D_p|^2 / s_p^2.

    Never derive a scale from private rows. Test: tests/training/test_scaled.py.
    """

    def __init__(self, inner: LinearMethod, scales: Mapping[str, float]) -> None:
        super().__init__(inner)
        self._scales = dict(scales)

    @property
    def scales(self) -> dict[str, float]:
        """Parameter name -> its scale."""
        return dict(self._scales)

    def centered(self, mean_D: Tensor) -> ScaledMethod:
        """The same scales around the centred method."""
        return ScaledMethod(self._centered_inner(mean_D), self._scales)

    def unscaled(self, displacement: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """D = s * u; tensors whose scale is 1 as they are."""
        scales = self._scales
        return {name: tensor if scales[name] == 1 else tensor * scales[name] for name, tensor in displacement.items()}

    def logits(self, constants: Constants, displacement: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, C) of the base displaced by s * u."""
        return self._inner.logits(constants, self.unscaled(displacement))

    def gradients(
        self, constants: Constants, displacement: Mapping[str, Tensor], cotangent_BC: Tensor
    ) -> UnitGradients:
        """s * g, example by example."""
        return self._scaled(self._inner.gradients(constants, self.unscaled(displacement), cotangent_BC))

    def pull(self, constants: Constants, displacement: Mapping[str, Tensor]) -> tuple[Tensor, Pullback]:
        """`logits`, and the pullback to `gradients`, sharing what the inner method shares."""
        logits_BC, pullback = pull(self._inner, constants, self.unscaled(displacement))
        return logits_BC, lambda cotangent_BC: self._scaled(pullback(cotangent_BC))

    def _scaled(self, gradients: UnitGradients) -> Places:
        if not isinstance(gradients, Places):
            raise InputError(
                f"training.layer_scales: expected a method whose gradients come in factors, got {self.name}.",
                remedy="Leave layer_scales out, or use the methods tangent or head.",
            )
        return Places([replace(place, scale=place.scale * self._scales[place.name]) for place in gradients.places])


def scaled(method: Method, patterns: Mapping[str, float]) -> Method:
    """`method` with the scale of the pattern that each parameter's name matches, 1 where none does.

    patterns: shell patterns such as "head.*" -> scale above 0. Without any, the method itself. InputError where a
    pattern matches no parameter, or two match the same one.
    """
    if not patterns:
        return method
    if not isinstance(method, LinearMethod):
        raise InputError(
            f"training.layer_scales: expected a method that is linear in what it learns, got {method.name}.",
            remedy="Leave layer_scales out, or use the methods tangent or head.",
        )
    names = sorted(method.shapes())
    scales = dict.fromkeys(names, 1.0)
    for name in names:
        found = [pattern for pattern in sorted(patterns) if fnmatchcase(name, pattern)]
        if len(found) > 1:
            raise InputError(
                f"training.layer_scales: expected one pattern for {name}, got {' and '.join(found)}.",
                remedy="Make the patterns disjoint.",
            )
        if found:
            scales[name] = float(patterns[found[0]])
    unused = [pattern for pattern in sorted(patterns) if not any(fnmatchcase(name, pattern) for name in names)]
    if unused:
        raise InputError(
            f"training.layer_scales: {unused[0]} matches no parameter of the method {method.name}.",
            remedy=f"Its parameters are {', '.join(names[:4])}, …",
        )
    return ScaledMethod(method, scales)


def scales_of(method: Method) -> dict[str, float]:
    """Parameter name -> its scale; 1 for all where the method has none."""
    return method.scales if isinstance(method, ScaledMethod) else dict.fromkeys(sorted(method.shapes()), 1.0)


def unscaled(method: Method, displacement: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A displacement learnt by `method`, without its scales; as it is where the method has none."""
    return method.unscaled(displacement) if isinstance(method, ScaledMethod) else dict(displacement)
