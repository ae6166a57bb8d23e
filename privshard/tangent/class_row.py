"""The class-row engine: one linearized block whose class token alone is read, as a closed form in cached constants.

Only row 0 of the block's output matters and everything but the displacement is constant for an example, so the
normalized tokens and a few vectors are kept once; keys and values are never formed, and the gradient of every weight
is one outer product (one a head for queries, keys, values). Math.md, "The class-row form" (derived there; checked here
against torch.func.jvp and a per-example loop in tests/tangent/test_engines.py).

B batch, N tokens, D width, H heads, E head width, F hidden width, C classes. Row 0 has no N.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from privshard.core.displacement import Space
from privshard.core.method import Constants
from privshard.models.vit import BlockView, ViTView
from privshard.tangent import rules
from privshard.tangent.center import feature_radius, uncenter_head
from privshard.tangent.linearize import parameter_shapes
from privshard.tangent.places import Direct, Outer, Places


def fits_class_row(view: ViTView, *, first_block: int) -> bool:
    """Whether the graph has the form this engine needs: one block, class token, plain attention."""
    block = view.blocks[-1]
    plain = all(part is None for part in (block.q_norm, block.k_norm, block.attn_norm, block.mlp_norm, view.fc_norm))
    return first_block == len(view.blocks) - 1 and view.pools_class_token and plain and view.norm is not None


class ClassRowEngine:
    """`privshard.core.method.Method` of one linearized block with class-token pooling."""

    name = "tangent"
    space: Space = "tangent"
    batch_scale = 8
    wide = frozenset({"n1"})

    def __init__(self, view: ViTView, *, center_D: Tensor | float = 0.0) -> None:
        self._view = view
        self._block = view.blocks[-1]
        self._frozen = _Frozen.of(view)
        self._center_D = center_D
        self.radius = feature_radius(view)

    def features(self, constants: Constants) -> Tensor:
        """The head's input (B, D)."""
        return self._frozen.g3 * constants["n3"] + self._frozen.c3

    def centered(self, mean_D: Tensor) -> ClassRowEngine:
        """This method, with the head's input centred by `mean_D`."""
        return ClassRowEngine(self._view, center_D=mean_D.to(self._frozen.g3))

    def uncentered(self, displacement: Mapping[str, Tensor], mean_D: Tensor) -> dict[str, Tensor]:
        """Back to the coordinates of the base."""
        return uncenter_head(displacement, mean_D)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Parameter name -> shape."""
        return parameter_shapes(self._view.parts(len(self._view.blocks) - 1))

    @torch.no_grad()
    def encode(self, images: Tensor) -> Constants:
        """The constants of images (B, 3, H, W): N * D numbers an example and a few vectors."""
        block, w, view = self._block, self._frozen, self._view
        x_BND = view.tokens(images, first_block=len(view.blocks) - 1)
        n1_BND, _ = rules.normalize(x_BND, block.norm1.eps)
        y0_BD = w.g1 * n1_BND[:, 0] + w.c1
        q_BHE = (y0_BD @ w.q.flatten(0, 1).mT + w.bq).unflatten(-1, (block.num_heads, -1))
        # scores against y_j = g1 * n1_j + c1 up to a constant over j, which the softmax drops
        key_BHD = block.scale * torch.einsum("bhe,hed->bhd", q_BHE, w.k) * w.g1
        probs_BHN = torch.softmax(key_BHD @ n1_BND.mT, dim=-1)
        mean_BHD = probs_BHN @ n1_BND
        o_BD = (torch.einsum("bhd,hed->bhe", w.g1 * mean_BHD + w.c1, w.v) + w.bv).flatten(1)
        z1_BD = block.proj(o_BD)
        x_BD = x_BND[:, 0] + (z1_BD if w.ls1 is None else z1_BD * w.ls1)
        n2_BD, rstd2_B1 = rules.normalize(x_BD, block.norm2.eps)
        h_BF = block.fc1(w.g2 * n2_BD + w.c2)
        z2_BD = block.fc2(block.act(h_BF))
        x_BD = x_BD + (z2_BD if w.ls2 is None else z2_BD * w.ls2)
        n3_BD, rstd3_B1 = rules.normalize(x_BD, _norm(view).eps)
        constants = {"n1": n1_BND, "probs": probs_BHN, "mean": mean_BHD, "q": q_BHE, "o": o_BD, "n2": n2_BD}
        constants |= {"rstd2": rstd2_B1, "h": h_BF, "n3": n3_BD, "rstd3": rstd3_B1}
        constants |= {"logits": view.head(w.g3 * n3_BD + w.c3)}
        return constants | ({} if w.ls1 is None else {"z1": z1_BD, "z2": z2_BD})

    @torch.no_grad()
    def logits(self, constants: Constants, displacement: Mapping[str, Tensor]) -> Tensor:
        """f(x; w0) + J(x) D, (B, C)."""
        c, d, w, block = constants, _Delta(displacement, self._block), self._frozen, self._block
        n1_0 = c["n1"][:, 0]
        dy0_BD = d.g1 * n1_0 + d.c1
        dq_BHE = _heads(d.q(w.g1 * n1_0 + w.c1) + dy0_BD @ w.q.flatten(0, 1).mT, block)
        # score j moves by scale (u . y_j + key . (dg1 * n1_j)): up to a constant, one vector a head times n1_j
        u_BHD = torch.einsum("bhe,hed->bhd", dq_BHE, w.k) + torch.einsum("bhe,hed->bhd", c["q"], d.k)
        key_BHD = torch.einsum("bhe,hed->bhd", c["q"], w.k)
        dmean_BHD = block.scale * _covariance_product(c, u_BHD * w.g1 + key_BHD * d.g1)
        dvalue_BHD = w.g1 * dmean_BHD + d.g1 * c["mean"] + d.c1
        value_BHD = w.g1 * c["mean"] + w.c1
        do_BHE = torch.einsum("bhd,hed->bhe", dvalue_BHD, w.v) + torch.einsum("bhd,hed->bhe", value_BHD, d.v) + d.bv
        dz_BD = do_BHE.flatten(1) @ block.proj.weight.mT + d.linear("attn.proj", c["o"])
        dx_BD = dz_BD if w.ls1 is None else dz_BD * w.ls1 + d.scale("ls1") * c["z1"]
        dy_BD = w.g2 * rules.normalize_tangent(c["n2"], c["rstd2"], dx_BD) + d.norm("norm2", c["n2"])
        dh_BF = dy_BD @ block.fc1.weight.mT + d.linear("mlp.fc1", w.g2 * c["n2"] + w.c2)
        da_BF = rules.activation_slope(block.act, c["h"]) * dh_BF
        dz_BD = da_BF @ block.fc2.weight.mT + d.linear("mlp.fc2", block.act(c["h"]))
        dx_BD = dx_BD + (dz_BD if w.ls2 is None else dz_BD * w.ls2 + d.scale("ls2") * c["z2"])
        dy_BD = w.g3 * rules.normalize_tangent(c["n3"], c["rstd3"], dx_BD)
        dy_BD = dy_BD + c["n3"] * displacement["norm.weight"] + displacement["norm.bias"]
        dlogits = (
            dy_BD @ self._view.head.weight.mT + (self.features(c) - self._center_D) @ displacement["head.weight"].mT
        )
        return c["logits"] + (dlogits + displacement["head.bias"] if "head.bias" in displacement else dlogits)

    @torch.no_grad()
    def gradients(self, constants: Constants, displacement: Mapping[str, Tensor], cotangent_BC: Tensor) -> Places:
        """J(x)^T r as one outer product a weight (a head); it doesn't depend on the displacement."""
        c, w, block, view = constants, self._frozen, self._block, self._view
        found = _Collector(block)
        found.linear("head", view.head, cotangent_BC, self.features(c) - self._center_D, inside=False)
        b_BD = cotangent_BC @ view.head.weight
        found.norm("norm", b_BD, c["n3"], inside=False)
        cot_BD = rules.normalize_tangent(c["n3"], c["rstd3"], b_BD * w.g3)

        b_BD = cot_BD
        if w.ls2 is not None:
            found.direct("ls2.gamma", b_BD * c["z2"])
            b_BD = b_BD * w.ls2
        found.linear("mlp.fc2", block.fc2, b_BD, block.act(c["h"]))
        b_BF = (b_BD @ block.fc2.weight) * rules.activation_slope(block.act, c["h"])
        found.linear("mlp.fc1", block.fc1, b_BF, w.g2 * c["n2"] + w.c2)
        b_BD = b_BF @ block.fc1.weight
        found.norm("norm2", b_BD, c["n2"])
        cot_BD = cot_BD + rules.normalize_tangent(c["n2"], c["rstd2"], b_BD * w.g2)

        b_BD = cot_BD
        if w.ls1 is not None:
            found.direct("ls1.gamma", b_BD * c["z1"])
            b_BD = b_BD * w.ls1
        found.linear("attn.proj", block.proj, b_BD, c["o"])
        b_BHE = _heads(b_BD @ block.proj.weight, block)
        self._attention_places(found, c, b_BHE)
        return Places(found.places)

    def _attention_places(self, found: _Collector, c: Constants, bv_BHE: Tensor) -> None:
        """Queries, keys, values and norm1, from the cotangent of row 0 of attention's output."""
        w, block = self._frozen, self._block
        n1_0 = c["n1"][:, 0]
        p_BHD = torch.einsum("bhe,hed->bhd", bv_BHE, w.v)
        s_BHD = block.scale * _covariance_product(c, p_BHD * w.g1)
        r_BHD = w.g1 * s_BHD
        bq_BHE = torch.einsum("bhd,hed->bhe", r_BHD, w.k)
        bq_BD, y0_BD = bq_BHE.flatten(1), w.g1 * n1_0 + w.c1
        found.outer("attn.qkv.weight", bq_BD[:, None], y0_BD[:, None])
        found.outer("attn.qkv.weight", c["q"], r_BHD)
        found.outer("attn.qkv.weight", bv_BHE, w.g1 * c["mean"] + w.c1)
        if block.qkv.bias is not None:
            for part_BD in (bq_BD, bq_BD.new_zeros(1, 1).expand_as(bq_BD), bv_BHE.flatten(1)):
                found.direct("attn.qkv.bias", part_BD)
        back_BD = bq_BD @ w.q.flatten(0, 1)
        key_BHD = torch.einsum("bhe,hed->bhd", c["q"], w.k)
        found.direct("norm1.weight", back_BD * n1_0 + (key_BHD * s_BHD + p_BHD * c["mean"]).sum(1))
        found.direct("norm1.bias", back_BD + p_BHD.sum(1))


