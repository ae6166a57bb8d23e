"""The method `head`: a linear classifier on the frozen pooled feature, the honest baseline of the tangent method.

B examples, D width, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from privshard.core.displacement import Space
from privshard.core.method import Constants
from privshard.models.vit import ViTView
from privshard.tangent.center import feature_radius, uncenter_head
from privshard.tangent.places import Direct, Outer, Places


class HeadMethod:
    """`privshard.core.method.Method` that displaces the head alone. The model is linear in it, so its space is
    "tangent" and its components compose exactly."""

    name = "head"
    space: Space = "tangent"
    batch_scale = 64
    wide: frozenset[str] = frozenset()
    indexed: frozenset[str] = frozenset()

    def __init__(self, view: ViTView, *, center_D: Tensor | float = 0.0) -> None:
        self._view = view
        self._center_D = center_D
        self.radius = feature_radius(view)

    def features(self, constants: Constants) -> Tensor:
        """The head's input (B, D)."""
        return constants["feature"]

    def centered(self, mean_D: Tensor) -> HeadMethod:
        """This method, with the head's input centred by `mean_D`."""
        return HeadMethod(self._view, center_D=mean_D.to(self._view.head.weight))

    def uncentered(self, displacement: Mapping[str, Tensor], mean_D: Tensor) -> dict[str, Tensor]:
        """Back to the coordinates of the base."""
        return uncenter_head(displacement, mean_D)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """head.weight (C, D) and head.bias (C,)."""
        return {f"head.{name}": tuple(tensor.shape) for name, tensor in self._view.head.named_parameters()}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Constants:
        """feature (B, D) and the starting head's logits (B, C)."""
        feature_BD = self._view.model.forward_head(self._view.model.forward_features(images), pre_logits=True)
        return {"feature": feature_BD, "logits": self._view.head(feature_BD)}

    @torch.no_grad()
    def logits(self, constants: Constants, displacement: Mapping[str, Tensor]) -> Tensor:
        """f0 + dW feature + db, (B, C)."""
        out = constants["logits"] + (constants["feature"] - self._center_D) @ displacement["head.weight"].mT
        return out + displacement["head.bias"] if "head.bias" in displacement else out

    def gradients(self, constants: Constants, displacement: Mapping[str, Tensor], cotangent_BC: Tensor) -> Places:
        """outer(cotangent, feature), and the cotangent itself."""
        feature_BD = constants["feature"] - self._center_D
        weight = Outer("head.weight", cotangent_BC[:, None, None], feature_BD[:, None, None])
        return Places([weight] if self._view.head.bias is None else [weight, Direct("head.bias", cotangent_BC)])
