"""Errors keep message, remedy and kind across processes."""

from __future__ import annotations

import copy
import pickle

import pytest

from privshard.core.errors import BudgetError, InputError, PrivshardError, ResourceError, VerificationError

CONTRACT = [
    (PrivshardError, "internal", 1),
    (InputError, "bad_input", 2),
    (BudgetError, "budget_refused", 3),
    (ResourceError, "resource_missing", 4),
    (VerificationError, "verification_failed", 5),
]


@pytest.mark.parametrize(("error", "kind", "exit_code"), CONTRACT)
def test_contract_and_pickling(error, kind, exit_code):
    made = error("Expected a, got b.", remedy="Give a.")
    for copied in (made, pickle.loads(pickle.dumps(made)), copy.copy(made)):
        assert type(copied) is error
        assert (copied.message, copied.remedy) == ("Expected a, got b.", "Give a.")
        assert (copied.kind, copied.exit_code) == (kind, exit_code)
        assert str(copied) == "Expected a, got b. Give a."


def test_without_a_remedy_the_text_is_the_message():
    assert str(InputError("Expected a.")) == "Expected a."


def test_bad_input_is_a_value_error_and_all_are_ours():
    assert issubclass(InputError, ValueError)
    assert all(issubclass(error, PrivshardError) for error, _, _ in CONTRACT)
