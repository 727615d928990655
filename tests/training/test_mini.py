"""mini as a recipe of the loop: several devices, evidence of a broken step, and the whole way from
records to a model folder.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from caphuman_jax.cli import app
from caphuman_jax.config import MINI
from caphuman_jax.errors import SettingError
from caphuman_jax.models import registry
from caphuman_jax.runtime import sharding
from caphuman_jax.training import loop, run_config
from caphuman_jax.training.recipes import mini
from caphuman_jax.training.resident_batches import resident, sample_batch
from caphuman_jax.weights.model_folder import load_params, read_config, save_model, verify_model


def run(folder, recipe, mesh, **kinds):
    cfg = loop.LoopConfig(tensorboard=False, log_every=1, save_every=0, **kinds)
    result = loop.run(recipe, None, cfg, folder, mesh, log=lambda line: None)
    return result, [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def test_what_a_broken_step_drew_is_written(tiny, training, data, vae_params, tmp_path):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    plain = mini.MiniRecipe(tiny, training, vae_params, data, mesh)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), plain.param_shapes) == jax.tree.map(
        lambda x: (x.shape, x.dtype), plain.init_params()
    )
    plain.train_step = lambda state, frozen, _: (
        dataclasses.replace(state, step=state.step + 1),
        {"loss": jax.numpy.float32(np.nan)},
    )
    result, _ = run(tmp_path, plain, mesh)
    assert result.exit_code == 1
    batch = sample_batch(
        resident(data),
        jax.random.split(mini.step_key(training, 0), 3)[0],
        training,
        tiny.image_size,
    )
    with np.load(tmp_path / "nan-1" / "batch-0.npz") as written:
        assert set(written.files) == {name for name, x in vars(batch).items() if x is not None}
        np.testing.assert_array_equal(written["token_ids"], batch.token_ids)
        np.testing.assert_allclose(written["photo"], batch.photo, atol=1e-4)


@pytest.mark.slow
def test_the_same_loss_on_one_and_eight_devices_in_float32(
    tiny, training, data, vae_params, tmp_path
):
    cfg = dataclasses.replace(training, steps=2, batch_size=8, dtype="float32")

    def losses(mode, devices, fsdp):
        mesh = sharding.make_mesh(fsdp, jax.devices()[:devices])
        lines = run(
            tmp_path / f"{mode}{devices}",
            mini.MiniRecipe(tiny, cfg, vae_params, data, mesh),
            mesh,
            sharding=mode,
            fsdp=fsdp,
        )[1]
        return [line["loss"] for line in lines]

    reference = losses("replicated", 1, 1)
    assert len(reference) == 2
    np.testing.assert_allclose(losses("fsdp", 8, 8), reference, rtol=0, atol=1e-5)


def test_the_autoencoder_of_another_model_is_taken(tiny_folder, tmp_path):
    config = run_config.read_config("mini")
    names = lambda: [stage.name for stage in mini.stages(config, tmp_path)]
    assert names() == ["autoencoder", "denoiser"]
    config.autoencoder_from = str(tiny_folder)
    assert names() == ["denoiser"]
    model, vae = mini._autoencoder(config, tmp_path)
    given = read_config(tiny_folder)
    assert model.vae == given.vae != MINI.vae and model.unet == MINI.unet != given.unet
    shapes = {"vae": registry.abstract(given, only=("vae",))["vae"][1]}
    assert leaves_equal(vae, load_params(tiny_folder, shapes)["vae"])


def test_training_starts_with_the_weights_of_another_model(
    tiny, tiny_folder, training, data, tmp_path
):
    identity = dataclasses.replace(tiny.identity, recognition_width=192)
    tiny = dataclasses.replace(tiny, identity=identity)
    data = data | {"vectors": np.ones((10, 4, 192), np.float32)}
    networks = registry.init(tiny, jax.random.key(7))
    trees = {name: jax.device_get(params) for name, (_, params) in networks.items()}
    given = tmp_path / "given"
    save_model(given, tiny, {name: trees[name] for name in (*mini.TRAINED, "vae")})
    config = run_config.read_config("mini")
    config.weights_from = str(given)
    assert [stage.name for stage in mini.stages(config, tmp_path)] == ["denoiser"]
    model, _ = mini._autoencoder(config, tmp_path)
    with pytest.raises(SettingError, match="has another unet, .*image_size than config.model"):
        mini._start(config, model)

    config.model = tiny.to_dict()
    model, vae = mini._autoencoder(config, tmp_path)
    assert model == tiny and leaves_equal(vae, trees["vae"])
    recipe = mini.MiniRecipe(model, training, vae, data, start=mini._start(config, model))
    first = recipe.init_params()
    assert leaves_equal(first, {name: trees[name] for name in mini.TRAINED})
    assert {x.dtype for x in jax.tree.leaves(first)} == {np.dtype(np.float32)}
    nothing = mini.MiniRecipe(model, training, vae, data)
    assert "start" not in nothing.settings and recipe.settings != nothing.settings

    config.autoencoder_from = str(tiny_folder)
    with pytest.raises(SettingError, match="leave config.autoencoder_from out"):
        mini._autoencoder(config, tmp_path)


def leaves_equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


TINY_CONFIG = """
import dataclasses

