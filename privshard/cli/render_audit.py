"""A readable summary of an audit: the lower bound beside the claim, the checks, and who the attacker was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

_NAMES = {"step": "Step audit", "run": "Run audit", "removal": "Removal audit"}


def audit(result: dict[str, Any]) -> RenderableType:
    """What the attack proved."""
    from rich import box
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    claim, lower = result["claim"], result["lower_bound"]
    attacks, checks = Table(box=box.SIMPLE), Table(box=box.SIMPLE)
    for heading in ("attack", "epsilon at least", "detail"):
        attacks.add_column(heading, overflow="fold")
    for item in result["attacks"]:
        attacks.add_row(Text(item["name"]), _epsilon(item["epsilon_lower"]), Text(item["detail"]))
    for heading in ("", "check", "detail"):
        checks.add_column(heading, overflow="fold")
    for item in result["checks"]:
        checks.add_row("ok" if item["ok"] else "FAILED", Text(item["name"]), Text(item["detail"]))
    shown = [
        Text(f"{_NAMES[result['kind']]} of {result['workspace']}: {result['verdict']}", style="bold"),
        Text(
            f"The attack shows epsilon to be at least {_epsilon(lower['epsilon'])} at delta {lower['delta']:g}, with "
            f"confidence {lower['confidence']:g}. The claim is at most {claim['epsilon']:.4g} for one {claim['unit']} "
            f"in one training, by the {claim['accountant']} accountant."
        ),
        attacks,
        checks,
        Panel(Text(f"{result['threat_model']}\n\n{result['not_covered']}"), title="Threat model", title_align="left"),
        Text(f"Canaries: {result['num_canaries']}, draws: {result['num_draws']}"),
        *(Text(result[key]) for key in ("note",) if result.get(key)),
        *(Text(f"Report: {result[key]}") for key in ("html",) if result.get(key)),
    ]
    return Group(*shown)


def _epsilon(value: float | None) -> str:
    return "infinite" if value is None else f"{value:.4g}"
