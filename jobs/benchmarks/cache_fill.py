"""How fast a shard's constants are computed and kept, against plain inference of the same model."""

from __future__ import annotations

import copy
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from jobs.benchmarks._machine import count_flops, peaks
from jobs.benchmarks._measure import measure
from jobs.benchmarks._models import precision, random_images, random_vit, weight_bytes
from jobs.benchmarks._report import finish, parser, row
from privshard.core.method import Constants
from privshard.tangent.engine import tangent_engine
from privshard.training.cache import CacheKey, obtain
from privshard.training.encoding import encode
from privshard.training.outputs import Place

INFERENCE = "inference, compiled"


def main(given: Sequence[str] | None = None) -> dict[str, Any]:
    """Run it; the report."""
    arguments = _arguments(given)
    device, batch, compiled = arguments.device, arguments.batch, arguments.device.startswith("cuda")
    dtype = precision(device)
    view = random_vit(arguments.model, device=device)
    method = tangent_engine(view, blocks=arguments.blocks)
    num = batch * arguments.batches
    here = random_images(view, num, device="cpu")
    there = here.to(device)

    def fill(images: Tensor, *, graph: bool = compiled, place: Place | None = None) -> Constants | None:
        return encode(
            method,
            images.split(batch),
            num_rows=num,
            batch_size=batch,
            device=device,
            dtype=dtype,
            compiled=graph,
            place=place,
        )

    narrow = copy.deepcopy(view.model).to(dtype)
    cases: dict[str, Callable[[], object]] = {
        "inference, eager": _inference(view.model, there.split(batch), dtype=dtype, autocast=True, compiled=False),
        "fill, eager, to the device": lambda: fill(there, graph=False),
        "fill, images from the CPU's memory": lambda: fill(here),
    }
    if compiled:
        cases[INFERENCE] = _inference(view.model, there.split(batch), dtype=dtype, autocast=True, compiled=True)
        cases["inference, compiled, weights in bfloat16"] = _inference(
            narrow, there.split(batch), dtype=dtype, autocast=False, compiled=True
        )
        cases["fill, compiled, to the device"] = lambda: fill(there)
    sample = there[:2]
    with torch.no_grad():
        forward_flops = count_flops(lambda: view.model(sample)) // 2
        encode_flops = count_flops(lambda: method.encode(sample)) // 2
    constants = fill(there[:num])
    assert constants is not None
    kept_bytes = sum(tensor.nbytes for tensor in constants.values())
    del constants
    with tempfile.TemporaryDirectory() as folder:
        cases["fill, stored on disk and mapped"] = lambda: _stored(Path(folder) / "constants", num, fill, here, device)
        measured = measure(cases, examples=num, device=device, repeats=arguments.repeats, limit_s=15)
    limits = peaks(device, dtype=dtype)
    read = weight_bytes(view.model, dtype=dtype) * arguments.batches + there.nbytes
    base = measured.get(INFERENCE, measured["inference, eager"])
    rows = [
        row(
            found,
            base_s=base.median_s,
            floor_s=limits.floor_s(
                flops=num * (forward_flops if name.startswith("inference") else encode_flops),
                num_bytes=read + (0 if name.startswith("inference") else kept_bytes),
            ),
        )
        for name, found in measured.items()
    ]
    notes = {
        "ratio to": base.name,
        "precision": str(dtype).removeprefix("torch."),
        "images": num,
        "constants, bytes an image": kept_bytes // num,
        "operations an image, forward and fill": [forward_flops, encode_flops],
        "peaks": limits.to_json(),
    }
    return finish("cache_fill", rows, arguments=arguments, notes=notes)


def _arguments(given: Sequence[str] | None) -> Any:
    found = parser(__doc__ or "", model="vit_base_patch16_224", batch=256)
    found.add_argument("--blocks", type=int, default=1, help="linearized blocks")
    found.add_argument("--batches", type=int, default=16, help="batches a pass")
    found.add_argument("--repeats", type=int, default=5, help="timed passes of each kind")
    return found.parse_args(given)


def _inference(
    model: Any, batches: Iterable[Tensor], *, dtype: torch.dtype, autocast: bool, compiled: bool
) -> Callable[[], object]:
    """Logits of every batch; the images are on the device already."""
    function = torch.compile(model, dynamic=False) if compiled else model
    parts = [part if autocast else part.to(dtype) for part in batches]
    enabled = autocast and dtype != torch.float32

    def run() -> None:
        with torch.no_grad(), torch.autocast(parts[0].device.type, dtype=dtype, enabled=enabled):
            for part in parts:
                function(part)

    return run


def _stored(
    path: Path, num: int, fill: Callable[..., Constants | None], images: Tensor, device: str
) -> Constants | None:
    """A whole cache on disk, new each time."""
    path.unlink(missing_ok=True)
    return obtain(
        [f"{number:064x}" for number in range(num)],
        path=path,
        key=CacheKey("base", "transform", "method", "dtype"),
        asked="disk",
        device=device,
        fill=lambda place: fill(images, place=place),
        num_threads=8,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
