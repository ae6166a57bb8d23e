"""What runs where the decomposition is computed: data, model and teacher, from a job to a finished file."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from privshard.api.decompose_recipe import DecomposeRecipe
from privshard.api.public_rows import subject_column
from privshard.api.recipe_yaml import parse_yaml
from privshard.api.worker import pick_device
from privshard.core.errors import InputError
from privshard.core.execution import ExecutionFlags
from privshard.core.jobs import OnProgress, Progress
from privshard.data.pixels import Pixels, cache_pixels
from privshard.decomposition.batches import Augmentation, Batches
from privshard.decomposition.files import FILE_NAME, Decomposition, write_decomposition
from privshard.decomposition.phases import plan_phases
from privshard.decomposition.regional import training_pays
from privshard.decomposition.stacks import find_stacks
from privshard.decomposition.start import fit, random_start
from privshard.decomposition.training import Optimization, Teacher, train_phases
from privshard.models.architecture import Architecture, read_architecture
from privshard.models.build import build_model, load_weights, num_classes_in, pixels_of, transform_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from privshard.data.examples import SourceRow

_DEPTHS = ("depth", "depths", "num_classes")
STATEMENT = (
    "A base is public knowledge: what it learnt is not protected by differential privacy, not accounted for, and "
    "cannot be forgotten. Rows and teacher must be public."
)


@dataclass(frozen=True)
class DecomposeJob:
    """One decomposition, small enough to send anywhere. `shard` is only what executors call a job by."""

    run_id: str
    workspace: str
    recipe_yaml: str
    flags: ExecutionFlags
    shard: int | None = None


def run_decompose(job: DecomposeJob, base_state: Mapping | None, on_progress: OnProgress) -> dict[str, Any]:
    """Do the job, or what an earlier run left of it; what was found, as plain JSON values.

    The same function in this process and in a Ray actor. The decomposition is written last.
    """
    recipe = DecomposeRecipe(**parse_yaml(job.recipe_yaml, source="the job"))
    folder, started = Path(job.workspace), time.perf_counter()
    run = _fit if recipe.method == "least_squares" else _train
    decomposition, found = run(recipe, job, folder, on_progress)
    digest = write_decomposition(folder / FILE_NAME, decomposition)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return {**found, "digest": digest, "timing_s": {"total": time.perf_counter() - started}}


def _fit(
    recipe: DecomposeRecipe, job: DecomposeJob, folder: Path, on_progress: OnProgress
) -> tuple[Decomposition, dict[str, Any]]:
    """The least-squares decomposition of given weights."""
    classes, made_from = None, {}
    if recipe.model.weights == "pretrained":
        model = build_model(recipe.model.name, recipe.model.args, pretrained=True)
    else:
        path = Path(recipe.model.weights)
        header = read_architecture(path, required=False)
        named = None if header is None else header[0]
        sketch = build_model(recipe.model.name, recipe.model.args)
        model = build_model(recipe.model.name, recipe.model.args, num_classes=num_classes_in(path, sketch))
        load_weights(model, path)
        classes, made_from = (None, {}) if named is None else (named.classes, named.made_from)
    on_progress(Progress(job.run_id, None, "fit", 0, 1))
    architecture = _architecture(recipe, model, classes=classes)
    facts = _facts(recipe, data_digest=None, stated=False) | ({"model_made_from": made_from} if made_from else {})
    fitted = fit(_state(model), architecture, basis=recipe.to_basis(), components=recipe.total)
    on_progress(Progress(job.run_id, None, "fit", 1, 1))
    residuals = {
        prefix: {name: list(left) for name, left in kinds.items()} for prefix, kinds in fitted.residuals.items()
    }
    return _with_facts(fitted.decomposition, facts), {"phases": [], "residuals": residuals, "data": None}


def _train(
    recipe: DecomposeRecipe, job: DecomposeJob, folder: Path, on_progress: OnProgress
) -> tuple[Decomposition, dict[str, Any]]:
    """Components learnt in phases."""
    sketch = build_model(recipe.model.name, recipe.model.args, num_classes=2, seed=recipe.seed)
    _check_components(recipe, sketch)
    transform, device = transform_of(sketch), pick_device(job.flags)
    pixels = _pixels(recipe, job, folder, transform, on_progress)
    model = build_model(recipe.model.name, recipe.model.args, num_classes=len(pixels.classes), seed=recipe.seed)
    architecture = _architecture(recipe, model, classes=pixels.classes)
    start = random_start(_state(model), architecture, basis=recipe.to_basis())
    start = _with_facts(start, _facts(recipe, data_digest=pixels.digest, stated=recipe.data.public))
    phases = plan_phases(recipe.added, embeddings=recipe.embeddings, head=recipe.head)
    how = recipe.training
    steps = how.steps if isinstance(how.steps, tuple) else (how.steps,) * len(phases)
    decomposition, results = train_phases(
        start,
        phases,
        Batches(
            pixels.images_M3HW,
            pixels.labels_M,
            train_rows=pixels.train_rows,
            eval_rows=pixels.eval_rows,
            batch_size=how.batch_size,
            mean=transform["mean"],
            std=transform["std"],
            augmentation=Augmentation(how.crop, how.flip),
            seed=recipe.seed,
            device=device,
        ),
        optimization=Optimization(
            steps=steps,
            **{key: getattr(how, key) for key in ("lr", "warmup", "weight_decay", "clip", "checkpoint_every")},
            distill_weight=recipe.teacher.weight,
            temperature=recipe.teacher.temperature,
        ),
        teacher=_teacher(recipe, pixels.classes, transform, device),
        folder=folder,
        identity=recipe.digest,
        device=device,
        dtype=getattr(torch, job.flags.dtype),
        compiled=training_pays(job.flags, device=device, num_images=sum(steps) * how.batch_size),
        on_step=lambda stage, done, total: on_progress(Progress(job.run_id, None, stage, done, total)),
    )
    data = {
        "digest": pixels.digest,
        "num_train": len(pixels.train_rows),
        "num_eval": len(pixels.eval_rows),
        "stated_public": recipe.data.public or recipe.data.path is None,
    }
    return decomposition, {"phases": [result.to_json() for result in results], "residuals": None, "data": data}


def _check_components(recipe: DecomposeRecipe, model: nn.Module) -> None:
    """More components than blocks can't be told apart."""
    deepest = max(stack.depth for stack in find_stacks(_shapes(model)))
    if recipe.total > deepest:
        raise InputError(
            f"components: expected at most {deepest} in all, the number of blocks, got {recipe.total}.",
            remedy="Lower the counts, or set model.args.depth higher.",
        )


