"""GPU kernels without a GPU: in Triton's interpreter, which has to be chosen before Triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def interpreted(module: str, function: str, *, beside: str) -> None:
    """Call `function` of the test module in a process of its own under TRITON_INTERPRET=1; it must return."""
    folder = Path(beside).parent
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(folder), *sys.path])
    code = f"import {module}; {module}.{function}()"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
