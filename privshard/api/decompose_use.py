"""What is done with a decomposition: recompose a model, choose a size; and the analysis that says whether it pays."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from privshard.core.errors import InputError
from privshard.core.jobs import OnProgress, Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from privshard.data.examples import SourceRow
    from privshard.decomposition.files import Decomposition
    from privshard.decomposition.menu import Size

MODES = ("free", "tied")
COSTS = {"latency": "latency_ms", "parameters": "parameters", "memory": "memory_bytes"}


def recompose(
    workspace: str,
    *,
    out: str,
    depth: int | Sequence[int] | None = None,
    components: int | None = None,
    mode: str = "free",
) -> dict[str, Any]:
    """Write a model of any depth from the first components; nothing is trained and neither torch nor timm is needed.

    workspace: a decomposition's folder or file, or a tied model. depth: for several stacks (a Swin's stages) one number
    each; None keeps theirs. mode: free writes a plain timm model whose header names its architecture, so that
    `base.weights` alone makes it a base; tied writes the components with fixed coefficients, for
    `privshard.decomposition.tied.load_tied`. The source is checked against its digest before anything is published.
    """
    from privshard.decomposition.files import FILE_NAME, open_decomposition
    from privshard.decomposition.recompose import write_free, write_tied
    from privshard.models.architecture import content_digest

    started = time.perf_counter()
    if mode not in MODES:
        raise InputError(f"mode: expected free or tied, got {mode!r}.")
    place, path = Path(workspace), Path(out)
    if not path.parent.is_dir() or path.is_dir():
        raise InputError(f"out: expected a file in a folder that exists, got {out}.", remedy="Create the folder first.")
    if path.exists() and any(path.samefile(own) for own in (place, place / FILE_NAME) if own.exists()):
        raise InputError(
            f"out: expected another file than the decomposition itself, got {out}.",
            remedy="It would be lost, and with it every other size.",
        )
    with open_decomposition(place) as whole, ThreadPoolExecutor(1) as beside:
        cut = whole.first(components, [depth] if isinstance(depth, int) else depth)
        found = beside.submit(content_digest, whole.tensors(), whole.description())

        def check() -> None:
            if found.result() != whole.digest:
                raise InputError(
                    f"{place}: its header tells another digest than its content has.", remedy="Make it again."
                )

        if mode == "free":
            made = write_free(path, cut, source=whole.digest, threads=os.cpu_count() or 1, check=check)
        else:
            check()
            made = write_tied(path, cut, source=whole.digest)
    return {
        "out": str(path),
        "digest": made.digest,
        "mode": mode,
        "model": {"name": made.architecture.model, "args": dict(made.architecture.args)},
        "depths": list(made.depths),
        "components": made.components,
        "parameters": made.parameters,
        "stored": made.stored,
        "statement": str(whole.facts.get("statement", "")),
        "elapsed_s": time.perf_counter() - started,
    }


def analyse(
    model: str, *, weights: str = "pretrained", args: Mapping[str, Any] | None = None, html: str | None = None
) -> dict[str, Any]:
    """The linear-trend analysis over depth of any timm ViT, and of the stages of a Swin.

    model: a timm name, or a file whose header names its architecture. weights: pretrained, random, or a safetensors
    file, for a timm name. html: a file to write plots to.
    """
    from privshard.decomposition.trend import linear_trends

    built, name = _model(model, weights, args or {})
    state = {key: tensor.detach().float().numpy() for key, tensor in built.state_dict().items()}
    trends = linear_trends(state, heads=_heads(built))
    report: dict[str, Any] = {
        "model": name,
        "weights": weights if not Path(model).is_file() else model,
        "stacks": [trend.to_json() for trend in trends],
        "note": NOTE,
    }
    if html is not None:
        from privshard.report.html import write_page
        from privshard.report.trend_page import trend_page

        write_page(Path(html), trend_page(report))
        report["html"] = str(html)
    return report


def sizes(
    workspace: str,
    *,
    data: str | None = None,
    split: str = "eval",
    depths: Sequence[int] | None = None,
    components: Sequence[int] | None = None,
    max_parameters: int | None = None,
    max_latency_ms: float | None = None,
    max_memory_mb: float | None = None,
    by: str = "latency",
    device: str = "auto",
    batch_size: int = 64,
    html: str | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Recomposed models that fit a device, measured here, and those among them that are worth their cost.

    data: a Parquet file whose labels are the model's classes, or "embedded" for the digits of the example; accuracy is
    measured on its `split` rows (eval, train or all), as recomposed, without further training. Rows that name no split
    are held out as `decompose` does. depths, components: which to try; None tries all depths to the decomposition's
    own, and the components after each phase. by: the cost of the frontier. Latency is of one image; it and memory are
    measured once a depth, since components change weights alone.
    """
    from privshard.api.worker import pick_device
    from privshard.core.execution import ExecutionFlags
    from privshard.decomposition.files import open_decomposition
    from privshard.decomposition.menu import Budget, with_frontier

    if by not in COSTS:
        raise InputError(f"by: expected one of {', '.join(COSTS)}, got {by!r}.")
    if split not in ("eval", "train", "all"):
        raise InputError(f"split: expected eval, train or all, got {split!r}.")
    memory = None if max_memory_mb is None else round(max_memory_mb * 2**20)
    budget = Budget(max_parameters, max_latency_ms, memory)
    tell = on_progress or (lambda _: None)
    where = pick_device(ExecutionFlags(device=device))
    with open_decomposition(Path(workspace), check=True) as whole:
        if len(whole.stacks) != 1:
            raise InputError("sizes: expected a model of one stack, got a hierarchical one.", remedy="Recompose it.")
        deepest = whole.stacks[0].depth
        wanted = dict.fromkeys(product(depths or range(1, deepest + 1), components or whole.counts))
        cuts = [whole.first(count, [depth]) for depth, count in wanted]
        rows = None if data is None else _rows(data, split, whole)
        found: list[Size] = []
        costs: dict[int, tuple[float, int]] = {}
        for cut in cuts:
            found.append(_measure(cut, rows, costs, device=where, batch_size=batch_size))
            tell(Progress("sizes", None, "measure", len(found), len(cuts)))
    menu = with_frontier(found, budget=budget, cost=COSTS[by])  # pyright: ignore[reportArgumentType]
    source = "the embedded digits" if data == "embedded" else str(data)
    report: dict[str, Any] = {
        "workspace": str(workspace),
        "device": _device_name(where),
        "budget": vars(budget),
        "by": COSTS[by],
        "data": None if rows is None else {"path": source, "split": split, "num_rows": len(rows[1])},
        "sizes": [size.to_json() for size in menu],
        "note": MENU_NOTE if rows is None else f"{ACCURACY_NOTE} {MENU_NOTE}",
    }
    if html is not None:
        from privshard.report.html import write_page
        from privshard.report.sizes_page import sizes_page

        write_page(Path(html), sizes_page(report))
        report["html"] = str(html)
    return report


