"""Checks of personal data: rows are where they belong, as they were, of nobody forgotten, and nowhere else."""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePosixPath

from privshard.core.errors import PrivshardError
from privshard.data.shards import DATA_DIRECTORY, part_path, scan_for_subjects
from privshard.store.layout import (
    COMPONENTS,
    CURVATURE,
    EDITS,
    LEDGER,
    LEDGER_URL,
    LOCATORS,
    MANIFEST,
    PARAMETERS,
    PRIVATE,
    PUBLIC,
    RECIPE,
    eval_cache_dir,
)
from privshard.store.lock import LOCK_NAME
from privshard.unlearning import eval_cache, shard_cache
from privshard.unlearning.evidence import Evidence, Finding, Loaded, PartitionFacts
from privshard.unlearning.pending import pending_plans

_KNOWN = (
    MANIFEST,
    RECIPE,
    LOCK_NAME,
    "data",
    "cache",
    COMPONENTS,
    PARAMETERS,
    CURVATURE,
    PRIVATE,
    EDITS,
    LOCATORS,
    PUBLIC,
    "models",
    "receipts",
    "reports",
)


def partitions(evidence: Evidence) -> Finding:
    """Every partition is there and readable, in canonical order, each row once; nothing else lies in `data/`."""
    problems = [error.message for error in evidence.partitions.values() if isinstance(error, PrivshardError)]
    expected = {part_path(directory) for directory in evidence.partitions}
    stray = [path for path in evidence.workspace.objects.list(DATA_DIRECTORY) if path not in expected]
    problems += [f"{path} is no partition of this workspace." for path in stray]
    times = Counter(identity for facts in evidence.readable.values() for identity in facts.ids)
    repeated = sum(count > 1 for count in times.values())
    if repeated:
        problems.append(f"{repeated} row(s) are in more than one partition, held-out rows included.")
    rows = sum(len(facts.ids) for facts in evidence.readable.values())
    return Finding(problems, f"{evidence.num_shards} shard(s) and the held-out rows, {rows} rows, each once.")


def keyed_partition(evidence: Evidence) -> Finding:
    """Every row is in the shard that the keyed hash of its subject names."""
    wrong = {name: facts.num_misplaced for name, facts in evidence.readable.items() if facts.num_misplaced}
    problems = [
        f"{name} holds {count} row(s) of subjects that belong to another shard." for name, count in wrong.items()
    ]
    return Finding(problems, "Every row is in the shard that the keyed hash of its subject names.")


def row_content(evidence: Evidence) -> Finding:
    """Every row's id is the keyed digest of its image, label and subject, and its label is a known class."""
    problems = []
    for name, facts in evidence.readable.items():
        if facts.num_changed:
            problems.append(f"{name} holds {facts.num_changed} row(s) whose content is not what their id says.")
        if facts.num_unlabelled:
            problems.append(f"{name} holds {facts.num_unlabelled} row(s) with a label that is no class.")
    return Finding(problems, "Every row is what its id says.")


def suppressed_subjects(evidence: Evidence) -> Finding:
    """No row anywhere in `data/` is about a subject that was forgotten."""
    workspace = evidence.workspace
    suppressed = workspace.ledger.suppressed()
    if not suppressed:
        return Finding([], "Nobody was forgotten.")
    found = scan_for_subjects(workspace.objects, matches=lambda subject: workspace.subject_hash(subject) in suppressed)
    problems = [f"{path} holds {count} row(s) of forgotten subjects." for path, count in found.items()]
    return Finding(problems, f"All rows were scanned: none is about one of the {len(suppressed)} forgotten subject(s).")


