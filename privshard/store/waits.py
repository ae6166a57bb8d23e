"""How long a wait may take: every deadline of storage and database, and the variable that sets it."""

from __future__ import annotations

import math
import os

from privshard.core.errors import InputError

STORAGE_TIMEOUT_ENV = "PRIVSHARD_STORAGE_TIMEOUT_S"
LEDGER_TIMEOUT_ENV = "PRIVSHARD_LEDGER_TIMEOUT_S"
LEASE_ENV = "PRIVSHARD_LEASE_S"
CLOCK_TOLERANCE_ENV = "PRIVSHARD_CLOCK_TOLERANCE_S"


def storage_timeout_s() -> float:
    """How long an object store may take over one request, retries included; each MiB of an object adds a second."""
    return _seconds(STORAGE_TIMEOUT_ENV, 60.0)


def ledger_timeout_s() -> float:
    """How long a database server may take over one statement, or over coming back after it has answered before."""
    return _seconds(LEDGER_TIMEOUT_ENV, 60.0)


def lease_s() -> float:
    """How long a holder that is silent keeps a workspace."""
    return _seconds(LEASE_ENV, 60.0)


def clock_tolerance_s() -> float:
    """How far this machine's clock may be from the database's."""
    return _seconds(CLOCK_TOLERANCE_ENV, 30.0)


def _seconds(name: str, default: float) -> float:
    text = os.environ.get(name)
    if not text:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise InputError(f"{name}: expected a number of seconds above 0, got {text!r}.", remedy=f"Unset it: {default}.")
    return value
