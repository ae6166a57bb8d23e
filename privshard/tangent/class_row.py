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
from privshard.core.method import ROWS, Constants
from privshard.models.stem import StemView
from privshard.models.vit import BlockView, ViTView
from privshard.tangent import rules
from privshard.tangent.center import feature_radius, uncenter_head
from privshard.tangent.linearize import parameter_shapes
from privshard.tangent.places import Direct, Outer, Places


def misfit(view: ViTView, *, first_block: int, stem: StemView | None = None) -> str | None:
    """What of the graph doesn't have the form that this engine needs, one block with plain attention whose class token
    alone is read, by its path; None where it fits."""
    block, num_linearized = view.blocks[-1], len(view.blocks) - first_block
    if stem is not None:
        return "embeddings and all blocks are linearized"
    if num_linearized > 1:
        return f"{num_linearized} blocks are linearized"
    if not view.pools_class_token:
        return "head_dist reads the distillation token" if view.head_dist else "the head reads a mean over tokens"
    inside = {"attn.q_norm": block.q_norm, "attn.k_norm": block.k_norm, "attn.norm": block.attn_norm}
    inside |= {"mlp.norm": block.mlp_norm}
    odd = [f"{block.name}.{name}" for name, part in inside.items() if part is not None]
    odd += ["fc_norm"] if view.fc_norm is not None else []
    if odd:
        return f"{odd[0]} is another norm"
    return "there is no final norm" if view.norm is None else None


