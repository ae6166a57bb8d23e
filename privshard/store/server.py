"""Connections to a PostgreSQL server: a deadline for every answer, and what its failures mean."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Generator
from functools import cache
from typing import Any

from privshard.core.errors import ResourceError
from privshard.store.waits import LEDGER_TIMEOUT_ENV, ledger_timeout_s

LEDGER_ENV = "PRIVSHARD_LEDGER"
_CONNECT_TIMEOUT_S = 10
_GRACE_S = 5  # beyond the server's own timeout, whose message says more
_RUN_AGAIN = "run the same command again: it resumes."

_NOT_YET = (  # the server is there and says: later
    "too many clients",
    "too many connections",
    "remaining connection slots",
    "the database system is starting up",
    "the database system is shutting down",
    "the database system is not yet accepting connections",
    "the database system is in recovery mode",
)
_LOST = re.compile(
    r"server closed the connection|terminating connection|connection (is|was) (lost|closed|bad)|"
    r"no answer within|connection timeout|timeout expired|Connection (refused|reset|timed out)|"
    r"No such file or directory|No route to host|Network is unreachable|SSL SYSCALL|broken pipe|"
    r"consuming input failed|sending (query|data)|" + "|".join(_NOT_YET),
    re.IGNORECASE,
)
_CREDENTIALS = (
    f"Put the right URL, password included, into {LEDGER_ENV}, or the password into ~/.pgpass; neither is written down."
)
_MEANINGS: tuple[tuple[str, str, str], ...] = (
    (r"password authentication failed|no password supplied|SASL|pg_hba", "the server refuses the login", _CREDENTIALS),
    (r"role .* does not exist", "the server doesn't know the user", _CREDENTIALS),
    (
        r"database .* does not exist",
        "the server has no such database",
        f"Create it (createdb), or correct ledger or {LEDGER_ENV}.",
    ),
    (
        r"permission denied|must be owner|insufficient privilege",
        "the user lacks a right",
        "Let the user create tables in the database (GRANT CREATE ON SCHEMA public), and read and write them.",
    ),
    (
        r"read-only transaction|in recovery",
        "the server only reads: it is a standby",
        "Give the address of the primary.",
    ),
    (
        r"No space left|could not extend file|disk full",
        "the server's disk is full; nothing was written",
        f"Free space on the server, and {_RUN_AGAIN}",
    ),
    (
        r"lock timeout",
        "another transaction has kept it all the time",
        f"End that transaction on the server, and {_RUN_AGAIN} More time: {LEDGER_TIMEOUT_ENV}.",
    ),
    (
        r"translate host name|Name or service not known|resolve host",
        "its host has no address",
        f"Correct the host in ledger or {LEDGER_ENV}.",
    ),
)


class LedgerInterruptedError(ResourceError):
    """The server went away; nothing of the transaction that was open is committed."""


def connect(dialect: Any, _record: Any, arguments: Any, settings: Any) -> Any:
    """Connect with a deadline for every later answer; where the server says that it can't yet, wait for it."""
    settings.setdefault("connect_timeout", _CONNECT_TIMEOUT_S)
    open_connection = _deadlined().connect if dialect.driver == "psycopg" else dialect.connect
    deadline = time.monotonic() + ledger_timeout_s()
    while True:
        try:
            return open_connection(*arguments, **settings)
        except dialect.loaded_dbapi.OperationalError as error:
            if not any(sign in str(error) for sign in _NOT_YET) or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0.02, 0.2))


def explain_server(text: str, place: str) -> ResourceError:
    """The ResourceError for what a server, or the way to it, said: LedgerInterruptedError where it went away."""
    said = re.sub(r"(?i)(password\s*=\s*)\S+", r"\1…", " ".join(text.split())).rstrip(".")
    for signs, meaning, remedy in _MEANINGS:
        if re.search(signs, said, re.IGNORECASE):
            return ResourceError(f"Expected to use the ledger at {place}, but {meaning} ({said}).", remedy=remedy)
    if _LOST.search(said):
        return LedgerInterruptedError(
            f"Expected to use the ledger at {place}, but its server does not answer: {said}.",
            remedy=f"Check that the server runs, that this machine reaches it, and the address in ledger or "
            f"{LEDGER_ENV}; then {_RUN_AGAIN}",
        )
    return ResourceError(
        f"Expected to use the ledger at {place}, but: {said}.",
        remedy=f"Check that its server answers, knows this user and has the password, from {LEDGER_ENV} or ~/.pgpass, "
        f"and {_RUN_AGAIN}",
    )


@cache
def _deadlined() -> Any:
    """psycopg's connection, closed as soon as an answer is late: by itself it waits for a silent network forever."""
    import psycopg

    class Deadlined(psycopg.Connection):
        def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return super().wait(_within(gen, ledger_timeout_s() + _GRACE_S), *args, **kwargs)
            except _LateError as late:
                self.close()
                raise psycopg.OperationalError(str(late)) from None

    return Deadlined


class _LateError(Exception):
    """An answer didn't come in time."""


def _within(steps: Generator[Any, Any, Any], timeout_s: float) -> Generator[Any, Any, Any]:
    """The same conversation with the server, given up at its deadline."""
    deadline = time.monotonic() + timeout_s
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() > deadline:
                steps.close()
                raise _LateError(f"no answer within {timeout_s:g} s")
            wanted = steps.send(ready)
    except StopIteration as finished:
        return finished.value
