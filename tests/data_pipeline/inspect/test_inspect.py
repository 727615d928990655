"""`caphuman inspect`: what it prints, the pictures that it writes, its exit code."""

import json
import sys

import cv2
import numpy as np
import pytest
from records_standin import write_standin

from caphuman_jax.cli import app
from caphuman_jax.errors import DataError
from caphuman_jax.head import hints
from caphuman_jax.head.angles import angles_of
from caphuman_jax.io.images import write_png
from data_pipeline.inspect import check, contact_sheet, render, statistics
from data_pipeline.records import tf_example
from data_pipeline.records.reader import RecordsFolder
from data_pipeline.records.schema import Feature

ALBEDO = (4801, 3)  # the shipped head's


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset with heads of the shipped head, and hints that were rendered from them; those of
    record 4 are turned upside down.
    """

    def add_hints(record, number):
        kind = Feature("hints", "image", (132, 44, 3), "uint8", "png")
        picture = hints.to_picture(hints.pack_hints(render.render("anny", [record], 44)[0]))
        return record | {
            "hints": tf_example.encode_image(kind, picture[::-1] if number == 4 else picture)
        }

    place = tmp_path_factory.mktemp("records") / "some"
    write_standin(place, 6, shards=2, albedo=ALBEDO, hints=True, change=add_hints)
    return place


def test_the_report_and_its_pictures(folder, tmp_path, capsys):
    version = folder / "caphuman_records" / "1.0.0"
    (version / "dropped.jsonl").write_text(
        "".join(
            json.dumps(line) + "\n"
            for line in [
                {"key": "a.jpg", "reason": "no_face", "detail": "no face was found"},
                {"key": "b.jpg", "reason": "small", "detail": "face of 12 px"},
                {"key": "c.jpg", "reason": "small", "detail": "face of 9 px"},
            ]
        )
    )
    out = tmp_path / "look"
    assert (
        app.main(["inspect", str(folder), "--out", str(out), "--samples", "3", "--workers", "1"])
        == 1
    )
    printed = capsys.readouterr().out
    for words in (
        "6 records in 2 files",
        "dropped 3 photos",
        "2   such as b.jpg: face of 12 px",
        "1   such as a.jpg: no face was found",
        "2 persons (2 with 3 photos)",
        "3 records have partners",
        "checked 6 records",
        "1 problems",
    ):
        assert words in printed, words
    assert (
        "train.array_record-00001-of-00002, record 1, key 'photo-000004', hints: are not those of "
        "the record's head" in printed
    )
    for name in ("histograms.png", "contact_sheet.png"):
        picture = cv2.imread(str(out / name))
        assert picture.shape[1] > 800 and picture.std() > 10
    assert (
        app.main(["inspect", str(folder), "--out", str(out), "--fast", "--workers", "1"]) == 0
    )  # which does not look at hints
    assert "nothing wrong" in capsys.readouterr().out


def test_the_first_twenty_problems_are_told_and_the_rest_counted(tmp_path, capsys):
    def spoil(record, number):
        return record | {"head/scale": np.float32(-1)}

    write_standin(tmp_path / "x", 13, change=spoil)
    assert app.main(["inspect", str(tmp_path / "x"), "--workers", "1", "--samples", "1"]) == 1
    printed = capsys.readouterr().out
    assert (
        "26 problems" in printed and printed.count("head/scale") == 20 and "… and 6 more" in printed
    )
    assert "heads are not rendered" in printed  # 12 vertices
    assert (tmp_path / "x" / "inspect" / "contact_sheet.png").is_file()


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "no records there; make them with caphuman prepare"),
        ("{", "cannot be read"),
        ("{}", "is damaged"),
    ],
)
def test_folders_that_hold_no_records(tmp_path, capsys, content, words):
    place = tmp_path / "caphuman_records" / "1.0.0"
    if content:
        place.mkdir(parents=True)
        (place / "manifest.json").write_text(content)
    assert app.main(["inspect", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


@pytest.mark.parametrize("package", ["array_record", "matplotlib"])
def test_packages_that_are_not_here(folder, monkeypatch, capsys, package):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    if package == "array_record":
        monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
        monkeypatch.setitem(sys.modules, "array_record.python.array_record_module", None)
    assert app.main(["inspect", str(folder)]) == 2
    error = capsys.readouterr().err
    assert (
        f"the package {package}, which is not installed: pip install '.[data]'" in error
        and error.count("\n") == 1
    )


def test_moments_are_decoded_with_the_model(tmp_path, capsys):
    write_standin(tmp_path / "x", 1, shards=1, moments=(4, 4, 16), albedo=ALBEDO)
    assert app.main(["inspect", str(tmp_path / "x"), "--workers", "1", "--model", "mini"]) == 0
    assert "not decoded" not in capsys.readouterr().out


def test_angles_are_those_of_pose():
    from caphuman_jax.head import pose

    rotation = np.asarray(pose.rotation_matrix(np.float32(23), np.float32(-12), np.float32(31)))
    np.testing.assert_allclose(angles_of(np.asarray(rotation), np), [23, -12, 31], atol=1e-4)


def test_words_do_not_fill_the_memory(monkeypatch):
    monkeypatch.setattr(statistics, "_WORDS", 10)
    tally = statistics.Tally()
    for i in range(40):
        other = statistics.Tally()
        other.words.update({"person": 1, f"word{i}": 1})
        tally.merge(other)
    assert len(tally.words) <= 20 and tally.words["person"] == 40


def test_a_record_is_shown_with_its_numbers(folder, tmp_path):
    found = RecordsFolder(folder)
    renderer = render.DatasetRenderer(found.path, found.manifest, None)
    records = list(renderer._chosen(6))
    assert [r["key"] for r in records] == [f"photo-{i:06}" for i in range(6)]
    with_hints, without = (
        contact_sheet.sheet(renderer.features, records[:1], [hints], [None])
        for hints in (renderer._hints(records[:1])[0], None)
    )
    assert with_hints.shape[1] - without.shape[1] == 2 * (contact_sheet._TILE + contact_sheet._GAP)
    write_png(tmp_path / "sheet.png", with_hints)
    assert check.check(found.path, found.manifest, fast=True, workers=1).tally.records == 6


def test_moments_of_another_model_are_told(tmp_path):
    records = RecordsFolder(write_standin(tmp_path / "x", 1, shards=1, moments=(4, 4, 10)))
    with pytest.raises(DataError, match="have 5 channels, the autoencoder of mini 8"):
        render.DatasetRenderer(records.path, records.manifest, "mini").contact_sheet(
            tmp_path / "s.png", 1
        )
