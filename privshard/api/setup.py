"""What a workspace was set up with: kept as facts in its ledger, so that every later command uses the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privshard.api import constants
from privshard.api.recipe import Recipe
from privshard.core.errors import InputError
from privshard.core.execution import ExecutionFlags
from privshard.core.jobs import MethodSpec, OnProgress, TrainingParams
from privshard.core.model import BaseSpec
from privshard.core.partition import Partition
from privshard.core.privacy import MechanismPlan, PrivacySpend
from privshard.store.workspace import Workspace

if TYPE_CHECKING:
    from privshard.api.public_core import PublicParts
    from privshard.models.base import Base


@dataclass(frozen=True)
class Setup:
    """Everything that decides how shards of one workspace are trained; all of it is public.

    spends: cumulative epsilon of a shard after 1, 2, … trainings, up to the limit (None entries: no differential
    privacy). limit: the most epsilon a shard may ever spend. classes_public: False where the classes were read from
    the rows, which only happens without differential privacy. engine: what computes the method and why, for people; it
    decides nothing. public: what was learnt from public rows (`api.public_core`), None where nothing was.
    """

    recipe_digest: str
    classes: tuple[str, ...]
    base: BaseSpec
    base_digest: str
    method: MethodSpec
    training: TrainingParams
    plan: MechanismPlan
    limit: float | None
    spends: tuple[float | None, ...]
    num_shards: int
    classes_public: bool = True
    engine: str | None = None
    public: Mapping[str, Any] | None = None

    def spend(self, trainings: int) -> PrivacySpend:
        """What a shard has spent after that many trainings."""
        if trainings == 0:
            return self._spend(0.0)
        if trainings <= len(self.spends):
            return self._spend(self.spends[trainings - 1])
        from privshard.privacy.plan import spend_of

        return spend_of([self.plan] * trainings)

    def _spend(self, epsilon: float | None) -> PrivacySpend:
        return PrivacySpend(epsilon, self.plan.delta, self.plan.unit, self.plan.accountant)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON form, kept in the ledger."""
        return {**asdict(self), "base": self.base.to_json(), "classes": list(self.classes)}

    @staticmethod
    def load(workspace: Workspace) -> Setup:
        """The workspace's setup; InputError where its training has not come that far."""
        value = workspace.ledger.get("setup")
        if value is None:
            raise InputError(
                f"Workspace {workspace.root}: its first training stopped before it was set up.",
                remedy=f"Run it again: privshard train --workspace {workspace.root}",
            )
        return Setup(
            **{
                **value,
                "classes": tuple(value["classes"]),
                "base": BaseSpec(**value["base"]),
                "method": MethodSpec(**value["method"]),
                "training": TrainingParams(**value["training"]),
                "plan": MechanismPlan(**value["plan"]),
                "spends": tuple(value["spends"]),
            }
        )


@dataclass(frozen=True)
class Planned:
    """A setup before it is kept, with the base that it was computed on, and what public rows taught."""

    setup: Setup
    base: Base
    public: PublicParts | None = None


def base_spec(recipe: Recipe, num_classes: int) -> BaseSpec:
    """The recipe's base section as the noun of core; a weights file that names its own architecture is asked for it."""
    section = recipe.base
    spec = BaseSpec(
        head=section.head,
        model=section.model or "privshard_vit_32",
        num_classes=num_classes,
        weights=section.weights,
        args=section.args,
        head_seed=section.head_seed,
        head_std=section.head_std,
    )
    if section.weights in ("embedded", "pretrained"):
        return spec
    from privshard.models.architecture import check_agrees, read_architecture

    found = read_architecture(Path(section.weights), required=section.model is None)
    if found is None:
        return spec
    architecture = found[0]
    check_agrees(Path(section.weights), architecture, model=section.model, args=section.args)
    return replace(spec, model=architecture.model, args=architecture.args, transform=architecture.transform)


def make_setup(
    recipe: Recipe,
    *,
    classes: tuple[str, ...],
    nominal: float,
    count_noise_multiplier: float | None,
    loaded: tuple[Base, PublicParts | None] | None = None,
    on_progress: OnProgress = lambda _: None,
) -> Planned:
    """Calibrate the mechanism and load the base, with what public rows teach; nothing is written. Raises before any
    private row is used. loaded: the base and the public parts, where they are at hand."""
    from privshard.api.methods import engine_of, make_method
    from privshard.api.public_core import load_recipe_base
    from privshard.privacy.accounting import epsilon as epsilon_of
    from privshard.privacy.budget import epsilon_limit
    from privshard.privacy.plan import history_events, make_plan

    constants.warn_about_size(recipe, nominal)
    chosen = constants.optimization(recipe, units_per_shard=nominal / recipe.shards, num_classes=len(classes))
    params = recipe.privacy_params()
    base, public = loaded or load_recipe_base(recipe, classes, on_progress=on_progress)
    method = make_method(recipe.method_spec(), base.view, core=base.core)
    plan = make_plan(
        params,
        sample_rate=chosen.sample_rate,
        steps=chosen.steps,
        nominal_units_per_shard=nominal / recipe.shards,
        mean_releases=int(chosen.center and method.radius is not None),
        count_noise_multiplier=count_noise_multiplier,
    )
    limit = epsilon_limit(params, plan)
    spends: list[float | None] = [None]
    if plan.private:
        spends = [
            epsilon_of(history_events([plan] * times), delta=plan.delta, accountant=plan.accountant)
            for times in range(1, params.planned_retrains + 2)
        ]
    setup = Setup(
        recipe_digest=recipe.digest,
        classes=classes,
        base=base.spec,
        base_digest=base.digest,
        method=recipe.method_spec(),
        training=chosen.settled(plan, num_shards=recipe.shards),
        plan=plan,
        limit=limit,
        spends=tuple(spends),
        num_shards=recipe.shards,
        classes_public=constants.public_classes(recipe) is not None,
        engine=engine_of(method),
        public=None if public is None else dict(public.facts),
    )
    return Planned(setup, base, public)


def partition_of(workspace: Workspace, num_shards: int) -> Partition:
    """The workspace's partition: its key was drawn before any data was seen."""
    return Partition(workspace.secrets.partition_key, num_shards)


def flags_of(recipe: Recipe) -> ExecutionFlags:
    """Speed settings of one worker."""
    return recipe.flags()


def stored_recipe(workspace: Workspace) -> Recipe:
    """The recipe that the workspace was made with."""
    from privshard.api.recipe_yaml import parse_yaml

    return Recipe(**parse_yaml(str(workspace.ledger.get("recipe_yaml")), source=f"{workspace.root}/recipe.yaml"))
