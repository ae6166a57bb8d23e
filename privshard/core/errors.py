"""The errors that privshard raises on purpose, each with the remedy that a person can try."""

from __future__ import annotations

from typing import ClassVar


class PrivshardError(Exception):
    """A failure with a message for people: what was expected, what came, and what to do.

    The message survives pickling, so it crosses process and Ray boundaries unchanged.
    `kind` is the name in the JSON contract, `exit_code` the command's exit status.
    """

    kind: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __reduce__(self):
        return _rebuild, (type(self), self.message, self.remedy)

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class InputError(PrivshardError, ValueError):
    """What the caller gave cannot be used as it is."""

    kind = "bad_input"
    exit_code = 2


class BudgetError(PrivshardError):
    """The privacy budget does not admit what was asked; nothing was started."""

    kind = "budget_refused"
    exit_code = 3


class ResourceError(PrivshardError):
    """A GPU, a disk, a database, a lock or a cluster that the work needs is missing."""

    kind = "resource_missing"
    exit_code = 4


class VerificationError(PrivshardError):
    """What is stored does not say what it should."""

    kind = "verification_failed"
    exit_code = 5


def _rebuild(cls: type[PrivshardError], message: str, remedy: str) -> PrivshardError:
    return cls(message, remedy=remedy)
