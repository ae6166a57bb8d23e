"""Public constants of a training: classes, nominal numbers and the defaults of each method."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from privshard.api.recipe import Recipe
from privshard.core.errors import InputError
from privshard.core.jobs import TrainingParams
from privshard.core.privacy import MechanismPlan

COUNT_NOISE_MULTIPLIER = 20.0
"""Noise on the count that is taken where a recipe gives no nominal number: it costs about epsilon 0.25 at 1e-5."""


_NOISE_LR = 0.006
"""k of the rate that follows the noise: chosen by cross-validation over train subjects of sign_language_digits, for the
head of flowers12 and omniglot_small too, with 1 and 5 shards, at epsilon 1, 3 and 8 (`jobs/benchmarks/README.md`)."""


_FULL_ROOM, _MOST = 16_000.0, 10.0
"""Where a private training may take more steps than its method's default: sqrt(S) L epsilon, with S shards of L units,
over this, and at most so many times as many. Chosen like the rate, and on train rows of cifar10."""


_EVEN_ROOM, _SCALES = 30_000.0, (0.25, 4.0)
"""sqrt(S) L epsilon at which a private tangent's blocks move as far as its head; bounds of the scale (`_balanced`)."""


@dataclass(frozen=True)
class Optimization:
    """Documented defaults of one method: how many steps, how many units a step, and the optimizer.

    noise_lr: k, where the learning rate follows the noise (`settled`); None where `params.lr` is the rate. most_lr: the
    most that it may then be, in units of 1 / C.
    """

    steps: int
    sample_rate: float
    params: TrainingParams
    center: bool = True
    noise_lr: float | None = None
    most_lr: float = 1.0

    def settled(self, plan: MechanismPlan, *, num_shards: int) -> TrainingParams:
        """The parameters under `plan`; a learning rate that follows the noise is min(most_lr, k sqrt(S) L / z) / C.

        In units of the clipping norm C, z / L is the standard deviation of a step's noise, and the average of S shards
        has 1 / sqrt(S) of it: the more there is, the less is gained from going far. All of them are public constants.
        """
        if self.noise_lr is None or not plan.private:
            return self.params
        noise = plan.noise_multiplier / plan.expected_units / math.sqrt(num_shards)
        return replace(self.params, lr=min(self.most_lr, self.noise_lr / noise) / plan.max_grad_norm)


_DEFAULTS: dict[tuple[str, bool], Optimization] = {
    ("tangent", True): Optimization(
        30, 1.0, TrainingParams(lr=0.3, momentum=0.9, average_from=0.5), noise_lr=_NOISE_LR
    ),
    ("head", True): Optimization(
        30, 1.0, TrainingParams(lr=1.0, momentum=0.9, average_from=0.5), noise_lr=_NOISE_LR, most_lr=10.0
    ),
    ("tangent", False): Optimization(200, 0.5, TrainingParams(lr=1e-3, optimizer="adam", average_from=0.5)),
    ("head", False): Optimization(200, 0.5, TrainingParams(lr=1e-2, optimizer="adam", average_from=0.5)),
    ("full", True): Optimization(60, 1.0, TrainingParams(lr=0.1, momentum=0.9, average_from=0.5)),
    ("lora", True): Optimization(60, 1.0, TrainingParams(lr=0.3, momentum=0.9, average_from=0.5)),
    ("bitfit", True): Optimization(60, 1.0, TrainingParams(lr=0.3, momentum=0.9, average_from=0.5)),
    ("prompts", True): Optimization(60, 1.0, TrainingParams(lr=0.3, momentum=0.9, average_from=0.5)),
    ("gift", True): Optimization(60, 1.0, TrainingParams(lr=0.3, momentum=0.9, average_from=0.5)),
    ("full", False): Optimization(150, 0.2, TrainingParams(lr=1e-4, optimizer="adam", average_from=0.75)),
    ("lora", False): Optimization(150, 0.2, TrainingParams(lr=3e-3, optimizer="adam", average_from=0.75)),
    ("bitfit", False): Optimization(150, 0.2, TrainingParams(lr=3e-3, optimizer="adam", average_from=0.75)),
    ("gift", False): Optimization(150, 0.2, TrainingParams(lr=3e-3, optimizer="adam", average_from=0.75)),
    ("prompts", False): Optimization(150, 0.2, TrainingParams(lr=1e-2, optimizer="adam", average_from=0.75)),
}
"""(method, private) -> defaults of step by step training, chosen on train splits. Under differential privacy every unit
takes part in every step: with a cached base that is cheap, and it gives the most signal for a given epsilon. Without it
the adapters' rates are, by mean validation accuracy on four sets (`jobs/benchmarks/README.md`, Methods of fine-tuning),
the best of a grid for prompts and less than 0.023 below it for the others, one step further from where they collapse.
"""

