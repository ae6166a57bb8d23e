"""The priority lane: who waits for whom, and that nobody waits for the dead."""

from __future__ import annotations

from privshard.runtime.lane import LaneBook


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_trainings_hold_while_a_removal_waits_and_go_on_when_it_has_room():
    book = LaneBook(clock=Clock())
    assert book.tell("training", urgent=False, waiting=True) == (False, False)
    assert book.tell("removal", urgent=True, waiting=True) == (False, True)
    assert book.tell("training", urgent=False, waiting=True) == (True, False)
    assert book.tell("removal", urgent=True, waiting=False) == (False, True)
    assert book.tell("training", urgent=False, waiting=True) == (False, False)


def test_who_is_silent_is_forgotten():
    clock = Clock()
    book = LaneBook(lease_s=10, clock=clock)
    book.tell("removal", urgent=True, waiting=True)
    book.tell("training", urgent=False, waiting=True)
    clock.now = 9.0
    assert book.tell("other", urgent=False, waiting=True) == (True, True)
    clock.now = 11.0
    assert book.tell("other", urgent=False, waiting=True) == (False, False)


def test_who_leaves_is_forgotten_at_once():
    book = LaneBook(clock=Clock())
    book.tell("removal", urgent=True, waiting=True)
    book.leave("removal")
    book.leave("nobody")
    assert book.tell("training", urgent=False, waiting=True) == (False, False)