def _covariance_product(c: Constants, x_BHD: Tensor) -> Tensor:
    """Cov_h x_h (B, H, D), with Cov_h the covariance of the normalized tokens under head h's attention.

    The derivative of attention's mean token sum_j a_j n_j, when score j moves by x . n_j, is sum_j a_j n_j (x . n_j)
    minus the mean token times sum_j a_j (x . n_j): a covariance, hence its own transpose, so one function carries
    tangents forward and cotangents back.
    """
    if c["n1"].is_cuda and c["n1"].dtype == torch.bfloat16:
        from privshard.tangent import kernels

        return kernels.covariance_product(c["n1"], c["probs"], c["mean"], x_BHD)
    scores_BHN = x_BHD @ c["n1"].mT
    weights_BHN = c["probs"] * scores_BHN
    return (weights_BHN - c["probs"] * weights_BHN.sum(-1, keepdim=True)) @ c["n1"]


@dataclass(frozen=True)
class _Frozen:
    """The frozen weights in the layout that the formulas use: q, k, v (H, E, D); norms' g and c."""

    q: Tensor
    k: Tensor
    v: Tensor
    bq: Tensor | float
    bv: Tensor | float
    g1: Tensor
    c1: Tensor
    g2: Tensor
    c2: Tensor
    g3: Tensor
    c3: Tensor
    ls1: Tensor | None
    ls2: Tensor | None

    @staticmethod
    def of(view: ViTView) -> _Frozen:
        block, norm = view.blocks[-1], _norm(view)
        q, k, v = block.qkv.weight.unflatten(0, (3, block.num_heads, -1))
        bq, bv = (0.0, 0.0)
        if block.qkv.bias is not None:
            bq, _, bv = block.qkv.bias.unflatten(0, (3, -1))
            bv = bv.unflatten(0, (block.num_heads, -1))
        gammas = [None if part is None else part.gamma for part in (block.ls1, block.ls2)]
        norms = [tensor for part in (block.norm1, block.norm2, norm) for tensor in (part.weight, part.bias)]
        return _Frozen(q, k, v, bq, bv, *norms, *gammas)  # pyright: ignore[reportArgumentType]


