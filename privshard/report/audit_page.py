"""The audit page: what `privshard audit --html` shows, with the trade-off curve, claimed against achieved."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from privshard.report.html import render
from privshard.report.svg import ABOVE, BELOW, INK, MUTED, RULE, SETTINGS, inline_svg, new_figure

_TITLES = {"step": "Step audit", "run": "Run audit", "removal": "Removal audit"}
_FLOOR = 1e-4


def audit_page(audit: Mapping[str, Any]) -> str:
    """A self-contained HTML page of `privshard audit`: no scripts, no requests, readable in light and dark.

    audit: the JSON value of `privshard.api.auditing.audit`. Test: tests/report/test_audit_page.py.
    """
    from markupsafe import Markup

    claim, lower = audit["claim"], audit["lower_bound"]
    return render(
        "audit.html",
        title=f"{_TITLES[audit['kind']]} of {audit['workspace']}",
        audit=audit,
        facts=(
            ("Attack: epsilon at least", _number(lower["epsilon"])),
            ("Claim: epsilon at most", _number(claim["epsilon"])),
            ("Confidence of the attack", f"{100 * lower['confidence']:g} %"),
            ("Canaries", f"{audit['num_canaries']:,}".replace(",", "\u202f")),
        ),
        delta=f"{claim['delta']:g}",
        scale=Markup(epsilon_scale(audit)),
        curve=Markup(tradeoff_plot(audit["curve"])),
        attacks=[{**item, "epsilon_lower": _number(item["epsilon_lower"])} for item in audit["attacks"]],
    )


def epsilon_scale(audit: Mapping[str, Any]) -> str:
    """One axis of epsilon: what every attack shows, up to what is claimed. Between the two, nobody knows."""
    import matplotlib

    claim = audit["claim"]["epsilon"]
    attacks = audit["attacks"]
    proved = [math.inf if item["epsilon_lower"] is None else item["epsilon_lower"] for item in attacks]
    end = 1.08 * max([claim, *(value for value in proved if math.isfinite(value))])
    with matplotlib.rc_context({**SETTINGS, "axes.spines.left": False}):
        figure = new_figure(7.2, 0.9 + 0.3 * len(attacks))
        axes = figure.add_subplot()
        for place, value in enumerate(proved):
            shown = min(value, end)
            colour = BELOW if value > claim else ABOVE
            axes.barh(place, shown, height=0.56, color=colour)
            axes.annotate(
                _number(None if math.isinf(value) else value), (shown, place), xytext=(4, 0),
                textcoords="offset points", va="center", parse_math=False,
            )  # fmt: skip
        axes.axvline(claim, color=INK, linewidth=1.4)
        axes.annotate(
            f"claimed: at most {_number(claim)}", (claim, -0.75), xytext=(-5, 0), textcoords="offset points",
            ha="right", va="center", color=INK, parse_math=False,
        )  # fmt: skip
        axes.set_yticks(range(len(attacks)), [item["name"] for item in attacks], parse_math=False)
        axes.set_ylim(len(attacks) - 0.45, -1.1)
        axes.set_xlim(0, end)
        axes.tick_params(length=0)
        axes.set_axisbelow(True)
        axes.grid(axis="x", color=RULE, linewidth=0.6)
        axes.set_xlabel("epsilon")
        return inline_svg(
            figure, name="scale", description="Bars: the epsilon that each attack proved; line: the claim."
        )


def tradeoff_plot(curve: Mapping[str, Any]) -> str:
    """The attacker's two errors against each other, on linear axes and, for the rare ones, on logarithmic axes.

    Below the claimed curve no attack may come; the area there is shaded.
    """
    import matplotlib

    with matplotlib.rc_context(SETTINGS):
        figure = new_figure(8.6, 4.3)
        for axes, logarithmic in zip(figure.subplots(1, 2), (False, True), strict=True):
            _errors(axes, curve, logarithmic=logarithmic)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
        return inline_svg(
            figure,
            name="tradeoff",
            description="Trade-off of false alarms and misses: the claimed limit below, the attack's errors above it.",
        )


def _errors(axes: Any, curve: Mapping[str, Any], *, logarithmic: bool) -> None:
    alarms = curve["false_alarms"]
    lowest = _FLOOR if logarithmic else 0.0
    claimed = [max(value, lowest) for value in curve["claimed"]]
    axes.fill_between(alarms, lowest, claimed, color=RULE, linewidth=0, label="ruled out by the claim")
    axes.plot(alarms, claimed, color=INK, linewidth=1.2, label="claimed limit")
    axes.plot(*_shown(alarms, curve["achieved"], lowest), color=ABOVE, linewidth=2.4, label="achieved by this attack")
    if curve["planned"] is not None:
        axes.plot(
            *_shown(alarms, curve["planned"], lowest),
            color=INK,
            linewidth=1.0,
            linestyle=(0, (3, 3)),
            label="strongest attack on the plan",
        )
    if logarithmic:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(_FLOOR, 1)
        axes.set_ylim(_FLOOR, 1)
        axes.minorticks_off()
    else:
        axes.plot((0, 1), (1, 0), color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)))
        axes.text(0.53, 0.49, "guessing", color=MUTED, rotation=-45, rotation_mode="anchor", va="bottom", fontsize=8)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
    axes.set_box_aspect(1)
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("false alarms: says “in” of who is out")
    axes.set_ylabel("misses: says “out” of who is in" if not logarithmic else "")


def _shown(alarms: Sequence[float], misses: Sequence[float | None], lowest: float) -> tuple[list[float], list[float]]:
    """The points that there is something to say about."""
    pairs = [(x, y) for x, y in zip(alarms, misses, strict=True) if y is not None and y >= lowest]
    return [x for x, _ in pairs], [y for _, y in pairs]


def _number(value: float | None) -> str:
    """Three significant digits; infinity for None."""
    return "∞" if value is None else f"{value:.3g}" if value < 100 else f"{value:.0f}"