_EXACT: dict[str, Optimization] = {
    "tangent": Optimization(
        2000,
        1.0,
        TrainingParams(
            lr=1.0,
            optimizer="exact",
            loss="square",
            average_from=1.0,
            weight_decay=0.001,
            layer_scales={"head.*": 0.3},
        ),
    ),
    "head": Optimization(
        2000, 1.0, TrainingParams(lr=1.0, optimizer="exact", loss="square", average_from=1.0, weight_decay=0.01)
    ),
}
"""Method -> defaults of the optimum, the default without differential privacy for the methods that have one. `steps`
bounds the products with the Jacobian."""

CURVATURE_RANK = {"tangent": 64, "head": 256}
"""Method -> how many directions of its curvature a shard keeps for `compose: curvature`, chosen on train splits: what
a component costs on disk grows with them (64 directions of one block of DeiT-Tiny are 114 MB)."""

_PUBLIC_RIDGE = 0.01
"""Ridge of a core that is learnt by cross entropy, whose logits are smaller than those of the rescaled square loss."""

_RIDGES = {
    ("tangent", "square"): (1e-5, 1e-3),
    ("head", "square"): (1e-4, 1e-2),
    ("head", "cross_entropy"): (1e-3, 1e-2),
}
"""(method, loss) -> the least and the most that its ridge is by default (`_exact`)."""

_ROWS_FOR_ENTROPY = 15
"""How many rows a class must have in a shard for a head to learn by cross entropy. With fewer, the square loss loses
less by averaging (README of the benchmarks)."""


def public_optimization(method: str, *, num_classes: int, loss: str | None = None) -> Optimization:
    """How `method` learns from public rows: its optimum. loss: the shards' own, for a core that they start from."""
    exact = _exact(method, num_classes)
    if loss is None or loss == exact.params.loss:
        return exact
    return replace(exact, params=replace(exact.params, loss=loss, weight_decay=_PUBLIC_RIDGE))  # pyright: ignore


def _exact(method: str, num_classes: int | None, *, loss: str | None = None) -> Optimization:
    """The defaults of a method's optimum; the ridge is 1 / C^2 within bounds, C the number of classes.

    The square loss is a mean over classes, of which one in C is an example's own, so a ridge weighs more where there
    are many: cross-validation over train subjects chose the upper bounds for 10 and 12 classes, and for 242 the lower
    ones (README of the benchmarks). loss: instead of the method's own, where there are bounds for it.
    """
    exact = _EXACT[method]
    if (method, loss) in _RIDGES:
        exact = replace(exact, params=replace(exact.params, loss=loss))  # pyright: ignore
    if num_classes is None:
        return exact
    least, most = _RIDGES[(method, exact.params.loss)]
    ridge = min(most, max(least, num_classes**-2))
    return replace(exact, params=replace(exact.params, weight_decay=ridge))


def _loss(recipe: Recipe, num_classes: int | None) -> str | None:
    """The loss of an optimum: the recipe's; cross entropy for a head with rows enough; None for the method's own.

    Enough by what the recipe says, never by a count: a component must not depend on how many rows there were. A public
    core, and composition by curvature, go with the method's own.
    """
    if recipe.training.loss is not None:
        return recipe.training.loss
    rows = nominal_examples(recipe) or 0
    core = recipe.public.path is not None and recipe.public.core
    plain = recipe.method.name == "head" and not core and recipe.compose.rule != "curvature"
    enough = num_classes is not None and rows / recipe.shards >= _ROWS_FOR_ENTROPY * num_classes
    return "cross_entropy" if plain and enough else None


