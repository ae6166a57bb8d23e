"""Results such as the library's verbs give, for commands to print."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from privshard import api

PRIVACY = {
    "epsilon": 8.0,
    "delta": 1e-5,
    "unit": "example",
    "adjacency": "add_remove",
    "accountant": "rdp",
    "statement": "One example changes the model by at most [epsilon 8, delta 1e-05].",
}
BASE = {"name": "digits", "digest": "d" * 64}

RESULTS: dict[str, dict[str, Any]] = {
    "train": {
        "workspace": "ws",
        "model": "v0001",
        "base": BASE,
        "public": None,
        "method": {"name": "tangent", "blocks": 2, "engine": "k-block (2 blocks are linearized)"},
        "components": [{"id": f"{shard}" * 64, "shard": shard, "epsilon": 8.0, "delta": 1e-5} for shard in range(2)],
        "metrics": {"accuracy": 0.9375, "num_rows": 160},
        "privacy": PRIVACY,
        "timing_s": {"total": 12.5},
        "confidential": {"num_examples": [700, 698], "num_subjects": [700, 698], "train_s": [5.0, 5.5]},
    },
    "plan": {
        "workspace": "ws",
        "base": BASE,
        "public": None,
        "method": {"name": "tangent", "blocks": 1},
        "shards": 2,
        "noise": {
            "noise_multiplier": 1.25,
            "sample_rate": 0.5,
            "steps": 60,
            "max_grad_norm": 1.0,
            "expected_units": None,
        },
        "privacy": {**PRIVACY, "epsilon_limit": 12.5, "planned_retrains": 1},
        "cost": {"num_trained": 4810},
    },
    "forget": {
        "request": "r-1",
        "status": "done",
        "plan": [{"component": "1" * 64, "action": "drop", "reason": "its shard held the subject"}],
        "model_before": "v0001",
        "model_after": "v0002",
        "metrics_before": {"accuracy": 0.9375},
        "metrics_after": {"accuracy": 0.925},
        "receipt": {"id": "rc-1", "guarantee": "exact_drop"},
        "elapsed_s": 0.75,
    },
    "budget": {
        "unit": "example",
        "delta": 1e-5,
        "shards": [
            {
                "shard": 0,
                "epsilon_spent": 8.0,
                "epsilon_limit": 12.5,
                "epsilon_left": 4.5,
                "retrains_left": 1,
                "releases": 1,
            },
            {
                "shard": 1,
                "epsilon_spent": None,
                "epsilon_limit": None,
                "epsilon_left": None,
                "retrains_left": None,
                "releases": 0,
            },
        ],
        "accountant": "rdp",
        "workspace": {"epsilon_spent": 8.0, "epsilon_limit": 12.5},
        "groups": [{"examples": 4, "epsilon_spent": 31.25, "epsilon_limit": None}],
        "what_if": {
            "question": "retrains",
            "shards": [{"shard": 0, "retrains": 1, "noise_multiplier": 5.5, "epsilon": 12.25, "admitted": True}],
        },
        "statement": "Everything so far: epsilon 8.",
    },
    "influence": {
        "components": [
            {
                "id": "a" * 64,
                "shard": 0,
                "weight": 1.0,
                "weight_distance": 0.125,
                "leave_one_out": {"accuracy": 0.9, "accuracy_change": -0.0375, "mean_logit_shift": 0.25},
                "shapley_accuracy": 0.375,
                "shapley_accuracy_interval": [0.375, 0.375],
                "shapley_logit": 0.5,
                "per_class": [{"class": "7", "num_rows": 2, "accuracy_with": 0.5, "accuracy_without": None}],
            }
        ],
        "edits": [],
        "composition": {"accuracy": 0.9375, "base_accuracy": 0.125, "num_rows": 160},
        "conflict": {"ids": ["a" * 64], "cosine": [[1.0]]},
        "shapley": {"accuracy": {"method": "exact", "num_coalitions": 2}, "logit": None},
        "note": "A note.",
        "model": "v0001",
    },
    "predict": {
        "predictions": [{"image": "a.png", "label": "7", "probability": 0.75, "probabilities": {"7": 0.75, "1": 0.25}}],
        "model": "v0001",
    },
    "evaluate": {
        "model": "v0001",
        "metrics": {"accuracy": 0.9375, "num_rows": 160, "per_class": {"7": 0.5}, "expected_calibration_error": 0.0625},
        "note": "Held-out rows are personal data; these numbers are not covered by the guarantee.",
    },
    "verify": {"ok": True, "checks": [{"name": "digests", "ok": True, "detail": "4 components"}]},
    "audit": {
        "workspace": "ws",
        "kind": "step",
        "ok": True,
        "verdict": "The claim survived this attack.",
        "claim": {"epsilon": 8.0, "delta": 1e-5, "unit": "example", "accountant": "rdp", "adjacency": "add_remove"},
        "lower_bound": {"epsilon": 7.5, "delta": 1e-5, "confidence": 0.95},
        "contradicted": False,
        "threat_model": "White box.",
        "method": "A bound.",
        "not_covered": "Choices.",
        "num_canaries": 50000,
        "num_draws": 250000,
        "attacks": [{"name": "the sum", "epsilon_lower": 7.5, "detail": "One inclusion moves the release."}],
        "checks": [{"name": "noise", "ok": True, "detail": "as planned"}],
        "curve": {"false_alarms": [0.1, 1.0], "claimed": [0.5, 0.0], "planned": [0.6, 0.0], "achieved": [None, 0.0]},
    },
    "tune": {
        "candidates": [
            {"settings": {"training.lr": 0.1}, "accuracy": 0.75, "standard_error": 0.125},
            {"settings": {"training.lr": 1.0}, "accuracy": 0.5, "standard_error": 0.25},
        ],
        "best": {"training.lr": 0.1},
        "folds": 3,
        "num_rows": 12,
        "private": False,
        "statement": "Not private: somebody looked.",
    },
    "sweep": {
        "rates": [0.01, 0.1],
        "seeds": 2,
        "tries": 2,
        "folds": 5,
        "limit": None,
        "complete": True,
        "selection": {"private": False, "note": "Chosen on train rows."},
        "rows": [
            {
                "name": "digits",
                "method": "lora",
                "epsilon": 8.0,
                "shards": 4,
                "parameters": 1024,
                "lr": 0.1,
                "validation": [{"lr": 0.1, "accuracy": 0.5, "num_seeds": 2}],
                "accuracy": 0.5,
                "interval": [0.25, 0.75],
                "accuracies": [0.5, 0.5],
                "train_s": 1.5,
                "peak_bytes": None,
            }
        ],
        "out": "cells.jsonl",
        "table": "| recipe |\n| --- |\n| digits |\n",
    },
    "detached": {
        "workspace": "ws",
        "controller": "privshard-controller-0a1b",
        "address": "head:6379",
        "started": True,
        "state": "running",
    },
    "status": {
        "workspace": "ws",
        "controller": {"name": "privshard-controller-0a1b", "address": "head:6379", "state": "here"},
        "run": {
            "kind": "train",
            "state": "failed",
            "started_s": 1.5e9,
            "updated_s": 1.5e9,
            "ended_s": None,
            "error": {"kind": "resource_missing", "message": "No worker came.", "remedy": "Wait."},
            "retries": 2,
        },
        "stage": "shards",
        "shards": {"total": 2, "committed": 1, "reserved": 1, "not_started": 0, "attempts_spent": 3},
        "model": None,
        "removals": [
            {"request": "r-1", "asked": "2026-11-22T00:00:00+00:00", "deadline": "2026-12-22", "seconds_left": 1e6}
        ],
        "confidential": {
            "jobs": [
                {
                    "run_id": "shard-000-attempt-000",
                    "state": "running",
                    "stage": "train",
                    "done": 3,
                    "total": 60,
                    "node": "machine",
                    "pid": 7,
                    "gpus": ["0"],
                    "retries": 2,
                    "error": "ResourceError",
                }
            ]
        },
    },
    "cancel": {"workspace": "ws", "status": "cancelled"},
    "timeline": {
        "run": "20261122T000000Z-0a1b",
        "kind": "train",
        "state": "done",
        "html": "t.html",
        "trace": None,
        "confidential": {
            "elapsed_s": 12.5,
            "jobs": [
                {
                    "run_id": "shard-000-attempt-000",
                    "state": "done",
                    "stage": "train",
                    "done": 60,
                    "total": 60,
                    "node": "machine",
                    "pid": 7,
                    "gpus": [],
                    "retries": 0,
                    "error": None,
                    "spans": [["running", 1.0, 2.5], ["done", 2.5, None]],
                }
            ],
        },
    },
    "decompose": {
        "workspace": "d",
        "file": "d/decomposition.safetensors",
        "digest": "a" * 64,
        "model": {"name": "vit_tiny_patch16_224", "args": {"img_size": 32}},
        "method": "phased",
        "components": 2,
        "stacks": [{"name": "blocks", "depth": 6, "condition_number": 2.5}],
        "basis": {"polynomial": "chebyshev", "start": 0, "argument": "symmetric"},
        "phases": [{"components": 2, "steps": 10, "loss": 0.5, "accuracy": 0.875}],
        "residuals": {"blocks": {"norm1.weight": [0.5, 0.25]}},
        "data": {"digest": "b" * 64, "num_train": 90, "num_eval": 10, "stated_public": True},
        "statement": "A base is public knowledge.",
        "timing_s": {"total": 1.5},
    },
    "recompose": {
        "out": "m.safetensors",
        "digest": "a" * 64,
        "mode": "free",
        "model": {"name": "vit_tiny_patch16_224", "args": {"depth": 4}},
        "depths": [4],
        "components": 2,
        "parameters": 1000,
        "stored": 1000,
        "statement": "A base is public knowledge.",
        "elapsed_s": 0.5,
    },
    "analyse": {
        "model": "deit_tiny_patch16_224",
        "weights": "random",
        "stacks": [
            {
                "name": "blocks",
                "r2": 0.75,
                "explained": 0.5,
                "scores": [-1.0, 0.0, 1.0],
                "depth": 3,
                "r2_by_chance": 0.5,
                "kinds": [{"name": "norm1.weight", "r2": None, "explained": None, "scores": [0.0, 0.0, 0.0]}],
            }
        ],
        "note": "A line.",
        "html": "t.html",
    },
    "sizes": {
        "workspace": "d",
        "device": "cpu, 1 thread(s)",
        "budget": {"parameters": 1000, "latency_ms": None, "memory_bytes": None},
        "by": "latency_ms",
        "data": {"path": "x.parquet", "split": "eval", "num_rows": 10},
        "sizes": [
            {
                "depths": [4],
                "components": 2,
                "parameters": 900,
                "stored": 500,
                "latency_ms": 1.25,
                "memory_bytes": 4000,
                "accuracy": 0.875,
                "fits": True,
                "on_frontier": True,
            }
        ],
        "note": "As recomposed.",
        "html": "s.html",
    },
    "export": {
        "out": "m.pt2",
        "model": "v0001",
        "digest": "a" * 64,
        "input": ["batch", 3, 32, 32],
        "classes": ["cat", "dog"],
        "statement": "A statement.",
        "note": "A note.",
    },
    "import": {"out": "x.parquet", "num_rows": 3, "num_subjects": 0, "classes": ["cat", "dog"], "skipped": ["a.txt"]},
}

DIGITS = Path(__file__).parents[2] / "jobs" / "recipes" / "digits.yaml"
EDITED = {
    "target": "w",
    "status": "edited",
    "edit": "e" * 64,
    "file": "edits/e.safetensors",
    "space": "tangent",
    "learnt_beside": [],
    "editor": "gradient",
    "keep": 0.1,
    "locator": None,
    "places": "ffn:1",
    "note": "Measured on held-out rows.",
    "model_before": "v0001",
    "model_after": "v0002",
    "images": [{"image": "a.png", "label": "cat", "before": "dog", "after": "cat"}],
    "success": 1.0,
    "locality": None,
    "num_sensitive": 0,
    "conflicts": [{"edit": "f" * 64, "images_lost": 1}],
    "cost": {"num_weights": 10, "num_neurons": 2, "steps": 5, "learn_s": 0.5, "bytes": 48},
    "metrics_before": None,
    "metrics_after": None,
    "statement": "There is no differential privacy.",
    "elapsed_s": 1.5,
}
CANDIDATE = {
    "places": "ffn:1",
    "success": 1.0,
    "generalization": 0.75,
    "locality": 0.5,
    "score": 0.6,
    "on_front": True,
}
RESULTS |= {
    "edit_apply": EDITED,
    "edit_revert": {
        "target": "w",
        "reverted": ["e" * 64],
        "left": [],
        "model_before": "v0002",
        "model_after": "v0003",
        "composition": "c" * 64,
        "metrics_after": None,
        "statement": "One example changes little.",
        "elapsed_s": 0.5,
    },
    "edit_export": {"target": "m", "out": "o", "edits": ["e" * 64]},
    "edit_train_locator": {
        "target": "w",
        "locator": "a" * 64,
        "file": "locators/a.safetensors",
        "base": "d" * 64,
        "places": "ffn:1",
        "num_parameters": 7,
        "num_images": 3,
        "private": True,
        "statement": "It is personal data.",
        "elapsed_s": 2.0,
    },
    "edit_search": {
        "target": "w",
        "places": "ffn:1",
        "candidates": [CANDIDATE],
        "groups": [{"name": "1-2", "num_images": 8}],
        "num_sensitive": 5,
        "plot": None,
        "elapsed_s": 3.0,
    },
}

ARGUMENTS = {
    "edit_apply": ["edit", "apply", "w", "--image", "a.png", "--label", "cat"],
    "edit_revert": ["edit", "revert", "w", "--all"],
    "edit_export": ["edit", "export", "m", "--model", "vit", "--out", "o"],
    "edit_train_locator": ["edit", "train-locator", "w"],
    "edit_search": ["edit", "search", "w"],
    "train": ["train", "--workspace", "ws"],
    "plan": ["train", "--dry-run"],
    "detached": ["train", "--workspace", "ws", "--detach", "--address", "head:6379"],
    "status": ["status", "ws"],
    "cancel": ["cancel", "ws"],
    "timeline": ["timeline", "ws"],
    "forget": ["forget", "ws", "--subject", "ada"],
    "budget": ["budget", "ws"],
    "influence": ["influence", "ws"],
    "predict": ["predict", "ws", "a.png"],
    "evaluate": ["evaluate", "ws"],
    "verify": ["verify", "ws"],
    "audit": ["audit", "ws"],
    "tune": ["tune", str(DIGITS)],
    "sweep": ["sweep", str(DIGITS), "--out", "cells.jsonl"],
    "export": ["export", "ws", "--out", "m.pt2"],
    "import": ["import", "folder", "--out", "x.parquet"],
    "decompose": ["decompose", "--workspace", "d"],
    "recompose": ["recompose", "d", "--out", "m.safetensors"],
    "analyse": ["analyse", "deit_tiny_patch16_224"],
    "sizes": ["sizes", "d"],
}
VERBS = {"plan": "plan_training", "detached": "train_detached", "import": "import_folder"}


class Calls(list):
    """What the commands asked of the library: (verb, positional arguments, keyword arguments)."""

    def replace(self, monkeypatch: pytest.MonkeyPatch, name: str, result: Any) -> None:
        """Make the verb behind command `name` return `result`, or call it, or raise it."""
        verb = VERBS.get(name, name)

        def fake(*args: Any, **kwargs: Any) -> Any:
            self.append((verb, args, kwargs))
            if isinstance(result, BaseException):
                raise result
            return result(*args, **kwargs) if callable(result) else result

        monkeypatch.setattr(api, verb, fake, raising=False)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """The library's verbs replaced by fakes that give RESULTS."""
    made = Calls()
    for name, result in RESULTS.items():
        made.replace(monkeypatch, name, result)
    return made


@pytest.fixture
def results() -> dict[str, dict[str, Any]]:
    return RESULTS


@pytest.fixture
def arguments() -> dict[str, list[str]]:
    return ARGUMENTS
