"""What the frozen base computes once for a shard's images, at the speed of inference."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from privshard.core.errors import InputError, ResourceError
from privshard.core.execution import ExecutionFlags
from privshard.core.method import Constants, Method
from privshard.training.outputs import Held, Place, RowLayout
from privshard.training.staging import staged

MIN_COMPILED_IMAGES = 100_000


def encode(
    method: Method,
    batches: Iterable[Tensor],
    *,
    num_rows: int,
    batch_size: int,
    device: str,
    dtype: torch.dtype = torch.float32,
    compiled: bool = False,
    place: Place | None = None,
    on_batch: Callable[[int], None] = lambda num_rows: None,
) -> Constants | None:
    """The constants of all images, in order; None without any image. They are personal data.

    One pass of the frozen base. Memory for the results is allocated once; on a GPU, decoding and copying of the next
    batch run beside the computation of this one. Compiled or on a GPU every batch has the same shape (the last one is
    padded), so nothing is compiled twice. The eager pass is the reference: compiled, fp32 agrees to 1e-4 of a
    constant's largest entry; bfloat16 rounds the frozen computation, and the constants in `method.wide`, to 8 bits
    (tests/training/test_encoding.py).

    batches: images (B, 3, H, W), `num_rows` of them in all, at most `batch_size` in each. dtype: of the frozen
    computation; constants are fp32, those in `method.wide` have it too. compiled: by `torch.compile`, see
    `worth_compiling`. place: where results go, given their layout; by default to memory of `device`. on_batch: told how
    many rows each batch had. InputError where more or fewer images come than `num_rows`.
    """
    if num_rows == 0:
        return None
    narrow = dtype != torch.float32
    function = _compiled() if compiled else _constants
    one_shape = compiled or device.startswith("cuda")
    output, done = None, 0
    with torch.no_grad(), torch.autocast(torch.device(device).type, dtype=dtype, enabled=narrow):
        for images, num in staged(batches, device=device, size=min(batch_size, num_rows) if one_shape else None):
            part = {name: rows[:num] for name, rows in function(method, images, dtype).items()}
            if output is None:
                layouts = {name: RowLayout(rows.dtype, tuple(rows.shape[1:])) for name, rows in part.items()}
                output = Held(layouts, num_rows=num_rows, device=device) if place is None else place(layouts)
            if done + num <= num_rows:
                output.put(done, part)
            done += num
            on_batch(num)
    if output is None or done != num_rows:
        raise InputError(f"encode: expected {num_rows} images, got {done}.")
    return output.finish()


def worth_compiling(flags: ExecutionFlags, *, device: str, num_images: float) -> bool:
    """Whether `execution.compile` asks to compile the base for this many images; "auto" from 100,000 on.

    Compiling a large vision transformer takes about half a minute, and saves a quarter of the time of a pass that takes
    milliseconds a batch.
    """
    return pays(flags, device=device, amount=num_images, enough=MIN_COMPILED_IMAGES)


def pays(flags: ExecutionFlags, *, device: str, amount: float, enough: float) -> bool:
    """Whether `execution.compile` asks to compile: "auto" does on a GPU where triton and a C compiler are there, for
    an `amount` of work that is `enough`. ResourceError where it is asked for by name and can't be done."""
    if flags.compile is False:
        return False
    on_gpu = device.startswith("cuda")
    needed = {"triton": not on_gpu or find_spec("triton"), "a C compiler": _compiler()}
    missing = [name for name, there in needed.items() if not there]
    if flags.compile is True and missing:
        raise ResourceError(
            f"execution.compile: expected {' and '.join(missing)} to compile with, found none.",
            remedy="Install it, or set execution.compile to false.",
        )
    return flags.compile is True or (on_gpu and not missing and amount >= enough)


def _constants(method: Method, images: Tensor, dtype: torch.dtype) -> Constants:
    """The constants of one batch, in the types that they are kept in."""
    part = method.encode(images)
    return {name: rows.to(dtype if name in method.wide else torch.float32) for name, rows in part.items()}


@cache
def _compiled() -> Callable[[Method, Tensor, torch.dtype], Constants]:
    """The same as one graph. One function for the process: shards of one base and batch size share what is compiled."""
    return torch.compile(_constants, dynamic=False)


def _compiler() -> str | None:
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
