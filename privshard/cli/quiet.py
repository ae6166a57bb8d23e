"""Keeping other people's words apart from ours: stdout is for results, the terminal is not for library warnings."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import TextIO


@contextlib.contextmanager
def own_stdout(*, debug: bool) -> Iterator[TextIO]:
    """The true stdout, for our result alone; whatever anybody else prints goes to stderr (debug) or nowhere.

    Works on the file descriptor, so that it also holds for C libraries and child processes, and falls back to
    `sys.stdout` where that is no file.
    """
    ours = sys.stdout
    try:
        descriptor = ours.fileno()
        elsewhere = os.dup(sys.stderr.fileno()) if debug else os.open(os.devnull, os.O_WRONLY)
    except (OSError, ValueError, AttributeError, io.UnsupportedOperation):
        with contextlib.redirect_stdout(sys.stderr if debug else io.StringIO()):
            yield ours
        return
    ours.flush()
    saved = os.dup(descriptor)
    os.dup2(elsewhere, descriptor)
    os.close(elsewhere)
    encoding = ours.encoding or "utf-8"
    result = os.fdopen(saved, "w", encoding=encoding, errors="backslashreplace", closefd=False)
    others = os.fdopen(descriptor, "w", encoding=encoding, errors="backslashreplace", closefd=False)
    try:
        with contextlib.redirect_stdout(others):
            yield result
    finally:
        for stream in (result, others):
            with contextlib.suppress(OSError):
                stream.close()
        os.dup2(saved, descriptor)
        os.close(saved)


@contextlib.contextmanager
def libraries_quiet(*, debug: bool) -> Iterator[None]:
    """Drop warnings and log lines of libraries (child processes included), unless debugging; our own stay."""
    if debug:
        yield
        return
    before = logging.root.manager.disable
    variable = os.environ.get("PYTHONWARNINGS")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.filterwarnings("default", module=r"privshard(\..*)?$")
        warnings.showwarning = _show_warning
        logging.disable(logging.WARNING)
        os.environ["PYTHONWARNINGS"] = "ignore"
        try:
            yield
        finally:
            logging.disable(before)
            if variable is None:
                os.environ.pop("PYTHONWARNINGS", None)
            else:
                os.environ["PYTHONWARNINGS"] = variable


def _show_warning(message, category, filename, lineno, file=None, line=None) -> None:
    print(f"Warning: {message}", file=sys.stderr)
