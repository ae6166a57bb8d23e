"""`edit train-locator`: meta-train, on unlabeled images, what says where to edit a model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from privshard.api.edit_target import Target, open_target
from privshard.core.digest import content_digest, json_digest
from privshard.core.errors import InputError
from privshard.core.jobs import OnProgress, Progress
from privshard.data.examples import subject_of_image
from privshard.data.images import image_batches
from privshard.data.pictures import read_pictures
from privshard.data.shards import read_partition
from privshard.editing.training import LocatorOptions, train_locator
from privshard.store.below import Below
from privshard.store.edits import save_locator
from privshard.store.layout import LOCATOR_PARTS, locator_path, shard_dir
from privshard.store.objects import ObjectStore
from privshard.store.tensors import save_tensors


@dataclass(frozen=True)
class _Images:
    """Encoded images, and keyed hashes of whom they are about (none where no key is known)."""

    contents: tuple[bytes, ...]
    subjects: tuple[str, ...]
    private: bool


def edit_train_locator(
    place: str,
    *,
    images: str | None = None,
    out: str | None = None,
    places: str | None = None,
    options: LocatorOptions | None = None,
    model: str | None = None,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Train a locator for a workspace's model, or with `model` for the plain model file at `place`.

    images: a folder of image files, or Parquet; labels are not read. A workspace without them uses its own training
    rows: the locator is then personal data, stays in the workspace, and is retired when one of those people is
    forgotten. out: the file of a plain model's locator. Running it again resumes what was interrupted.

    There is no differential privacy in it, and the report says so. No edit needs a locator: the default editor was
    ahead of it in the benchmark (jobs/benchmarks/README.md, "Where to edit").
    """
    started, tell = time.perf_counter(), on_progress or (lambda _: None)
    options = options or LocatorOptions()
    with open_target(place, model=model, write=model is None) as target:
        chosen = target.places(places)
        found = _images(target, images)
        if target.workspace is None and out is None:
            raise InputError("out: expected a file for the locator of a plain model, got none.", remedy="--out FILE")
        if target.workspace is not None and out is not None:
            raise InputError("out: a workspace keeps its locators itself, so that erasure reaches them; leave it out.")
        home, parts = (target.store, LOCATOR_PARTS) if out is None else _beside(out)
        # the workspace's own model without its edits: a locator depends on no edit
        identity = json_digest([target.components, sorted(map(content_digest, found.contents))])
        locator = train_locator(
            target.tail(chosen),
            lambda rows: _pixels(target, found.contents, rows),
            num_images=len(found.contents),
            places=chosen,
            base=target.base.digest,
            identity=identity,
            state=Below(home, parts),
            options=options,
            on_done=lambda stage, done, total: tell(Progress("locator", None, stage, done, total)),
        )
        file = _keep(target, locator.digest, locator.arrays(), locator.header(), found, out)
        home.delete_tree(parts)
        return {
            "target": target.place,
            "locator": locator.digest,
            "file": file,
            "base": target.base.digest,
            "places": ",".join(map(str, chosen)),
            "num_parameters": locator.network.num_parameters,
            "num_images": len(found.contents),
            "private": found.private,
            "statement": _STATEMENTS[found.private],
            "elapsed_s": time.perf_counter() - started,
        }


def _beside(out: str) -> tuple[ObjectStore, str]:
    """Where the parts of a plain model's locator lie while it is trained: a folder beside it."""
    path = Path(out).resolve()
    return ObjectStore(path.parent), f"{path.name}.parts"


def _images(target: Target, path: str | None) -> _Images:
    workspace = target.workspace
    if path is not None:
        rows = read_pictures(path)
        if workspace is None:
            return _Images(tuple(row.image for row in rows), (), private=False)
        named = {workspace.subject_hash(row.subject or subject_of_image(row.image)) for row in rows}
        if named & workspace.ledger.suppressed():
            raise InputError(f"images: {path} holds images of people who were forgotten.", remedy="Take them out.")
        about = any(row.subject for row in rows)
        return _Images(tuple(row.image for row in rows), tuple(sorted(named)), private=about)
    if workspace is None or target.setup is None:
        raise InputError("images: expected a folder or a Parquet file of images, got none.", remedy="--images PATH")
    shards = [read_partition(target.store, shard_dir(shard)) for shard in range(target.setup.num_shards)]
    subjects = {workspace.subject_hash(subject) for rows in shards for subject in rows.subjects}
    contents = tuple(image for rows in shards for image in rows.images)
    return _Images(contents, tuple(sorted(subjects)), private=True)


def _pixels(target: Target, contents: Sequence[bytes], rows: Sequence[int]) -> Tensor:
    batches = image_batches([contents[row] for row in rows], transform=target.base.transform, batch_size=len(rows))
    return next(iter(batches)).to(target.device)


def _keep(
    target: Target, digest: str, arrays: dict[str, Any], header: dict[str, str], found: _Images, out: str | None
) -> str:
    if target.workspace is None:
        path = Path(str(out)).resolve()
        save_tensors(ObjectStore(path.parent), path.name, arrays, header)
        return str(out)
    private = {"subjects": list(found.subjects), "components": list(target.components)}
    save_locator(target.store, target.workspace.ledger, digest, arrays, header=header, private=private)
    target.workspace.write_manifest()
    return locator_path(digest)


_STATEMENTS = {
    True: "Trained on private images without differential privacy: it is personal data, and is retired when one of "
    "these people is forgotten.",
    False: "Trained without differential privacy, on images that name nobody.",
}
