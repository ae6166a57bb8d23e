"""Commands that change nothing but reports: influence, evaluate, predict, verify, and the importer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privshard.api import evaluation, facts
from privshard.api.setup import Setup, flags_of, stored_recipe
from privshard.core.errors import InputError
from privshard.core.jobs import OnProgress
from privshard.core.model import Composition
from privshard.store.views import ModelVersion
from privshard.store.workspace import Workspace

if TYPE_CHECKING:
    from privshard.unlearning.eval_cache import EvalCache


def evaluate(workspace: str, *, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """Metrics of the current model on the held-out rows, from cached logits where they are there."""
    with Workspace.open(workspace) as ws:
        setup, model = Setup.load(ws), current_model(ws)
        cache = _cache(ws, setup, model, on_progress, models=[model.composition])
        metrics = evaluation.measure(cache, model.composition, setup.classes)
        return {"model": facts.version_name(model.version), "metrics": metrics, "note": evaluation.NOTE}


def influence(workspace: str, *, html: str | None = None, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """What each component and edit does to weights, logits, accuracy and classes. The contract's `influence` object.

    html: a file to write the same report to, for people.
    """
    import numpy as np

    from privshard.composition.members import arithmetic
    from privshard.influence.evidence import Evidence
    from privshard.influence.geometry import component_geometry
    from privshard.influence.report import influence_report

    with Workspace.open(workspace) as ws:
        setup, model = Setup.load(ws), current_model(ws)
        composition, weights = model.composition, model.composition.averaged
        if not weights:
            raise InputError("influence: the current model has no component left.", remedy="Retrain a shard first.")
        dropped = {name: composition.without({name}) for name in weights}
        cache = _cache(ws, setup, model, on_progress, models=[composition, *dropped.values()])
        evidence = Evidence(
            base_logits_BC=cache.with_added(composition),
            component_logits={name: cache.component_logits[name] for name in weights},
            weights=weights,
            labels_B=cache.labels_B,
            classes=setup.classes,
            run_logits=None
            if arithmetic(composition, linear=cache.linear)
            else {None: cache.logits(composition)} | {name: cache.logits(rest) for name, rest in dropped.items()},
            edit_logits={name: composition.weights[name] * cache.component_logits[name] for name in composition.added},
        )
        shards = {name: ws.load_record(name).shard for name in weights}
        with ws.objects.fetched({name: ws.component_path(name) for name in weights}) as files:
            geometry = component_geometry(files)
        report = influence_report(
            evidence, geometry, shards=shards, rng=np.random.default_rng(0), combine=composition.combine
        )
        report = {"model": facts.version_name(model.version), **report}
        if html is not None:
            from privshard.report.html import write_page
            from privshard.report.influence_page import influence_page

            write_page(Path(html), influence_page(report, statement=facts.privacy_report(ws, setup)["statement"]))
            report["html"] = str(html)
        return report


def predict(workspace: str, images: Sequence[str]) -> dict[str, Any]:
    """Classify image files with the current model: label, probability, and the probability of every class."""
    contents = [_read_image(path) for path in images]
    from privshard.api.predicting import Predictor

    predictor = Predictor(workspace)
    found = predictor(contents)
    return {
        "model": predictor.model,
        "predictions": [{"image": str(path), **item} for path, item in zip(images, found, strict=True)],
    }


def verify(workspace: str) -> dict[str, Any]:
    """Whether everything stored says what it should; every check with what was found."""
    from privshard.unlearning.verify import checks

    with Workspace.open(workspace) as ws:
        setup = Setup.load(ws)
        found = checks(ws, num_shards=setup.num_shards, classes=setup.classes)
    return {
        "ok": all(check.ok for check in found),
        "checks": [{"name": check.name, "ok": check.ok, "detail": check.detail} for check in found],
    }


def import_folder(
    folder: str, *, out: str, subject_from: str | None = None, split_from: str | None = None
) -> dict[str, Any]:
    """Turn class folders of images into the Parquet file that a recipe names."""
    from privshard.data import importer

    report = importer.import_folder(folder, out=out, subject_from=subject_from, split_from=split_from)
    return {
        "out": str(out),
        "num_rows": report.num_rows,
        "num_subjects": report.num_subjects,
        "classes": list(report.classes),
        "skipped": [str(name) for name in report.skipped],
    }


def current_model(ws: Workspace) -> ModelVersion:
    """The workspace's current model version, or InputError."""
    model = ws.ledger.current_model()
    if model is None:
        raise InputError(
            f"Workspace {ws.root}: its training is not finished, so it has no model yet.",
            remedy=f"Finish it: privshard train --workspace {ws.root}",
        )
    return model


def _cache(
    ws: Workspace,
    setup: Setup,
    model: ModelVersion,
    on_progress: OnProgress | None,
    *,
    models: Sequence[Composition],
) -> EvalCache:
    """Cached held-out logits of the model's components and of compositions of them; missing ones are computed."""
    return evaluation.refresh(
        ws,
        setup,
        components=list(model.composition.components),
        flags=flags_of(stored_recipe(ws)),
        base_state=None,
        on_progress=on_progress or (lambda _: None),
        models=models,
    )


def _read_image(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"image: expected a readable file, got {path} ({error.strerror}).") from error