def held_out_cache(evidence: Evidence) -> Finding:
    """What is cached about held-out rows is about exactly the rows that are there, and components that count."""
    workspace = evidence.workspace
    paths = workspace.objects.list(eval_cache_dir())
    facts = evidence.readable.get(evidence.eval_dir)
    problems = [
        f"{path} is no known cache: erasure can't rewrite it."
        for path in paths
        if path not in (eval_cache.LOGITS_PATH, eval_cache.CONSTANTS_PATH)
    ]
    if eval_cache.LOGITS_PATH in paths:
        problems += _logits_problems(evidence, facts)
    if eval_cache.CONSTANTS_PATH in paths:
        ids = eval_cache.constants_ids(workspace)
        if ids is None:
            problems.append(f"{eval_cache.CONSTANTS_PATH} can't be understood.")
        elif facts is not None and ids != facts.ids:
            problems.append(f"{eval_cache.CONSTANTS_PATH} is about other rows than the held-out ones.")
    return Finding(
        problems, f"{len(paths)} file(s) about exactly the held-out rows." if paths else "Nothing is cached."
    )


def shard_caches(evidence: Evidence) -> Finding:
    """What is cached about a shard's rows is about rows that are there, of a shard that the model holds or will hold.

    Looked at are the ids; that the rows' bytes are as they were written is checked whenever a cache is used.
    """
    workspace = evidence.workspace
    problems, paths = [], shard_cache.paths(workspace)
    for path in paths:
        shard = shard_cache.shard_of(path)
        facts = None if shard is None else evidence.readable.get(workspace.shard_dir(shard))
        if shard is None or workspace.shard_dir(shard) not in evidence.partitions:
            problems.append(f"{path} is the cache of no shard of this workspace.")
        elif _is_dropped(evidence, shard):
            problems.append(f"{path} is the cache of a shard that was dropped.")
        elif (ids := shard_cache.ids(workspace, path)) is None:
            problems.append(f"{path} can't be understood, or was changed since it was written.")
        elif facts is not None and (gone := len(set(ids) - set(facts.ids))):
            problems.append(f"{path} holds {gone} row(s) that its shard does not hold.")
    return Finding(problems, f"{len(paths)} cache(s) about rows that are there." if paths else "Nothing is cached.")


def _is_dropped(evidence: Evidence, shard: int) -> bool:
    """Whether there is a model without the shard, as far as its components can be read, and nothing on its way."""
    ledger = evidence.workspace.ledger
    if ledger.current_model() is None or any(
        isinstance(found, PrivshardError) for found in evidence.components.values()
    ):
        return False
    held = {found.record.shard for found in evidence.components.values() if isinstance(found, Loaded)}
    waiting = {action.shard for plan in pending_plans(ledger) for action in plan.actions}
    return shard not in held | waiting


def temporary_files(evidence: Evidence) -> Finding:
    """Nothing half-written is left, and nothing lies in the workspace that an erasure would not reach."""
    objects = evidence.workspace.objects
    top = {PurePosixPath(path).parts[0] for path in objects.list()}
    unknown = sorted(name for name in top if name not in _KNOWN and not name.startswith(LEDGER) and name != LEDGER_URL)
    problems = [f"{name} is no part of a workspace: an erasure would not reach it." for name in unknown]
    if objects.is_local:
        root = Path(objects.root)
        left = sorted(place.relative_to(root).as_posix() for place in root.rglob(".*.tmp"))
        problems += [f"{path} was left half-written." for path in left]
    return Finding(problems, "None is left.")


def _logits_problems(evidence: Evidence, facts: PartitionFacts | None) -> list[str]:
    path, cache = eval_cache.LOGITS_PATH, eval_cache.load(evidence.workspace)
    if cache is None:
        return [f"{path} can't be understood, or was changed since it was written."]
    problems = []
    if facts is not None and cache.ids != facts.ids:
        problems.append(f"{path} is about other rows than the held-out ones.")
    elif facts is not None and [evidence.classes[label] for label in cache.labels_B] != list(facts.labels):
        problems.append(f"{path} has other labels than the held-out rows.")
    if cache.base_BC.shape[1] != len(evidence.classes):
        problems.append(f"{path} has logits of {cache.base_BC.shape[1]} classes, expected {len(evidence.classes)}.")
    left = sorted(cache.components - evidence.live)
    return problems + [f"{path} holds logits of component {component}, which does not count." for component in left]