_ITERATIVE = ("sample_rate", "lr", "momentum", "average_from")


def optimization(
    recipe: Recipe, *, units_per_shard: float | None = None, num_classes: int | None = None
) -> Optimization:
    """The recipe's training section with the method's defaults filled in.

    Without differential privacy that is the exact optimum, unless the recipe names another optimizer, or a number that
    only means something step by step. units_per_shard: the nominal number, where it is known; a plan needs it, because
    the default number of steps follows it. num_classes: likewise, for the ridge of a head.
    """
    given = {key: value for key, value in recipe.training.model_dump().items() if value is not None}
    exact = _is_exact(recipe, given)
    loss = _loss(recipe, num_classes)
    default = (
        _exact(recipe.method.name, num_classes, loss=loss) if exact else _DEFAULTS[(recipe.method.name, recipe.private)]
    )
    if default.noise_lr is not None and units_per_shard is not None:
        room = math.sqrt(recipe.shards) * units_per_shard * (recipe.privacy.epsilon or 0.0)
        if not {"steps", "sample_rate"} & given.keys():
            default = _with_room(default, room)
        if recipe.method.name == "tangent":
            default = _balanced(default, room)
    mine = {key: given.pop(key, getattr(default, key)) for key in ("steps", "sample_rate", "center")}
    given["curvature_rank"] = _curvature_rank(recipe, exact=exact)
    chosen = "lr" in given or "optimizer" in given or "momentum" in given
    params = TrainingParams(**{**vars(default.params), **given})
    noise_lr = None if chosen else default.noise_lr
    return Optimization(params=params, noise_lr=noise_lr, most_lr=default.most_lr, **mine)


def _with_room(default: Optimization, room: float) -> Optimization:
    """More and smaller steps where there are so many units that noise leaves room: as many gradients, further along.

    At equal epsilon and equal passes over the data, what noise adds to the components' average goes as one over room =
    sqrt(S) L epsilon, however the passes are cut into steps; what more steps add is the way they go. The fewer units a
    step sees, the more chance is in it besides the noise: the most that a rate may be falls to 1.
    """
    times = min(_MOST, max(1.0, room / _FULL_ROOM))
    steps = round(default.steps * times)
    rate, most_lr = default.steps * default.sample_rate / steps, max(1.0, default.most_lr / times**2)
    return replace(default, steps=steps, sample_rate=rate, most_lr=most_lr)


def _balanced(default: Optimization, room: float) -> Optimization:
    """A tangent's blocks beside its head: the more room noise leaves, the further the blocks may move.

    Blocks have hundreds of times as many parameters as a head, and so much more noise: where it is large, a low scale
    leaves them less of the clipped gradient; where it is small, a large one lets them learn what a head can't. Chosen
    on train rows of sign_language_digits, flowers12 and cifar10 (README of the benchmarks).
    """
    least, most = _SCALES
    scale = min(most, max(least, math.sqrt(room / _EVEN_ROOM)))
    return replace(default, params=replace(default.params, layer_scales={"blocks.*": scale}))


def _is_exact(recipe: Recipe, given: Mapping[str, Any]) -> bool:
    """Whether the optimum is to be found; InputError where it is asked for and can't be."""
    name, stepwise = recipe.method.name, [key for key in (*_ITERATIVE, "steps") if key in given]
    if given.get("optimizer") != "exact":
        return "optimizer" not in given and not recipe.private and name in _EXACT and not stepwise
    if recipe.private:
        raise InputError(
            "training.optimizer: expected sgd or adam under differential privacy, got exact: the optimum depends on "
            "every row without noise.",
            remedy="Leave training.optimizer out, or set privacy.epsilon to null.",
        )
    if name not in _EXACT:
        raise InputError(
            f"training.optimizer: exact expects a method that is linear in what it learns ({', '.join(_EXACT)}), "
            f"got {name}.",
            remedy="Leave training.optimizer out.",
        )
    if stepwise and stepwise != ["steps"]:
        raise InputError(
            f"training.{stepwise[0]}: expected null beside training.optimizer exact, which takes no steps.",
            remedy="The optimum depends on loss, weight_decay, layer_scales and center alone.",
        )
    return True


