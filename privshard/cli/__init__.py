"""The `privshard` command."""

from __future__ import annotations

from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments` (None: those of the process) and return its exit status."""
    from privshard.cli.app import run

    return run(arguments)
