"""The page says what the numbers show, holds its picture, and asks nobody for anything."""

from __future__ import annotations

import base64
import re

import pytest

from privshard.report.explain_page import explain_page


def _report(trained=0.5, untrained=0.4, random=0.1, deviation=0.02, *, num=3, num_trained=3, measured=True):
    def scores(iou, num=num):
        def value(mean):
            return {"mean": mean, "deviation": deviation if num > 1 else None}

        return {"num_generators": num, "pointing": value(0.75), "iou": value(iou), "best_iou": value(0.9)}

    found = {
        "num_images": 8,
        "area": 0.125,
        "trained": scores(trained, num_trained),
        "untrained": scores(untrained),
        "random": scores(random),
    }
    return {
        "source": "w",
        "base": {"name": "vit<b>", "digest": "d" * 64},
        "method": {"name": "gift", "generator": "compact", "rank": 16},
        "num_parameters": 24576,
        "components": ["a" * 64],
        "images": ["x.png"],
        "layers": ["blocks.0.attn.proj", "blocks.1.attn.proj"],
        "clusters": [0, 1],
        "localization": found if measured else None,
    }


def test_the_page_is_whole_and_escaped():
    page = explain_page(_report(), b"picture")
    assert "vit&lt;b&gt;" in page
    assert "<b>" not in page
    assert f"data:image/png;base64,{base64.b64encode(b'picture').decode()}" in page
    assert "24\u202f576" in page
    assert "0.500 ± 0.020" in page
    assert "12.5 %" in page
    assert not re.search(r"""(?:src|href)=["'](?!data:)""", page)


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({}, "0.100 above untrained generators, more than those vary by (± 0.045): training made the maps fit these"),
        ({"trained": 0.3}, "0.100 below untrained generators, more than those vary by (± 0.045): training made"),
        ({"trained": 0.3}, "fit these objects worse"),
        ({"trained": 0.41}, "+0.010, is within what generators vary by (± 0.045): no effect of training is shown"),
        ({"num_trained": 1, "trained": 0.49}, "+0.090, is within what generators vary by (± 0.099)"),
        ({"num_trained": 1, "num": 1}, "too few generators to tell"),
        ({"trained": 0.05}, "no more than random ones do"),
        ({"trained": None}, "One image alone"),
    ],
)
def test_the_verdict_follows_the_numbers(scores, words):
    assert words in explain_page(_report(**scores), b"")


def test_without_masks_nothing_is_claimed():
    page = explain_page(_report(measured=False), b"")
    assert "nothing here is measured" in page
    assert "Pointing game" not in page
