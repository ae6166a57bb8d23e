"""Reaching a Ray cluster, and what it has."""

from __future__ import annotations

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import urlsplit

from privshard.core.errors import ResourceError
from privshard.runtime.resources import ClusterView, NodeView

T = TypeVar("T")
_START_S = 120.0  # for Ray itself, beyond the answer of its port

# Read by Ray when it is imported or started. The last one keeps its messages about dead workers off stdout, which
# belongs to --json; the same facts are in our errors.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".*",
}


def connect(address: str, *, timeout_s: float) -> bool:
    """Make sure that Ray is initialized; True if this call did it, so that `disconnect` is ours to call.

    address: "local" starts a Ray of our own on this machine; otherwise what `ray.init` takes ("auto", "host:port",
    "ray://host:port"). A Ray that the caller has initialized is used as it is, whatever the address.
    Raises ResourceError if the cluster does not answer within about `timeout_s`.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return False

    def init(**options: Any) -> None:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)

    try:
        if address == "local":  # in this thread: the kernel kills what a thread has started when that thread ends
            init(include_dashboard=False)
        else:
            _knock(address, timeout_s)
            within(timeout_s + _START_S, f"Ray at {address!r} to let us in", init)
    except (OSError, RuntimeError, ValueError, SystemExit) as error:  # Ray exits when a port answers with no Ray behind
        raise ResourceError(
            f"No Ray cluster could be used at {address!r}: {str(error) or type(error).__name__}.",
            remedy=_remedy(error),
        ) from error
    return True


def within(timeout_s: float, what: str, function: Callable[[], T]) -> T:
    """`function()`, or ConnectionError, naming what was waited for, after `timeout_s`. It may go on in its thread."""
    box: queue.Queue[tuple[bool, Any]] = queue.Queue()

    def run() -> None:
        try:
            box.put((True, function()))
        except BaseException as error:
            box.put((False, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        fine, value = box.get(timeout=timeout_s)
    except queue.Empty:
        raise ConnectionError(f"waited {timeout_s:g} s for {what}") from None
    if fine:
        return value
    raise value


def disconnect() -> None:
    """Leave the cluster; a local Ray is stopped."""
    import ray

    ray.shutdown()


def cluster_view() -> ClusterView:
    """All machines that are alive, with what they have in all."""
    import ray

    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return ClusterView(tuple(NodeView(gpus=has.get("GPU", 0.0), cpus=has.get("CPU", 0.0)) for has in resources))


def here_or_anywhere(*, here: bool) -> Any:
    """A scheduling strategy: on the machine that this client is attached to, or wherever Ray likes."""
    if not here:
        return "DEFAULT"
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def free_resources() -> str:
    """What nobody uses right now, in words."""
    import ray

    free = ray.available_resources()
    return f"{free.get('GPU', 0):g} GPUs and {free.get('CPU', 0):g} CPUs"


def _remedy(error: BaseException) -> str:
    """What a person can try; Ray tells of a refused token only in the cause of its error."""
    if "AuthToken" in str(error.__cause__):
        return "The cluster asks for a token: set RAY_AUTH_MODE=token, with the cluster's token where Ray looks for it."
    return "Check ray.address; 'local' starts Ray on this machine and 'none' does without."


def _knock(address: str, timeout_s: float) -> None:
    """Wait until the address accepts a connection: Ray itself would try for minutes, then end the process.

    Raises ConnectionError after `timeout_s`. An address without host and port is left to Ray, which decides at once.
    """
    target = os.environ.get("RAY_ADDRESS", address) if address == "auto" else address
    parts = urlsplit(target if "://" in target else f"//{target}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        return
    if not host or not port:
        return
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() + 0.5 > deadline:
                raise ConnectionError(f"nothing answers within {timeout_s:g} s ({error})") from error
            time.sleep(0.5)
