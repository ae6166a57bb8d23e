"""Rows that are said to be public: which column of theirs names subjects, whatever a recipe calls it."""

from __future__ import annotations

from privshard.core.errors import InputError

SUBJECT = "subject"


def subject_column(path: str, *, named: str, stated: bool, section: str) -> str:
    """The column that names subjects: one that is there can't be hidden by naming another.

    named: what the recipe's `section` calls it. stated: whether somebody vouches that all rows are public.
    """
    from privshard.data.reader import column_names

    there = column_names(path, key=f"{section}.path") & {SUBJECT, named}
    if len(there) > 1 and not stated:
        say = {"data": "data.public", "public": "public.stated_public"}[section]
        raise InputError(
            f"{section}.subject: expected one column that names subjects, got {named} beside {SUBJECT}.",
            remedy=f"Rename the column {SUBJECT} if it names nobody; if all rows are public, say {say}: true.",
        )
    return named if named in there or not there else SUBJECT
