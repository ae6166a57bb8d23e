"""What surrounds every command: progress, one result or one failure, and the exit status."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

from privshard.cli.errors import Failure, failure, interruption
from privshard.cli.output import json_text, summary_text, write
from privshard.cli.progress import progress_shown
from privshard.cli.quiet import libraries_quiet, own_stdout

if TYPE_CHECKING:
    from rich.console import RenderableType

    from privshard.core.jobs import OnProgress


@dataclass(frozen=True)
class Frame:
    """One run of `command`. resumes: whether running it again continues what an interruption left."""

    command: str
    as_json: bool
    debug: bool
    resumes: bool = False

    def execute(
        self,
        work: Callable[[OnProgress], dict[str, Any]],
        *,
        show: Callable[[dict[str, Any]], RenderableType],
        status: Callable[[dict[str, Any]], int] = lambda result: 0,
    ) -> int:
        """Do `work`, print its result (as JSON, or as `show` renders it) and return the exit status.

        Nothing that a library prints or warns reaches stdout; without --debug it is dropped.
        """
        with own_stdout(debug=self.debug) as stdout, libraries_quiet(debug=self.debug):
            try:
                with progress_shown(self.command, stream=sys.stderr) as on_progress:
                    result = work(on_progress)
                text = json_text(result) if self.as_json else summary_text(show(result), stream=stdout)
            except KeyboardInterrupt:
                ended = interruption(self.command, resumes=self.resumes)
            except Exception as error:
                if self.debug:
                    traceback.print_exc(file=sys.stderr)
                ended = failure(error)
            else:
                write(text, stdout)
                return status(result)
            show_failure(ended, as_json=self.as_json, stdout=stdout)
            return ended.exit_code


def show_failure(ended: Failure, *, as_json: bool, stdout: TextIO) -> None:
    """Print a failure: the JSON object on stdout, or lines for people on stderr."""
    if as_json:
        write(json_text(ended.to_json()), stdout)
        return
    label = "Stopped" if ended.kind == "interrupted" else "Error"
    remedy = ("\n" if label == "Error" else " ") + ended.remedy if ended.remedy else ""
    print(f"{label}: {ended.message}{remedy}", file=sys.stderr, flush=True)
