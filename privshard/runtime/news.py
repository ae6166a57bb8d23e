"""Progress on its way to a person: it may be thinned out or lost, and never breaks or slows the work."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from privshard.core.jobs import OnProgress, Progress

NEWS_INTERVAL_S = 0.2
_log = logging.getLogger(__name__)


def safely(
    on_progress: OnProgress, *, interval_s: float = 0.0, clock: Callable[[], float] = time.monotonic
) -> OnProgress:
    """Wrap a callback so that it cannot break the work, and hears of one stage at most once in `interval_s`.

    The last step of a stage is always told. A callback that raises is logged once and not called again.
    """
    told: dict[tuple[str, str], float] = {}
    broken = False

    def tell(progress: Progress) -> None:
        nonlocal broken
        key = (progress.run_id, progress.stage)
        now = clock()
        if broken or (progress.done < progress.total and now - told.get(key, -interval_s) < interval_s):
            return
        told[key] = now
        try:
            on_progress(progress)
        except Exception:
            broken = True
            _log.warning("The progress callback failed; the work goes on without progress.", exc_info=True)

    return tell


class NewsBox:
    """The latest progress of every stage since it was last emptied; put by one thread, taken by another."""

    def __init__(self) -> None:
        self._latest: dict[tuple[str, str], Progress] = {}
        self._lock = threading.Lock()

    def put(self, progress: Progress) -> None:
        """Keep this news, forgetting older news of the same stage."""
        with self._lock:
            self._latest[progress.run_id, progress.stage] = progress

    def take(self) -> Sequence[Progress]:
        """Everything that has come since the last call, oldest stage first."""
        with self._lock:
            news, self._latest = self._latest, {}
        return tuple(news.values())
