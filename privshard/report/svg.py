"""Matplotlib figures as inline SVG that takes its colours from the page, light or dark."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import quoteattr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Matplotlib needs literal colours: each of these stands for the CSS variable of the page that replaces it.
INK = "#010201"
MUTED = "#010202"
RULE = "#010203"
ABOVE = "#010204"
BELOW = "#010205"
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", ABOVE: "--above", BELOW: "--below"}
MIN_WIDTH = 520

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9.0,
    "axes.edgecolor": RULE,
    "axes.labelcolor": MUTED,
    "text.color": INK,
    "xtick.color": RULE,
    "ytick.color": RULE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def new_figure(width: float, height: float) -> Figure:
    """A figure of the given size in inches, without the global state of pyplot."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def inline_svg(figure: Figure, *, name: str, description: str) -> str:
    """The figure as an <svg> element to put into a page.

    Text stays text, colours are CSS variables, ids begin with `name` (so that several figures share a page), and the
    same figure gives the same bytes. description: what a screen reader says.
    """
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context({**SETTINGS, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    width = figure.get_figwidth()
    return re.sub(
        r'^<svg ([^>]*?)width="[^"]*" height="[^"]*"',
        lambda found: (
            f'<svg {found[1]}role="img" aria-label={quoteattr(description)} '
            f'style="max-width: {width * 100:.0f}px; min-width: {min(width * 100, MIN_WIDTH):.0f}px"'
        ),
        _attributes_in_order(text),
        count=1,
    )


def _attributes_in_order(text: str) -> str:
    """The opening tag with width and height side by side, wherever matplotlib put them."""
    tag = text[: text.index(">")]
    size = [found for key in ("width", "height") for found in re.findall(rf' {key}="[^"]*"', tag)]
    for item in size:
        tag = tag.replace(item, "", 1)
    return tag + "".join(size) + text[text.index(">") :]
