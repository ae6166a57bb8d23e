"""How numbers read on a page: fractions as percentages, signs that are real minus signs, a dash for nothing."""

from __future__ import annotations

NOTHING = "–"


def percent(value: float | None) -> str:
    """A fraction as a percentage.

    >>> percent(0.8754), percent(None)
    ('87.5 %', '–')
    """
    return NOTHING if value is None else f"{100 * value:.1f} %"


def points(value: float | None) -> str:
    """A difference of two fractions in percentage points, with its sign.

    >>> points(-0.0312), points(0.2), points(1e-9)
    ('−3.1', '+20.0', '0.0')
    """
    return NOTHING if value is None else signed(100 * value, digits=1)


def signed(value: float | None, *, digits: int) -> str:
    """A number with its sign, unless it rounds to zero."""
    if value is None:
        return NOTHING
    text = f"{abs(value):.{digits}f}"
    sign = "" if float(text) == 0 else ("+" if value > 0 else "−")
    return sign + text


def plain(value: float | None, *, digits: int = 3) -> str:
    """A number of any magnitude, to `digits` significant digits.

    >>> plain(0.012345), plain(1234.5)
    ('0.0123', '1230')
    """
    if value is None:
        return NOTHING
    text = f"{value:#.{digits}g}"
    return (text if "e" not in text else f"{float(text):.0f}" if abs(value) >= 1 else text).rstrip(".")
