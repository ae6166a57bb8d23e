"""One holder at a time; the operating system releases a dead one's lock."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from privshard.core.errors import ResourceError
from privshard.store.lock import LOCK_NAME, hold

HOLDER = """
import sys, time
from privshard.store.lock import hold
with hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), "--subject", "ada@example.org"], stdout=subprocess.PIPE
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_second_holder_is_told_who_holds(tmp_path, other):
    with pytest.raises(ResourceError, match=rf"process {other.pid} on .*since 20"), hold(tmp_path):
        pytest.fail("held twice")
    content = json.loads((tmp_path / LOCK_NAME).read_text())
    assert sorted(content) == ["command", "host", "pid", "since"]
    assert "ada@example.org" not in str(content)


def test_lock_of_a_killed_process_is_free(tmp_path, other):
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with hold(tmp_path):
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()


def test_released_after_the_block_even_by_an_error(tmp_path):
    with pytest.raises(KeyError), hold(tmp_path):
        raise KeyError
    with hold(tmp_path), pytest.raises(ResourceError, match=f"process {os.getpid()}"), hold(tmp_path):
        pytest.fail("held twice")
    with hold(tmp_path):
        pass
    assert (tmp_path / LOCK_NAME).read_bytes() == b""


def test_unreadable_content_still_refuses(tmp_path, other):
    (tmp_path / LOCK_NAME).write_bytes(b"[]")
    with pytest.raises(ResourceError, match="another process"), hold(tmp_path):
        pytest.fail("held twice")


def test_object_stores_cannot_be_locked():
    with pytest.raises(ResourceError, match="local folder"), hold("s3://bucket/w"):
        pytest.fail("held")
