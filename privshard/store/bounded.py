"""A call that may never return, given a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


class StalledError(TimeoutError):
    """The call had not returned at its deadline."""


def bounded(call: Callable[[], Result], *, timeout_s: float) -> Result:
    """What `call()` returns or raises; StalledError where it does neither within `timeout_s` seconds.

    The call runs on a thread of its own, since libraries for remote files have no deadline that holds for all of
    them. One that stalled can't be ended: it may still take effect later, which its caller has to allow for.

    >>> bounded(lambda: 1 + 1, timeout_s=5)
    2
    """
    outcome: list[tuple[Any, BaseException | None]] = []

    def work() -> None:
        try:
            outcome.append((call(), None))
        except BaseException as error:
            outcome.append((None, error))

    thread = threading.Thread(target=work, name="privshard-bounded", daemon=True)
    thread.start()
    thread.join(timeout_s)
    if not outcome:
        raise StalledError(f"no answer within {timeout_s:g} s")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result
