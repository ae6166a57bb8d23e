"""The control loop on a fleet that follows a script: no cluster, no waiting."""

from __future__ import annotations

from collections import defaultdict

import pytest

from privshard.runtime.controller import Outcome, Sighting, supervise
from privshard.runtime.policy import Limits

READY, DIED = Sighting("ready"), Sighting("died", error=RuntimeError("gone"))


class ScriptedFleet:
    """Shows each worker of a job the next list of sightings, one a poll; the last one stays. Time passes by polling."""

    def __init__(self, **scripts: list[list[Sighting]]) -> None:
        self.scripts = scripts
        self.alive: dict[str, list[Sighting]] = {}
        self.started: dict[str, int] = defaultdict(int)
        self.told: list[str] = []
        self.most_alive = 0
        self.asked: list[str] = []
        self.closed = False
        self.now = 0.0

    def start(self, run_id: str) -> None:
        assert run_id not in self.alive
        self.alive[run_id] = list(self.scripts[run_id][self.started[run_id]])
        self.started[run_id] += 1
        self.most_alive = max(self.most_alive, len(self.alive))

    def run(self, run_id: str) -> None:
        self.told.append(run_id)

    def collect(self, run_id: str) -> None:
        self.asked.append(run_id)

    def place(self, run_id: str) -> None:
        return None

    def free(self, run_id: str, *, keep: bool) -> None:
        self.stop(run_id)

    def close(self) -> None:
        self.closed = True

    def poll(self, timeout_s: float) -> dict[str, Sighting]:
        self.now += 1.0
        return {run_id: s.pop(0) if len(s) > 1 else s[0] for run_id, s in self.alive.items()}

    def stop(self, run_id: str) -> None:
        self.alive.pop(run_id, None)

    def shortage(self) -> Exception:
        return LookupError("no room")


def returns(value: object, *, after: int = 0) -> list[Sighting]:
    return [READY, *[Sighting("running")] * after, Sighting("finished"), Sighting("returned", value)]


def outcomes(fleet: ScriptedFleet, **limits) -> dict[str, Outcome]:
    limits = {"concurrent": 2, "max_retries": 1, **limits}
    run = supervise(list(fleet.scripts), fleet, limits=Limits(**limits), clock=lambda: fleet.now)
    seen = list(run)
    assert len(seen) == len(fleet.scripts)
    assert not fleet.alive
    return {outcome.run_id: outcome for outcome in seen}


def test_every_job_returns_and_never_more_workers_than_slots() -> None:
    fleet = ScriptedFleet(**{name: [returns(name, after=i)] for i, name in enumerate("abcde")})
    assert {name: outcome.value for name, outcome in outcomes(fleet).items()} == {name: name for name in "abcde"}
    assert fleet.most_alive == 2
    assert sorted(fleet.told) == list("abcde")


def test_a_dead_worker_is_replaced_and_the_job_keeps_its_id() -> None:
    fleet = ScriptedFleet(a=[[READY, DIED], returns(1)])
    assert outcomes(fleet) == {"a": Outcome("a", value=1)}
    assert fleet.started["a"] == 2


def test_a_worker_that_keeps_dying_fails_with_its_last_error_and_nothing_released() -> None:
    fleet = ScriptedFleet(a=[[READY, DIED], [DIED]], b=[returns(2)])
    result = outcomes(fleet)
    assert result["a"] == Outcome("a", error=DIED.error, released=False)
    assert result["b"].value == 2


def test_a_raised_error_ends_only_its_own_job() -> None:
    error = ValueError("bad")
    fleet = ScriptedFleet(a=[[READY, Sighting("raised", error=error)]], b=[returns(2)])
    result = outcomes(fleet)
    assert result["a"].error is error
    assert fleet.started["a"] == 1
    assert result["b"].value == 2


def test_a_lost_result_counts_as_released() -> None:
    fleet = ScriptedFleet(a=[[READY, Sighting("finished"), Sighting("lost", error=RuntimeError())]])
    assert outcomes(fleet)["a"].released


def test_a_result_is_asked_for_only_after_that_was_marked() -> None:
    fleet = ScriptedFleet(a=[returns(1)], b=[returns(2)])
    marked: list[str] = []

    def mark(run_id: str) -> None:
        assert run_id not in fleet.asked
        marked.append(run_id)

    list(supervise(["a", "b"], fleet, limits=Limits(2), before_release=mark, clock=lambda: fleet.now))
    assert sorted(marked) == sorted(fleet.asked) == ["a", "b"]


def test_where_the_mark_fails_nobody_asks() -> None:
    fleet = ScriptedFleet(a=[returns(1)])

    def fail(run_id: str) -> None:
        raise LookupError("no database")

    with pytest.raises(LookupError, match="no database"):
        list(supervise(["a"], fleet, limits=Limits(2), before_release=fail, clock=lambda: fleet.now))
    assert fleet.asked == []
    assert not fleet.alive
    assert fleet.closed


def test_every_step_of_a_job_is_told() -> None:
    fleet = ScriptedFleet(a=[[READY, DIED], returns(1)], b=[[READY, Sighting("raised", error=ValueError("secret"))]])
    told = []
    list(supervise(["a", "b"], fleet, limits=Limits(2), on_event=told.append, clock=lambda: fleet.now))
    life = ["queued", "starting", "running", "retried", "starting", "running", "finished", "collecting", "done"]
    assert [event.what for event in told if event.run_id == "a"] == life
    assert [event.error for event in told if event.what in ("retried", "failed")] == ["RuntimeError", "ValueError"]
    assert "secret" not in str(told)


def test_workers_that_never_come_fail_in_time_not_never() -> None:
    waiting = [[Sighting("starting")]]
    fleet = ScriptedFleet(a=waiting, b=waiting, c=waiting)
    result = outcomes(fleet, schedule_timeout_s=10)
    assert {type(outcome.error) for outcome in result.values()} == {LookupError}
    assert fleet.now == pytest.approx(11)  # the whole queue fails with the first, not 10 s each
    assert fleet.started["c"] == 0


def test_a_worker_waits_behind_our_own_long_job() -> None:
    late = [*[Sighting("starting")] * 60, *returns(2)]
    fleet = ScriptedFleet(a=[returns(1, after=30)], b=[late])
    assert outcomes(fleet, schedule_timeout_s=10)["b"].error is not None
    fleet = ScriptedFleet(a=[returns(1, after=55)], b=[late])
    assert outcomes(fleet, schedule_timeout_s=10)["b"].value == 2


def test_time_that_the_consumer_takes_is_not_counted_as_waiting() -> None:
    fleet = ScriptedFleet(a=[returns(1)], b=[[*[Sighting("starting")] * 4, *returns(2)]])
    values = []
    for outcome in supervise(["a", "b"], fleet, limits=Limits(2, schedule_timeout_s=10), clock=lambda: fleet.now):
        fleet.now += 1000
        values.append(outcome.value)
    assert values == [1, 2]


def test_an_abandoned_iterator_stops_every_worker() -> None:
    fleet = ScriptedFleet(a=[returns(1)], b=[returns(2, after=99)], c=[returns(3, after=99)])
    run = supervise(["a", "b", "c"], fleet, limits=Limits(2), clock=lambda: fleet.now)
    assert next(run).value == 1
    assert set(fleet.alive) == {"b", "c"}  # the free slot was filled before the consumer got its turn
    run.close()
    assert not fleet.alive