class _Delta:
    """The displacement of one block in the layout that the formulas use."""

    def __init__(self, tensors: Mapping[str, Tensor], block: BlockView) -> None:
        self._tensors, self._name = tensors, block.name
        weight = tensors[f"{block.name}.attn.qkv.weight"]
        self._q, k, v = weight.chunk(3)
        self.k, self.v = (part.unflatten(0, (block.num_heads, -1)) for part in (k, v))
        bias = tensors.get(f"{block.name}.attn.qkv.bias")
        self._bq: Tensor | float = 0.0 if bias is None else bias.chunk(3)[0]
        self.bv: Tensor | float = 0.0 if bias is None else bias.chunk(3)[2].unflatten(0, (block.num_heads, -1))
        self.g1, self.c1 = tensors[f"{block.name}.norm1.weight"], tensors[f"{block.name}.norm1.bias"]

    def q(self, y_BD: Tensor) -> Tensor:
        return y_BD @ self._q.mT + self._bq

    def linear(self, name: str, x: Tensor) -> Tensor:
        product = x @ self._tensors[f"{self._name}.{name}.weight"].mT
        bias = self._tensors.get(f"{self._name}.{name}.bias")
        return product if bias is None else product + bias

    def norm(self, name: str, n: Tensor) -> Tensor:
        return n * self._tensors[f"{self._name}.{name}.weight"] + self._tensors[f"{self._name}.{name}.bias"]

    def scale(self, name: str) -> Tensor:
        return self._tensors[f"{self._name}.{name}.gamma"]