class ClassRowEngine:
    """`privshard.core.method.Method` of one linearized block with class-token pooling."""

    name = "tangent"
    engine = "class-row"
    space: Space = "tangent"
    compiled_after = 20_000_000
    wide = frozenset({"n1", "probs", "mean", "q", "o", "z1", "n2", "h", "z2"})
    indexed = frozenset({"n1"})

    def __init__(self, view: ViTView, *, center_D: Tensor | float = 0.0) -> None:
        self._view = view
        self._block = view.blocks[-1]
        self._frozen = _Frozen.of(view)
        self._center_D = center_D
        self.radius = feature_radius(view)
        self.batch_scale = 64 if view.head.weight.is_cuda else 8

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
        c, d, w, block = constants, _Delta(displacement, self._block.name), self._frozen, self._block
        dtype = c["n1"].dtype
        norm1, norm2, norm3 = d.norm("norm1"), d.norm("norm2"), d.norm("norm", inside=False)
        dWq, dWk, dWv = d["attn.qkv.weight"].unflatten(0, (3, block.num_heads, -1))
        dbq, _, dbv = (None, None, None) if block.qkv.bias is None else d["attn.qkv.bias"].chunk(3)

        own, const = _after_norm(w.q.flatten(0, 1), dWq.flatten(0, 1), dbq, (w.g1, w.c1), norm1)
        dq_BHE = _heads((_first_token(c) @ own.to(dtype).mT + const).to(dtype), block)
        # score j moves by scale (u . n_j), up to a constant over j that the softmax drops
        own, _ = _after_norm(w.k, dWk, None, (w.g1, w.c1), norm1)
        query_HBX = block.scale * torch.cat([dq_BHE, c["q"].to(dtype)], dim=-1).transpose(0, 1)
        u_HBD = query_HBX @ torch.cat([w.k * w.g1, own], dim=1).to(dtype)
        dmean_HBD = covariance_product(c, u_HBD)
        own, const = _after_norm(w.v, dWv, None if dbv is None else _heads(dbv, block), (w.g1, w.c1), norm1)
        carry = (w.v * w.g1).to(dtype)
        do_HBE = dmean_HBD @ carry.mT + c["mean"].to(dtype).transpose(0, 1) @ own.to(dtype).mT + const.unsqueeze(1)

        dz_BD = _linear(do_HBE.transpose(0, 1).flatten(1), block.proj, c["o"], d.linear("attn.proj"), dtype)
        dx_BD = dz_BD if w.ls1 is None else dz_BD * w.ls1 + d["ls1.gamma"] * c["z1"]
        own, const = _after_norm(block.fc1.weight, *d.linear("mlp.fc1"), (w.g2, w.c2), norm2)
        dn_BD = rules.normalize_tangent(c["n2"], c["rstd2"], dx_BD).to(dtype)
        dh_BF = dn_BD @ (block.fc1.weight * w.g2).to(dtype).mT + c["n2"].to(dtype) @ own.to(dtype).mT + const
        da_BF = (rules.activation_slope(block.act, c["h"]) * dh_BF).to(dtype)
        dz_BD = _linear(da_BF, block.fc2, block.act(c["h"]), d.linear("mlp.fc2"), dtype)
        dx_BD = dx_BD + (dz_BD if w.ls2 is None else dz_BD * w.ls2 + d["ls2.gamma"] * c["z2"])
        head = self._view.head
        own, const = _after_norm(
            head.weight, *d.linear("head", inside=False), (w.g3, w.c3), norm3, center_D=self._center_D
        )
        dn_BD = rules.normalize_tangent(c["n3"], c["rstd3"], dx_BD).to(dtype)
        dlogits = dn_BD @ (head.weight * w.g3).to(dtype).mT + c["n3"].to(dtype) @ own.to(dtype).mT + const
        return c["logits"] + dlogits

    @torch.no_grad()
    def gradients(self, constants: Constants, displacement: Mapping[str, Tensor], cotangent_BC: Tensor) -> Places:
        """J(x)^T r as one outer product a weight (a head); it doesn't depend on the displacement."""
        c, w, block, view = constants, self._frozen, self._block, self._view
        dtype = c["n1"].dtype
        found = _Collector(block, dtype)
        found.linear("head", view.head, cotangent_BC, self.features(c) - self._center_D, inside=False)
        b_BD = _back(cotangent_BC, view.head, dtype)
        found.norm("norm", b_BD, c["n3"], inside=False)
        cot_BD = rules.normalize_tangent(c["n3"], c["rstd3"], b_BD * w.g3)

        b_BD = cot_BD
        if w.ls2 is not None:
            found.direct("ls2.gamma", b_BD * c["z2"])
            b_BD = b_BD * w.ls2
        found.linear("mlp.fc2", block.fc2, b_BD, block.act(c["h"]))
        b_BF = _back(b_BD, block.fc2, dtype) * rules.activation_slope(block.act, c["h"])
        found.linear("mlp.fc1", block.fc1, b_BF, w.g2 * c["n2"] + w.c2)
        b_BD = _back(b_BF, block.fc1, dtype)
        found.norm("norm2", b_BD, c["n2"])
        cot_BD = cot_BD + rules.normalize_tangent(c["n2"], c["rstd2"], b_BD * w.g2)

        b_BD = cot_BD
        if w.ls1 is not None:
            found.direct("ls1.gamma", b_BD * c["z1"])
            b_BD = b_BD * w.ls1
        found.linear("attn.proj", block.proj, b_BD, c["o"])
        self._attention_places(found, c, _heads(_back(b_BD, block.proj, dtype), block))
        return Places(found.places)

    def _attention_places(self, found: _Collector, c: Constants, bv_BHE: Tensor) -> None:
        """Queries, keys, values and norm1, from the cotangent of row 0 of attention's output."""
        w, block, dtype = self._frozen, self._block, bv_BHE.dtype
        n1_0, wq, wv = _first_token(c), w.q.flatten(0, 1).to(dtype), w.v.to(dtype)
        p_HBD = bv_BHE.transpose(0, 1) @ wv
        s_HBD = covariance_product(c, p_HBD, gain_D=block.scale * w.g1)
        bq_BD = (s_HBD @ (w.k * w.g1).to(dtype).mT).transpose(0, 1).flatten(1)
        found.outer("attn.qkv.weight", bq_BD[:, None], (w.g1 * n1_0 + w.c1)[:, None])
        found.outer("attn.qkv.weight", c["q"], (w.g1 * s_HBD).transpose(0, 1))
        found.outer("attn.qkv.weight", bv_BHE, w.g1 * c["mean"] + w.c1)
        if block.qkv.bias is not None:
            for part_BD in (bq_BD, torch.zeros_like(bq_BD), bv_BHE.flatten(1)):
                found.direct("attn.qkv.bias", part_BD)
        back_BD = bq_BD @ wq
        key_HBD = c["q"].to(dtype).transpose(0, 1) @ w.k.to(dtype)
        moved_BD = (key_HBD * s_HBD + p_HBD * c["mean"].transpose(0, 1)).sum(0)
        found.direct("norm1.weight", back_BD * n1_0 + moved_BD)
        found.direct("norm1.bias", back_BD + bv_BHE.flatten(1) @ wv.flatten(0, 1))


