"""Class folders to Parquet."""

from __future__ import annotations

from pathlib import Path

import pytest

from privshard.core.errors import InputError
from privshard.data.importer import import_folder
from privshard.data.reader import read_public_classes, read_rows


@pytest.fixture
def photos(tmp_path: Path, png):
    """Writes images at the given paths below a folder, and returns the folder."""

    def write(*paths: str) -> Path:
        for seed, path in enumerate(paths):
            file = tmp_path / "photos" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(png(seed) if file.suffix == ".png" else b"text")
        return tmp_path / "photos"

    return write


def test_class_folders(photos, tmp_path, png):
    folder = photos("dog/1.png", "cat/2.png", "cat/deeper/3.png", "cat/notes.txt", ".DS_Store", "cat/._2.png")
    out = tmp_path / "out.parquet"
    report = import_folder(folder, out=out)
    assert (report.num_rows, report.num_subjects, report.classes) == (3, 0, ("cat", "dog"))
    assert report.skipped == (".DS_Store", "cat/._2.png", "cat/notes.txt")
    rows = {(row.label, row.image, row.subject, row.split) for row in read_rows(out)}
    assert rows == {("dog", png(0), None, None), ("cat", png(1), None, None), ("cat", png(2), None, None)}
    assert read_public_classes(out) is None
    assert not list(tmp_path.glob(".out*"))


def test_split_folders(photos, tmp_path):
    folder = photos("train/cat/1.png", "Test/cat/2.png", "val/dog/3.png")
    import_folder(folder, out=tmp_path / "out.parquet")
    found = [(row.split, row.label) for row in read_rows(tmp_path / "out.parquet")]
    assert sorted(found) == [("eval", "cat"), ("eval", "dog"), ("train", "cat")]


def test_a_class_may_be_called_like_a_split(photos, tmp_path):
    report = import_folder(photos("train/1.png", "plane/2.png"), out=tmp_path / "out.parquet")
    assert report.classes == ("plane", "train")


@pytest.mark.parametrize("pattern", [r"([^/_]+)_\d+\.png$", r"(\w)/(?P<subject>[^/_]+)_"])
def test_subjects_from_paths(photos, tmp_path, pattern):
    folder = photos("x/ada_1.png", "x/bob_1.png", "y/ada_2.png")
    report = import_folder(folder, out=tmp_path / "out.parquet", subject_from=pattern)
    assert report.num_subjects == 2
    assert [row.subject for row in read_rows(tmp_path / "out.parquet", required={"subject"})] == ["ada", "bob", "ada"]


def test_splits_from_paths(photos, tmp_path):
    folder = photos("x/train_1.png", "x/test_1.png")
    import_folder(folder, out=tmp_path / "out.parquet", split_from="(train|test)_")
    assert [row.split for row in read_rows(tmp_path / "out.parquet")] == ["eval", "train"]


def test_public_classes_are_declared_on_request(photos, tmp_path):
    folder, out = photos("cat/1.png"), tmp_path / "out.parquet"
    import_folder(folder, out=out, classes=("dog", "cat"))
    assert read_public_classes(out) == ("dog", "cat")
    assert [row.label for row in read_rows(out)] == ["cat"]
    with pytest.raises(InputError, match=r"got also \['cat'\]"):
        import_folder(folder, out=out, classes=("dog",))


@pytest.mark.parametrize(
    ("paths", "options", "words"),
    [
        (["1.png"], {}, "expected <class>/<image>"),
        (["train/1.png"], {}, "expected <split>/<class>/<image>"),
        (["cat/1.txt"], {}, r"got none \(1 other files\)"),
        (["cat/1.jpg"], {}, r"cat/1.jpg: Expected an image that Pillow can read"),
        (["cat/1.png"], {"subject_from": "("}, "expected a regular expression"),
        (["cat/1.png"], {"subject_from": "cat"}, "with a group"),
        (["cat/1.png"], {"subject_from": "(dog)"}, "cat/1.png: .*no match"),
        (["cat/1.png"], {"subject_from": "(x*)"}, "an empty group"),
        (["cat/1.png"], {"split_from": "(cat)"}, "expected a split"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(photos, tmp_path, paths, options, words):
    with pytest.raises(InputError, match=words):
        import_folder(photos(*paths), out=tmp_path / "out.parquet", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


def test_a_failed_import_keeps_the_older_file(photos, tmp_path):
    out = tmp_path / "out.parquet"
    out.write_bytes(b"older")
    with pytest.raises(InputError):
        import_folder(photos("cat/1.png", "cat/2.jpg"), out=out)
    assert out.read_bytes() == b"older"


def test_places_must_exist(photos, tmp_path):
    with pytest.raises(InputError, match="folder of class folders"):
        import_folder(tmp_path / "gone", out=tmp_path / "out.parquet")
    with pytest.raises(InputError, match="existing folder to write to"):
        import_folder(photos("cat/1.png"), out=tmp_path / "gone" / "out.parquet")


def test_progress(photos, tmp_path):
    seen = []
    folder = photos(*(f"cat/{i:03d}.png" for i in range(70)))
    import_folder(folder, out=tmp_path / "out.parquet", on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(64, 70), (70, 70)]
