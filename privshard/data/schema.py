"""The columns of a dataset: what they are called, which types they may have, which split values they may hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from privshard.core.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

Split = Literal["train", "eval"]
Role = Literal["image", "label", "subject", "split"]
ROLES: tuple[Role, ...] = ("image", "label", "subject", "split")

TRAIN_SPLITS = frozenset({"train"})
EVAL_SPLITS = frozenset({"test", "val", "valid", "validation", "eval", "dev"})


@dataclass(frozen=True)
class Columns:
    """What the columns are called. `subject=None` or `split=None`: not read, even where the file has one."""

    image: str = "image"
    label: str = "label"
    subject: str | None = "subject"
    split: str | None = "split"

    def __post_init__(self) -> None:
        names = [name for _, name in self.named()]
        if "" in names or len(set(names)) != len(names):
            raise InputError(
                f"data: expected different, non-empty column names, got {names}.",
                remedy="Give image, label, subject and split a column each; null for an absent subject or split.",
            )

    def named(self) -> tuple[tuple[Role, str], ...]:
        """(role, column name) of every column that is to be read."""
        names = (self.image, self.label, self.subject, self.split)
        return tuple((role, name) for role, name in zip(ROLES, names, strict=True) if name is not None)


def parse_split(value: str | None, *, where: str) -> Split | None:
    """Which side a split value names; None where it is empty, so that the keyed tenth decides.

    >>> parse_split("validation", where="people.parquet, row 3")
    'eval'
    """
    text = (value or "").strip().lower()
    if not text:
        return None
    if text in TRAIN_SPLITS:
        return "train"
    if text in EVAL_SPLITS:
        return "eval"
    raise InputError(
        f"{where}: expected a split of {sorted(TRAIN_SPLITS)} or {sorted(EVAL_SPLITS)}, got {value!r}.",
        remedy="Rename the split, leave it empty for a keyed tenth, or set data.split to null.",
    )


def check_schema(schema: pa.Schema, *, columns: Columns, required: frozenset[str], file: str) -> frozenset[Role]:
    """The roles that a file fills, once its columns are known to exist and to have usable types.

    image and label always have to exist; subject and split only where `required` holds their role.
    """
    present: set[Role] = set()
    for role, name in columns.named():
        found = schema.get_all_field_indices(name)
        if len(found) > 1:
            raise InputError(f"{file}: expected one column {name!r}, got {len(found)}.", remedy="Rename the others.")
        if found:
            _check_type(role, schema.field(found[0]), file=file)
            present.add(role)
        elif role in ("image", "label") or role in required:
            raise InputError(
                f"{file}: expected a column {name!r} for the {role}, got {schema.names}.",
                remedy=f"Add the column, or set data.{role} to the name it has.",
            )
    return frozenset(present)


def _check_type(role: Role, field: pa.Field, *, file: str) -> None:
    import pyarrow.types as kinds

    kind = field.type.value_type if kinds.is_dictionary(field.type) else field.type
    text = kinds.is_string(kind) or kinds.is_large_string(kind) or kinds.is_string_view(kind)
    if role == "image":
        expected, fits = "binary or struct{bytes, path}", _is_image(kind)
    elif role == "split":
        expected, fits = "string", text or kinds.is_null(kind)
    elif role == "subject":
        expected, fits = "integer or string", text or kinds.is_integer(kind) or kinds.is_null(kind)
    else:
        expected, fits = "integer or string", text or kinds.is_integer(kind)
    if not fits:
        raise InputError(
            f"{file}, column {field.name!r}: expected {expected} for the {role}, got {field.type}.",
            remedy=f"Convert the column, or set data.{role} to another one.",
        )


def _is_image(kind: pa.DataType) -> bool:
    import pyarrow.types as kinds

    if kinds.is_struct(kind):
        return "bytes" in kind.names and _is_binary(kind.field("bytes").type)
    return _is_binary(kind)


def _is_binary(kind: pa.DataType) -> bool:
    import pyarrow.types as kinds

    return any(check(kind) for check in (kinds.is_binary, kinds.is_large_binary, kinds.is_binary_view, kinds.is_null))
