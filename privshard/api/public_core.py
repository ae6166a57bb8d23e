"""What public rows teach before a private row is read: a starting head and a core, without noise, free of charge."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from privshard.api import constants
from privshard.api.public_rows import subject_column
from privshard.api.recipe import Recipe
from privshard.core.digest import content_digest, json_digest
from privshard.core.errors import InputError
from privshard.core.jobs import OnProgress, Progress, counting
from privshard.store.public_parts import public_digest

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from privshard.core.method import Method
    from privshard.data.examples import SourceRow
    from privshard.models.base import Base


@dataclass(frozen=True, eq=False)
class PublicParts:
    """What was learnt from public rows, and who vouches for them.

    arrays: `head.weight` and `head.bias` of a starting head, a core's tensors after `core/`. facts: plain JSON, kept in
    the ledger and shown to people.
    """

    arrays: Mapping[str, np.ndarray]
    facts: Mapping[str, Any]


def load_recipe_base(
    recipe: Recipe, classes: tuple[str, ...], *, on_progress: OnProgress = lambda _: None
) -> tuple[Base, PublicParts | None]:
    """The recipe's base, with the head and the core that its public rows teach.

    Both are the optimum of a ridge problem (`privshard.training.solver`), on the rows in the order of their content, so
    nothing is drawn. The head's entries are scaled to `base.head_std`. No private row enters, so nothing is spent; what
    is learnt is released as it is. Raises InputError for rows that name subjects without `public.stated_public`, and
    for labels that are no class of the recipe.
    """
    from privshard.api.setup import base_spec
    from privshard.models.base import CORE, load_base

    spec = base_spec(recipe, len(classes))
    if recipe.public.path is None:
        return load_base(spec), None
    rows = _public_rows(recipe, classes)
    arrays: dict[str, np.ndarray] = {}
    base = load_base(replace(spec, head="random"))
    if recipe.base.head == "public":
        chosen = constants.public_optimization("head", num_classes=len(classes))
        head = _fitted(recipe, base, rows, classes, method="head", chosen=chosen, tell=on_progress)
        arrays |= _scaled_head(head, std=recipe.base.head_std)
        base = load_base(spec, public=arrays)
    else:
        base = load_base(spec)
    if recipe.public.core:
        name, loss = recipe.method.name, constants.optimization(recipe).params.loss
        chosen = constants.public_optimization(name, num_classes=len(classes), loss=loss)
        core = _fitted(recipe, base, rows, classes, method=name, chosen=chosen, tell=on_progress)
        arrays |= {CORE + name: tensor.numpy() for name, tensor in core.items()}
    digest = public_digest(arrays)
    facts = {
        "digest": digest,
        "core": recipe.public.core,
        "head": recipe.base.head == "public",
        "num_rows": len(rows),
        "rows": json_digest([[content_digest(row.image), row.label] for row in rows]),
        "source": PurePosixPath(recipe.public.path).name,
        "stated_public": recipe.public.stated_public,
    }
    return load_base(replace(spec, public=digest), public=arrays), PublicParts(arrays, facts)


def _public_rows(recipe: Recipe, classes: tuple[str, ...]) -> list[SourceRow]:
    """The rows to learn from, each once, in the order of their content."""
    from privshard.data.reader import read_rows
    from privshard.data.schema import Columns

    section = recipe.public
    assert section.path is not None
    subject = subject_column(section.path, named=section.subject, stated=section.stated_public, section="public")
    columns = Columns(image=section.image, label=section.label, subject=subject, split=section.split)
    found: dict[tuple[str, str], SourceRow] = {}
    for row in read_rows(section.path, columns=columns):
        if row.subject is not None and not section.stated_public:
            raise InputError(
                f"public.path: expected rows that name nobody, but {row.where} names a subject. What they teach is "
                "not protected and can't be forgotten.",
                remedy="Learn from people as private rows; if all rows are public, say public.stated_public: true.",
            )
        if row.label not in classes:
            raise InputError(
                f"public.path: {row.where}: expected one of the {len(classes)} classes, got {row.label!r}.",
                remedy="Leave such rows out, or list the class in data.classes.",
            )
        if row.split != "eval":
            found[content_digest(row.image), row.label] = row
    if not found:
        raise InputError("public.path: expected at least one row to learn from, got none.")
    return [found[key] for key in sorted(found)]


def _fitted(
    recipe: Recipe,
    base: Base,
    rows: list[SourceRow],
    classes: tuple[str, ...],
    *,
    method: str,
    chosen: constants.Optimization,
    tell: OnProgress,
) -> dict[str, Tensor]:
    """The optimum of a method on public rows, in fp32 on the CPU."""
    import torch

    from privshard.api import worker
    from privshard.api.methods import make_method
    from privshard.core.jobs import MethodSpec
    from privshard.core.privacy import PrivacyParams
    from privshard.data.images import image_batches
    from privshard.privacy.plan import make_plan
    from privshard.training.encoding import encode
    from privshard.training.exact import train_exact

    flags = recipe.flags()
    device = worker.pick_device(flags)
    options = recipe.method.options if method == recipe.method.name else {}
    made: Method = make_method(MethodSpec(method, dict(options)), base.view.to(device))
    batches = image_batches([row.image for row in rows], transform=base.transform, batch_size=flags.micro_batch)
    found = encode(
        made,
        batches,
        num_rows=len(rows),
        batch_size=flags.micro_batch,
        device=device,
        on_batch=counting(tell, "encode public rows", len(rows)),
    )
    index = {name: position for position, name in enumerate(classes)}
    plan = make_plan(
        PrivacyParams(epsilon=None),
        sample_rate=1.0,
        steps=chosen.steps,
        nominal_units_per_shard=float(len(rows)),
        mean_releases=int(chosen.center and made.radius is not None),
    )
    optimum = train_exact(
        made,
        found,
        labels_B=torch.tensor([index[row.label] for row in rows], device=device),
        plan=plan,
        params=chosen.params,
        max_rows=flags.micro_batch * made.batch_scale,
        on_step=lambda done: tell(Progress("public", None, "learn from public rows", done, chosen.steps)),
    )
    base.view.to("cpu")
    return {name: tensor.float().cpu() for name, tensor in optimum.tensors.items()}


def _scaled_head(head: Mapping[str, Tensor], *, std: float) -> dict[str, np.ndarray]:
    """The head with entries of root mean square `std`: its directions are what the rows teach."""
    weight = head["head.weight"].double()
    size = float(weight.square().mean().sqrt())
    if not size > 0:
        raise InputError(
            "base.head: expected public rows of several classes, got rows from which a head learns nothing.",
            remedy="Choose base.head random or orthogonal.",
        )
    return {name: (tensor.double() * (std / size)).float().numpy() for name, tensor in head.items()}
