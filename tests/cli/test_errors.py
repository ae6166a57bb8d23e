"""Exceptions that are not ours still end with the status that fits them."""

from __future__ import annotations

import errno

import pytest

from privshard.cli.errors import failure


class OutOfMemoryError(RuntimeError):
    """Named like torch's."""


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "resource_missing", 4),
        (MemoryError(), "resource_missing", 4),
        (OutOfMemoryError("CUDA out of memory"), "resource_missing", 4),
        (OSError(errno.EACCES, "Permission denied"), "internal", 1),
        (RuntimeError("a\nb"), "internal", 1),
    ],
)
def test_kind_and_status(error, kind, code):
    described = failure(error)
    assert (described.kind, described.exit_code) == (kind, code)
    assert described.message.startswith(type(error).__name__)
    assert "\n" not in described.message
    assert described.remedy
