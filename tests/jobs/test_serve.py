"""A trained model behind HTTP, through Ray Serve."""

from __future__ import annotations

import json
import logging
import socket
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from jobs import serve as serve_job
from jobs.benchmarks.small_data import small_recipe, write_small_data
from privshard import api
from privshard.core.errors import InputError


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch) -> str:
    monkeypatch.setenv("PRIVSHARD_KEYS_DIR", str(tmp_path / "keys"))
    recipe = small_recipe(write_small_data(tmp_path / "people.parquet"), shards=1, insecure_seed=1)
    recipe = recipe.model_copy(update={"ray": recipe.ray.model_copy(update={"address": "none"})})
    api.train(recipe, workspace=str(tmp_path / "workspace"))
    return str(tmp_path / "workspace")


@pytest.mark.parametrize("args", [{}, {"num_cpus": 1}, {"workspace": "w", "replicas": 2}])
def test_wrong_arguments_are_refused(args):
    with pytest.raises(InputError, match="serve arguments"):
        serve_job.app(args)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_model_answers_over_http_what_predict_says(workspace, tmp_path):
    pytest.importorskip("starlette")
    import ray
    from ray import serve

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    picture = _picture(tmp_path)
    expected = api.predict(workspace, [str(picture)])
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(serve_job.app({"workspace": workspace, "num_cpus": 0.5}), name="privshard", route_prefix="/")
        address = f"http://127.0.0.1:{port}/"
        with urllib.request.urlopen(address, timeout=60) as answer:
            assert json.load(answer)["model"] == "v0001"
        request = urllib.request.Request(address, data=picture.read_bytes(), method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            got = json.load(answer)
        assert got["label"] == expected["predictions"][0]["label"]
        assert got["probability"] == pytest.approx(expected["predictions"][0]["probability"], abs=1e-6)
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(address, data=b"no image", method="POST"), timeout=60)
        assert refused.value.code == 400
    finally:
        serve.shutdown()
        ray.shutdown()


def _picture(folder: Path) -> Path:
    from PIL import Image

    path = folder / "digit.png"
    Image.new("L", (8, 8), 128).save(path)
    return path
