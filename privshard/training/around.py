"""A method around a core: displacements that start where public rows led, and logits that begin with the core's.

B examples, C classes, D width.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from privshard.core.errors import InputError
from privshard.core.method import Constants, LinearMethod, Method, Pullback, UnitGradients, pull
from privshard.tangent.center import center_head
from privshard.training.wrapped import WrappedMethod


class AroundCore(WrappedMethod):
    """`privshard.core.method.LinearMethod` whose zero is a core: logits f0 + J (core + D).

    The Jacobian is the inner method's and doesn't depend on the core, so gradients, norms and noise are those of the
    inner method at core + D: what is accounted doesn't change. The core came from public rows alone, so starting from
    it reveals nothing private. Averages of displacements stay averages of logits, and the empty composition is the
    core itself. Test: tests/training/test_around.py.
    """

    def __init__(self, inner: LinearMethod, core: Mapping[str, Tensor]) -> None:
        super().__init__(inner)
        self._core = dict(core)
        self.has_core = True

    def centered(self, mean_D: Tensor) -> AroundCore:
        """The same core around the centred method, in its coordinates."""
        return AroundCore(self._centered_inner(mean_D), center_head(self._core, mean_D))

    def logits(self, constants: Constants, displacement: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, C) of the base displaced by core + D."""
        return self._inner.logits(constants, self._from_base(displacement))

    def pull(self, constants: Constants, displacement: Mapping[str, Tensor]) -> tuple[Tensor, Pullback]:
        """Logits at core + D, and the inner method's pullback."""
        return pull(self._inner, constants, self._from_base(displacement))

    def gradients(
        self, constants: Constants, displacement: Mapping[str, Tensor], cotangent_BC: Tensor
    ) -> UnitGradients:
        """The inner method's: the model is linear in its displacement."""
        return self._inner.gradients(constants, self._from_base(displacement), cotangent_BC)

    def _from_base(self, displacement: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor + self._core[name].to(tensor.dtype) for name, tensor in displacement.items()}


def around(method: Method, core: Mapping[str, Tensor]) -> Method:
    """`method` around `core`; the method itself where there is none.

    InputError for a method that isn't linear in what it learns, and for a core of other names or shapes.
    """
    if not core:
        return method
    if not isinstance(method, LinearMethod):
        raise InputError(
            f"public.core: expected a method that is linear in what it learns, got {method.name}.",
            remedy="Set public.core to false, or use the methods tangent or head.",
        )
    wanted, given = method.shapes(), {name: tuple(tensor.shape) for name, tensor in core.items()}
    odd = [name for name in sorted(wanted.keys() | given.keys()) if wanted.get(name) != given.get(name)]
    if odd:
        shown = "; ".join(f"{n}: expected {wanted.get(n, 'none')}, got {given.get(n, 'none')}" for n in odd[:3])
        raise InputError(
            f"core: it doesn't fit the method {method.name}, {len(odd)} tensor(s) differ: {shown}.",
            remedy="A core belongs to the method that learnt it.",
        )
    return AroundCore(method, core)
