"""The command as a process: a clean stdout whatever libraries do, signals, a light start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

FAKE = """
import logging, os, subprocess, sys, time, warnings
from privshard import api
def budget(workspace):
    print("python noise")
    os.write(1, b"descriptor noise")
    subprocess.run(["echo", "child noise"])
    warnings.warn("library warning", FutureWarning)
    logging.getLogger("ray").warning("library log")
    warnings.warn_explicit("our own warning", UserWarning, "f.py", 1, module="privshard.tangent")
    return {"statement": "héllo"}
def train(recipe, *, workspace, on_progress):
    print("ready", file=sys.stderr, flush=True)
    time.sleep(600)
api.budget, api.train = budget, train
from privshard.cli import main
sys.exit(main())
"""


def start(*arguments: str, code: str = FAKE) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *arguments]
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=buffered,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )


def test_stdout_is_ours_alone_and_library_noise_is_dropped():
    process = start("budget", "ws", "--json")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert json.loads(out) == {"statement": "héllo"}
    assert err == "Warning: our own warning\n"


def test_debug_sends_library_noise_to_stderr():
    process = start("budget", "ws", "--json", "--debug")
    out, err = process.communicate(timeout=300)
    assert json.loads(out) == {"statement": "héllo"}
    for noise in ("python noise", "descriptor noise", "child noise", "library warning", "library log"):
        assert noise in err


def test_ctrl_c_ends_with_130_and_one_line():
    process = start("train")
    assert process.stderr is not None
    assert process.stderr.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert out == ""
    assert err == "Stopped: train was interrupted. Run the same command again to resume.\n"


def test_a_reader_that_leaves_early_is_no_error():
    process = start("budget", "ws", "--json")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == "Warning: our own warning\n"
    assert process.wait(timeout=300) == 0


def test_help_starts_without_heavy_libraries():
    code = (
        "import sys; from privshard.cli import main; assert main(['--help']) == 0; "
        "heavy = {'torch', 'timm', 'ray', 'opacus', 'pyarrow', 'matplotlib', 'numpy', 'pydantic'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or 0)"
    )
    process = start(code=code)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
