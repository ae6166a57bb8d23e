"""The commands: what they ask of the library, what they print where, and how they end."""

from __future__ import annotations

import json

import jsonschema
import pytest

from privshard import __version__
from privshard.api import schemas
from privshard.cli import main
from privshard.core.errors import BudgetError, InputError, PrivshardError, ResourceError, VerificationError
from privshard.core.jobs import Progress

NAMES = [name for name in schemas.NAMES if name != "error" and not name.startswith("gift_")]  # test_gift.py


def only_json(capfd) -> dict:
    captured = capfd.readouterr()
    assert captured.out.count("\n") == 1
    return json.loads(captured.out)


@pytest.mark.parametrize("name", NAMES)
def test_json_is_one_object_that_fits_the_schema(name, calls, results, arguments, capfd):
    assert main([*arguments[name], "--json"]) == 0
    printed = only_json(capfd)
    assert printed == results[name]
    jsonschema.validate(printed, schemas.load(name))


@pytest.mark.parametrize("name", NAMES)
def test_every_required_key_is_missed_and_every_other_refused(name, results):
    schema = schemas.load(name)
    for key in schema["required"]:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({other: value for other, value in results[name].items() if other != key}, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**results[name], "surprise": 1}, schema)


@pytest.mark.parametrize("name", NAMES)
def test_people_get_a_summary_on_stdout_and_nothing_on_stderr(name, calls, arguments, capfd):
    assert main(arguments[name]) == 0
    captured = capfd.readouterr()
    assert captured.out.strip()
    assert "%" not in captured.out
    assert captured.err == ""


def test_train_passes_recipe_and_workspace(calls, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("shards: 2\n")
    assert main(["train", str(recipe), "--set", "privacy.epsilon=3", "--set", "privacy.delta=1e-6"]) == 0
    verb, (loaded,), keywords = calls[-1]
    assert verb == "train"
    assert (loaded.shards, loaded.privacy.epsilon, loaded.privacy.delta) == (2, 3.0, 1e-6)
    assert keywords["workspace"] == "./privshard-workspace"
    assert callable(keywords["on_progress"])
    assert main(["train", "--dry-run", "--workspace", "w"]) == 0
    verb, (loaded,), keywords = calls[-1]
    assert (verb, loaded.shards, keywords) == ("plan_training", 4, {"workspace": "w"})


def test_the_other_commands_pass_what_they_were_given(calls):
    assert main(["forget", "w", "--subject", "ada", "--mode", "retrain", "--dry-run"]) == 0
    _, positional, keywords = calls[-1]
    keywords.pop("on_progress")
    assert (positional, keywords) == (("w",), {"subject": "ada", "mode": "retrain", "dry_run": True})
    assert type(keywords["mode"]) is str
    assert main(["budget", "w"]) == 0
    assert calls[-1] == ("budget", ("w",), {})
    assert main(["budget", "w", "--what-if", "noise", "--retrains", "3", "--group-size", "2", "--group-size", "9"]) == 0
    assert calls[-1] == ("budget", ("w",), {"what_if": "noise", "retrains": 3, "group_sizes": [2, 9]})
    assert main(["budget", "w", "--what-if", "retrains", "--noise-multiplier", "4.5"]) == 0
    assert calls[-1] == ("budget", ("w",), {"what_if": "retrains", "noise_multiplier": 4.5})
    assert main(["influence", "w", "--html", "report.html"]) == 0
    assert calls[-1] == ("influence", ("w",), {"html": "report.html"})
    assert main(["predict", "w", "a.png", "b.png"]) == 0
    assert calls[-1] == ("predict", ("w", ["a.png", "b.png"]), {})
    assert main(["import", "f", "--out", "o", "--subject-from", "(x)", "--split-from", "(y)"]) == 0
    assert calls[-1] == ("import_folder", ("f",), {"out": "o", "subject_from": "(x)", "split_from": "(y)"})


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (InputError("What came.", remedy="Do this."), "bad_input", 2),
        (BudgetError("What came.", remedy="Do this."), "budget_refused", 3),
        (ResourceError("What came.", remedy="Do this."), "resource_missing", 4),
        (VerificationError("What came.", remedy="Do this."), "verification_failed", 5),
        (PrivshardError("What came.", remedy="Do this."), "internal", 1),
    ],
)
def test_domain_errors_say_their_kind_and_remedy(error, kind, code, calls, monkeypatch, capfd):
    calls.replace(monkeypatch, "forget", error)
    assert main(["forget", "ws", "--subject", "ada", "--json"]) == code
    printed = only_json(capfd)
    assert printed == {"error": {"kind": kind, "message": "What came.", "remedy": "Do this."}}
    jsonschema.validate(printed, schemas.load("error"))
    assert main(["forget", "ws", "--subject", "ada"]) == code
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "Error: What came.\nDo this.\n")


