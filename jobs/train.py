"""Train a recipe as a Ray job: `ray job submit -- python -m jobs.train RECIPE --workspace W`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

RECIPES = Path(__file__).parent / "recipes"


def names() -> list[str]:
    """The recipes of this folder.

    >>> "digits" in names()
    True
    """
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def arguments(given: Sequence[str]) -> list[str]:
    """What `privshard` is called with: the named recipe's file, on the cluster that the job runs in.

    Everything after the recipe is passed on, so a later `--set ray.address=…` wins. A recipe that has none of our
    names is taken as a path.

    >>> arguments(["digits", "--workspace", "w"])[2:]
    ['--set', 'ray.address=auto', '--workspace', 'w']
    """
    recipe, *rest = given
    path = str(RECIPES / f"{recipe}.yaml") if recipe in names() else recipe
    return ["train", path, "--set", "ray.address=auto", *rest]


def main(given: Sequence[str] | None = None) -> int:
    """Run the job; its exit status is the command's."""
    from privshard.cli import main as privshard

    given = sys.argv[1:] if given is None else given
    if not given or given[0].startswith("-"):
        print(f"usage: python -m jobs.train RECIPE [what `privshard train` takes]\nrecipes: {', '.join(names())}")
        return 0 if given and given[0] in ("-h", "--help") else 2
    return privshard(arguments(given))


if __name__ == "__main__":
    sys.exit(main())
