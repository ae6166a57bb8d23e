"""The ledger's one table and its sealed rows."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

import sqlalchemy as sql

from privshard.core.digest import canonical_json, json_digest
from privshard.core.errors import InputError, ResourceError, VerificationError

SCHEMA_VERSION = 1
GENESIS = "workspace"
CLOCK_NOTE = "clock_read"
ACCEPT_CLOCK = "PRIVSHARD_ACCEPT_CLOCK"
_CLOCK_TOLERANCE_S = 60

METADATA = sql.MetaData()
ENTRIES = sql.Table(
    "entries",
    METADATA,
    sql.Column("seq", sql.BigInteger, primary_key=True, autoincrement=False),
    sql.Column("kind", sql.Text, nullable=False),
    sql.Column("shard", sql.Integer),
    sql.Column("run_id", sql.Text),
    sql.Column("payload", sql.Text, nullable=False),
    sql.Column("created", sql.Text, nullable=False),
    sql.Column("previous", sql.Text, nullable=False),
    sql.Column("digest", sql.Text, nullable=False),
    sql.UniqueConstraint("run_id", "kind", name="entries_run_id_kind"),
    sql.Index("entries_kind_shard", "kind", "shard"),
)


@dataclass(frozen=True)
class Entry:
    """One row: what happened (`kind`, `shard`, `run_id`, `payload`), when, and the digests that chain it."""

    seq: int
    kind: str
    shard: int | None
    run_id: str | None
    payload: str
    created: str
    previous: str
    digest: str

    @staticmethod
    def read(row: Sequence[Any]) -> Entry:
        """The entry of a table's row. A value whose type was damaged is kept as a text that is no sound one."""
        kinds = (int, str, int, str, str, str, str, str)
        optional = (False, False, True, True, False, False, False, False)
        cells: list[Any] = [
            value if isinstance(value, kind) or (value is None and may) else _damaged(value, kind)
            for value, kind, may in zip(row, kinds, optional, strict=True)
        ]
        return Entry(*cells)

    @cached_property
    def data(self) -> dict[str, Any]:
        """The payload, parsed; VerificationError, naming the entry, where it is no longer what was written."""
        try:
            value = json.loads(self.payload)
        except ValueError as error:
            raise self.damaged(f"its content is no JSON ({error})") from error
        if not isinstance(value, dict):
            raise self.damaged("its content is no JSON object")
        return value

    @property
    def name(self) -> str:
        """What messages call it."""
        run = f", {self.run_id}" if self.run_id else ""
        return f"Entry {self.seq} ({self.kind}{run})"

    def damaged(self, why: str) -> VerificationError:
        """The error that names this entry."""
        return VerificationError(
            f"{self.name} of the ledger is not what was written: {why}.",
            remedy="Restore the ledger from a backup; trust nothing after that entry.",
        )

    @property
    def true_digest(self) -> str:
        """SHA-256 of the canonical JSON of every other column; `digest` says the same in a sound ledger."""
        try:
            return json_digest(astuple(self)[:-1])
        except UnicodeEncodeError:  # no text that was ever written
            return ""


def seal(previous: Entry | None, *, kind: str, shard: int | None, run_id: str | None, data: Mapping[str, Any]) -> Entry:
    """The entry that follows `previous`. Time never runs backwards: what a clock that does reads is noted in the
    payload. Where it is more than a minute off, new spending is refused (ResourceError) until the clock is right or
    PRIVSHARD_ACCEPT_CLOCK is set; what ends something that has begun, such as a commit or a removal, is never lost to
    a clock, and a warning is given. Order is kept by `seq`, so nothing that is guaranteed depends on clocks."""
    now = utc_now()
    if previous and previous.created > now and _seconds(now, previous.created) > _CLOCK_TOLERANCE_S:
        behind = f"The clock of this machine says {now}, earlier than the ledger's last entry ({previous.created})"
        if kind == "reserve" and not os.environ.get(ACCEPT_CLOCK):
            raise ResourceError(
                f"{behind}; no training is started on it.",
                remedy=f"Set the clock. Where that entry's was the wrong one, set {ACCEPT_CLOCK}=1 to go on from it.",
            )
        warnings.warn(f"{behind}; the new entry is dated like that one. Set the clock.", UserWarning, stacklevel=2)
    created = max(now, previous.created) if previous else now
    noted = dict(data) if created == now else {**data, CLOCK_NOTE: now}
    try:
        payload = canonical_json(noted).decode()
    except (TypeError, ValueError) as error:
        raise InputError(f"Ledger entry {kind}: expected plain JSON without NaN or infinity: {error}.") from error
    seq, last = (previous.seq + 1, previous.digest) if previous else (1, "")
    unsealed = Entry(seq, kind, shard, run_id, payload, created, last, "")
    return replace(unsealed, digest=unsealed.true_digest)


def _seconds(earlier: str, later: str) -> float:
    try:
        return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()
    except (ValueError, TypeError):
        return 0.0


def utc_now() -> str:
    """Now, as an ISO string of fixed width: text order is time order."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def _damaged(value: Any, kind: type) -> Any:
    return -1 if kind is int else f"damaged: {value!r}"
