"""The command `tune`: what it asks for, and what it shows."""

from __future__ import annotations

from privshard.cli import main


def test_values_are_read_as_yaml_reads_them(calls):
    given = ["--try", "training.lr=0.1,1", "--try", "training.loss=square,null", "--folds", "2", "--set", "shards=2"]
    assert main(["tune", *given]) == 0
    verb, (recipe,), keywords = calls[-1]
    assert (verb, recipe.shards, keywords["folds"]) == ("tune", 2, 2)
    assert keywords["grid"] == {"training.lr": [0.1, 1], "training.loss": ["square", None]}
    assert main(["tune"]) == 0
    assert calls[-1][2]["grid"] is None


def test_the_best_comes_first_beside_the_warning(calls, capsys):
    assert main(["tune"]) == 0
    shown = capsys.readouterr().out
    assert "best: --set training.lr=0.1" in shown
    assert shown.index("0.75") < shown.index("0.5")
    assert "Not private: somebody looked." in shown


def test_a_try_without_values_is_refused(calls, capsys):
    assert main(["tune", "--try", "training.lr"]) == 2
    assert "expected KEY=VALUE,VALUE" in capsys.readouterr().err
    assert not calls
