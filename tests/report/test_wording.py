"""Numbers as people read them."""

from __future__ import annotations

import pytest

from privshard.report.wording import percent, plain, points, signed


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (percent(1.0), "100.0 %"),
        (percent(None), "–"),
        (points(0.0), "0.0"),
        (points(-0.0004), "0.0"),
        (points(-0.0006), "−0.1"),
        (points(None), "–"),
        (signed(1.25, digits=2), "+1.25"),
        (signed(None, digits=2), "–"),
        (plain(0.0), "0.00"),
        (plain(0.125), "0.125"),
        (plain(12.0), "12.0"),
        (plain(123.4), "123"),
        (plain(123456.0), "123000"),
        (plain(1.5e-7), "1.50e-07"),
        (plain(None), "–"),
    ],
)
def test_numbers_read_well(found, expected):
    assert found == expected
