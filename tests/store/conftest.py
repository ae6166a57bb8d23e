"""Fixtures of the store's tests: keys in a temporary folder, never in the user's."""

from __future__ import annotations

import pytest

from privshard.core.privacy import MechanismPlan


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
