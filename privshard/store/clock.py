"""Whether this machine's clock agrees with the database's, and through it with every other holder's."""

from __future__ import annotations

import os

from privshard.core.errors import ResourceError
from privshard.store.ledger import Ledger
from privshard.store.ledger_schema import ACCEPT_CLOCK
from privshard.store.waits import CLOCK_TOLERANCE_ENV, clock_tolerance_s


def require_clock(ledger: Ledger) -> None:
    """ResourceError where this clock is further from the database's than `waits.clock_tolerance_s`.

    Two machines that pass are at most twice that apart. What is guaranteed doesn't depend on clocks: leases are timed
    by the database, and order is kept by the ledger's numbers. But dates in receipts would be wrong.
    """
    offset_s, tolerance_s = ledger.clock_offset_s(), clock_tolerance_s()
    if abs(offset_s) > tolerance_s and not os.environ.get(ACCEPT_CLOCK):
        side = "behind" if offset_s > 0 else "ahead of"
        raise ResourceError(
            f"Expected this machine's clock within {tolerance_s:g} s of the ledger's database, it is "
            f"{abs(offset_s):.0f} s {side} it.",
            remedy=f"Set the clocks, for example by NTP. A larger bound: {CLOCK_TOLERANCE_ENV}; to go on regardless, "
            f"set {ACCEPT_CLOCK}=1.",
        )
