"""Self-contained HTML pages: jinja2 templates of this package, filled in and written whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from privshard.store.disk import make_folder, write_whole


def render(template: str, **context: Any) -> str:
    """Fill in one of the templates beside this module.

    Everything in the context is escaped, except values that are marked as safe (`markupsafe.Markup`); a name that the
    context lacks is an error, not a blank.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("privshard.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**context)


def write_page(path: Path, page: str) -> None:
    """Write a page, whole or not at all; the folder is made where it is missing."""
    path = Path(path)
    make_folder(path.parent)
    write_whole(path, page.encode())
