"""The influence page: self-contained, escaped, well-formed, and right at its edges."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import pytest

from privshard.report import influence_page as module
from privshard.report.html import write_page
from privshard.report.influence_page import component_labels, influence_page

VOID = {"meta", "link", "br", "img"}


def _report(count: int = 3, *, rows: int = 50, classes=("ant", "bee"), estimated: bool = False) -> dict[str, Any]:
    """An influence report as `privshard.influence` writes it; component i loses i points when left out."""
    known = rows > 0
    return {
        "components": [
            {
                "id": f"{index:02d}" * 32,
                "shard": index,
                "weight": 1 / count,
                "weight_distance": 0.5 + index,
                "leave_one_out": {
                    "accuracy": 0.8 - index / 100 if known else None,
                    "accuracy_change": -index / 100 if known else None,
                    "mean_logit_shift": 0.25 if known else None,
                },
                "shapley_accuracy": 0.1 if known else None,
                "shapley_accuracy_interval": [0.05, 0.15] if known else None,
                "shapley_logit": -0.5 if known else None,
                "per_class": [
                    {
                        "class": name,
                        "num_rows": rows,
                        "accuracy_with": 0.8 if known else None,
                        "accuracy_without": 0.8 - place / 100 if known else None,
                    }
                    for place, name in enumerate(classes)
                ],
            }
            for index in range(count)
        ],
        "edits": [],
        "composition": {
            "accuracy": 0.8 if known else None,
            "base_accuracy": 0.5 if known else None,
            "num_rows": rows,
        },
        "conflict": {
            "ids": [f"{index:02d}" * 32 for index in range(count)],
            "cosine": [[1.0 if i == j else -0.25 for j in range(count)] for i in range(count)],
        },
        "shapley": {
            "accuracy": {"method": "antithetic_permutations" if estimated else "exact", "num_coalitions": 8}
            if known
            else None,
            "logit": None,
        },
        "note": "Computed on held-out rows; not covered by the guarantee.",
    }


class _Reader(HTMLParser):
    """Collects text and ids, and fails on tags that do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs) -> None:
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs) -> None:
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def _read(page: str) -> _Reader:
    reader = _Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def test_page_is_well_formed_with_unique_ids():
    reader = _read(influence_page(_report()))
    assert len(reader.ids) == len(set(reader.ids))


def test_page_asks_for_nothing_from_outside_and_runs_nothing():
    page = influence_page(_report())
    assert "<script" not in page
    assert re.findall(r'\b(?:src|href)="(?!#)[^"]*"', page) == []
    assert re.findall(r"url\((?!#)", page) == []
    assert "default-src 'none'" in page


def test_plots_take_every_colour_from_the_page():
    page = influence_page(_report())
    drawn = "".join(re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL))
    assert drawn.count("<svg") == 3
    assert re.findall(r"#[0-9a-f]{6}\b", drawn) == []
    used = set(re.findall(r"var\((--[a-z]+)\)", drawn))
    assert {"--above", "--below", "--ink"} <= used
    assert all(f"{name}:" in page for name in used)


def test_references_inside_plots_resolve():
    page = influence_page(_report())
    wanted = set(re.findall(r'(?:href="#|url\(#)([^")]+)', page))
    assert wanted <= set(_read(page).ids)


def test_the_same_report_gives_the_same_page():
    assert influence_page(_report()) == influence_page(_report())


def test_names_from_outside_are_text():
    hostile = "<script>alert(1)</script> & $x^2$ \"'"
    page = influence_page(_report(classes=(hostile[:20], hostile)), title=hostile, statement=hostile)
    assert "<script" not in page
    text = "".join(_read(page).text)
    assert hostile in text
    assert "$x^2$" in text


def test_statement_note_and_numbers_are_shown():
    text = "".join(_read(influence_page(_report(), statement="Epsilon is 3.")).text)
    for expected in ("Epsilon is 3.", "not covered by the guarantee", "80.0 %", "−2.0", "−0.500", "+10.0"):
        assert expected in text
    assert "Of 3 components, leaving one out lowers accuracy for 2, doesn't change it for 1." in text
    assert "Most is lost without shard 2 (−2.0 points)" in text
    assert "Most is gained" not in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [((0.1, 0.0), "raises accuracy for 1, doesn't change it for 1."), ((0.0, 0.0), "doesn't change accuracy for 2.")],
)
def test_the_summary_names_accuracy_first(changes, said):
    components = [{"leave_one_out": {"accuracy_change": change}} for change in changes]
    assert f"leaving one out {said}" in module._summary(components, ["shard 0", "shard 1"])


def test_intervals_are_shown_for_estimates_only():
    assert "+5.0 to +15.0" in influence_page(_report(estimated=True))
    assert "+5.0 to +15.0" not in influence_page(_report())


def test_a_single_component_has_no_conflict_to_show():
    page = influence_page(_report(1))
    assert "Agreement and conflict" not in page
    assert "Without its only component the model is the base" in page


def test_no_rows_leave_the_weights_and_no_components_the_base():
    page = influence_page(_report(2, rows=0))
    assert "There are no held-out rows" in page
    assert page.count("<svg") == 1
    empty = influence_page(_report(0))
    assert "the model is the base itself" in empty
    assert "<svg" not in empty


def test_many_components_and_classes_are_cut_and_say_so(monkeypatch):
    for name, number in {"MAX_BARS": 3, "MAX_CLASSES": 4, "MAX_COLUMNS": 2}.items():
        monkeypatch.setattr(module, name, number)
    page = influence_page(_report(5, classes=[f"class {index}" for index in range(9)]))
    assert "Shown are the 3 components with the greatest change, of 5." in page
    assert "Shown are the 4 classes with the greatest change, of 9." in page
    assert page.count("Shown are the first 2 components, of 5.") == 2
    assert "class 8" in page
    assert "class 4" not in page


def test_undefined_cosines_and_classes_without_rows_are_gaps():
    report = _report()
    report["conflict"]["cosine"][0][1] = None
    for item in report["components"]:
        item["per_class"][0] |= {"num_rows": 0, "accuracy_with": None, "accuracy_without": None}
    page = influence_page(report)
    assert "Dotted cells" in page
    assert "Dotted cells" not in influence_page(_report())


def test_labels_are_shards_and_ids_where_a_shard_has_several():
    items = [{"id": "a" * 64, "shard": 0}, {"id": "b" * 64, "shard": 1}, {"id": "c" * 64, "shard": 1}]
    assert component_labels(items) == ["shard 0", "shard 1 · bbbbbbbb", "shard 1 · cccccccc"]


def test_page_is_written_whole_into_a_new_folder(tmp_path):
    path = tmp_path / "reports" / "influence.html"
    write_page(path, "<p>ε</p>")
    write_page(path, "<p>δ</p>")
    assert path.read_text(encoding="utf-8") == "<p>δ</p>"
    assert [item.name for item in path.parent.iterdir()] == ["influence.html"]


def test_failure_to_render_leaves_the_old_page(tmp_path):
    path = tmp_path / "influence.html"
    write_page(path, "old")
    with pytest.raises(KeyError):
        write_page(path, influence_page({}))
    assert path.read_text() == "old"
