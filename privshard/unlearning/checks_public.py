"""Check of what public rows taught: whole, named by its digest, and nothing else beside it."""

from __future__ import annotations

from privshard.core.errors import PrivshardError
from privshard.store.layout import PUBLIC, public_path
from privshard.store.public_parts import load_public_parts
from privshard.unlearning.evidence import Evidence, Finding


def public_parts(evidence: Evidence) -> Finding:
    """The head and the core that the ledger names are there with that digest, and no other file is."""
    facts, objects = evidence.facts.get("public"), evidence.workspace.objects
    expected = set() if facts is None else {public_path(facts["digest"])}
    problems = [f"{path} is nothing that the ledger names." for path in objects.list(PUBLIC) if path not in expected]
    if facts is None:
        return Finding(problems, "Nothing was learnt from public rows.")
    try:
        arrays = load_public_parts(objects, facts["digest"])
    except PrivshardError as error:
        return Finding([*problems, error.message], "")
    return Finding(problems, f"{len(arrays)} tensor(s), whole, learnt from {facts['num_rows']} public row(s).")
