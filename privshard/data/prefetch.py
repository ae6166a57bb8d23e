"""Apply a function ahead of its consumer on a few threads, without changing the order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")


def ordered_map(
    function: Callable[[A], B],
    items: Iterable[A],
    *,
    num_workers: int,
    initializer: Callable[[], object] = lambda: None,
) -> Iterator[B]:
    """`map(function, items)` computed on `num_workers` threads; at most twice as many results wait.

    Results come in the order of `items`, and an error is raised where its result would have come. 0: no threads.
    initializer: called once in every thread.
    """
    if num_workers < 1:
        yield from map(function, items)
        return
    pending: deque[Future[B]] = deque()
    with ThreadPoolExecutor(num_workers, "privshard-data", initializer) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= 2 * num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()


def in_chunks(items: Iterable[A], *, size: int) -> Iterator[list[A]]:
    """Consecutive lists of `size` items; the last one may be shorter.

    >>> list(in_chunks("abcde", size=2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    chunk: list[A] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
