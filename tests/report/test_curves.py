"""Curves as files: they are images, the same points give the same bytes, and every line is in the picture."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from privshard.report.curves import write_curves


@pytest.mark.parametrize("logarithmic", [True, False])
def test_lines_are_drawn(tmp_path, logarithmic):
    one = {"tangent": [(1.0, 0.9), (10.0, 0.8)]}
    two = {**one, "head": [(10.0, 0.7), (1.0, 0.6)]}
    paths = [tmp_path / name for name in ("one.png", "two.png", "again.png")]
    for path, lines in zip(paths, (one, two, two), strict=True):
        write_curves(path, lines, axis="shards", value="accuracy", logarithmic=logarithmic)
    coloured = [len(np.unique(np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3), axis=0)) for path in paths]
    assert coloured[1] > coloured[0]
    assert paths[1].read_bytes() == paths[2].read_bytes()
    assert sorted(tmp_path.iterdir()) == sorted(paths)
