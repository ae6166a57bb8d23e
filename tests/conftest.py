"""How the tests share a machine, and servers that several folders use: one PostgreSQL and one object store a process,
where they can be started."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import object_store
import postgres
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: more threads mostly wait for each other
_PROCESSES = 2  # each has servers and clusters of Ray of its own: what more of them lack is memory
_LONG = ("test_end_to_end.py", "api", "runtime", "notebooks", "jobs")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """What `-n auto` means: two processes for the whole suite, where there are two cores.

    What somebody picks (paths, -k, -m) runs in this process, with its output and its debugger.
    """
    picked = config.args_source is pytest.Config.ArgsSource.ARGS or config.option.keyword
    if picked or config.option.markexpr not in config.getini("addopts"):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _PROCESSES if cores >= _PROCESSES else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files of long tests first, so that no process is left alone with one of them at the end."""
    folder = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        first = item.path.relative_to(folder).parts[0] if item.path.is_relative_to(folder) else ""
        return _LONG.index(first) if first in _LONG else len(_LONG)

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """What is imported by now stays: no collection of garbage needs to look at it again, half a second each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    """Libraries look for leaks when the interpreter ends."""
    gc.unfreeze()


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Server]:
    """A PostgreSQL server of this process."""
    reason = postgres.missing()
    if reason:
        pytest.skip(reason)
    with postgres.running_server() as running:
        yield running


@pytest.fixture(scope="session")
def _buckets() -> Iterator[object_store.Buckets]:
    reason = object_store.missing()
    if reason:
        pytest.skip(reason)
    with object_store.running_buckets() as running:
        yield running


@pytest.fixture
def buckets(_buckets: object_store.Buckets, monkeypatch: pytest.MonkeyPatch) -> Iterator[object_store.Buckets]:
    """An S3 server that fails on request, and credentials for it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("PRIVSHARD_LEDGER", raising=False)
    yield _buckets
    _buckets.heal()
