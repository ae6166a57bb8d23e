"""Which components count, by the ledger: those of the current model, and those on their way into it."""

from __future__ import annotations

from privshard.store.ledger import Ledger
from privshard.store.views import Reservation
from privshard.unlearning.pending import pending_plans
from privshard.unlearning.plan import change_of


def component_of(ledger: Ledger, shard: int) -> str | None:
    """What the current model holds of a shard; None where that shard was dropped, or there is no model yet."""
    model = ledger.current_model()
    weights = model.composition.weights if model else {}
    return next((run.component for run in _committed(ledger) if run.shard == shard and run.component in weights), None)


def attempts_of(ledger: Ledger, shard: int) -> list[str]:
    """A shard's committed components, the latest attempt first."""
    runs = [run for run in _committed(ledger) if run.shard == shard]
    return [str(run.component) for run in sorted(runs, key=lambda run: run.attempt, reverse=True)]


def live_components(ledger: Ledger) -> frozenset[str]:
    """The components whose files have to be there; every other component is to be gone.

    They are the current model's; with them, for a shard whose retraining is not completed, the attempts that came
    after the model's; before the first model, everything that is committed.
    """
    committed, model = _committed(ledger), ledger.current_model()
    if model is None:
        return frozenset(str(run.component) for run in committed)
    weights = model.composition.weights
    in_model = {run.shard: run.attempt for run in committed if run.component in weights}
    changes = [change_of(plan) for plan in pending_plans(ledger)]
    waiting = {change.shard for change in changes if change is not None and change.action == "retrain"}
    return frozenset(weights) | {
        str(run.component)
        for run in committed
        if run.shard in waiting and run.shard in in_model and run.attempt > in_model[run.shard]
    }


def _committed(ledger: Ledger) -> list[Reservation]:
    return [run for run in ledger.reservations() if run.state == "committed" and run.component is not None]
