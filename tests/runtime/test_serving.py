"""What the service answers, without HTTP."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from privshard.core.errors import InputError
from privshard.runtime import serving
from privshard.runtime.serving import Answers


class Predictor:
    model = "v0002"
    classes = ("cat", "dog")

    def __call__(self, images):
        if images == [b"no image"]:
            raise InputError("Expected an image.", remedy="Send one.")
        return [{"label": "cat", "probability": 1.0, "probabilities": {"cat": 1.0, "dog": 0.0}}]


@pytest.fixture
def answers() -> Answers:
    return Answers(Predictor)


def test_it_says_which_model_answers(answers):
    assert answers.get() == (200, {"model": "v0002", "classes": ["cat", "dog"]})


def test_an_image_is_classified(answers):
    status, value = answers.post(b"image")
    assert (status, value["model"], value["label"]) == (200, "v0002", "cat")


@pytest.mark.parametrize(("body", "status"), [(b"", 400), (b"no image", 400), (b"too long", 413)])
def test_what_cannot_be_read_is_refused(body, status, answers, monkeypatch):
    monkeypatch.setattr(serving, "MAX_BYTES", 8 if status == 400 else 7)
    got, value = answers.post(body)
    assert got == status
    assert value["error"]["kind"] == "bad_input"


def test_the_model_is_loaded_once():
    loads = []
    answers = Answers(lambda: loads.append(1) or SimpleNamespace(model="v0001", classes=(), __call__=None))
    answers.get()
    answers.get()
    assert loads == [1]
