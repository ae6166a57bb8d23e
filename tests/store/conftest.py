"""Fixtures of the store's tests: keys in a temporary folder, never in the user's."""

from __future__ import annotations

import pytest

from privshard.core.privacy import MechanismPlan
from privshard.store.ledger import Ledger


@pytest.fixture(autouse=True)
def keys_dir(tmp_path, monkeypatch):
    monkeypatch.delenv("PRIVSHARD_KEYS", raising=False)
    monkeypatch.setenv("PRIVSHARD_KEYS_DIR", str(tmp_path / "keys"))
    return tmp_path / "keys"


@pytest.fixture
def plan():
    return MechanismPlan(
        unit="subject",
        sample_rate=0.1,
        steps=3,
        max_grad_norm=1.0,
        noise_multiplier=1 / 3,
        expected_units=0.1 + 0.2,
        delta=1e-5,
        accountant="rdp",
    )


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_place(request, tmp_path):
    """Where a ledger may be made, in a file and on a server."""
    if request.param == "sqlite":
        return str(tmp_path / "ledger.db")
    return request.getfixturevalue("server").database()


@pytest.fixture
def place(empty_place):
    """A new ledger, in a file and on a server."""
    Ledger.create(empty_place, workspace_id="w1").close()
    return empty_place
