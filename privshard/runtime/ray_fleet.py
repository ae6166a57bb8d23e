"""A fleet whose workers are Ray actors: thin, one a job, gone as soon as the job is over."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from privshard.core.errors import PrivshardError, ResourceError
from privshard.core.jobs import OnProgress
from privshard.runtime.cluster import cluster_view, free_resources
from privshard.runtime.controller import Sighting
from privshard.runtime.resources import Placement
from privshard.runtime.worker import Handshake, ShardWorker

_FETCH_TIMEOUT_S = 60.0  # for an object that Ray has already called ready
_LAST_NEWS_TIMEOUT_S = 1.0  # for news that was asked for before the result came


@dataclass(frozen=True)
class Task:
    """One call of a worker's method, behind its handshake. Object refs among `args` reach the method as values."""

    handshake: Handshake
    method: Literal["train", "call"]
    args: tuple[Any, ...]


@dataclass
class _Member:
    """An actor and what we wait for from it."""

    actor: Any
    pending: Any  # the ref of its handshake, then of its work
    at_work: bool = False
    news: Any = None


class RayFleet:
    """Starts one actor for each task under its job's run id. Every wait in here has a deadline.

    Losing progress is harmless; losing an actor is seen at its pending call, which Ray then ends in an error.
    """

    def __init__(self, tasks: Mapping[str, Task], *, placement: Placement, on_progress: OnProgress) -> None:
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
        self._members: dict[str, _Member] = {}

    def start(self, run_id: str) -> None:
        """Create an actor; Ray queues it until a machine has room."""
        actor = self._actor_class.remote()
        self._members[run_id] = _Member(actor, actor.prepare.remote(self._tasks[run_id].handshake))

    def run(self, run_id: str) -> None:
        """Send the job to its actor."""
        member, task = self._members[run_id], self._tasks[run_id]
        member.pending = getattr(member.actor, task.method).remote(*task.args)
        member.at_work = True

    def poll(self, timeout_s: float) -> Mapping[str, Sighting]:
        """Look at every actor, waiting up to `timeout_s` for one of them to be ready or finished."""
        refs = [member.pending for member in self._members.values()]
        if refs:
            self._ray.wait(refs, num_returns=1, timeout=timeout_s)
        here = set(self._ray.wait(refs, num_returns=len(refs), timeout=0)[0]) if refs else set()
        sightings = {run_id: self._look(member, member.pending in here) for run_id, member in self._members.items()}
        for run_id, sighting in sightings.items():
            if sighting.seen == "running":
                self._ask_for_news(self._members[run_id])
        return sightings

    def stop(self, run_id: str) -> None:
        """Kill the actor: its process, its memory and its GPU are free at once. Without Ray it is gone already."""
        member = self._members.pop(run_id, None)
        if member is not None and self._ray.is_initialized():
            self._ray.kill(member.actor, no_restart=True)

    def shortage(self) -> ResourceError:
        """Why no worker came."""
        return ResourceError(
            f"No worker came in time: each asks for {self._placement}; the cluster has {cluster_view()}, "
            f"of which {free_resources()} are free.",
            remedy="Wait for other jobs on the cluster to end, lower ray.gpus_per_shard or ray.cpus_per_shard, "
            "or raise ray.schedule_timeout_s.",
        )

    def _look(self, member: _Member, here: bool) -> Sighting:
        """What one actor does, fetching what it has sent."""
        if not here:
            return Sighting("running" if member.at_work else "starting")
        sighting = _fetch(member.pending)
        if not member.at_work:
            return _handshake_sighting(sighting)
        if sighting.seen != "returned":
            return sighting
        self._hear(member, timeout_s=_LAST_NEWS_TIMEOUT_S)
        value, news = sighting.value
        for progress in news:
            self._on_progress(progress)
        return Sighting("returned", value)

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
        return Sighting("lost", error=_gone("A worker cannot be reached; it may have returned", error))
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
        f"{what}: {' '.join(str(error).split())}",
        remedy="Check the memory of the machine and Ray's logs on it; a smaller micro_batch needs less.",
    )
