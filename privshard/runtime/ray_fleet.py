"""A fleet whose workers are Ray actors: thin, one job at a time, gone as soon as no job is left for them."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from privshard.core.errors import PrivshardError, ResourceError
from privshard.core.jobs import OnProgress
from privshard.runtime.cluster import cluster_view, free_resources
from privshard.runtime.controller import Sighting
from privshard.runtime.events import WorkerPlace
from privshard.runtime.policy import Seen
from privshard.runtime.resources import Placement
from privshard.runtime.worker import Handshake, ShardWorker

_FETCH_TIMEOUT_S = 60.0  # for an object that Ray has already called ready
_COLLECT_TIMEOUT_S = 300.0  # for the result of a worker that is done
_LAST_NEWS_TIMEOUT_S = 1.0  # for news that was asked for before the work was done


@dataclass(frozen=True)
class Task:
    """One call of a worker's method, behind its handshake. Object refs among `args` reach the method as values."""

    handshake: Handshake
    method: Literal["train", "call"]
    args: tuple[Any, ...]


@dataclass
class _Member:
    """An actor, what we wait for from it, and when it was last heard of."""

    actor: Any
    pending: Any  # the ref of its handshake, of its work, of its result
    stage: Literal["starting", "running", "collecting"] = "starting"
    place: WorkerPlace | None = None
    news: Any = None
    heard_s: float = field(default_factory=time.monotonic)


