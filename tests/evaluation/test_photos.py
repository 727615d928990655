"""Which photos a model is evaluated on: never those that its training has seen."""

import argparse
import io
import json
import types

import numpy as np
import pytest
from cheap_measurer import CheapMeasurer, CheapSettings, vector_of, write_photos
from PIL import Image
from records_standin import write_standin

from caphuman_jax.cli import evaluate
from caphuman_jax.errors import CapHumanError, DataError, PhotoError
from caphuman_jax.evaluation import bulk, judges, photos
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.jobs import multi_device
from caphuman_jax.training.run import held_out_metadata
from caphuman_jax.weights import model_folder
from data_pipeline.prepare import beam_pipeline, finalize, workdir
from data_pipeline.records.manifest import records_hash
from data_pipeline.records.reader import RecordsFolder, held_out_rule
from data_pipeline.sources.open import open_source


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(photos, records) of 60 people in 4 photos each; one person in 8 is held out."""
    folder = tmp_path_factory.mktemp("prepared")
    contents = {f"person{i // 4}/{i:03d}.jpg": b"who:%d:%d" % (i // 4, i) for i in range(240)}
    source, out = write_photos(folder / "photos", contents), str(folder / "records")
    job = workdir.Job(
        out,
        f"{out}/.work-x",
        source,
        {"person": "folder"},
        CheapSettings(hold_out=8),
        "array_record",
        CheapMeasurer,
        open_source,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(beam_pipeline, "one_thread", lambda: None)
        workdir.write_listing(job.open_source().items(), job.folder)
        beam_pipeline.run(job, [])
        finalize.finish(job, workdir.read_listing(job.folder), {"text": "photos"})
    return folder / "photos", RecordsFolder(out)


def keys(folder, split):
    return {folder.record(split, i, ["key"])["key"] for i in range(folder.splits[split])}


def seen_by(monkeypatch, tmp_path, metadata, *words):
    """Names of the photos that `caphuman evaluate` would measure."""
    seen = []

    def reader(pipe, drawings):
        def read(photo):
            seen.append(photo.name if photo.path is None else photo.path.as_posix())
            raise PhotoError("not measured")

        return read

    sampling = types.SimpleNamespace(steps=1, guidance_scale=1.0)
    pipe = types.SimpleNamespace(
        config=types.SimpleNamespace(sampling=sampling), head_model=load_head(), batch=1
    )
    monkeypatch.setattr(model_folder, "find_model", lambda model: model)
    monkeypatch.setattr(model_folder, "read_metadata", lambda folder: metadata)
    monkeypatch.setattr(judges, "find", lambda model, clip, inception: {})
    monkeypatch.setattr(multi_device, "load", lambda model, batch: (pipe, 1))
    monkeypatch.setattr(bulk, "subject_reader", reader)
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    words = [*map(str, words), "--report", str(tmp_path / "report"), "--model", "trained"]
    with pytest.raises(CapHumanError) as error:
        evaluate.run(parser.parse_args(words))
    return seen, str(error.value)


def test_evaluation_never_sees_a_photo_of_the_split_train(prepared, monkeypatch, tmp_path):
    folder, records = prepared
    train, test = keys(records, "train"), keys(records, "test")
    assert len(train) > 180 and len(test) >= 8 and len(train | test) == 240
    metadata = {"held_out": held_out_rule(records.path)}
    seen, _ = seen_by(monkeypatch, tmp_path, metadata, "--photos", folder, "--held-out")
    assert not {name.removeprefix(f"{folder.as_posix()}/") for name in seen} & train
    seen, error = seen_by(monkeypatch, tmp_path, metadata, "--records", records.path)
    assert seen == sorted(test) and f"only 0 of {len(test)} photos" in error


def test_photos_are_held_out_by_name_only_where_the_model_says_so(prepared, monkeypatch, tmp_path):
    folder, records = prepared
    ask = lambda metadata: seen_by(
        monkeypatch, tmp_path, metadata, "--photos", folder, "--held-out"
    )
    for metadata in ({}, {"held_out": None}, {"held_out": {"rule": "file name", "every": 0}}):
        seen, error = ask(metadata)
        assert not seen and "does not say who was held out" in error and "--records DIR" in error
    seen, error = ask({"held_out": held_out_rule(records.path)})
    assert not seen and "split 'test' of its records; use --records DIR" in error
    seen, _ = ask({"held_out": {"rule": "file name", "every": 16}})
    assert 0 < len(seen) < 40


def test_the_rule_on_file_names_never_changes(tmp_path):
    for i in range(64):
        (tmp_path / f"{i:06d}.jpg").touch()
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "x.PNG").touch()
    assert len(photos.in_folder(tmp_path)) == 65 and len(photos.in_folder(tmp_path, 9)) == 9
    found = [photo.name for photo in photos.in_folder(tmp_path, every=16)]
    assert found == [f"{i:06d}.jpg" for i in range(30, 38)]
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="no photos"):
        photos.in_folder(tmp_path / "none")
    shipped = model_folder.read_metadata(model_folder.find_model("mini"))
    assert photos.file_name_rule("mini", shipped) == 16


def test_what_a_record_keeps_is_the_photo(prepared):
    _, records = prepared
    found = photos.in_records(records)
    record = next(
        record
        for i in range(records.splits["test"])
        if (record := records.record("test", i))["key"] == found[3].name
    )
    image = Image.open(io.BytesIO(found[3].source()))
    assert image.size == (20, 20)
    np.testing.assert_array_equal(np.asarray(image), records.pixels("photo", record["photo"]))
    assert photos.in_records(records, 2) == found[:2]


def test_records_of_another_model_are_named(prepared, monkeypatch, tmp_path, capsys):
    _, records = prepared
    assert photos.trained_on({"held_out": held_out_rule(records.path)}, records)
    for metadata in ({}, {"held_out": {"rule": "records", "sha256": None}}):
        assert not photos.trained_on(metadata, records)
        seen_by(monkeypatch, tmp_path, metadata, "--records", records.path)
        assert "may have seen people of their split test" in capsys.readouterr().err
    _, error = seen_by(monkeypatch, tmp_path, {}, "--records", records.path, "--held-out")
    assert "--held-out goes with --photos" in error
    # Records of other photos, made with the same settings, are other records.
    others = RecordsFolder(write_standin(tmp_path / "others", 6, test=3, seed=1))
    same_settings = RecordsFolder(write_standin(tmp_path / "same settings", 6, test=3, seed=2))
    assert others.manifest["fingerprint"] == same_settings.manifest["fingerprint"]
    assert not photos.trained_on({"held_out": held_out_rule(others.path)}, same_settings)
    with pytest.raises(DataError, match="holds nobody out"):
        photos.in_records(RecordsFolder(write_standin(tmp_path / "all", 4)))


def test_people_of_the_training_data_are_an_error_unless_asked_for(prepared, tmp_path):
    folder, records = prepared
    training = photos.training_vectors(records)
    assert training.shape == (records.splits["train"], 192)
    vector = lambda who: types.SimpleNamespace(
        name=who, vectors={"mobilefacenet": vector_of(who.encode(), b"another photo")}
    )
    seen = {key.split("/")[0].removeprefix("person") for key in keys(records, "train")}
    held_out = {key.split("/")[0].removeprefix("person") for key in keys(records, "test")} - seen
    photos.check_held_out([vector(who) for who in sorted(held_out)], training, records.path)
    judged = [vector(min(held_out)), vector(min(seen))]
    with pytest.raises(DataError, match=rf"1 of 2 people .*\({min(seen)}\).*--training-people"):
        photos.check_held_out(judged, training, records.path)


def test_training_writes_the_rule(prepared, tmp_path):
    _, records = prepared
    manifest = json.loads((records.path / "manifest.json").read_text())
    rule = {"rule": "records", "sha256": records_hash(manifest)}
    outer = records.path.parent.parent
    assert (
        held_out_metadata({"data": str(outer)})
        == held_out_metadata({"data": records.path})
        == {"held_out": rule}
    )
    assert held_out_metadata({"data": tmp_path})["held_out"]["sha256"] is None
    assert held_out_metadata({"data": ""}) == held_out_metadata({}) == {}
