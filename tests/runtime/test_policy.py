"""Every decision of the policy, without a cluster."""

from __future__ import annotations

import pytest

from privshard.runtime.policy import Decision, JobState, Limits, advance, decide

LIMITS = Limits(concurrent=2, max_retries=1, schedule_timeout_s=30)


def one(phase, seen=None, *, workers=1, quiet_s=0.0) -> list[Decision]:
    return decide([JobState("a", phase, workers)], {"a": seen} if seen else {}, LIMITS, quiet_s=quiet_s)


def test_jobs_start_in_order_up_to_the_slots() -> None:
    states = [JobState(name) for name in "abc"]
    assert decide(states, {}, LIMITS, quiet_s=0) == [Decision("start", "a"), Decision("start", "b")]


@pytest.mark.parametrize("seen", ["returned", "raised", "died", "lost"])
def test_a_slot_is_filled_in_the_same_round_in_which_it_is_freed(seen) -> None:
    states = [JobState("a", "running", 2), JobState("b", "running", 1), JobState("c")]
    assert decide(states, {"a": seen, "b": "running"}, LIMITS, quiet_s=0)[1:] == [Decision("start", "c")]


def test_a_ready_worker_is_told_to_run_once() -> None:
    assert one("starting", "ready") == [Decision("run", "a")]
    assert one("running", "running") == []
    assert one("starting", "starting") == []


def test_a_death_before_the_return_is_retried_then_fails_unreleased() -> None:
    for phase in ("starting", "running"):
        assert one(phase, "died", workers=1) == [Decision("retry", "a")]
        assert one(phase, "died", workers=2) == [Decision("fail", "a", released=False)]


def test_what_the_function_raises_is_not_retried() -> None:
    assert one("running", "raised") == [Decision("fail", "a", released=False)]


def test_a_finished_worker_is_asked_for_its_result_once() -> None:
    assert one("running", "finished") == [Decision("collect", "a")]
    assert one("collecting", "collecting") == []
    assert one("collecting", "returned") == [Decision("finish", "a")]


@pytest.mark.parametrize("seen", ["died", "lost", "raised"])
def test_after_it_was_asked_for_a_result_counts_as_released_and_is_not_retried(seen) -> None:
    assert one("collecting", seen) == [Decision("fail", "a", released=True)]


def test_a_worker_out_of_reach_before_it_was_asked_is_retried() -> None:
    assert one("running", "lost") == [Decision("retry", "a")]
    assert one("running", "lost", workers=2) == [Decision("fail", "a", released=False)]


def test_nothing_starts_while_removals_wait_and_the_slots_fill_afterwards() -> None:
    states = [JobState("a", "running", 1), JobState("b")]
    assert decide(states, {"a": "running"}, LIMITS, quiet_s=0, held=True) == []
    assert decide(states, {"a": "returned"}, LIMITS, quiet_s=0, held=True) == [Decision("finish", "a")]
    assert decide(states, {"a": "running"}, LIMITS, quiet_s=0) == [Decision("start", "b")]
    assert decide([JobState("b")], {}, LIMITS, quiet_s=1e6, held=True) == []


def test_a_removal_is_patient_while_a_training_will_make_room() -> None:
    limits = Limits(concurrent=1, schedule_timeout_s=30, queue_timeout_s=100)
    states, seen = [JobState("a", "starting", 1)], {"a": "starting"}
    assert decide(states, seen, limits, quiet_s=99, room_to_come=True) == []
    assert decide(states, seen, limits, quiet_s=101, room_to_come=True) == [Decision("fail", "a", unscheduled=True)]
    assert decide(states, seen, limits, quiet_s=99) == [Decision("fail", "a", unscheduled=True)]


def test_when_no_worker_comes_all_waiting_jobs_fail_at_once() -> None:
    states = [JobState("a", "starting", 1), JobState("b", "done", 1), JobState("c")]
    limits = Limits(concurrent=1, schedule_timeout_s=30)
    assert decide(states, {"a": "starting"}, limits, quiet_s=30) == []
    assert decide(states, {"a": "starting"}, limits, quiet_s=31) == [
        Decision("fail", "a", unscheduled=True),
        Decision("fail", "c", unscheduled=True),
    ]


def test_workers_wait_on_while_a_job_of_ours_holds_the_room() -> None:
    states = [JobState("a", "running", 1), JobState("b", "starting", 1)]
    assert decide(states, {"a": "running", "b": "starting"}, LIMITS, quiet_s=1e6) == []


def test_a_long_run_is_no_starvation() -> None:
    assert one("running", "running", quiet_s=1e6) == []


def test_states_advance_and_count_workers() -> None:
    state = JobState("a")
    for action, phase, workers in [
        ("start", "starting", 1),
        ("run", "running", 1),
        ("retry", "queued", 1),
        ("start", "starting", 2),
        ("fail", "failed", 2),
    ]:
        state = advance(state, Decision(action, "a"))
        assert (state.phase, state.workers) == (phase, workers)
    assert state.over
    assert not state.active
    assert advance(JobState("a", "running", 1), Decision("finish", "a")).over