def _model(model: str, weights: str, args: Mapping[str, Any]) -> tuple[nn.Module, str]:
    from privshard.models.build import build_model, load_weights, model_of_file

    if model.endswith(".safetensors") or Path(model).exists():
        if args or weights != "pretrained":
            raise InputError(
                f"model: expected a timm model's name beside weights or arguments of their own, got the file {model}.",
                remedy="Leave them out: the file names its model and holds its weights.",
            )
        built, architecture = model_of_file(Path(model))
        return built, architecture.model
    built = build_model(model, args, pretrained=weights == "pretrained")
    if weights not in ("pretrained", "random"):
        load_weights(built, Path(weights))
    return built, model


def _heads(model: nn.Module) -> dict[str, int]:
    """Attention heads of every stack of blocks."""
    found: dict[str, int] = {}
    for name, module in model.named_modules():
        prefix, dot, rest = name.partition("blocks.0.attn")
        heads = getattr(module, "num_heads", None)
        if dot and not rest and isinstance(heads, int):
            found[f"{prefix}blocks"] = heads
    return found


def _rows(data: str, split: str, whole: Decomposition) -> tuple[list[SourceRow], list[int]]:
    """The rows to measure accuracy on, with the places of their labels among the model's classes."""
    from privshard.data.example import example_rows
    from privshard.data.pixels import is_held_out
    from privshard.data.reader import read_rows

    classes = whole.architecture.classes or [str(place) for place in range(whole.architecture.num_classes)]
    position = {name: place for place, name in enumerate(classes)}
    every = example_rows() if data == "embedded" else read_rows(data)
    rows = [row for row in every if split == "all" or is_held_out(row) == (split == "eval")]
    unknown = sorted({row.label for row in rows} - position.keys())
    if unknown or not rows:
        got = f"{', '.join(unknown[:3])} besides" if unknown else "no row"
        raise InputError(f"data: expected rows of the model's {len(position)} classes in {data}, got {got}.")
    return rows, [position[row.label] for row in rows]


