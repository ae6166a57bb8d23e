"""The audit page: self-contained, escaped, and right where there is little to draw."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from privshard.report.audit_page import audit_page


def report(**changes: Any) -> dict[str, Any]:
    alarms = np.geomspace(1e-5, 1, 20)
    value = {
        "workspace": "w",
        "kind": "step",
        "ok": True,
        "verdict": "The claim survived this attack.",
        "claim": {"epsilon": 3.0, "delta": 1e-5, "unit": "subject", "accountant": "rdp", "adjacency": "add_remove"},
        "lower_bound": {"epsilon": 2.5, "delta": 1e-5, "confidence": 0.95},
        "contradicted": False,
        "threat_model": "White box.",
        "method": "A bound.",
        "not_covered": "Choices.",
        "num_canaries": 50000,
        "num_draws": 250000,
        "attacks": [{"name": "the sum", "epsilon_lower": 2.5, "detail": "One inclusion."}],
        "checks": [{"name": "noise", "ok": True, "detail": "as planned"}],
        "curve": {
            "false_alarms": alarms.tolist(),
            "claimed": np.maximum(0, 1 - 20 * alarms).tolist(),
            "planned": (1 - alarms).tolist(),
            "achieved": [None, *(1 - alarms[1:]).tolist()],
        },
    }
    return {**value, **changes}


def test_it_shows_bound_claim_confidence_and_threat_model():
    page = audit_page(report())
    for text in ("Step audit of w", "epsilon at least", "2.5", "epsilon at most", "95 %", "50\u202f000", "White box."):
        assert text in page
    assert "measured" not in page


def test_it_asks_nothing_of_the_network_and_plots_are_well_formed():
    page = audit_page(report())
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    plots = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(plots) == 2
    for plot in plots:
        ElementTree.fromstring(plot)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_texts_are_escaped():
    page = audit_page(report(workspace="<b>$x$", attacks=[{"name": "<i>", "epsilon_lower": 1.0, "detail": "<u>"}]))
    assert "<b>" not in page
    assert "<i>" not in page
    assert "<u>" not in page


@pytest.mark.parametrize("kind", ["run", "removal"])
def test_other_kinds_without_plan_checks_or_bound(kind):
    curve = {**report()["curve"], "planned": None}
    attacks = [{"name": f"attack {n}", "epsilon_lower": n / 2 if n else None, "detail": ""} for n in range(5)]
    bound = {"epsilon": None, "delta": 1e-5, "confidence": 0.9}
    page = audit_page(report(kind=kind, curve=curve, attacks=attacks, checks=[], lower_bound=bound, ok=False))
    assert "∞" in page
    assert 'class="lead bad"' in page
    assert "Checks" not in page


def test_a_failed_check_and_a_note_are_marked():
    page = audit_page(report(checks=[{"name": "noise", "ok": False, "detail": "half"}], note="Seeded."))
    assert "failed" in page
    assert "Seeded." in page