class _Collector:
    """Gathers places under their full parameter names."""

    def __init__(self, block: BlockView) -> None:
        self._prefix = f"{block.name}."
        self.places: list[Outer | Direct] = []

    def outer(self, name: str, b_BGO: Tensor, a_BGI: Tensor, *, inside: bool = True) -> None:
        self.places.append(Outer(self._full(name, inside), b_BGO.unsqueeze(1), a_BGI.unsqueeze(1)))

    def direct(self, name: str, g_BP: Tensor, *, inside: bool = True) -> None:
        self.places.append(Direct(self._full(name, inside), g_BP))

    def linear(self, name: str, module: nn.Linear, b: Tensor, a: Tensor, *, inside: bool = True) -> None:
        self.outer(f"{name}.weight", b.unsqueeze(1), a.unsqueeze(1), inside=inside)
        if module.bias is not None:
            self.direct(f"{name}.bias", b, inside=inside)

    def norm(self, name: str, b: Tensor, n: Tensor, *, inside: bool = True) -> None:
        self.direct(f"{name}.weight", b * n, inside=inside)
        self.direct(f"{name}.bias", b, inside=inside)

    def _full(self, name: str, inside: bool) -> str:
        return self._prefix + name if inside else name


def _heads(x_BD: Tensor, block: BlockView) -> Tensor:
    return x_BD.unflatten(-1, (block.num_heads, -1))


def _norm(view: ViTView) -> nn.LayerNorm:
    assert view.norm is not None
    return view.norm
