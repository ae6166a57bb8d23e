"""Whether a ledger is what was written: the chain of digests, and the order that its entries must have."""

from __future__ import annotations

from collections.abc import Sequence

from privshard.store.ledger_schema import GENESIS, Entry

# Each closing kind: the kind that must come before it for the same run id, and those that exclude it.
_FOLLOWS: dict[str, tuple[str | None, tuple[str, ...]]] = {
    "release": ("reserve", ("void", "commit")),
    "commit": ("reserve", ("void",)),
    "void": ("reserve", ("commit", "release")),
    "complete": ("request", ()),
    "suppress": ("complete", ()),
}


def problems(entries: Sequence[Entry], *, anchor: tuple[int, str] | None = None) -> list[str]:
    """What is wrong, in plain words that name the entry; empty for a sound ledger.

    Finds any change of any column, a missing, added or reordered entry, and entries that contradict each other.
    anchor: (seq, digest) of an entry seen earlier, such as the manifest's; without it, entries cut off at the end
    leave no trace, and neither does a chain that was rewritten as a whole.
    """
    found = [] if entries else ["The ledger has no entries: the first one, which names the workspace, is missing."]
    found += _broken_links(entries)
    found += _contradictions(entries)
    if anchor and anchor not in {(entry.seq, entry.digest) for entry in entries}:
        found.append(f"Entry {anchor[0]}, known from elsewhere by its digest {anchor[1][:12]}…, is missing or changed.")
    return found


def _broken_links(entries: Sequence[Entry]) -> list[str]:
    found = []
    seq, digest, created = 0, "", ""
    for entry in entries:
        if entry.seq != seq + 1:
            found.append(f"Entry {entry.seq} follows entry {seq}: what was between them is missing, or was moved.")
        if entry.true_digest != entry.digest:
            found.append(f"{entry.name} is not what was written: its content has another digest than it says.")
        if entry.previous != digest:
            found.append(f"{entry.name} does not continue the entry before it: one of the two was changed or moved.")
        if entry.created < created:
            found.append(f"{entry.name} says {entry.created}, earlier than the entry before it.")
        seq, digest, created = entry.seq, entry.digest, entry.created
    return found


def _contradictions(entries: Sequence[Entry]) -> list[str]:
    found = []
    seen: set[tuple[str, str | None]] = set()
    models = 0
    for entry in entries:
        before, excluded = _FOLLOWS.get(entry.kind, (None, ()))
        if before and (before, entry.run_id) not in seen:
            found.append(f"{entry.name} has no {before} before it.")
        for other in excluded:
            if (other, entry.run_id) in seen:
                found.append(f"{entry.name} contradicts an earlier {other} of the same run.")
        if (entry.kind == GENESIS) != (entry is entries[0]):
            found.append(f"{entry.name}: the first entry, and no other, names the workspace.")
        if entry.run_id is not None and (entry.kind, entry.run_id) in seen:
            found.append(f"{entry.name} occurs twice.")
        if entry.kind == "model":
            models += 1
            if entry.run_id != model_run_id(models):
                found.append(f"{entry.name} should be model version {models}.")
        seen.add((entry.kind, entry.run_id))
    return found


def model_run_id(version: int) -> str:
    """The run id of a model version's entry, which makes versions unique."""
    return f"v{version:04d}"
