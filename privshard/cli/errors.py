"""From an exception to what the command says about it and the status it ends with."""

from __future__ import annotations

import errno
from dataclasses import dataclass

from privshard.core.errors import InputError, PrivshardError, ResourceError

_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Failure:
    """Why a command ended without its result: the `error` of the JSON contract, and the exit status."""

    kind: str
    message: str
    remedy: str
    exit_code: int

    def to_json(self) -> dict[str, dict[str, str]]:
        """The object that `--json` prints."""
        return {"error": {"kind": self.kind, "message": self.message, "remedy": self.remedy}}


def failure(error: BaseException) -> Failure:
    """What to say about `error`.

    The project's own errors speak for themselves. Of the others, a full disk and memory that ran out are missing
    resources; everything else is an internal error, told in one line.
    """
    if isinstance(error, PrivshardError):
        return Failure(error.kind, error.message, error.remedy, error.exit_code)
    line = f"{type(error).__name__}: {_first_line(error)}".rstrip(": ")
    if isinstance(error, OSError) and error.errno in _FULL:
        return Failure(
            ResourceError.kind, line, "Free disk space, then run the command again.", ResourceError.exit_code
        )
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        remedy = "Lower execution.micro_batch, or give the work more memory."
        return Failure(ResourceError.kind, line, remedy, ResourceError.exit_code)
    return Failure(PrivshardError.kind, line, "Run the command again with --debug for the traceback.", 1)


def interruption(command: str, *, resumes: bool) -> Failure:
    """Somebody pressed Ctrl-C."""
    remedy = "Run the same command again to resume." if resumes else "Run the same command again."
    return Failure("interrupted", f"{command} was interrupted.", remedy, 130)


def usage_failure(error: Exception) -> Failure:
    """The command line itself cannot be understood."""
    describe = getattr(error, "format_message", None)
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", "privshard")
    message = str(describe() if describe else error) or "The command line is not complete."
    return Failure(InputError.kind, message, f"See {command} --help.", InputError.exit_code)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")
