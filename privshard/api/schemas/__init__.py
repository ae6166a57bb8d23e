"""The JSON Schemas (2020-12) of what the commands print with --json."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from privshard.core.errors import InputError

NAMES = (
    "train",
    "plan",
    "forget",
    "budget",
    "influence",
    "predict",
    "evaluate",
    "verify",
    "audit",
    "import",
    "sweep",
    "decompose",
    "recompose",
    "analyse",
    "sizes",
    "detached",
    "status",
    "cancel",
    "timeline",
    "edit_apply",
    "edit_revert",
    "edit_export",
    "edit_train_locator",
    "edit_search",
    "tune",
    "export",
    "error",
    "gift_merge",
    "gift_unmerge",
    "gift_export",
    "gift_explain",
    "gift_plant",
)


def load(name: str) -> dict[str, Any]:
    """The schema of one command's output; "plan" is `train --dry-run`, "error" what any command prints on failure.

    >>> load("verify")["required"]
    ['ok', 'checks']
    """
    if name not in NAMES:
        raise InputError(f"schema: expected one of {', '.join(NAMES)}, got {name}.")
    return json.loads((files(__name__) / f"{name}.json").read_text(encoding="utf-8"))