def _curvature_rank(recipe: Recipe, *, exact: bool) -> int:
    """How many directions of its curvature a shard keeps; InputError where the recipe's rule can't be had."""
    if recipe.compose.rule != "curvature":
        return 0
    if recipe.private:
        raise InputError(
            "compose: expected average or ensemble under differential privacy, got curvature: the curvature of a "
            "shard's loss depends on every row without noise, and no budget is spent for it.",
            remedy="Leave compose out, or set privacy.epsilon to null.",
        )
    if not exact:
        raise InputError(
            f"compose: curvature expects components at the optimum, which {recipe.method.name} trained step by step "
            "are not.",
            remedy="Use the method tangent or head with training.optimizer exact, the default there, or leave compose "
            "out.",
        )
    return recipe.compose.rank or CURVATURE_RANK[recipe.method.name]


def public_classes(recipe: Recipe) -> tuple[str, ...] | None:
    """The classes by the recipe, the embedded example, or the file's public metadata; None where nobody names them."""
    if recipe.data.path is None:
        from privshard.data.example import EXAMPLE_CLASSES

        return EXAMPLE_CLASSES
    if recipe.data.classes is not None:
        return recipe.data.classes
    from privshard.data.reader import read_public_classes

    return read_public_classes(recipe.data.path, label=recipe.data.label)


def classes_of(recipe: Recipe, labels: Callable[[], set[str]]) -> tuple[str, ...]:
    """The classes that the model tells apart.

    Under differential privacy they must be public: InputError where nobody names them. Without it they may be read
    from the rows (`labels`), sorted.
    """
    named = public_classes(recipe)
    if named is not None:
        return named
    if recipe.private:
        raise InputError(
            "data.classes: expected the list of classes, since under differential privacy it may not be read from "
            "private rows; got none, and the file declares none in its public metadata.",
            remedy="List them in data.classes, or set privacy.epsilon to null.",
        )
    return tuple(sorted(labels(), key=lambda name: (len(name), name) if name.isdigit() else (1 << 30, name)))


def nominal_units(recipe: Recipe) -> int | None:
    """The public number of units of privacy among the training rows; None where it has to be counted with noise."""
    if recipe.privacy.unit == "example":
        return nominal_examples(recipe)
    if recipe.data.path is None:
        from privshard.data import example

        return example.EXAMPLE_NOMINAL_SUBJECTS
    return recipe.data.nominal_subjects


def nominal_examples(recipe: Recipe) -> int | None:
    """The public number of training rows; None where the recipe doesn't say."""
    if recipe.data.path is None:
        from privshard.data import example

        return example.EXAMPLE_NOMINAL_EXAMPLES
    return recipe.data.nominal_examples


def warn_about_size(recipe: Recipe, nominal: float) -> None:
    """Warn where most shards will be empty, and where delta is large for so many units."""
    if recipe.shards > nominal:
        warnings.warn(
            f"shards: {recipe.shards} for {nominal:g} {recipe.privacy.unit}s: most shards will be empty, and an empty "
            "shard trains on noise alone. Use fewer.",
            UserWarning,
            stacklevel=2,
        )
    delta, per_shard = recipe.privacy.delta, nominal / recipe.shards
    if recipe.private and delta * nominal >= 1 > delta * per_shard:  # a single shard's is warned about by its plan
        warnings.warn(
            f"privacy.delta {delta} is not below one over the {nominal:g} {recipe.privacy.unit}s of all shards: such a "
            "delta allows to publish one of them outright. Choose a smaller one.",
            UserWarning,
            stacklevel=2,
        )


def source_rows(recipe: Recipe) -> Any:
    """The recipe's rows, streamed; columns are checked before the first one."""
    data = recipe.data
    if data.path is None:
        from privshard.data.example import example_rows

        return example_rows()
    from privshard.data.reader import read_rows
    from privshard.data.schema import Columns

    columns = Columns(image=data.image, label=data.label, subject=data.subject, split=data.split)
    required = frozenset(role for role in data.explicit_columns if role in ("subject", "split"))
    return read_rows(data.path, columns=columns, required=required)
