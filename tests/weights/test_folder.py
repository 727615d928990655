"""Model folders: what is saved comes back, and everything that can be wrong with a
folder is named.
"""

import hashlib
import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from caphuman_jax.config import SD15, IdentityConfig, ModelConfig, UNetConfig
from caphuman_jax.errors import ModelFolderError
from caphuman_jax.weights import model_folder

CONFIG = ModelConfig(
    name="tiny",
    image_size=64,
    unet=UNetConfig(channels=8, channel_multipliers=(1, 2), groups=8),
    identity=IdentityConfig(image_tokens="recognizer"),
    image_encoder=None,
)


def make_params():
    generator = np.random.default_rng(0)
    return {
        "unet": {
            "in": {"kernel": generator.standard_normal((3, 3, 4, 8), dtype=np.float32)},
            "blocks": {"0": {"bias": generator.standard_normal(8, dtype=np.float32)}},
        },
        "vae": {"scale": np.ones((), np.float32), "out": jnp.arange(4, dtype=jnp.float32)},
    }


def shapes_of(params):
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, jnp.float32), params)


@pytest.fixture
def saved(tmp_path):
    model_folder.save_model(tmp_path / "tiny", CONFIG, make_params(), metadata={"steps": 7})
    return tmp_path / "tiny"


def test_round_trip(saved):
    params = make_params()
    loaded = model_folder.load_params(saved, shapes_of(params))
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    assert model_folder.read_config(saved) == CONFIG and model_folder.read_metadata(saved) == {
        "steps": 7
    }
    model_folder.verify_model(saved)
    assert sorted(p.name for p in saved.iterdir()) == [
        "config.json",
        "unet.safetensors",
        "vae.safetensors",
    ]
    assert set(load_file(saved / "unet.safetensors")) == {"in.kernel", "blocks.0.bias"}


def test_default_configuration_survives_json(tmp_path):
    model_folder.save_model(tmp_path / "sd", SD15, {})
    assert model_folder.read_config(tmp_path / "sd") == SD15


@pytest.mark.parametrize("stored", [np.float16, ml_dtypes.bfloat16])
def test_low_precision_on_disk_is_float32_in_memory(tmp_path, stored):
    params = make_params()
    model_folder.save_model(tmp_path / "tiny", CONFIG, params, dtype=stored)
    loaded = model_folder.load_params(tmp_path / "tiny", shapes_of(params))
    expected = jax.tree.map(lambda a: np.asarray(a).astype(stored).astype(np.float32), params)
    jax.tree.map(np.testing.assert_array_equal, loaded, expected)
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(loaded))
    kept = model_folder.load_params(tmp_path / "tiny", shapes_of(params), dtype=stored)
    assert all(leaf.dtype == stored for leaf in jax.tree.leaves(kept))


def test_one_network_alone(saved):
    loaded = model_folder.load_params(saved, {"vae": shapes_of(make_params())["vae"]})
    assert set(loaded) == {"vae"}


def test_every_wrong_weight_is_named(saved):
    shapes = shapes_of(make_params())
    shapes["unet"] = {
        "in": {"kernel": jax.ShapeDtypeStruct((3, 3, 9, 8), jnp.float32)},
        "extra": jax.ShapeDtypeStruct((2,), jnp.float32),
    }
    with pytest.raises(ModelFolderError) as error:
        model_folder.load_params(saved, shapes)
    for part in (
        "missing extra (2,)",
        "surplus blocks.0.bias (8,)",
        "in.kernel is (3, 3, 4, 8), not (3, 3, 9, 8)",
    ):
        assert part in str(error.value)


def test_missing_network_and_missing_file(saved):
    with pytest.raises(ModelFolderError, match="has no text; it has unet, vae"):
        model_folder.load_params(saved, {"text": {}})
    (saved / "vae.safetensors").unlink()
    for verify in (True, False):
        with pytest.raises(ModelFolderError, match="vae.safetensors is missing"):
            model_folder.load_params(saved, shapes_of(make_params()), verify=verify)


def test_one_changed_byte_is_found(saved):
    data = bytearray((saved / "unet.safetensors").read_bytes())
    data[-1] ^= 1
    (saved / "unet.safetensors").write_bytes(data)
    with pytest.raises(ModelFolderError, match="unet.safetensors is damaged or was changed"):
        model_folder.load_params(saved, shapes_of(make_params()))
    with pytest.raises(ModelFolderError, match="checksum"):
        model_folder.verify_model(saved)


@pytest.mark.parametrize(
    "damage", [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: b"\xff" * 64]
)
def test_damaged_files_are_errors_without_checksums_too(saved, damage):
    file = saved / "unet.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ModelFolderError, match="unet.safetensors is damaged"):
        model_folder.load_params(saved, shapes_of(make_params()), verify=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d | {"format_version": 99}, "format version 99; this program reads 1"),
        (lambda d: d | {"format": "something"}, "not the description"),
        (lambda d: {k: v for k, v in d.items() if k != "files"}, "lacks files"),
        (lambda d: d | {"config": d["config"] | {"color": 3}}, "unknown entries color"),
        (lambda d: [], "not the description"),
    ],
)
def test_wrong_descriptions(saved, change, message):
    file = saved / "config.json"
    file.write_text(json.dumps(change(json.loads(file.read_text()))))
    with pytest.raises(ModelFolderError, match=message):
        model_folder.read_config(saved)


