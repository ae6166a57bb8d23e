"""Serve a workspace's model with Ray Serve: `serve run jobs.serve:app workspace=/shared/hands`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from privshard.core.errors import InputError
from privshard.runtime.serving import serve_app

_NUMBERS = {"num_replicas": int, "num_cpus": float, "num_gpus": float}


def app(args: Mapping[str, Any]) -> Any:
    """The application that a serve config names as `jobs.serve:app`.

    args: workspace, and num_replicas, num_cpus, num_gpus of a replica.
    """
    if "workspace" not in args or set(args) - {"workspace", *_NUMBERS}:
        raise InputError(
            f"serve arguments: expected workspace and any of {', '.join(_NUMBERS)}, got {', '.join(args) or 'none'}."
        )
    numbers = {name: read(args[name]) for name, read in _NUMBERS.items() if name in args}
    return serve_app(partial(load, str(args["workspace"])), **numbers)


def load(workspace: str) -> Any:
    """The workspace's current model; imported in the replica."""
    from privshard.api.predicting import Predictor

    return Predictor(workspace)
