"""The method that trains any adapter, and the head beside it.

B batch, N tokens, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from privshard.adaptation.adapter import PROMPTS, STEM, Adapter, FactoredAdapter, Seen
from privshard.adaptation.gradients import DenseGradients, per_example
from privshard.adaptation.tail import Stem, Tail, features, recorded, stem_tokens
from privshard.core.displacement import Space
from privshard.core.errors import InputError
from privshard.core.method import Constants, Pullback, SumPullback
from privshard.models.vit import ViTView
from privshard.tangent.center import feature_radius, uncenter_head
from privshard.tangent.places import Direct, Outer, Places

CHUNK = 16
"""How many examples' gradients `vmap(grad)` computes at once."""


class AdapterMethod:
    """`privshard.core.method.ParameterMethod`: f(x; w0 changed by theta), with a head that is displaced beside it.

    logits = (W0 + dW) z(x; theta) + b0 + db, z the head's input. The model is not linear in theta or in the
    displacement: averaging the components' displacements approximates averaging their logits, which is the ensemble;
    the composition reports by how much they differ.

    Exact per-example gradients: in factors where the adapter gives them (`FactoredAdapter`), else by `vmap(grad)`.
    Both are compared with `vmap(grad)` in float64, and with Opacus' GradSampleModule, in
    tests/adaptation/test_method.py.

    What is computed once is the tokens that enter the first block the adapter changes, or the images where it changes
    the stem.
    """

    batch_scale = 1
    wide = frozenset({"x"})
    indexed: frozenset[str] = frozenset()

    def __init__(self, view: ViTView, adapter: Adapter, *, seed: int = 0, center_D: Tensor | None = None) -> None:
        self.adapter = adapter
        self.name: str = adapter.name
        self.space: Space = adapter.space
        self.radius = feature_radius(view)
        self._view = view
        self._seed = seed
        self._stem = Stem(view) if adapter.first_block is None else None
        self._tail = Tail(view, first_block=adapter.first_block or 0)
        self._center_D = center_D

    @torch.no_grad()
    def features(self, constants: Constants) -> Tensor:
        """The head's input (B, D), by the base, in its own precision whatever the constants were kept in."""
        return self._features(constants["x"].to(self._view.head.weight.dtype), {})

    def centered(self, mean_D: Tensor) -> AdapterMethod:
        """This method, with the head's displacement acting on feature - mean."""
        center_D = mean_D.to(self._view.head.weight)
        return AdapterMethod(self._view, self.adapter, seed=self._seed, center_D=center_D)

    def uncentered(self, displacement: Mapping[str, Tensor], mean_D: Tensor) -> dict[str, Tensor]:
        """Back to the coordinates of the base; only the head's bias differs."""
        return uncenter_head(displacement, mean_D)

    def initial(self) -> dict[str, Tensor]:
        """The adapter's public start, and a head that isn't displaced."""
        head = {f"head.{name}": torch.zeros(tensor.shape) for name, tensor in self._view.head.named_parameters()}
        return {**self.adapter.initial(self._seed), **head}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of everything that a component stores."""
        with torch.no_grad():
            start = {name: tensor.to(self._view.head.weight) for name, tensor in self.initial().items()}
            return {name: tuple(tensor.shape) for name, tensor in self.displacement(start).items()}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Constants:
        """x: the tokens (B, N, D) that enter the first changed block, or the images themselves."""
        first = self.adapter.first_block
        return {"x": images if first is None else self._view.tokens(images, first_block=first)}

    @torch.no_grad()
    def logits(self, constants: Constants, displacement: Mapping[str, Tensor]) -> Tensor:
        """Logits (B, C) of the base moved by `displacement`; an empty one is the base.

        Raises InputError for names that the base doesn't have.
        """
        moved = {name: value for name, value in displacement.items() if not name.startswith("head.")}
        feature_BD = self._features(constants["x"], self._values(moved))
        return self._head(feature_BD, displacement)

    def displacement(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The adapter's displacement, and the head's."""
        theta, head = _split(parameters)
        with torch.no_grad():
            return {**self.adapter.displacement(theta), **head}

    def pull(self, constants: Constants, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Pullback]:
        """Logits (B, C), and their pullback to theta and the head."""
        if isinstance(self.adapter, FactoredAdapter):
            return self._pull_factors(self.adapter, constants["x"], parameters)
        return self._pull_each(constants["x"], parameters)

    def pull_sum(self, constants: Constants, parameters: Mapping[str, Tensor]) -> tuple[Tensor, SumPullback]:
        """Logits (B, C), and one backward pass through the changed model: it keeps what training the adapter as
        autograd does it would keep (tests/adaptation/test_cost.py). In half precision, gradients of weights are sums
        over examples that were rounded once."""
        leaves = {name: value.detach().requires_grad_() for name, value in parameters.items()}
        with torch.enable_grad():
            logits_BC = self._forward(leaves, constants["x"])

        def summed(cotangent_BC: Tensor) -> dict[str, Tensor]:
            grads = torch.autograd.grad(logits_BC, list(leaves.values()), grad_outputs=cotangent_BC.to(logits_BC.dtype))
            return dict(zip(leaves, grads, strict=True))

        return logits_BC.detach(), summed

    def _pull_factors(
        self, adapter: FactoredAdapter, x: Tensor, parameters: Mapping[str, Tensor]
    ) -> tuple[Tensor, Pullback]:
        theta, head = _split({name: value.detach() for name, value in parameters.items()})
        with torch.no_grad():
            changed = adapter.changed(theta)
            tokens = x.detach() if self._stem is None else stem_tokens(self._stem, x, changed)
        own = {  # a copy of the prompts for every example: the gradient of each is that example's
            name: value.expand(len(x), -1, -1).detach().requires_grad_()
            for name, value in changed.items()
            if name.startswith(PROMPTS)
        }
        tokens.requires_grad_(self._stem is not None)
        with (
            torch.enable_grad(),
            recorded(self._tail, adapter.layers(), inputs=adapter.reads_inputs) as (given, edges),
        ):
            feature_BD = features(self._tail, tokens, {**changed, **own})
        logits_BC = self._head(feature_BD.detach(), head)
        given |= {name: leaf.detach() for name, leaf in own.items()}
        outs: dict[str, Tensor | GradientEdge] = {**edges, **own}
        if self._stem is not None:
            given[STEM] = x
            outs[STEM] = tokens

        def pullback(cotangent_BC: Tensor) -> Places:
            back_BD = cotangent_BC.to(feature_BD.dtype) @ self._weight(head).to(feature_BD.dtype)
            ends = cast("list[Tensor]", list(outs.values()))  # the types of `grad` leave edges out, which it takes too
            backs = torch.autograd.grad(feature_BD, ends, grad_outputs=back_BD)
            none = feature_BD.new_empty(0)
            seen = {name: Seen(given.get(name, none), back) for name, back in zip(outs, backs, strict=True)}
            return Places([*adapter.places(theta, seen), *self._head_places(feature_BD.detach(), cotangent_BC)])

        return logits_BC, pullback

    def _pull_each(self, x: Tensor, parameters: Mapping[str, Tensor]) -> tuple[Tensor, Pullback]:
        theta = {name: value.detach() for name, value in parameters.items()}
        mode = _autocast(x)
        with torch.no_grad():
            logits_BC = self._forward(theta, x)

        def value(theta: Mapping[str, Tensor], x: Tensor, cotangent_BC: Tensor) -> Tensor:
            return (self._forward(theta, x).float() * cotangent_BC).sum()

        def each(cotangent_BC: Tensor) -> DenseGradients:
            whole = x.to(self._view.head.weight.dtype)  # the batching rules want one type for tokens and weights
            with mode():
                return DenseGradients(per_example(value, theta, whole, cotangent_BC, chunk=CHUNK))

        return logits_BC, each

    def _forward(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        theta, head = _split(parameters)
        return self._head(self._features(x, self.adapter.changed(theta)), head)

    def _features(self, x: Tensor, changed: Mapping[str, Tensor]) -> Tensor:
        tokens = x if self._stem is None else stem_tokens(self._stem, x, changed)
        return features(self._tail, tokens, changed)

    def _head(self, feature_BD: Tensor, displacement: Mapping[str, Tensor]) -> Tensor:
        """(W0 + dW) feature + b0 + db, dW acting on the feature minus the centre."""
        out_BC = torch.nn.functional.linear(feature_BD, self._view.head.weight, self._view.head.bias)
        if "head.weight" not in displacement:
            return out_BC
        moved = feature_BD if self._center_D is None else feature_BD - self._center_D
        return out_BC + torch.nn.functional.linear(moved, displacement["head.weight"], displacement.get("head.bias"))

    def _weight(self, head: Mapping[str, Tensor]) -> Tensor:
        return self._view.head.weight + head["head.weight"]

    def _head_places(self, feature_BD: Tensor, cotangent_BC: Tensor) -> list[Outer | Direct]:
        moved = feature_BD if self._center_D is None else feature_BD - self._center_D
        weight = Outer("head.weight", cotangent_BC[:, None, None], moved[:, None, None])
        return [weight] if self._view.head.bias is None else [weight, Direct("head.bias", cotangent_BC)]

    def _values(self, displacement: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Base value plus displacement, by name; prompts are values already."""
        base = dict(self._view.model.named_parameters())
        unknown = [name for name in displacement if not name.startswith(PROMPTS) and name not in base]
        if unknown:
            raise InputError(
                f"displacement: expected parameters of the base, got {', '.join(unknown[:3])}.",
                remedy="Use the base and the method that the component was learnt with.",
            )
        return {name: value if name.startswith(PROMPTS) else base[name] + value for name, value in displacement.items()}


def _split(parameters: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The adapter's parameters, and the head's."""
    theta = {name: value for name, value in parameters.items() if not name.startswith("head.")}
    return theta, {name: value for name, value in parameters.items() if name.startswith("head.")}


def _autocast(x: Tensor) -> Callable[[], torch.autocast]:
    """What enters the autocast mode of this moment again: gradients may be asked for after it has been left."""
    kind = x.device.type
    return partial(torch.autocast, kind, dtype=torch.get_autocast_dtype(kind), enabled=torch.is_autocast_enabled(kind))
