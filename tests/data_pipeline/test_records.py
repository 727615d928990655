"""Photos to records and back, on the shipped portrait and on things that are no portrait."""

import json

import cv2
import numpy as np
import pytest

from caphuman_jax.errors import DataError
from data_pipeline import precompute
from data_pipeline.records import held_out, load_records, training_split


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of the astronaut, with a blank picture and a broken file beside it."""
    from importlib.resources import files

    photos = tmp_path_factory.mktemp("photos")
    (photos / "a.png").write_bytes((files("caphuman_jax") / "assets" / "astronaut_nasa.png").read_bytes())
    cv2.imwrite(str(photos / "blank.png"), np.full((80, 80, 3), 128, np.uint8))
    (photos / "broken.jpg").write_bytes(b"not a picture")
    out = tmp_path_factory.mktemp("records")
    precompute.main(["--photos", str(photos), "--out", str(out), "--workers", "1"])
    return out


def test_one_photo_is_kept_and_the_others_are_named(folder):
    records = load_records(folder)
    assert records.name.tolist() == ["a.png"]
    assert set(json.loads((folder / "dropped.json").read_text())) == {"blank.png", "broken.jpg"}


def test_landmarks_lie_on_the_face_in_the_stored_square(folder):
    records = load_records(folder)
    xy = records.landmarks[0, :, :2]
    assert abs(xy.mean(0) - 0.5).max() < 0.06  # the square is centred on the face
    assert 0.3 < np.ptp(xy[:, 1]) < 0.5  # which fills 1 / (1.8 * 1.35) of it
    inside = records.pictures[0][tuple((xy[:, ::-1].T * len(records.pictures[0])).astype(int))]
    assert inside[:, 0].mean() > inside[:, 2].mean() + 15  # skin is redder than blue
    assert np.linalg.norm(records.mobilefacenet[0]) == pytest.approx(1, abs=1e-3)


def test_damage_is_told(folder, tmp_path):
    with pytest.raises(DataError, match="no readable records"):
        load_records(tmp_path)
    (tmp_path / "records.npz").write_bytes((folder / "records.npz").read_bytes())
    (tmp_path / "pictures.bin").write_bytes((folder / "pictures.bin").read_bytes()[:-5])
    with pytest.raises(DataError, match="bytes"):
        load_records(tmp_path)


def test_held_out_people_are_held_out_with_all_their_photos(folder):
    one = load_records(folder)
    many = one.take(np.zeros(64, int))
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((64, 192)).astype(np.float32)
    names = np.array([f"{i:06d}.jpg" for i in range(64)])
    test = held_out(names)
    assert 0 < test.sum() < 16
    twin = np.flatnonzero(~test)[0]
    vectors[twin] = vectors[np.flatnonzero(test)[0]] * 1.5
    import dataclasses

    train_index, test_index = training_split(dataclasses.replace(many, name=names, mobilefacenet=vectors))
    assert twin not in train_index and len(train_index) == 64 - test.sum() - 1
    assert np.array_equal(test_index, np.flatnonzero(test))
    assert held_out(names[:10]).tolist() == test[:10].tolist()


def test_no_photos_is_an_error(tmp_path, capsys):
    with pytest.raises(SystemExit):
        precompute.main(["--photos", str(tmp_path), "--out", str(tmp_path / "o")])
    assert "no photos" in capsys.readouterr().err


def test_a_handful_of_photos_may_hold_nobody_out(folder):
    one = load_records(folder)
    assert not held_out(one.name).any()
    train_index, test_index = training_split(one)
    assert train_index.tolist() == [0] and len(test_index) == 0
