"""The protocols by which a shard learns a displacement of a base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from privshard.core.displacement import Space

Constants = dict[str, Tensor]

ROWS = "rows"
"""The name under which a batch holds the positions (B,) of its rows in the constants that it holds whole."""


class UnitGradients(Protocol):
    """The gradients of a batch, one for each example, in whatever factored form the method has them."""

    def bounded(self) -> UnitGradients:
        """The same gradients, so that `squared_norms` bound what `weighted_sum` adds whatever type they came in."""
        ...

    def squared_norms(self, unit_B: Tensor | None, num_units: int) -> Tensor:
        """Squared Euclidean norm (U,) of each unit's gradient: the sum over its examples, all parameters together.

        unit_B: the unit, 0 to num_units - 1, of each example; units of a batch are complete in it. None: example i is
        unit i, all of it.
        """
        ...

    def weighted_sum(self, weight_B: Tensor) -> dict[str, Tensor]:
        """Parameter name -> sum over examples of weight times gradient. An example of weight 0 contributes nothing,
        whatever its gradient is, not even if it isn't finite."""
        ...


Pullback = Callable[[Tensor], UnitGradients]
"""Cotangents (B, C) -> the per-example gradients of <cotangent, logits> with respect to what is trained. May be
called once."""


SumPullback = Callable[[Tensor], dict[str, Tensor]]
"""Cotangents (B, C) -> parameter name -> the sum over examples of what a `Pullback` gives one by one. May be called
once."""


@runtime_checkable
class Method(Protocol):
    """How a displacement acts. Stateless; B examples, C classes.

    How it is learnt is one of two: a `LinearMethod` trains the displacement itself, from zero; a `ParameterMethod`
    trains parameters of its own, of which the displacement is a function.
    """

    name: str
    space: Space
    batch_scale: int
    """How many examples' gradients need about the memory of encoding one image."""

    wide: frozenset[str]
    """Names of the constants that may be kept in a half-precision type: the large ones."""
    indexed: frozenset[str]
    """Names of the constants that a batch may hold whole, with the batch's positions in them under `ROWS`."""
    radius: float | None
    """About the norm of a feature, the head's input: a public constant to which features are clipped before their
    mean is released. None where the method can't be centred."""

    def features(self, constants: Constants) -> Tensor:
        """The head's input (B, D), by the base."""
        ...

    def centered(self, mean_D: Tensor) -> Method:
        """The same method in other coordinates: its displacements act on feature - mean in the head. Better
        conditioned, since features share a large mean that the bias could as well carry."""
        ...

    def uncentered(self, displacement: Mapping[str, Tensor], mean_D: Tensor) -> dict[str, Tensor]:
        """What was learnt by `centered(mean_D)`, in the coordinates of the base itself."""
        ...

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name of the base -> shape of its displacement."""
        ...

    def encode(self, images: Tensor) -> Constants:
        """What the frozen base computes once for images (B, 3, H, W): tensors with B leading. Personal data."""
        ...

    def logits(self, constants: Constants, displacement: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, C) of the base displaced by `displacement`; see `origin` for those of the base."""
        ...


@runtime_checkable
class LinearMethod(Method, Protocol):
    """A method that is linear in its displacement and trains it as it is: its components compose exactly."""

    def gradients(
        self, constants: Constants, displacement: Mapping[str, Tensor], cotangent_BC: Tensor
    ) -> UnitGradients:
        """Per-example gradients of <cotangent, logits> with respect to the displacement."""
        ...


@runtime_checkable
class ParameterMethod(Method, Protocol):
    """A method that trains parameters theta of its own; its displacement D(theta) need not be linear in them, nor the
    logits in the displacement. Averaging such components is an approximation of averaging their outputs.

    `centered` and `uncentered` act on the parameters, which hold the head's displacement under the base's names.
    """

    def initial(self) -> dict[str, Tensor]:
        """Where training starts: public, the same for every shard and attempt."""
        ...

    def pull(self, constants: Constants, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Pullback]:
        """Logits (B, C), and what turns cotangents into per-example gradients with respect to the parameters."""
        ...

    def pull_sum(self, constants: Constants, parameters: Mapping[str, Tensor]) -> tuple[Tensor, SumPullback]:
        """As `pull`, where nobody asks for one example's gradient: one backward pass, and nothing kept for more."""
        ...

    def displacement(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """D(theta), by the base's names: products, not factors."""
        ...


def pull(method: Method, constants: Constants, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Pullback]:
    """Logits, and the pullback to what the method trains, for either kind of method. A linear method may have a
    `pull` of its own, where both share work."""
    if hasattr(method, "pull"):
        return method.pull(constants, parameters)  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(method, LinearMethod)
    return method.logits(constants, parameters), partial(method.gradients, constants, parameters)


def initial(method: Method, *, device: torch.device | str) -> dict[str, Tensor]:
    """Where the training of a shard starts, in fp32: zero, or the public start of a method with its own parameters."""
    if isinstance(method, ParameterMethod):
        return {name: tensor.to(device, torch.float32) for name, tensor in method.initial().items()}
    return {name: torch.zeros(shape, device=device) for name, shape in method.shapes().items()}


def learnt(method: Method, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The displacement that trained parameters stand for."""
    return method.displacement(parameters) if isinstance(method, ParameterMethod) else dict(parameters)


def origin(method: Method, *, device: torch.device | str) -> dict[str, Tensor]:
    """The displacement whose logits are those of the base: zeros; nothing at all for a method whose space needs not
    hold a zero."""
    if isinstance(method, ParameterMethod):
        return {}
    return {name: torch.zeros(shape, device=device) for name, shape in method.shapes().items()}