def test_other_exceptions_are_internal_errors_in_one_line(calls, monkeypatch, capfd):
    calls.replace(monkeypatch, "budget", KeyError("first\nsecond"))
    assert main(["budget", "ws", "--json"]) == 1
    error = only_json(capfd)["error"]
    assert error["kind"] == "internal"
    assert error["message"].startswith("KeyError")
    assert "--debug" in error["remedy"]
    assert main(["budget", "ws"]) == 1
    assert "Traceback" not in capfd.readouterr().err
    assert main(["budget", "ws", "--debug", "--json"]) == 1
    captured = capfd.readouterr()
    assert "Traceback" in captured.err
    assert json.loads(captured.out)["error"]["kind"] == "internal"


def test_a_result_that_cannot_be_printed_is_an_internal_error_too(calls, monkeypatch, capfd):
    calls.replace(monkeypatch, "budget", {"statement": object()})
    assert main(["budget", "ws", "--json"]) == 1
    assert only_json(capfd)["error"]["kind"] == "internal"
    assert main(["budget", "ws"]) == 1


def test_wrong_recipes_end_with_2(calls, capfd, tmp_path):
    assert main(["train", str(tmp_path / "absent.yaml"), "--json"]) == 2
    assert "absent.yaml" in only_json(capfd)["error"]["message"]
    assert main(["train", "--set", "privacy.epsilon=-1", "--json"]) == 2
    assert "privacy.epsilon: expected a number above 0" in only_json(capfd)["error"]["message"]
    assert calls == []


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (["frget", "ws"], "frget"),
        (["forget", "ws"], "--subject"),
        (["forget", "ws", "--subject", "ada", "--mode", "burn"], "burn"),
        (["budget"], "WORKSPACE"),
        (["budget", "ws", "--colour"], "--colour"),
    ],
)
def test_usage_errors_end_with_2_as_json_too(given, named, calls, capfd):
    assert main([*given, "--json"]) == 2
    printed = only_json(capfd)
    assert printed["error"]["kind"] == "bad_input"
    assert named in printed["error"]["message"]
    assert "--help" in printed["error"]["remedy"]
    jsonschema.validate(printed, schemas.load("error"))
    assert main(given) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert named in captured.err


def test_verify_that_fails_prints_its_checks_and_ends_with_5(calls, monkeypatch, capfd):
    result = {"ok": False, "checks": [{"name": "digests", "ok": False, "detail": "one is wrong"}]}
    calls.replace(monkeypatch, "verify", result)
    assert main(["verify", "ws", "--json"]) == 5
    assert only_json(capfd) == result
    assert main(["verify", "ws"]) == 5
    assert "Verification failed: 1 of 1" in capfd.readouterr().out


def test_an_interruption_ends_with_130_and_one_line(calls, monkeypatch, capfd):
    calls.replace(monkeypatch, "train", KeyboardInterrupt())
    assert main(["train"]) == 130
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == "Stopped: train was interrupted. Run the same command again to resume.\n"
    assert main(["train", "--json"]) == 130
    assert only_json(capfd)["error"]["kind"] == "interrupted"


def test_progress_goes_to_stderr(calls, monkeypatch, results, capfd):
    def work(recipe, *, workspace, on_progress):
        on_progress(Progress("run", 1, "training", 0, 60))
        on_progress(Progress("run", 1, "training", 60, 60))
        return results["train"]

    calls.replace(monkeypatch, "train", work)
    assert main(["train", "--json"]) == 0
    captured = capfd.readouterr()
    assert json.loads(captured.out) == results["train"]
    assert [line.split("] ")[1] for line in captured.err.splitlines()] == [
        "shard 1: training 0/60",
        "shard 1: training 60/60",
    ]


def test_numbers_that_json_does_not_have_become_null(calls, monkeypatch, results, capfd):
    calls.replace(monkeypatch, "budget", {**results["budget"], "delta": float("nan"), "more": [float("inf"), (1.5,)]})
    assert main(["budget", "ws", "--json"]) == 0
    printed = only_json(capfd)
    assert (printed["delta"], printed["more"]) == (None, [None, [1.5]])


def test_version_and_help(capfd):
    assert main(["--version"]) == 0
    assert capfd.readouterr().out == f"privshard {__version__}\n"
    assert main(["--help"]) == 0
    printed = capfd.readouterr().out
    for command in ("train", "forget", "budget", "influence", "predict", "evaluate", "verify", "import"):
        assert f" {command} " in printed