from caphuman_jax.config import MINI, CapFaceConfig, TextConfig, UNetConfig, VAEConfig
from configs import mini


def get_config():
    config = mini.get_config()
    config.model = dataclasses.replace(
        MINI, image_size=32,
        unet=UNetConfig(in_channels=3, out_channels=3, channels=16, channel_multipliers=(1, 2), blocks_per_level=1, attention_resolutions=(2,), heads=2,
                        cross_attention_dim=16, groups=8),
        capface=CapFaceConfig(hint_widths=(8, 8, 16)), text=TextConfig(width=16, layers=1, heads=2, mlp_width=32, embed_width=4),
        vae=VAEConfig(patch=2, encoder_channels=8, decoder_channels=8, channel_multipliers=(1, 2), blocks_per_level=1, latent_channels=3, groups=4, scaling_factor=1.0)).to_dict()
    config.autoencoder.update({"steps": 2, "batch_size": 4, "size": 32})
    config.training.update({"steps": 2, "batch_size": 4})
    config.evaluators.held_out.every = config.evaluators.previews.every = 2
    config.loop.log_every = 1
    return config
"""  # noqa: E501


@pytest.mark.slow
def test_from_records_to_a_model_folder_on_the_command_line(tmp_path, capsys, monkeypatch):
    from records_standin import write_standin

    make_mesh, one = sharding.make_mesh, jax.devices()[:1]
    monkeypatch.setattr(sharding, "make_mesh", lambda fsdp=1, devices=None: make_mesh(fsdp, one))
    records = write_standin(
        tmp_path / "records",
        9,
        test=4,
        albedo=(4801, 3),
        change=lambda record, number: (
            record | {"attributes": json.dumps({"kind": "colour", "smile": "smiling"})}
        ),
    )
    (tmp_path / "small.py").write_text(TINY_CONFIG)
    workdir = tmp_path / "run"
    train = lambda: app.main(
        [
            "train",
            "--config",
            str(tmp_path / "small.py"),
            f"--config.data={records}",
            "--workdir",
            str(workdir),
        ]
    )
    assert train() == 0
    said = capsys.readouterr().out
    assert (
        "9 photos to train on, 4 of other people held out" in said
        and "step 2/2 · loss" in said
        and f"{workdir / 'model'} after 2 steps" in said
    )
    assert "step 2 held_out: denoise" in said
    evaluation = [
        line
        for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
        if "held_out/loss" in line
    ]
    assert len(evaluation[0]["held_out/loss_by_time"]) == 10
    assert verify_model(workdir / "model") is None and list((workdir / "tensorboard").iterdir())
    # The frozen autoencoder is what it was, to the bits that a model folder keeps.
    shapes = {"vae": registry.abstract(read_config(workdir / "model"))["vae"][1]}
    before, after = (
        load_params(workdir / name, shapes)["vae"] for name in ("autoencoder/model", "model")
    )
    assert all(
        jax.tree.leaves(jax.tree.map(lambda a, b: np.array_equal(np.float16(a), b), before, after))
    )
    assert app.main(["export", str(workdir), str(tmp_path / "again"), "--step", "best"]) == 0
    for name in ("unet", "vae"):
        assert (tmp_path / "again" / f"{name}.safetensors").read_bytes() == (
            workdir / "model" / f"{name}.safetensors"
        ).read_bytes()
    assert train() == 0 and "resumed at step 2" in capsys.readouterr().out
