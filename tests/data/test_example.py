"""The embedded digits."""

from __future__ import annotations

from collections import Counter

import numpy as np
from sklearn.datasets import load_digits

from privshard.data.example import (
    EXAMPLE_CLASSES,
    EXAMPLE_NOMINAL_EXAMPLES,
    EXAMPLE_NOMINAL_SUBJECTS,
    example_rows,
)
from privshard.data.images import decode


def test_rows_are_the_digits():
    digits, rows = load_digits(), list(example_rows())
    assert len(rows) == 1797
    assert [row.label for row in rows] == [str(label) for label in digits.target]
    for row, image in list(zip(rows, digits.images, strict=True))[::100]:
        np.testing.assert_array_equal(np.asarray(decode(row.image))[..., 0], np.rint(image * 255 / 16))


def test_groups_and_nominal_numbers():
    rows = list(example_rows())
    groups = Counter(row.subject for row in rows)
    assert len(groups) == 180
    assert Counter(groups.values()) == {10: 179, 7: 1}
    assert len(rows) * 9 // 10 == EXAMPLE_NOMINAL_EXAMPLES
    assert len(groups) * 9 // 10 == EXAMPLE_NOMINAL_SUBJECTS
    assert {row.label for row in rows} == set(EXAMPLE_CLASSES)
    assert {row.split for row in rows} == {None}