def _pixels(
    recipe: DecomposeRecipe, job: DecomposeJob, folder: Path, transform: Mapping[str, Any], on_progress: OnProgress
) -> Pixels:
    rows, num_rows, classes = public_rows(recipe)
    return cache_pixels(
        rows,
        num_rows=num_rows,
        folder=folder / "cache",
        prepare=pixels_of(transform),
        classes=classes,
        public=recipe.data.public or recipe.data.path is None,
        num_workers=job.flags.threads,
        on_progress=lambda done, total: on_progress(Progress(job.run_id, None, "decode", done, total)),
    )


def public_rows(recipe: DecomposeRecipe) -> tuple[Iterator[SourceRow], int, tuple[str, ...] | None]:
    """The recipe's rows, their number, and the classes by the recipe or the file's metadata."""
    data = recipe.data
    if data.path is None:
        from privshard.data import example

        rows = list(example.example_rows())
        return iter(rows), len(rows), example.EXAMPLE_CLASSES
    from privshard.data.reader import count_rows, read_public_classes, read_rows
    from privshard.data.schema import Columns

    subject = subject_column(data.path, named=data.subject, stated=data.public, section="data")
    columns = Columns(image=data.image, label=data.label, subject=subject, split=data.split)
    classes = data.classes or read_public_classes(data.path, label=data.label)
    return read_rows(data.path, columns=columns), count_rows(data.path), classes


def _teacher(
    recipe: DecomposeRecipe, classes: tuple[str, ...], transform: Mapping[str, Any], device: str
) -> Teacher | None:
    """The teacher as a function of the student's normalized images; its own size and normalization are its business."""
    section = recipe.teacher
    if section.name is None:
        return None
    if section.weights == "pretrained":
        model = build_model(section.name, section.args, pretrained=True, key="teacher")
    else:
        header = read_architecture(Path(section.weights), required=False)
        named = None if header is None else header[0].classes
        if named is not None and named != classes:
            raise _other_classes(f"{len(named)} others ({', '.join(named[:3])}, …)", classes)
        model = build_model(section.name, section.args, num_classes=len(classes), key="teacher")
        there = num_classes_in(Path(section.weights), model)
        if there not in (None, len(classes)):
            raise _other_classes(str(there), classes)
        load_weights(model, Path(section.weights), key="teacher")
    found = getattr(model, "num_classes", None)
    if found != len(classes):
        raise _other_classes(f"{found}", classes)
    return _adapted(model.eval().requires_grad_(False).to(device), transform, transform_of(model), device)


def _adapted(model: nn.Module, mine: Mapping[str, Any], theirs: Mapping[str, Any], device: str) -> Teacher:
    mean, std, their_mean, their_std = (
        torch.tensor(config[key], device=device).view(1, 3, 1, 1)
        for config in (mine, theirs)
        for key in ("mean", "std")
    )
    size = tuple(theirs["input_size"][1:])

    def logits(images_B: Tensor) -> Tensor:
        pixels_B = images_B * std + mean
        if tuple(pixels_B.shape[2:]) != size:
            pixels_B = F.interpolate(pixels_B, size=size, mode="bicubic", align_corners=False, antialias=True)
        return model((pixels_B - their_mean) / their_std)

    return logits


def _other_classes(got: str, classes: tuple[str, ...]) -> InputError:
    return InputError(
        f"teacher: expected a teacher of the same {len(classes)} classes, got one of {got}.",
        remedy="Train the teacher on these classes, or list its classes in data.classes.",
    )


def _architecture(recipe: DecomposeRecipe, model: nn.Module, *, classes: tuple[str, ...] | None) -> Architecture:
    args = {key: value for key, value in recipe.model.args.items() if key not in _DEPTHS}
    transform = {key: value for key, value in transform_of(model).items() if key != "input_size"}
    return Architecture(recipe.model.name, args, getattr(model, "num_classes", 0), classes, transform)


def _facts(recipe: DecomposeRecipe, *, data_digest: str | None, stated: bool) -> dict[str, Any]:
    """What an auditor asks of a base: where it comes from, and who says that this is public."""
    return {
        "statement": STATEMENT,
        "recipe": recipe.digest,
        "method": recipe.method,
        "data": data_digest,
        "data_source": "the embedded digits" if recipe.data.path is None else Path(recipe.data.path).name,
        "stated_public": stated,
        "teacher": recipe.teacher.name,
        "weights": Path(recipe.model.weights).name,
    }


def _with_facts(decomposition: Decomposition, facts: dict[str, Any]) -> Decomposition:
    return replace(decomposition, facts=facts)


def _state(model: nn.Module) -> dict[str, Any]:
    return {name: tensor.detach().cpu().numpy() for name, tensor in model.state_dict().items()}


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
