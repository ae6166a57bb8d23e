"""Serves a composed model over HTTP with Ray Serve: one thin deployment, POST an image, get its classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from privshard.core.errors import InputError, PrivshardError, ResourceError

MAX_BYTES = 32 * 2**20
Predict = Callable[[Sequence[bytes]], list[dict[str, Any]]]


class Answers:
    """What the deployment answers to a request, without HTTP: (status, JSON value).

    load: gives the model; it is called once, in the replica. The model is one version: `GET /` says which, so that a
    person can see when a replica has to be replaced after a removal. No image and no prediction is kept or logged.
    """

    def __init__(self, load: Callable[[], Any]) -> None:
        self._predictor = load()

    def get(self) -> tuple[int, dict[str, Any]]:
        """Which model answers."""
        return 200, {"model": self._predictor.model, "classes": list(self._predictor.classes)}

    def post(self, body: bytes) -> tuple[int, dict[str, Any]]:
        """The prediction for one encoded image, or what is wrong with it."""
        if not body:
            return 400, _error(InputError("Expected an encoded image as the body, got nothing.", remedy="POST a file."))
        if len(body) > MAX_BYTES:
            return 413, _error(InputError(f"Expected at most {MAX_BYTES} bytes, got {len(body)}."))
        try:
            return 200, {"model": self._predictor.model, **self._predictor([body])[0]}
        except InputError as error:
            return 400, _error(error)


def serve_app(load: Callable[[], Any], *, num_replicas: int = 1, num_cpus: float = 1.0, num_gpus: float = 0.0) -> Any:
    """A Ray Serve application around `load() -> predictor`, to be run or named in a serve config.

    Raises ResourceError without the extra that Ray Serve needs.
    """
    try:
        from ray import serve
        from starlette.responses import Response
    except ImportError as error:
        raise ResourceError(
            f"Ray Serve is not installed ({error.name}).", remedy="Install it: pip install 'privshard[serve]'."
        ) from error

    class Model:
        """One replica."""

        def __init__(self) -> None:
            self._answers = Answers(load)

        async def __call__(self, request: Any) -> Any:
            if request.method == "POST":
                status, value = self._answers.post(await request.body())
            else:
                status, value = self._answers.get()
            return Response(json.dumps(value), status_code=status, media_type="application/json")

    deployment: Any = serve.deployment(
        name="privshard",
        num_replicas=num_replicas,
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": num_gpus},
    )(Model)
    return deployment.bind()


def _error(error: PrivshardError) -> dict[str, Any]:
    return {"error": {"kind": error.kind, "message": error.message, "remedy": error.remedy}}
