"""Sheets and numbers of held-out people while training, with the shipped model."""

import jax
import numpy as np
import pytest

from caphuman_jax.io.images import read_photo
from caphuman_jax.models import registry
from caphuman_jax.runtime import sharding
from caphuman_jax.training import previews
from caphuman_jax.weights.model_folder import find_model, load_params, read_config


def test_numbers_that_few_people_do_not_tell_are_left_out():
    one = {"value": 2.5}
    results = {
        "face_found": {"value": 1.0},
        "identity": {"dlib": {"rank1_among_all": {"value": np.nan}, "auc": {"value": None}}},
        "pose": {"yaw": {"all": {"median": one}}},
        "expression": {name: {"all": {"median": one}} for name in ("smile", "jawOpen")},
    }
    assert previews.select_metrics(results) == {
        "face_found": 1.0,
        "yaw_error": 2.5,
        "smile_error": 2.5,
        "jaw_error": 2.5,
    }


@pytest.mark.slow
def test_a_sheet_of_the_shipped_model_on_a_mesh():
    folder = find_model("mini")
    model = read_config(folder)
    shapes = {name: shape for name, (_, shape) in registry.abstract(model).items()}
    params = load_params(folder, shapes)
    mesh = sharding.make_mesh(8)
    trained = {name: params[name] for name in ("unet", "capface", "identity", "text")}
    trained = sharding.place(
        trained, sharding.state_shardings(mesh, {"ema": trained}, "fsdp")["ema"]
    )
    frozen = {"vae": jax.device_put(params["vae"], sharding.replicated(mesh))}
    photo = read_photo(folder.parent / "astronaut_nasa.png")
    nobody = np.zeros((64, 64, 3), np.uint8)
    shown = previews.Previews(
        model,
        [photo, nobody],
        lambda trained, frozen: trained | {"vae": frozen["vae"]},
        per_person=2,
        steps=2,
    )
    with jax.numpy_dtype_promotion("standard"):
        first, again = shown(trained, frozen, 100), shown(trained, frozen, 200)
    found, sheet = first.metrics, first.images["sheet"]
    assert (
        found["face_found"] in (0.0, 0.5, 1.0) and found.get("yaw_error", 0) < 60
    )  # two steps make rough pictures
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3
    np.testing.assert_array_equal(sheet, again.images["sheet"])  # the same seeds every time
