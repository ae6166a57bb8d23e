"""The ledger's verbs: spends, the noisy count, model versions, requests, facts, and their commit points."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privshard.core.errors import BudgetError, InputError, ResourceError, VerificationError
from privshard.core.model import Composition
from privshard.core.privacy import MechanismPlan
from privshard.core.removal import RemovalRequest
from privshard.store import ledger_schema
from privshard.store.journal import Journal
from privshard.store.ledger import Ledger


def admit_all(_plans):
    """No limit."""


def refuse(_plans):
    raise BudgetError("spent", remedy="drop instead")


@pytest.fixture
def ledger(tmp_path):
    with Ledger.create(tmp_path / "ledger.db", workspace_id="w1") as made:
        yield made


def entries(ledger):
    return ledger.head[0]


class TestOpening:
    def test_create_then_open(self, ledger, tmp_path):
        with Ledger.open(tmp_path / "ledger.db") as again:
            assert (again.workspace_id, again.created) == ("w1", ledger.created)
        with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as by_url:
            assert by_url.workspace_id == "w1"

    def test_create_never_replaces(self, ledger, tmp_path):
        with pytest.raises(InputError, match="found one"):
            Ledger.create(tmp_path / "ledger.db", workspace_id="w2")
        assert ledger.workspace_id == "w1"

    def test_opening_makes_nothing(self, tmp_path):
        with pytest.raises(InputError, match="found none"):
            Ledger.open(tmp_path / "ledger.db")
        assert list(tmp_path.iterdir()) == []

    def test_interrupted_creation_is_completed(self, tmp_path):
        (tmp_path / "ledger.db").touch()
        assert not Ledger.exists(tmp_path / "ledger.db")
        with pytest.raises(InputError, match="found none"):
            Ledger.open(tmp_path / "ledger.db")
        assert Ledger.create(tmp_path / "ledger.db", workspace_id="w1").verify_chain() == []

    def test_newer_schema_is_refused(self, tmp_path, monkeypatch):
        with monkeypatch.context() as newer:
            newer.setattr("privshard.store.journal.SCHEMA_VERSION", 99)
            Ledger.create(tmp_path / "ledger.db", workspace_id="w1")
        with pytest.raises(InputError, match=r"schema 1 .*got schema 99.*Upgrade"):
            Ledger.open(tmp_path / "ledger.db")

    def test_foreign_file_is_named(self, tmp_path):
        (tmp_path / "ledger.db").write_bytes(b"not a database, but long enough to look at" * 100)
        with pytest.raises(VerificationError, match=r"ledger\.db"):
            Ledger.open(tmp_path / "ledger.db")

    def test_place_that_fails_is_named(self, tmp_path):
        with pytest.raises(ResourceError, match="nowhere"):
            Ledger.create(tmp_path / "nowhere" / "ledger.db", workspace_id="w1")

    def test_missing_driver_hides_the_password(self):
        with pytest.raises(ResourceError) as caught:
            Ledger.create("postgresql+nosuchdriver://ada:hunter2@db/privshard", workspace_id="w1")
        assert "hunter2" not in str(caught.value)
        assert "db/privshard" in str(caught.value)


class TestSpends:
    def test_reserve_commit_and_read_back(self, ledger, plan):
        made = ledger.reserve("r0", shard=2, attempt=0, plan=plan, admit=admit_all)
        assert (made.run_id, made.shard, made.attempt, made.plan, made.state) == ("r0", 2, 0, plan, "reserved")
        ledger.commit("r0", component="c0")
        (held,) = ledger.reservations()
        assert (held.state, held.component, held.created) == ("committed", "c0", made.created)
        assert ledger.spent_plans(2) == [plan]
        assert ledger.spent_plans(1) == []

    def test_admit_sees_what_counts_on_the_shard_and_the_new_plan_last(self, ledger, plan):
        seen = []
        plans = [dataclasses.replace(plan, steps=steps) for steps in (1, 2, 3, 4)]
        ledger.reserve("other", shard=1, attempt=0, plan=plan, admit=admit_all)
        for attempt, each in enumerate(plans):
            ledger.reserve(f"r{attempt}", shard=0, attempt=attempt, plan=each, admit=lambda all_: seen.append(all_))
            if attempt == 1:
                ledger.void("r1", reason="the actor never started")
        assert seen == [plans[:1], plans[:2], [plans[0], plans[2]], [plans[0], plans[2], plans[3]]]

    def test_refusal_writes_nothing(self, ledger, plan):
        before = ledger.head
        with pytest.raises(BudgetError, match="spent"):
            ledger.reserve("r0", shard=0, attempt=0, plan=plan, admit=refuse)
        assert ledger.head == before
        assert ledger.next_attempt(0) == 0

    def test_same_run_again_adds_nothing_and_asks_nobody(self, ledger, plan):
        ledger.reserve("r0", shard=0, attempt=0, plan=plan, admit=admit_all)
        ledger.commit("r0", component="c0")
        before = ledger.head
        equal = MechanismPlan(**dataclasses.asdict(plan))
        assert ledger.reserve("r0", shard=0, attempt=0, plan=equal, admit=refuse).state == "committed"
        ledger.commit("r0", component="c0")
        assert ledger.head == before

    @pytest.mark.parametrize("change", [{"shard": 1}, {"attempt": 1}, {"plan": {"steps": 4}}])
    def test_same_run_with_another_plan_is_refused(self, ledger, plan, change):
        ledger.reserve("r0", shard=0, attempt=0, plan=plan, admit=admit_all)
        other = dataclasses.replace(plan, **change.pop("plan", {}))
        with pytest.raises(InputError, match="new run id"):
            ledger.reserve("r0", **{"shard": 0, "attempt": 0, **change}, plan=other, admit=admit_all)

    def test_attempts_are_never_used_twice(self, ledger, plan):
        ledger.reserve("r0", shard=0, attempt=0, plan=plan, admit=admit_all)
        ledger.void("r0", reason="no GPU")
        assert ledger.next_attempt(0) == 1
        assert ledger.next_attempt(1) == 0
        with pytest.raises(InputError, match=r"unused attempt of shard 0, got 0.*Take 1"):
            ledger.reserve("r1", shard=0, attempt=0, plan=plan, admit=admit_all)

    def test_voided_run_stops_counting_and_never_starts_again(self, ledger, plan):
        ledger.reserve("r0", shard=0, attempt=0, plan=plan, admit=admit_all)
        ledger.void("r0", reason="no GPU")
        ledger.void("r0", reason="no GPU, still")
        assert ledger.spent_plans(0) == []
        with pytest.raises(InputError, match="voided"):
            ledger.reserve("r0", shard=0, attempt=0, plan=plan, admit=admit_all)
        with pytest.raises(InputError, match="is voided"):
            ledger.commit("r0", component="c0")

    def test_what_cannot_be_closed(self, ledger, plan):
        with pytest.raises(InputError, match="never reserved"):
            ledger.commit("r0", component="c0")
        with pytest.raises(InputError, match="never reserved"):
            ledger.void("r0", reason="why not")
        ledger.reserve("r0", shard=0, attempt=0, plan=plan, admit=admit_all)
        ledger.commit("r0", component="c0")
        with pytest.raises(InputError, match="committed as c0"):
            ledger.void("r0", reason="too late")
        with pytest.raises(InputError, match="committed as c0"):
            ledger.commit("r0", component="c1")

    def test_one_noisy_count(self, ledger):
        assert ledger.noisy_count() is None
        first = ledger.record_count(101.5, noise_multiplier=20.0, nominal=100.0)
        assert ledger.record_count(87.0, noise_multiplier=20.0, nominal=90.0) == first == ledger.noisy_count()
        assert (first.value, first.nominal) == (101.5, 100.0)
        with pytest.raises(InputError, match=r"20\.0, got 10\.0"):
            ledger.record_count(101.5, noise_multiplier=10.0, nominal=100.0)

    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.tuples(st.sampled_from(["reserve", "commit", "void"]), st.integers(0, 3)), max_size=12))
    def test_agrees_with_a_dictionary(self, tmp_path_factory, steps):
        """Whatever the order of verbs, states and spends are those of a plain dictionary of runs."""
        plan = MechanismPlan("example", 0.5, 1, 1.0, 1.0, 1.0, 1e-5, "rdp")
        ledger = Ledger.create(tmp_path_factory.mktemp("law") / "ledger.db", workspace_id="w")
        oracle: dict[str, str] = {}
        for verb, number in steps:
            run, state = f"r{number}", oracle.get(f"r{number}")
            closed = {"commit": "committed", "void": "voided"}.get(verb)
            good = state != "voided" if verb == "reserve" else state in ("reserved", closed)
            try:
                if verb == "reserve":
                    ledger.reserve(run, shard=number % 2, attempt=number, plan=plan, admit=admit_all)
                elif verb == "commit":
                    ledger.commit(run, component=f"c{number}")
                else:
                    ledger.void(run, reason="because")
                assert good
            except InputError:
                assert not good
            if good:
                oracle[run] = closed or oracle.get(run, "reserved")
        assert {item.run_id: item.state for item in ledger.reservations()} == oracle
        for shard in (0, 1):
            runs = [run for run, state in oracle.items() if state != "voided" and int(run[1:]) % 2 == shard]
            assert len(ledger.spent_plans(shard)) == len(runs)
        assert ledger.verify_chain() == []


class TestModels:
    def test_versions_count_from_one(self, ledger):
        assert ledger.current_model() is None
        first, second = Composition.uniform("b", ["c0", "c1", "c2"]), Composition.uniform("b", ["c0"])
        assert ledger.add_model(first, reason="train", metrics={"accuracy": 0.5}) == 1
        assert ledger.add_model(second, reason="forget") == 2
        assert [(item.version, item.composition, item.reason) for item in ledger.models()] == [
            (1, first, "train"),
            (2, second, "forget"),
        ]
        assert ledger.models()[0].metrics == {"accuracy": 0.5}
        current = ledger.current_model()
        assert current is not None
        assert (current.version, current.metrics) == (2, None)

    def test_metrics_must_be_json(self, ledger):
        for bad in (float("nan"), {1, 2}):
            with pytest.raises(InputError, match="plain JSON"):
                ledger.add_model(Composition("b", {}), reason="train", metrics={"accuracy": bad})
        assert ledger.models() == []


class TestRequests:
    ASKED = RemovalRequest(id="q1", subject_hash="5f", mode="drop")

    def test_request_to_receipt(self, ledger):
        ledger.add_request(self.ASKED)
        (open_,) = ledger.requests()
        assert (open_.request, open_.receipt, open_.completed) == (self.ASKED, None, None)
        assert ledger.receipt_for("5f") is None
        assert ledger.suppressed() == frozenset()
        ledger.complete_request("q1", receipt={"guarantee": "exact_drop"})
        assert ledger.receipt_for("5f") == {"guarantee": "exact_drop"}
        assert ledger.suppressed() == {"5f"}
        assert ledger.requests()[0].completed is not None

    def test_again_adds_nothing_and_contradictions_are_refused(self, ledger):
        ledger.add_request(self.ASKED)
        ledger.add_request(self.ASKED)
        ledger.complete_request("q1", receipt={"a": 1}, suppress=False)
        before = ledger.head
        ledger.complete_request("q1", receipt={"a": 1}, suppress=False)
        assert ledger.head == before
        assert ledger.suppressed() == frozenset()
        with pytest.raises(InputError, match="another receipt"):
            ledger.complete_request("q1", receipt={"a": 2})
        with pytest.raises(InputError, match="q1"):
            ledger.add_request(dataclasses.replace(self.ASKED, subject_hash="60"))
        with pytest.raises(InputError, match="q2"):
            ledger.complete_request("q2", receipt={})

    def test_receipt_and_suppression_are_one_commit_point(self, ledger, monkeypatch):
        ledger.add_request(self.ASKED)
        append = Journal.append

        def fail_at_suppression(self, kind, **rest):
            if kind == "suppress":
                raise OSError("power failure")
            append(self, kind, **rest)

        with monkeypatch.context() as patched:
            patched.setattr(Journal, "append", fail_at_suppression)
            with pytest.raises(OSError, match="power"):
                ledger.complete_request("q1", receipt={"a": 1})
        assert ledger.receipt_for("5f") is None
        assert ledger.verify_chain() == []


class TestTransactions:
    def test_many_entries_one_commit_point(self, ledger, tmp_path):
        ledger.add_request(TestRequests.ASKED)
        before = ledger.head
        with pytest.raises(KeyError):
            self._undone(ledger, tmp_path, before)
        assert ledger.head == before
        with ledger.transaction():
            ledger.add_model(Composition("b", {}), reason="forget")
            ledger.complete_request("q1", receipt={})
        assert entries(ledger) == before[0] + 3

    def _undone(self, ledger, tmp_path, before):
        with ledger.transaction():
            ledger.add_model(Composition("b", {}), reason="forget")
            ledger.complete_request("q1", receipt={})
            with ledger.transaction():
                ledger.put("base_digest", "b")
            assert ledger.get("base_digest") == "b"
            with Ledger.open(tmp_path / "ledger.db") as reader:
                assert reader.head == before
            raise KeyError

    def test_refusal_inside_a_transaction_undoes_only_itself(self, ledger, plan):
        with ledger.transaction():
            ledger.put("a", 1)
            with pytest.raises(BudgetError):
                ledger.reserve("r0", shard=0, attempt=0, plan=plan, admit=refuse)
            ledger.put("b", 2)
        assert ledger.facts() == {"a": 1, "b": 2}
        assert ledger.reservations() == []


def test_facts_last_one_wins_and_unchanged_ones_add_nothing(ledger):
    assert ledger.get("recipe_digest") is None
    assert ledger.get("recipe_digest", "absent") == "absent"
    ledger.put("recipe_digest", "d1")
    ledger.put("none", None)
    ledger.put("recipe_digest", {"nested": [1, 2.5, None]})
    before = ledger.head
    ledger.put("recipe_digest", {"nested": [1, 2.5, None]})
    ledger.put("none", None)
    assert ledger.head == before
    assert ledger.facts() == {"recipe_digest": {"nested": [1, 2.5, None]}, "none": None}


def test_nothing_new_is_spent_on_a_clock_that_runs_backwards(ledger, plan, monkeypatch):
    monkeypatch.setattr(ledger_schema, "utc_now", lambda: "2001-01-01T00:00:00.000000+00:00")
    head = ledger.head
    with pytest.raises(ResourceError, match=r"earlier than the ledger's last entry.*no training is started"):
        ledger.reserve("r0", shard=0, attempt=0, plan=plan, admit=admit_all)
    assert ledger.head == head
    monkeypatch.setenv("PRIVSHARD_ACCEPT_CLOCK", "1")
    with pytest.warns(UserWarning, match="clock of this machine"):
        ledger.reserve("r0", shard=0, attempt=0, plan=plan, admit=admit_all)
    assert len(ledger.spent_plans(0)) == 1


def test_a_clock_that_runs_backwards_is_noted(ledger, monkeypatch, tmp_path):
    early = "2001-01-01T00:00:00.000000+00:00"
    monkeypatch.setattr(ledger_schema, "utc_now", lambda: early)
    with pytest.warns(UserWarning, match="clock of this machine"):
        ledger.put("a", 1)
    (noted,) = Journal.open(tmp_path / "ledger.db").entries("fact")
    assert noted.created == ledger.created
    assert noted.data["clock_read"] == early
    assert ledger.get("a") == 1
    assert ledger.verify_chain() == []
