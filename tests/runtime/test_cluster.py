"""Clusters that do not answer are refused in time; imports stay light."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from privshard.core.errors import ResourceError
from privshard.runtime import make_executor
from privshard.runtime.ray_executor import RayExecutor


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that refuses: it is taken, so that nobody else gets it, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_unreachable_cluster_is_refused_within_the_timeout(form, closed_port, make_job, monkeypatch) -> None:
    """Ray is not even asked: it would try for minutes, and then end this process."""
    import ray

    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("Ray was asked"))
    executor = make_executor(print, address=form.format(closed_port), schedule_timeout_s=1.0)
    assert isinstance(executor, RayExecutor)
    with pytest.raises(ResourceError, match=str(closed_port)) as refused:
        executor.train([make_job()], print)
    assert refused.value.exit_code == 4
    assert "ray.address" in refused.value.remedy
    executor.close()


def test_auto_follows_the_environment_and_is_refused_too(monkeypatch, closed_port, make_job) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    with pytest.raises(ResourceError, match="auto"):
        make_executor(print, address="auto", schedule_timeout_s=0.5).train([make_job()], print)


def test_no_running_cluster_for_auto_is_refused(monkeypatch, tmp_path, make_job) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    import ray

    monkeypatch.setattr(ray, "init", _nobody)
    with pytest.raises(ResourceError, match="Could not find any running Ray instance"):
        make_executor(print, address="auto", schedule_timeout_s=0.5).train([make_job()], print)


def _nobody(**_: object) -> None:
    raise ConnectionError("Could not find any running Ray instance.")


def test_a_cluster_that_lets_nobody_in_is_refused_in_time(monkeypatch, make_job) -> None:
    """A port that answers, and then nothing: Ray itself would wait for minutes."""
    import ray

    from privshard.runtime import cluster

    monkeypatch.setattr(cluster, "_START_S", 0.2)
    let_in, came_in = threading.Event(), threading.Event()
    monkeypatch.setattr(ray, "init", lambda **_: (let_in.wait(), came_in.set()))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(ResourceError, match="to let us in"):
            make_executor(print, address=address, schedule_timeout_s=0.3).train([make_job()], print)
    assert not came_in.is_set()  # nobody waited for it
    let_in.set()
    assert came_in.wait(60)


def test_no_jobs_need_no_cluster() -> None:
    assert list(make_executor(print, address="127.0.0.1:1").train([], print)) == []


def test_making_an_executor_imports_neither_ray_nor_torch() -> None:
    code = (
        "import sys; from privshard.runtime import make_executor\n"
        "for address in ('none', 'local'): make_executor(print, address=address).close()\n"
        "assert not {'ray', 'torch', 'timm', 'opacus', 'pyarrow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