class RayFleet:
    """Starts an actor for each job, or gives it one that has done another. Every wait in here has a deadline.

    Losing progress is harmless; losing an actor is seen at its pending call, which Ray then ends in an error. A worker
    at work that reports no progress for `stall_timeout_s` is taken for dead.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        *,
        placement: Placement,
        on_progress: OnProgress,
        stall_timeout_s: float = 1800.0,
    ) -> None:
        import ray

        self._ray = ray
        actor_class: Any = ray.remote(ShardWorker)
        self._actor_class = actor_class.options(
            num_gpus=placement.gpus,
            num_cpus=placement.cpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2,  # one thread works, one tells the news
        )
        self._tasks = tasks
        self._placement = placement
        self._on_progress = on_progress
        self._stall_timeout_s = stall_timeout_s
        self._members: dict[str, _Member] = {}
        self._idle: list[Any] = []

    def start(self, run_id: str) -> None:
        """Take an actor that is free, or create one; Ray queues it until a machine has room."""
        actor = self._idle.pop() if self._idle else self._actor_class.remote()
        self._members[run_id] = _Member(actor, actor.prepare.remote(self._tasks[run_id].handshake))

    def run(self, run_id: str) -> None:
        """Send the job to its actor."""
        task = self._tasks[run_id]
        self._expect(run_id, "running", getattr(self._members[run_id].actor, task.method).remote(*task.args))

    def collect(self, run_id: str) -> None:
        """Ask its actor for the result."""
        self._expect(run_id, "collecting", self._members[run_id].actor.take.remote())

    def poll(self, timeout_s: float) -> Mapping[str, Sighting]:
        """Look at every actor, waiting up to `timeout_s` for one of them to be ready or finished."""
        refs = [member.pending for member in self._members.values()]
        if refs:
            self._ray.wait(refs, num_returns=1, timeout=timeout_s)
        here = set(self._ray.wait(refs, num_returns=len(refs), timeout=0)[0]) if refs else set()
        sightings = {run_id: self._look(member, member.pending in here) for run_id, member in self._members.items()}
        for run_id, sighting in sightings.items():
            if sighting.seen == "running" and self._tasks[run_id].method == "train":
                self._ask_for_news(self._members[run_id])
        return sightings

    def place(self, run_id: str) -> WorkerPlace | None:
        """Where its actor is, once it has shaken hands."""
        member = self._members.get(run_id)
        return member.place if member else None

    def stop(self, run_id: str) -> None:
        """Kill the actor: its process, its memory and its GPU are free at once. Without Ray it is gone already."""
        member = self._members.pop(run_id, None)
        if member is not None:
            self._kill(member.actor)

    def free(self, run_id: str, *, keep: bool) -> None:
        """Keep the actor for another job, or kill it."""
        if keep:
            self._idle.append(self._members.pop(run_id).actor)
            return
        self.stop(run_id)
        self._kill_idle()

    def close(self) -> None:
        """Kill every actor."""
        for run_id in list(self._members):
            self.stop(run_id)
        self._kill_idle()

    def shortage(self) -> ResourceError:
        """Why no worker came."""
        return ResourceError(
            f"No worker came in time: each asks for {self._placement}; the cluster has {cluster_view()}, "
            f"of which {free_resources()} are free.",
            remedy="Wait for other jobs on the cluster to end, lower ray.gpus_per_shard or ray.cpus_per_shard, "
            "or raise ray.schedule_timeout_s.",
        )

    def _kill(self, actor: Any) -> None:
        if self._ray.is_initialized():
            self._ray.kill(actor, no_restart=True)

    def _kill_idle(self) -> None:
        while self._idle:
            self._kill(self._idle.pop())

    def _expect(self, run_id: str, stage: Literal["running", "collecting"], pending: Any) -> None:
        member = self._members[run_id]
        member.stage, member.pending, member.heard_s = stage, pending, time.monotonic()

    def _look(self, member: _Member, here: bool) -> Sighting:
        """What one actor does, fetching what it has sent."""
        if not here:
            return self._waiting(member)
        sighting = _fetch(member.pending)
        if member.stage == "starting":
            member.place = sighting.value if sighting.seen == "returned" else None
            return _handshake_sighting(sighting)
        if member.stage == "running" and sighting.seen == "returned":
            self._hear(member, timeout_s=_LAST_NEWS_TIMEOUT_S)
            for progress in sighting.value:
                self._on_progress(progress)
            return Sighting("finished")
        return sighting

    def _waiting(self, member: _Member) -> Sighting:
        """What an actor is taken to do that has not answered: at work, or stuck."""
        silent_s = time.monotonic() - member.heard_s
        limits = {"running": self._stall_timeout_s, "collecting": _COLLECT_TIMEOUT_S}
        if silent_s <= limits.get(member.stage, silent_s):
            return Sighting(member.stage)
        seen: Seen = "died" if member.stage == "running" else "lost"
        what = "reported no progress" if member.stage == "running" else "did not hand over its result"
        return Sighting(seen, error=_gone(f"The worker on {member.place} {what} for {silent_s:.0f} s", None))

    def _ask_for_news(self, member: _Member) -> None:
        """Pass on the progress that has come, and ask for more."""
        self._hear(member, timeout_s=0)
        if member.news is None:
            member.news = member.actor.news.remote()

    def _hear(self, member: _Member, *, timeout_s: float) -> None:
        """Pass on the answer to the last question, if it is there in time. News that cannot be had is no news."""
        if member.news is None or not self._ray.wait([member.news], timeout=timeout_s)[0]:
            return
        for progress in _fetch(member.news).value or ():
            member.heard_s = time.monotonic()
            self._on_progress(progress)
        member.news = None


def _fetch(ref: Any) -> Sighting:
    """The value behind a ready ref as our own writable copy, or what became of the actor that owed it.

    Ray's arrays are read-only views of its object store and hold their memory there; copies outlive both.
    """
    import ray
    from ray import exceptions

    try:
        return Sighting("returned", copy.deepcopy(ray.get(ref, timeout=_FETCH_TIMEOUT_S)))
    except exceptions.RayTaskError as error:
        return Sighting("raised", error=_cause(error))
    except exceptions.ActorUnavailableError as error:
        return Sighting("lost", error=_gone("A worker cannot be reached", error))
    except (exceptions.RayActorError, exceptions.OutOfMemoryError, exceptions.RuntimeEnvSetupError) as error:
        return Sighting("died", error=_gone("A worker died before it returned", error))
    except exceptions.RayError as error:
        return Sighting("lost", error=_gone("What a worker returned cannot be read", error))


def _handshake_sighting(sighting: Sighting) -> Sighting:
    """A handshake carries nothing noisy: it succeeds, fails for good, or its worker is gone."""
    if sighting.seen == "returned":
        return Sighting("ready")
    if sighting.seen == "lost":
        return Sighting("died", error=sighting.error)
    if sighting.seen == "raised" and not isinstance(sighting.error, PrivshardError):
        return Sighting("raised", error=_gone("A worker could not start", sighting.error))
    return sighting


def _cause(error: Any) -> Exception:
    """The exception that was raised in the worker, as it was raised, with the worker's traceback as a note."""
    cause = error.cause
    if not isinstance(cause, Exception):
        return RuntimeError(str(error))
    cause.add_note(f"In the worker:\n{error}")
    return cause


def _gone(what: str, error: Exception | None) -> ResourceError:
    """A ResourceError with Ray's account of it on one line."""
    return ResourceError(
        f"{what}{': ' if error else '.'}{' '.join(str(error or '').split())}",
        remedy="Check the memory of the machine and Ray's logs on it; a smaller micro_batch needs less.",
    )
