"""The adapters that every test of tests/adaptation/test_method.py runs on: name -> how to make it on a base."""

from __future__ import annotations

from collections.abc import Callable

from privshard.adaptation.adapter import Adapter
from privshard.adaptation.bitfit import BitFitAdapter
from privshard.models.vit import ViTView

ADAPTERS: dict[str, Callable[[ViTView], Adapter]] = {"bitfit": BitFitAdapter}
