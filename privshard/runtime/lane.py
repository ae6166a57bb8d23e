"""The priority lane: controllers on one cluster let removals go before the training that they have queued."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

NAMESPACE = "privshard"
_NAME = "privshard-lane"
_LEASE_S = 15.0  # who has not been heard of for so long is gone
_TELL_EVERY_S = 1.0


class LaneBook:
    """Who is on the cluster: a thin actor. Whoever stops telling is forgotten, so that nobody waits for the dead."""

    def __init__(self, *, lease_s: float = _LEASE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._lease_s = lease_s
        self._clock = clock
        self._waiting: dict[str, float] = {}
        self._training: dict[str, float] = {}

    def tell(self, key: str, *, urgent: bool, waiting: bool) -> tuple[bool, bool]:
        """Take one controller's news; (whether removals wait for room, whether another training is here)."""
        now = self._clock()
        for book in (self._waiting, self._training):
            for gone in [name for name, until in book.items() if until < now]:
                del book[gone]
        if not urgent:
            self._training[key] = now + self._lease_s
        elif waiting:
            self._waiting[key] = now + self._lease_s
        else:
            self._waiting.pop(key, None)
        return any(name != key for name in self._waiting), any(name != key for name in self._training)

    def leave(self, key: str) -> None:
        """Forget a controller."""
        self._waiting.pop(key, None)
        self._training.pop(key, None)


class RayLane:
    """One controller's view of the lane: asks now and then, never waits for the answer.

    Without an answer it goes on as if it were alone: the lane speeds removals up, nothing is wrong without it.
    """

    def __init__(self, *, urgent: bool) -> None:
        import ray
        from ray import exceptions

        self._ray = ray
        self._exceptions = exceptions
        self._urgent = urgent
        self._key = f"{os.getpid()}-{os.urandom(6).hex()}"
        self._book: Any = None
        self._answer: Any = None
        self._told_s = -_TELL_EVERY_S
        self._others = (False, False)

    def held(self) -> bool:
        """Whether to start nothing, because removals wait for room. A removal itself is never held."""
        return not self._urgent and self._others[0]

    def room_to_come(self) -> bool:
        """Whether trainings hold the cluster who will make room for a removal."""
        return self._urgent and self._others[1]

    def tell(self, *, waiting: bool) -> None:
        """Say that we are here, and whether we wait for workers; hear the last answer."""
        now = time.monotonic()
        if self._answer is not None:
            if not self._ray.wait([self._answer], timeout=0)[0]:
                return
            try:
                self._others = self._ray.get(self._answer, timeout=1)
            except self._exceptions.RayError:
                self._book, self._others = None, (False, False)
            self._answer = None
        if now - self._told_s < _TELL_EVERY_S:
            return
        self._told_s = now
        with contextlib.suppress(self._exceptions.RayError, ValueError):
            self._answer = self._actor().tell.remote(self._key, urgent=self._urgent, waiting=waiting)

    def leave(self) -> None:
        """Take our name off the lane."""
        if self._book is not None and self._ray.is_initialized():
            with contextlib.suppress(self._exceptions.RayError):
                self._book.leave.remote(self._key)

    def _actor(self) -> Any:
        """The book of this cluster, made by whoever comes first."""
        if self._book is None:
            self._book = (
                self._ray.remote(LaneBook)
                .options(
                    name=_NAME,
                    namespace=NAMESPACE,
                    get_if_exists=True,
                    lifetime="detached",
                    num_cpus=0,
                    max_restarts=-1,
                )
                .remote()
            )
        return self._book
