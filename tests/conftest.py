"""One thread for everything, and servers that several folders of tests use: one PostgreSQL and one object store a run,
where they can be started."""

from __future__ import annotations

import os
from collections.abc import Iterator

import object_store
import postgres
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: more threads mostly wait for each other


@pytest.fixture(scope="session")
def server() -> Iterator[postgres.Server]:
    """A PostgreSQL server of this test run."""
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
