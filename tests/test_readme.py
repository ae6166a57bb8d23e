"""What the pages for newcomers name is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from privshard.api.recipe import Recipe
from privshard.api.recipe_yaml import parse_yaml

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md", "jobs/README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert all((ROOT / page).parent.joinpath(link).exists() for link in links), links


def test_the_tree_is_the_repository():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"^    (privshard/\w+|jobs/|notebooks/|tests/) {2,}", text, re.MULTILINE))
    assert {"privshard/core", "privshard/api", "jobs/"} <= shown
    assert all((ROOT / path).is_dir() for path in shown)


def test_the_example_recipe_is_one():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    block = next(part for part in re.findall(r"(?:^    .+\n)+", text, re.MULTILINE) if "data:" in part)
    recipe = Recipe(**parse_yaml(block, source="README.md"))
    assert recipe.privacy.unit == "subject"


def test_the_table_of_keys_names_real_ones():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    known = {
        f"{section}.{key}"
        for section, value in Recipe().model_dump().items()
        if isinstance(value, dict)
        for key in value
    }
    known |= {f"data.{name}" for name in ("image", "label", "subject", "split")}
    section = ""
    for cell in re.findall(r"^\| (`[a-z_.`, *]+) \|", text, re.MULTILINE):
        for name in re.findall(r"`([a-z_.*]+)`", cell):
            section = name.split(".")[0] if not name.startswith(".") and "." in name else section
            full = section + name if name.startswith(".") else name
            if "." in full and not full.endswith("*"):
                assert full in known, full
