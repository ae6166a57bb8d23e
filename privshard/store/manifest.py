"""The manifest: what a workspace holds, written for people from the ledger."""

from __future__ import annotations

from typing import Any

from privshard.store.ledger import Ledger

FORMAT_VERSION = 1


def describe(ledger: Ledger) -> dict[str, Any]:
    """The manifest as plain JSON: public facts only, and the ledger's head as an anchor of its chain."""
    model = ledger.current_model()
    reserved = ledger.reservations()
    facts = ledger.facts()
    seq, digest = ledger.head
    return {
        "format": FORMAT_VERSION,
        "workspace": ledger.workspace_id,
        "created": ledger.created,
        "recipe": facts.get("recipe_digest"),
        "base": facts.get("base_digest"),
        "public": facts.get("public"),
        "privacy": facts.get("privacy"),
        "insecure_seed": facts.get("insecure_seed"),
        "model": None
        if model is None
        else {
            "version": model.version,
            "digest": model.composition.digest,
            **{key: value for key, value in model.composition.to_json().items() if key != "base"},
            "metrics": model.metrics,
            "created": model.created,
        },
        "components": [
            {"id": item.component, "shard": item.shard, "attempt": item.attempt}
            for item in reserved
            if model is not None and item.component in model.composition.weights
        ],
        "releases": {
            str(shard): sum(item.shard == shard and item.state != "voided" for item in reserved)
            for shard in sorted({item.shard for item in reserved})
        },
        "ledger": {"entries": seq, "head": digest},
    }