@pytest.mark.parametrize(
    "entry",
    ["unet.heads", "unet.groups", "vae.scaling_factor", "text.heads", "diffusion.prediction_type"],
)
def test_entries_that_no_weight_shows_must_be_there(saved, entry):
    """With a default in their place, the pictures would be those of another model."""
    document = json.loads((saved / "config.json").read_text())
    part, name = entry.split(".")
    del document["config"][part][name]
    (saved / "config.json").write_text(json.dumps(document))
    with pytest.raises(ModelFolderError, match=f"config.json: config: {entry} is missing"):
        model_folder.read_config(saved)


def test_unreadable_description(saved):
    (saved / "config.json").write_text("{ half")
    with pytest.raises(ModelFolderError, match="config.json cannot be read"):
        model_folder.read_config(saved)


def test_a_failed_save_leaves_nothing(tmp_path):
    params = make_params() | {"text": {"table": np.full(2, 1e30, np.float32)}}
    with pytest.raises(ModelFolderError, match="text: table has values too large for float16"):
        model_folder.save_model(tmp_path / "tiny", CONFIG, params, dtype=np.float16)
    assert list(tmp_path.iterdir()) == []


def test_overwriting_must_be_allowed_and_keeps_the_model_card(saved):
    with pytest.raises(ModelFolderError, match="exists already"):
        model_folder.save_model(saved, CONFIG, make_params())
    (saved / "MODEL_CARD.md").write_text("card")
    params = {"unet": make_params()["unet"]}
    model_folder.save_model(saved, CONFIG, params, overwrite=True)
    assert sorted(p.name for p in saved.iterdir()) == [
        "MODEL_CARD.md",
        "config.json",
        "unet.safetensors",
    ]
    assert [p.name for p in saved.parent.iterdir()] == ["tiny"]

    other = saved.parent / "photos"
    other.mkdir()
    with pytest.raises(ModelFolderError, match="is not a model folder; it is left"):
        model_folder.save_model(other, CONFIG, params, overwrite=True)


def test_find_model(saved, tmp_path, monkeypatch):
    assert model_folder.find_model(saved) == saved and model_folder.find_model(str(saved)) == saved
    with pytest.raises(ModelFolderError, match="no model named huge .*shipped models:"):
        model_folder.find_model("huge")
    with pytest.raises(ModelFolderError, match="no config.json"):
        model_folder.find_model(tmp_path)
    package = tmp_path / "package" / "assets"
    model_folder.save_model(package / "mini", CONFIG, {})
    monkeypatch.setattr(model_folder, "files", lambda name: tmp_path / "package")
    assert model_folder.find_model("mini") == package / "mini"
    with pytest.raises(ModelFolderError, match="shipped models: mini"):
        model_folder.find_model("huge")


def test_a_tensor_that_is_not_ours_is_surplus(saved):
    file = saved / "vae.safetensors"
    save_file(load_file(file) | {"stray": np.zeros(1, np.float32)}, file)
    with pytest.raises(ModelFolderError, match=r"surplus stray \(1,\)"):
        model_folder.load_params(saved, shapes_of(make_params()), verify=False)


@pytest.mark.parametrize("finished", [True, False])
def test_a_training_runs_work_folder_is_refused_with_what_to_take(tmp_path, finished):
    (tmp_path / "config.json").write_text('{"name": "mini", "config": {"recipe": "mini"}}')
    if finished:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ModelFolderError) as error:
        model_folder.read_metadata(model_folder.find_model(tmp_path))
    told = f"its model is {tmp_path / 'model'}" if finished else f"caphuman export {tmp_path} OUT"
    assert told in str(error.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_found_at_load_by_network_and_name(saved, dtype, bad):
    """Written by another program, with a checksum that fits."""
    tensors = {name: x.astype(dtype) for name, x in load_file(saved / "vae.safetensors").items()}
    tensors["out"][2] = bad
    save_file(tensors, saved / "vae.safetensors")
    document = json.loads((saved / "config.json").read_text())
    data = (saved / "vae.safetensors").read_bytes()
    document["files"]["vae"] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (saved / "config.json").write_text(json.dumps(document))
    for stored in (np.float32, None):
        with pytest.raises(ModelFolderError, match="vae: out holds numbers that are not finite"):
            model_folder.load_params(saved, shapes_of(make_params()), dtype=stored)


def test_overwriting_keeps_files_in_folders_too(saved):
    mine = ("card/a.txt", "tokenizer/mine.txt", "notes.md")
    for name in mine:
        (saved / name).parent.mkdir(exist_ok=True)
        (saved / name).write_text("mine")
    (saved / "link").symlink_to("notes.md")
    model_folder.save_model(saved, CONFIG, {"vae": make_params()["vae"]}, overwrite=True)
    assert all((saved / name).read_text() == "mine" for name in mine)
    assert (saved / "link").is_symlink() and not (saved / "unet.safetensors").exists()
