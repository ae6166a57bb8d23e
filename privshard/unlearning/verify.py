"""The verification of a workspace: every check with its name, its verdict and what was found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from privshard.core.errors import PrivshardError
from privshard.store.workspace import Workspace
from privshard.unlearning import (
    checks_components,
    checks_data,
    checks_edits,
    checks_ledger,
    checks_public,
    checks_runs,
)
from privshard.unlearning.evidence import Evidence, Finding

_MAX_PROBLEMS = 5


@dataclass(frozen=True)
class Check:
    """One check: its plain name, whether all is well, and in words what was found and what to do."""

    name: str
    ok: bool
    detail: str


def checks(workspace: Workspace, *, num_shards: int, classes: Sequence[str]) -> list[Check]:
    """Examine everything that a workspace stores; nothing is changed.

    A broken workspace never raises: what can't be read fails the check that needed it. That nothing of a forgotten
    subject is left is shown by re-scanning all rows, not by trusting the receipts. Not shown: what lies outside the
    workspace, and changes by whoever holds its keys.

    Test: tests/unlearning/test_verify.py, which damages each artefact in turn.
    """
    evidence = Evidence(workspace, num_shards, tuple(classes))
    return [_run(name, look, remedy, evidence) for name, (look, remedy) in CHECKS.items()]


def _run(name: str, look: Callable[[Evidence], Finding], remedy: str, evidence: Evidence) -> Check:
    try:
        finding = look(evidence)
    except PrivshardError as error:
        return Check(name, False, str(error))
    except Exception as error:  # whatever damage does to what reads it
        return Check(name, False, f"It could not be examined: {type(error).__name__}: {error}. {remedy}")
    if not finding.problems:
        return Check(name, True, finding.fine)
    shown, more = finding.problems[:_MAX_PROBLEMS], len(finding.problems) - _MAX_PROBLEMS
    return Check(name, False, " ".join([*shown, *([f"And {more} more."] if more > 0 else []), remedy]))


_RESTORE = "Restore it from a backup."
_FORGET = "Ask for the same removal again: privshard forget finishes and cleans up."
_WRITTEN_AGAIN = "Delete the file; the next removal writes it again from the ledger."

CHECKS: dict[str, tuple[Callable[[Evidence], Finding], str]] = {
    "ledger chain": (checks_ledger.ledger_chain, "Restore the ledger from a backup; trust nothing after that entry."),
    "manifest": (checks_ledger.manifest, _WRITTEN_AGAIN),
    "recipe": (checks_ledger.recipe, "Restore recipe.yaml; the ledger keeps its text."),
    "components": (checks_components.components, "Restore them from a backup, or retrain or drop their shards."),
    "component shapes": (checks_components.component_shapes, "Retrain or drop the shards that differ."),
    "leftover components": (checks_components.leftover_components, _FORGET),
    "example lists": (checks_components.example_lists, "Restore them from a backup, or retrain or drop their shards."),
    "public parts": (checks_public.public_parts, "Restore them from a backup: every component was learnt around them."),
    "edits": (checks_edits.edits, "Take them out: privshard edit revert; or restore them from a backup."),
    "locators": (checks_edits.locators, "Forget the subject again, or restore the locator from a backup."),
    "leftover edits": (checks_edits.leftover_edits, _FORGET),
    "current model": (checks_ledger.current_model, _WRITTEN_AGAIN),
    "older models": (checks_ledger.older_models, f"Delete those files. {_FORGET}"),
    "partitions": (checks_data.partitions, _RESTORE),
    "keyed partition": (
        checks_data.keyed_partition,
        "Privacy by parallel composition does not hold for those rows: restore the partitions from a backup.",
    ),
    "row content": (checks_data.row_content, _RESTORE),
    "suppressed subjects": (checks_data.suppressed_subjects, "Forget them again: privshard forget --subject."),
    "held-out cache": (checks_data.held_out_cache, "Delete cache/eval; privshard evaluate makes it again."),
    "shard caches": (checks_data.shard_caches, "Delete those files; a training that needs them fills them again."),
    "run records": (checks_runs.run_records, "Delete those files; no command needs them."),
    "late results": (checks_runs.late_results, f"Drop those shards. {_FORGET}"),
    "receipts": (checks_ledger.receipts, _WRITTEN_AGAIN),
    "open requests": (checks_ledger.open_requests, _FORGET),
    "temporary files": (
        checks_data.temporary_files,
        "Delete them; the next change deletes what is half-written.",
    ),
}
