"""A controller that lives on the cluster: a named, detached actor that a client starts, leaves and finds again."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from privshard.core.errors import PrivshardError, ResourceError
from privshard.runtime.cluster import connect, disconnect, here_or_anywhere
from privshard.runtime.lane import NAMESPACE
from privshard.runtime.record import RunRecord
from privshard.runtime.watch import CancelledError

Work = Callable[..., Any]  # (*args, record=…, cancelled=…)
ANSWER_TIMEOUT_S = 20.0
MAX_RESTARTS = 10
_LINGER_S = 20.0


class DetachedController:
    """Runs one piece of work in a thread of its own and answers while it is at it. Thin: the work knows everything.

    Ray makes it anew when its process or its machine is lost, and then the work starts again: it has to resume, as
    every verb of the library does. Knows nothing of Ray.
    """

    def __init__(self, work: Work, args: tuple[Any, ...], kind: str, leave: Callable[[], None]) -> None:
        self._record = RunRecord(kind=kind)
        self._cancelled = threading.Event()
        self._over = threading.Event()
        threading.Thread(target=self._run, args=(work, args, leave), daemon=True).start()

    def status(self) -> dict[str, Any]:
        """The record so far."""
        return self._record.snapshot()

    def cancel(self) -> None:
        """Ask the work to stop; `status` says when it has."""
        self._cancelled.set()

    def wait(self, timeout_s: float) -> dict[str, Any]:
        """The record at the end, or after `timeout_s`."""
        self._over.wait(timeout_s)
        return self._record.snapshot()

    def _run(self, work: Work, args: tuple[Any, ...], leave: Callable[[], None]) -> None:
        try:
            work(*args, record=self._record, cancelled=self._cancelled.is_set)
            self._record.end("done")
        except CancelledError:
            self._record.end("cancelled")
        except BaseException as error:  # a library in Rust panics with one; nobody above this thread would hear of it
            self._record.end("failed", error)
        self._over.set()
        time.sleep(_LINGER_S)  # clients that wait hear the end from us, later ones from the workspace
        leave()


def controller_name(workspace: str) -> str:
    """The actor's name: a digest, since a path may name people."""
    return f"privshard-controller-{hashlib.sha256(workspace.encode()).hexdigest()[:24]}"


class ControllerClient:
    """Reaches the controller of one workspace. Every call has a deadline. Leaving it leaves the controller alone."""

    def __init__(self, workspace: str, *, address: str, timeout_s: float = 30.0) -> None:
        self.name = controller_name(workspace)
        self._address = address
        self._connected_here = connect(address, timeout_s=timeout_s)

    def __enter__(self) -> ControllerClient:
        return self

    def __exit__(self, *_: object) -> None:
        if self._connected_here:
            disconnect()

    def find(self) -> Any | None:
        """The controller's handle, None where there is none."""
        import ray

        try:
            return ray.get_actor(self.name, namespace=NAMESPACE)
        except ValueError:
            return None

    def start(
        self, work: Work, args: tuple[Any, ...], *, kind: str, environment: Mapping[str, str], local: bool
    ) -> bool:
        """Start the controller; False where one is there already.

        local: the workspace is a folder, so that the controller has to be on this client's machine.
        """
        import ray

        actor: Any = ray.remote(DetachedController)
        options = {
            "name": self.name,
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "max_restarts": MAX_RESTARTS,
            "max_task_retries": 0,
            "max_concurrency": 8,
            "num_cpus": 0,
            "runtime_env": {"env_vars": dict(environment)} if environment else None,
            "scheduling_strategy": here_or_anywhere(here=local),
        }
        try:
            actor.options(**options).remote(work, args, kind, _Leave(self.name))
        except ValueError:  # of that name
            return False
        return True

    def ask(self, method: str, *args: Any, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
        """Call the controller; ResourceError, naming it, where it does not answer in time or is not there."""
        import ray
        from ray import exceptions

        deadline = time.monotonic() + timeout_s
        last: Exception | None = None
        while time.monotonic() < deadline:
            actor = self.find()
            if actor is None:
                last = None
                break
            try:
                return ray.get(getattr(actor, method).remote(*args), timeout=max(0.1, deadline - time.monotonic()))
            except exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, PrivshardError) else error  # noqa: B904
            except exceptions.RayError as error:  # it is being made anew, or is gone
                last = error
                time.sleep(0.5)
        raise ResourceError(
            f"The controller {self.name} on {self._address} "
            + (f"did not answer within {timeout_s:g} s ({type(last).__name__})." if last else "is not there."),
            remedy="It may have ended: privshard status reads what it left. Start it again: privshard train --detach.",
        )

    def kill(self) -> None:
        """End the controller's process, and with it its workers; nothing is lost that was not released."""
        import ray

        actor = self.find()
        if actor is not None:
            ray.kill(actor, no_restart=True)


class _Leave:
    """Lets the controller end itself for good; picklable."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self) -> None:
        import ray

        ray.kill(ray.get_actor(self._name, namespace=NAMESPACE), no_restart=True)
