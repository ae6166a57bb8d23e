"""What importing `privshard.data` costs: commands that touch no row must start without the heavy libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "pyarrow", "sklearn", "timm", "opacus", "ray")


@pytest.mark.parametrize(
    "module", ["shards", "schema", "examples", "reader", "ingest", "importer", "example", "images"]
)
def test_modules_import_without_heavy_libraries(module):
    program = f"import sys, privshard.data.{module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