def _measure(
    cut: Decomposition,
    rows: tuple[list[SourceRow], list[int]] | None,
    costs: dict[int, tuple[float, int]],
    *,
    device: str,
    batch_size: int,
) -> Size:
    """One size: built, timed, weighed and scored. costs: latency and memory of the depths that were measured."""
    import torch

    from privshard.decomposition import measure
    from privshard.decomposition.menu import Size
    from privshard.decomposition.recompose import expanded, model_architecture, num_parameters
    from privshard.models.build import build_model, load_weights_from, transform_of

    architecture = model_architecture(cut, mode="free", source=cut.digest)
    model = build_model(architecture.model, architecture.args, num_classes=architecture.num_classes)
    load_weights_from(model, expanded(cut), source="the decomposition")
    model.eval().requires_grad_(False).to(device)
    transform = {**transform_of(model), **(architecture.transform or {})}
    image = torch.zeros(1, *transform["input_size"], device=device)
    depth, accuracy = cut.stacks[0].depth, None
    if depth not in costs:
        costs[depth] = measure.latency_ms(model, image), measure.memory_bytes(model, image)
    latency, memory = costs[depth]
    if rows is not None:
        accuracy = measure.accuracy(model, _batches(rows, transform, device=device, batch_size=batch_size))
    return Size(
        depths=(depth,),
        components=cut.num_components,
        parameters=num_parameters(cut),
        stored=sum(array.size for array in cut.tensors().values()),
        latency_ms=latency,
        memory_bytes=memory,
        accuracy=accuracy,
    )


def _batches(
    rows: tuple[list[SourceRow], list[int]], transform: Mapping[str, Any], *, device: str, batch_size: int
) -> Any:
    import torch

    from privshard.data.images import image_batches
    from privshard.models.build import pixels_of

    mean, std = (torch.tensor(transform[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    prepare: Callable[[Any], Tensor] = pixels_of(transform)
    batches = image_batches((row.image for row in rows[0]), transform=prepare, batch_size=batch_size)
    for place, images_B in enumerate(batches):
        labels = rows[1][place * batch_size : (place + 1) * batch_size]
        yield ((images_B - mean) / std).to(device), torch.tensor(labels, device=device)


def _device_name(device: str) -> str:
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} thread(s)"


NOTE = (
    "R² of a straight line through the first principal component of the blocks' weights, over depth. Blocks in random "
    "order have 1/(L-1) on average; with two blocks it says nothing."
)
MENU_NOTE = "Times and memory were measured on this machine, for one image, once a depth."
ACCURACY_NOTE = (
    "Accuracies are of the models as recomposed, without further training; train them (or shards on them) before use."
)
