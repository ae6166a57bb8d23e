"""Bits that flip below the ledger: in a column of either database, in the bytes of a SQLite file."""

from __future__ import annotations

import random
import shutil
import sqlite3

import pytest
import sqlalchemy as sql

from privshard.core.errors import PrivshardError, VerificationError
from privshard.core.model import Composition
from privshard.store.database import make_engine
from privshard.store.ledger import Ledger

COLUMNS = ("seq", "kind", "shard", "run_id", "payload", "created", "previous", "digest")


def fill(place, plan):
    with Ledger.open(place) as ledger:
        ledger.put("recipe_digest", "d")
        for shard in (0, 1):
            ledger.reserve(f"r{shard}", shard=shard, attempt=0, plan=plan, admit=lambda _: None)
            ledger.commit(f"r{shard}", component=f"c{shard}")
        ledger.add_model(Composition("b", {"c0": 1.0}), reason="train")


def flipped(value, bit):
    if isinstance(value, int):
        return value ^ (1 << bit % 16)
    raw = bytearray(value.encode())
    raw[bit // 7 % len(raw)] ^= 1 << bit % 7  # stays ASCII, so that a server takes it
    return raw.decode()


def test_a_flipped_bit_in_any_column_is_found_and_named(place, plan):
    fill(place, plan)
    rng, engine, tried = random.Random(0), make_engine(place), 0
    with Ledger.open(place) as ledger:
        assert ledger.verify_chain() == []
        for seq in (1, 3, 5, 6):
            for column in COLUMNS:
                with engine.connect() as connection:
                    query = sql.text(f"SELECT {column} FROM entries WHERE seq = {seq}")
                    held = connection.execute(query).scalar()
                standing = held or (7 if column == "shard" else "a")  # where nothing is, something appears
                changed = flipped(standing, rng.randrange(1, 1 << 16))
                if isinstance(changed, str) and "\0" in changed:
                    changed = changed.replace("\0", "?")  # no server stores it
                set_cell(engine, column, changed, seq)
                named = changed if column == "seq" else seq
                found = ledger.verify_chain()
                assert any(f"Entry {named} " in problem for problem in found), (seq, column, found)
                set_cell(engine, column, held, named)
                tried += 1
        assert ledger.verify_chain() == []
    assert tried == 32


def set_cell(engine, column, value, seq):
    with engine.begin() as connection:
        statement = sql.text(f"UPDATE entries SET {column} = :value WHERE seq = :seq")
        assert connection.execute(statement, {"value": value, "seq": seq}).rowcount == 1


def test_nothing_is_reserved_on_a_damaged_ledger(place, plan):
    """A reservation that was renamed would no longer be counted: what is unclear may not be spent again."""
    fill(place, plan)
    set_cell(make_engine(place), "kind", "reservf", 3)
    with Ledger.open(place) as ledger:
        head = ledger.head
        with pytest.raises(VerificationError, match=r"Entry 3 \(reservf, r0\) is not what was written") as caught:
            ledger.reserve("r9", shard=0, attempt=9, plan=plan, admit=lambda _: None)
        assert caught.value.exit_code == 5
        assert ledger.head == head


def everything(place):
    """What any reader of the ledger could be told: the entries, and the views, which ask the indexes."""
    with Ledger.open(place) as ledger:
        return (
            ledger.workspace_id,
            ledger._journal.entries(),
            ledger.reservations(),
            ledger.spent_plans(0),
            ledger.spent_plans(1),
            ledger.models(),
            ledger.facts(),
        )


def test_no_flipped_bit_of_the_file_changes_anything_unnoticed(tmp_path, plan):
    """Flips that nobody sees are in unused space: everything that can be read is as it was."""
    place = tmp_path / "ledger.db"
    Ledger.create(place, workspace_id="w1").close()
    fill(place, plan)
    connection = sqlite3.connect(place)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    sound, whole = everything(place), place.read_bytes()
    rng, seen = random.Random(1), 0
    header = [(byte, rng.randrange(8)) for byte in range(0, 116)]
    content = [byte for byte in range(len(whole)) if whole[byte]]
    bits = [*header, *((rng.choice(content), rng.randrange(8)) for _ in range(150))]
    for number, (byte, bit) in enumerate(bits):
        folder = tmp_path / str(number)
        folder.mkdir()
        damaged = bytearray(whole)
        damaged[byte] ^= 1 << bit
        copy = folder / "ledger.db"
        copy.write_bytes(damaged)
        try:
            with Ledger.open(copy) as ledger:
                noticed = bool(ledger.verify_chain())
        except PrivshardError:
            noticed = True
        if noticed:
            seen += 1
        else:
            assert everything(copy) == sound, (byte, bit)
        shutil.rmtree(folder)
    assert seen > 150
