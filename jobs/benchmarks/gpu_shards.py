"""Shards on separate (fractions of) GPUs through Ray: `python -m jobs.benchmarks.gpu_shards --out gpu_shards`.

Trains the photo recipe's shape of work on the embedded base: as many shards as `--shards`, each in an actor with its
share of the machine's GPUs (auto), its memory capped to that share. Writes OUT/timeline.html, OUT/trace.json for
chrome://tracing, and OUT/result.json: which GPU and which share every actor had, what overlapped, and whether the
workspace verifies. Exit status 1 where shards ran without a GPU or the workspace does not verify.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from privshard import api
from privshard.api.recipe import Recipe


def run(*, shards: int, gpus_per_shard: float | str, steps: int, out: Path, device: str) -> dict[str, Any]:
    """Train, verify, and write the timeline; the result as JSON values."""
    out.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix="privshard-gpu-"))
    os.environ["PRIVSHARD_KEYS_DIR"] = str(workspace / "keys")
    recipe = Recipe(
        **{
            "shards": shards,
            "training": {"steps": steps},
            "execution": {"device": device},
            "ray": {"address": "local", "gpus_per_shard": gpus_per_shard, "schedule_timeout_s": 300.0},
        }
    )
    try:
        trained = api.train(recipe, workspace=str(workspace / "w"))
        verified = api.verify(str(workspace / "w"))
        shown = api.timeline(str(workspace / "w"), html=str(out / "timeline.html"), trace=str(out / "trace.json"))
        with api.Workspace.open(str(workspace / "w")) as ws:
            shares = {job["run_id"]: job["gpu_share"] for job in _record(ws)["jobs"]}
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
    jobs = shown["confidential"]["jobs"]
    return {
        "shards": shards,
        "accuracy": trained["metrics"]["accuracy"],
        "timing_s": trained["timing_s"],
        "verified": verified["ok"],
        "gpus_used": sorted({gpu for job in jobs for gpu in job["gpus"]}),
        "at_once": most_at_once(jobs),
        "jobs": [{**job, "gpu_share": shares[job["run_id"]]} for job in jobs],
        "files": ["timeline.html", "trace.json"],
    }


def most_at_once(jobs: Sequence[Mapping[str, Any]]) -> int:
    """The most jobs that were at work at the same moment.

    >>> most_at_once([{"spans": [["running", 0, 2]]}, {"spans": [["running", 1, 3]]}, {"spans": [["running", 3, 4]]}])
    2
    """
    spans = [(begin, end) for job in jobs for what, begin, end in job["spans"] if what == "running"]
    changes = sorted(itertools.chain.from_iterable(((begin, 1), (end, -1)) for begin, end in spans if end is not None))
    return max(itertools.accumulate((change for _, change in changes), initial=0))


def main(given: Sequence[str] | None = None) -> int:
    """Run it; the result also goes to stdout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shards", type=int, default=4, help="4 to 8")
    parser.add_argument("--gpus-per-shard", default="auto", help="auto, a share of one GPU, or a whole number")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--device", default="cuda", help="cuda; cpu to try the program without a GPU")
    parser.add_argument("--out", type=Path, default=Path("gpu_shards"), help="the folder to write")
    options = parser.parse_args(given)
    share = options.gpus_per_shard if options.gpus_per_shard == "auto" else float(options.gpus_per_shard)
    result = run(
        shards=options.shards, gpus_per_shard=share, steps=options.steps, out=options.out, device=options.device
    )
    text = json.dumps(result, indent=1)
    (options.out / "result.json").write_text(text)
    print(text)
    on_gpus = all(job["gpus"] for job in result["jobs"]) or options.device == "cpu"
    return int(not (result["verified"] and on_gpus))


def _record(ws: Any) -> dict[str, Any]:
    from privshard.api.watching import latest_run

    record = latest_run(ws)
    assert record is not None
    return record


if __name__ == "__main__":
    sys.exit(main())
