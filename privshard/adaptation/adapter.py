"""What an adapter is: how trainable parameters change a frozen base.

B batch, T tokens, O output and I input width of a layer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from privshard.core.displacement import Space
from privshard.tangent.places import Direct, Outer


class Adapter(Protocol):
    """How trainable parameters theta change a base, the head apart (`AdapterMethod` trains that beside any adapter).

    Stateless and bound to one frozen base: it may keep references to the base's weights, never copies of private data.
    Every tensor is a function of theta and the base alone. Parameters are named by the adapter as it likes, except
    "head.weight" and "head.bias", which are the head's.

    name: the method's, as recipes give it. space: "weight", or "prompt" for extra tokens. first_block: the first block
    whose input is the same for every theta, so that what comes before is computed once; None where the stem (patch and
    position embedding, class token) is changed too.
    """

    @property
    def name(self) -> str:
        """The method's name."""
        ...

    @property
    def space(self) -> Space:
        """ "weight" or "prompt"."""
        ...

    @property
    def first_block(self) -> int | None:
        """The first block whose input is constant."""
        ...

    def initial(self, seed: int) -> dict[str, Tensor]:
        """Where theta starts: public, a function of `seed` alone, fp32 on the CPU. It must leave the base's function
        as it is (space "weight": a zero displacement)."""
        ...

    def changed(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Base parameter name -> its new value, differentiable in theta; `prompts.K` -> tokens (P, D) that join the
        input of block K. Whatever isn't named keeps the base's value."""
        ...

    def displacement(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What a component stores, by the names of `changed`: changed value minus the base's, as products and not as
        factors, and without taking that difference where it would cancel digits; for prompts the tokens themselves."""
        ...

    def num_parameters(self) -> int:
        """How many numbers theta has."""
        ...


@dataclass(frozen=True)
class Seen:
    """One layer in one pass over a batch. a: what its parameters multiply, (B, T, I): the input of a Linear, in the
    type that it is multiplied in, the normalized input of a LayerNorm; empty where the adapter reads no inputs. b: the
    cotangent of the layer's output, (B, T, O). Of prompts: a are the tokens themselves, one copy an example (B, P, D),
    and b their cotangent. Of the stem: a are the images, b is the cotangent of the tokens that enter the first block.
    """

    a: Tensor
    b: Tensor


@runtime_checkable
class FactoredAdapter(Adapter, Protocol):
    """An adapter whose per-example gradients have factors, so that none of them is ever held.

    With W' = W'(theta) the value of a Linear's weight, dL_i/dW' = sum_t outer(b_it, a_it); the chain rule through
    W'(theta) moves onto the two factors. For W' = W + B A: dB is Outer(b, a A^T) and dA is Outer(b B, a). Parameters
    shared by several layers have one place whose tokens are those of all layers (joined along T).
    """

    @property
    def reads_inputs(self) -> bool:
        """Whether `places` needs the inputs of the layers, and not only the cotangents of their outputs."""
        ...

    def layers(self) -> tuple[str, ...]:
        """Names of the base's modules whose inputs and output cotangents `places` needs."""
        ...

    def places(self, parameters: Mapping[str, Tensor], seen: Mapping[str, Seen]) -> Sequence[Outer | Direct]:
        """The per-example gradients with respect to theta, in the order of rows where several places share a name.
        seen: module name -> what was seen of it; so for `prompts.K`, where `changed` gives those, and for "stem",
        where first_block is None."""
        ...


def prompt_name(block: int) -> str:
    """The name of the tokens that join the input of a block."""
    return f"{PROMPTS}{block}"


PROMPTS, STEM = "prompts.", "stem"
