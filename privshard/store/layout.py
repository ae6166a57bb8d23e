"""Where things lie in a workspace: paths relative to its root."""

from __future__ import annotations

import re

from privshard.core.errors import InputError

MANIFEST = "manifest.json"
RECIPE = "recipe.yaml"
LEDGER = "ledger.db"
BESIDE_LEDGER = (f"{LEDGER}-wal", f"{LEDGER}-shm")  # SQLite makes them for whoever reads or writes
LEDGER_URL = "ledger.url"
COMPONENTS = "components"
PRIVATE = "private"
PARAMETERS = "parameters"
CURVATURE = "curvature"
CACHE = "cache"
EDITS = "edits"
LOCATORS = "locators"
PUBLIC = "public"
LOCATOR_PARTS = f"{LOCATORS}/training"
REWRITTEN = ("data", CACHE, LOCATOR_PARTS)  # folders of personal data whose objects are replaced in place

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")


def shard_dir(shard: int) -> str:
    """The private copy of a shard's rows.

    >>> shard_dir(7)
    'data/shard=007'
    """
    return f"data/{_shard(shard)}"


def eval_dir() -> str:
    """The private copy of the held-out rows."""
    return "data/eval"


def cache_dir(shard: int) -> str:
    """Frozen activations of a shard: personal data, erased with it."""
    return f"cache/{_shard(shard)}"


def constants_path(shard: int) -> str:
    """The one file in a shard's cache: what the frozen base computed once for its rows.

    >>> constants_path(7)
    'cache/shard=007/constants.safetensors'
    """
    return f"{cache_dir(shard)}/constants.safetensors"


def eval_cache_dir() -> str:
    """Frozen activations of the held-out rows."""
    return "cache/eval"


def component_path(component: str) -> str:
    """A component's tensors."""
    return f"{COMPONENTS}/{_name(component)}.safetensors"


def component_record_path(component: str) -> str:
    """A component's public record."""
    return f"{COMPONENTS}/{_name(component)}.json"


def parameters_path(component: str) -> str:
    """The parameters that a component's tensors are a function of, where the method has such."""
    return f"{PARAMETERS}/{_name(component)}.safetensors"


def curvature_path(component: str) -> str:
    """The curvature around a component, where its composition needs it: confidential, and gone with the component."""
    return f"{CURVATURE}/{_name(component)}.safetensors"


def private_path(component: str) -> str:
    """A component's private side file: keyed hashes of its examples, and confidential facts."""
    return f"{PRIVATE}/{_name(component)}.json"


def edit_path(edit: str) -> str:
    """An edit's indices and values."""
    return f"{EDITS}/{_name(edit)}.safetensors"


def edit_record_path(edit: str) -> str:
    """An edit's public record."""
    return f"{EDITS}/{_name(edit)}.json"


def edit_private_path(edit: str) -> str:
    """An edit's private side file: its images, and the keyed hashes of whom they are about."""
    return f"{EDITS}/private/{_name(edit)}.json"


def locator_path(digest: str) -> str:
    """A locator's weights."""
    return f"{LOCATORS}/{_name(digest)}.safetensors"


def locator_private_path(digest: str) -> str:
    """A locator's private side file: keyed hashes of the subjects whose images it was trained on."""
    return f"{LOCATORS}/private/{_name(digest)}.json"


def public_path(digest: str) -> str:
    """What was learnt from public rows: nothing here is personal data."""
    return f"{PUBLIC}/{_name(digest)}.safetensors"


def model_path(version: int) -> str:
    """A model version's composition.

    >>> model_path(1)
    'models/v0001.json'
    """
    return f"models/v{version:04d}.json"


def receipt_path(request: str) -> str:
    """A removal's signed receipt."""
    return f"receipts/{_name(request)}.json"


def report_path(name: str) -> str:
    """A report for people."""
    return f"reports/{_name(name)}.html"


def run_path(name: str) -> str:
    """The record of one run: confidential, and erased like a report."""
    return f"reports/run-{_name(name)}.json"


def _shard(shard: int) -> str:
    if shard < 0:
        raise InputError(f"shard: expected 0 or more, got {shard}.")
    return f"shard={shard:03d}"


def _name(text: str) -> str:
    """A name that is one path segment."""
    if not _ID.fullmatch(text):
        raise InputError(f"Expected a name of letters, digits, '.', '_' and '-', got {text!r}.")
    return text