def covariance_product(c: Constants, x_HBD: Tensor, *, gain_D: Tensor | None = None) -> Tensor:
    """Cov_h (gain * x_h) (H, B, D), with Cov_h the covariance of the normalized tokens under head h's attention.

    The derivative of attention's mean token sum_j a_j n_j, when score j moves by x . n_j, is sum_j a_j n_j (x . n_j)
    minus the mean token times sum_j a_j (x . n_j): a covariance, hence its own transpose, so one function carries
    tangents forward and cotangents back.
    """
    if c["n1"].is_cuda and c["n1"].dtype == torch.bfloat16:
        from privshard.tangent import kernels

        return kernels.covariance_product(c["n1"], c["probs"], c["mean"], x_HBD, gain_D=gain_D, rows_B=c.get(ROWS))
    n1_BND = c["n1"] if ROWS not in c else c["n1"][c[ROWS]]
    x_BHD = (x_HBD if gain_D is None else x_HBD * gain_D).transpose(0, 1).to(n1_BND.dtype)
    weights_BHN = c["probs"] * (x_BHD @ n1_BND.mT)
    weights_BHN = weights_BHN - c["probs"] * weights_BHN.sum(-1, keepdim=True)
    return (weights_BHN.to(n1_BND.dtype) @ n1_BND).transpose(0, 1)


def _first_token(c: Constants) -> Tensor:
    """n1_0 (B, D); the batch may hold n1 whole (`ClassRowEngine.indexed`)."""
    n1_0 = c["n1"][:, 0]
    return n1_0 if ROWS not in c else n1_0[c[ROWS]]


def _after_norm(
    weight: Tensor,
    d_weight: Tensor,
    d_bias: Tensor | None,
    norm: tuple[Tensor, Tensor],
    d_norm: tuple[Tensor, Tensor],
    *,
    center_D: Tensor | float = 0.0,
) -> tuple[Tensor, Tensor]:
    """How a linear layer after a norm, W (g n + c) + b, moves with its own and the norm's parameters.

    Returns (A, a) with dW (g n + c - center) + W (dg n + dc) + db = A n + a. weight: (..., O, D).
    """
    (g, c), (dg, dc) = norm, d_norm
    const = d_weight @ (c - center_D) + weight @ dc
    return d_weight * g + weight * dg, const if d_bias is None else const + d_bias


def _linear(
    dx: Tensor, module: nn.Linear, x: Tensor, delta: tuple[Tensor, Tensor | None], dtype: torch.dtype
) -> Tensor:
    """W dx + dW x + db."""
    d_weight, d_bias = delta
    out = dx.to(dtype) @ module.weight.to(dtype).mT + x.to(dtype) @ d_weight.to(dtype).mT
    return out if d_bias is None else out + d_bias


def _back(b: Tensor, module: nn.Linear, dtype: torch.dtype) -> Tensor:
    """W^T b."""
    return b.to(dtype) @ module.weight.to(dtype)


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


@dataclass(frozen=True)
class _Delta:
    """The displacement's tensors by their names inside the block `name`."""

    tensors: Mapping[str, Tensor]
    name: str

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[f"{self.name}.{name}"]

    def linear(self, name: str, *, inside: bool = True) -> tuple[Tensor, Tensor | None]:
        full = f"{self.name}.{name}" if inside else name
        return self.tensors[f"{full}.weight"], self.tensors.get(f"{full}.bias")

    def norm(self, name: str, *, inside: bool = True) -> tuple[Tensor, Tensor]:
        full = f"{self.name}.{name}" if inside else name
        return self.tensors[f"{full}.weight"], self.tensors[f"{full}.bias"]


class _Collector:
    """Gathers places under their full parameter names."""

    def __init__(self, block: BlockView, dtype: torch.dtype) -> None:
        self._prefix = f"{block.name}."
        self._dtype = dtype
        self.places: list[Outer | Direct] = []

    def outer(self, name: str, b_BGO: Tensor, a_BGI: Tensor, *, inside: bool = True) -> None:
        b, a = b_BGO.to(self._dtype).unsqueeze(1), a_BGI.to(self._dtype).unsqueeze(1)
        self.places.append(Outer(self._full(name, inside), b, a))

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
