"""The temporary table behind an ingest."""

from __future__ import annotations

import sqlite3
import stat

import pytest

from privshard.core.errors import ResourceError
from privshard.data.spill import EVAL, Spill, open_spill


def _add(spill: Spill, partition: int, id: str) -> bool:
    return spill.add(partition, id=id, image=b"\0\1" + id.encode(), label="a", subject=f"s-{id}")


def test_rows_come_back_sorted_and_once(tmp_path):
    with open_spill(tmp_path) as spill:
        assert [_add(spill, 0, id) for id in ("c", "a", "b", "a")] == [True, True, True, False]
        assert _add(spill, 1, "a")
        rows = spill.partition(0)
        assert rows.ids == ("a", "b", "c")
        assert rows.images == (b"\0\1a", b"\0\1b", b"\0\1c")
        assert rows.subjects == ("s-a", "s-b", "s-c")
        assert spill.partition(1).ids == ("a",)
        assert len(spill.partition(2)) == 0


def test_held_out_copies_stay(tmp_path):
    with open_spill(tmp_path) as spill:
        for partition, id in ((0, "a"), (0, "b"), (EVAL, "a"), (EVAL, "c")):
            _add(spill, partition, id)
        assert spill.drop_trained_copies() == 1
        assert spill.partition(0).ids == ("b",)
        assert spill.partition(EVAL).ids == ("a", "c")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_nothing_stays_behind(tmp_path, error):
    def fail() -> None:
        with open_spill(tmp_path) as spill:
            _add(spill, 0, "a")
            (home,) = tmp_path.iterdir()
            assert stat.S_IMODE(home.stat().st_mode) == 0o700
            raise error

    with pytest.raises(error):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_ingest_are_removed(tmp_path):
    leftover = tmp_path / "privshard-ingest-old"
    leftover.mkdir()
    (leftover / "rows.db").write_bytes(b"personal")
    (tmp_path / "other").mkdir()
    with open_spill(tmp_path):
        assert not leftover.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_a_full_disk_is_a_resource_error(tmp_path):
    with open_spill(tmp_path) as spill:
        connection: sqlite3.Connection = spill._connection
        connection.execute("PRAGMA max_page_count = 8")

        def fill() -> None:
            for number in range(100):
                spill.add(0, id=str(number), image=bytes(4096), label="a", subject="s")

        with pytest.raises(ResourceError, match="full"):
            fill()
