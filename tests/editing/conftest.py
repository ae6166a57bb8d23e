"""A tiny model with something to edit."""

from __future__ import annotations

import pytest
from tiny_edits import Tiny, make_tiny


@pytest.fixture
def tiny() -> Tiny:
    return make_tiny()
