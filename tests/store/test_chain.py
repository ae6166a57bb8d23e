"""Every change of a ledger's entries is found and named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sqlite3

import pytest

from privshard.core.model import Composition
from privshard.core.removal import RemovalRequest
from privshard.store import chain
from privshard.store.journal import Journal
from privshard.store.ledger import Ledger

COLUMNS = ("seq", "kind", "shard", "run_id", "payload", "created", "previous", "digest")


@pytest.fixture
def place(tmp_path, plan):
    with Ledger.create(tmp_path / "ledger.db", workspace_id="w1") as ledger:
        ledger.put("recipe_digest", "d")
        ledger.reserve("r0", shard=3, attempt=0, plan=plan, admit=lambda _: None)
        ledger.commit("r0", component="c0")
        ledger.add_model(Composition("b", {"c0": 1.0}), reason="train")
        ledger.add_request(RemovalRequest("q1", "5f", "drop"))
        ledger.complete_request("q1", receipt={})
    return tmp_path / "ledger.db"


def change(place, statement, *values):
    connection = sqlite3.connect(place)
    assert connection.execute(statement, values).rowcount == 1
    connection.commit()
    connection.close()


def verify(place):
    with Ledger.open(place) as ledger:
        return ledger.verify_chain()


def rows(place):
    connection = sqlite3.connect(place)
    found = connection.execute(f"SELECT {', '.join(COLUMNS)} FROM entries ORDER BY seq").fetchall()
    connection.close()
    return found


def test_sound_ledger_has_no_problems_and_the_stated_digests(place):
    assert verify(place) == []
    previous = ""
    for number, row in enumerate(rows(place), start=1):
        text = json.dumps(row[:-1], separators=(",", ":"), ensure_ascii=False)
        assert (row[0], row[6], row[7]) == (number, previous, hashlib.sha256(text.encode()).hexdigest())
        previous = row[7]


@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.parametrize("seq", [2, 3, 8])
def test_a_flipped_bit_is_found_in_every_column(place, column, seq):
    value = dict(zip(COLUMNS, rows(place)[seq - 1], strict=True))[column]
    if isinstance(value, str):
        middle = len(value) // 2
        flipped = value[:middle] + chr(ord(value[middle]) ^ 1) + value[middle + 1 :]
    else:
        flipped = (value or 0) ^ 64
    change(place, f"UPDATE entries SET {column} = ? WHERE seq = ?", flipped, seq)
    found = verify(place)
    named = flipped if column == "seq" else seq
    assert any(f"Entry {named} " in problem for problem in found), found


def test_a_bit_that_breaks_the_encoding_is_found(place):
    change(place, "UPDATE entries SET payload = CAST(x'7bff7d' AS TEXT) WHERE seq = 3")
    assert any("Entry 3 " in problem for problem in verify(place))


def test_a_missing_entry_is_found(place):
    change(place, "DELETE FROM entries WHERE seq = 3")
    found = verify(place)
    assert any("Entry 4 follows entry 2" in problem for problem in found)
    assert any("Entry 4 (commit, r0) has no reserve before it" in problem for problem in found)


def test_a_missing_first_entry_is_found(place):
    entries = Journal.open(place).entries()
    assert any("names the workspace" in problem for problem in chain.problems(entries[1:]))
    assert any("no entries" in problem for problem in chain.problems([]))


def test_reordered_entries_are_found(place):
    for seq, other in ((5, 105), (6, 5), (105, 6)):
        change(place, "UPDATE entries SET seq = ? WHERE seq = ?", other, seq)
    found = verify(place)
    assert any("Entry 5 " in problem for problem in found)
    assert any("Entry 6 " in problem for problem in found)


def test_entries_cut_off_are_found_with_an_anchor(place):
    with Ledger.open(place) as ledger:
        anchor = ledger.head
        assert ledger.verify_chain(anchor=anchor) == []
    change(place, "DELETE FROM entries WHERE seq = ?", anchor[0])
    with Ledger.open(place) as ledger:
        assert ledger.verify_chain() == []
        assert any(f"Entry {anchor[0]}" in problem for problem in ledger.verify_chain(anchor=anchor))


@pytest.mark.parametrize(
    ("kind", "run_id", "problem"),
    [
        ("commit", "r9", "has no reserve before it"),
        ("void", "r9", "has no reserve before it"),
        ("void", "r0", "contradicts an earlier commit"),
        ("complete", "q9", "has no request before it"),
        ("suppress", "q9", "has no complete before it"),
        ("model", "v0007", "should be model version 2"),
        ("workspace", None, "names the workspace"),
    ],
)
def test_well_chained_contradictions_are_found(place, kind, run_id, problem):
    Journal.open(place).append(kind, run_id=run_id, data={})
    found = verify(place)
    assert len(found) == 1
    assert found[0].startswith("Entry 9 (")
    assert problem in found[0]


def resealed(entry, **changes):
    """An entry with other content whose own digest is right again: only its place in the chain can tell."""
    changed = dataclasses.replace(entry, **changes)
    return dataclasses.replace(changed, digest=changed.true_digest)


def test_a_changed_entry_with_a_new_digest_breaks_the_link_to_the_next(place):
    entries = Journal.open(place).entries()
    entries[2] = resealed(entries[2], shard=4)
    (problem,) = chain.problems(entries)
    assert problem.startswith("Entry 4 (commit, r0) does not continue the entry before it")


def test_time_that_runs_backwards_is_found(place):
    entries = Journal.open(place).entries()
    entries[-1] = resealed(entries[-1], created="2001-01-01T00:00:00.000000+00:00")
    (problem,) = chain.problems(entries)
    assert problem.startswith("Entry 8 (suppress, q1) says 2001-01-01")


def test_a_run_that_is_reserved_twice_is_found(place):
    """The table refuses it; a chain that was written elsewhere may hold it."""
    entries = Journal.open(place).entries()
    last, reserve = entries[-1], entries[2]
    entries.append(resealed(reserve, seq=last.seq + 1, created=last.created, previous=last.digest))
    assert chain.problems(entries) == ["Entry 9 (reserve, r0) occurs twice."]
