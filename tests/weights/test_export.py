"""`caphuman export` and back: the same bits, under the names that PyTorch programs read."""

import json
import os

import numpy as np
import pytest
import safetensors.torch
import torch
from weight_standins import PARITY, TINY, import_model, state_dict, value

from caphuman_jax.cli.app import main
from caphuman_jax.config import MINI, SD15, DiffusionConfig
from caphuman_jax.errors import ModelFolderError, SettingError
from caphuman_jax.models import registry
from caphuman_jax.weights import convert, exporter, model_folder, tokenizer_files
from caphuman_jax.weights.exporter import export_model
from caphuman_jax.weights.names import PREFIXES, table


def mixed() -> dict[str, torch.Tensor]:
    """Tensors of three types by turns."""
    types = [torch.float32, torch.float16, torch.bfloat16]
    return {name: x.to(types[i % 3]) for i, (name, x) in enumerate(state_dict().items())}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model folder with a ControlNet, and the tensors that it was made from."""
    place = tmp_path_factory.mktemp("model")
    torch.save({"state_dict": mixed()}, place / "caphuman.ckpt")
    control = {
        name: x
        for name, x in state_dict("control_model.", seed=4).items()
        if "mask_predict" not in name
    }
    torch.save(
        control | {"control_model.input_hint_block.0.weight": value("hint", (4, 3, 3, 3), 4)},
        place / "control_sd15_pose.pth",
    )
    import_model(
        place / "m",
        caphuman=place / "caphuman.ckpt",
        config=TINY,
        controlnets=[(place / "control_sd15_pose.pth", None)],
    )
    return place / "m"


def same_weights(a, b) -> bool:
    """Every file of the manifest has the same checksum, so the same bits, and the configurations
    agree.
    """
    a, b = (json.loads((path / "config.json").read_text()) for path in (a, b))
    assert a["metadata"]["trained_with_head"] == b["metadata"]["trained_with_head"] == "flame"
    return a["files"] == b["files"] and a["config"] == b["config"] and len(a["files"]) == 7


def test_ldm_is_what_was_imported(tmp_path, model):
    export_model(model, tmp_path / "out.safetensors", "ldm")
    assert sorted(os.listdir(tmp_path)) == ["out.controlnet_pose.safetensors", "out.safetensors"]
    exported, original = safetensors.torch.load_file(tmp_path / "out.safetensors"), mixed()
    assert set(exported) == set(original)
    for name, x in original.items():
        assert exported[name].dtype == x.dtype and torch.equal(exported[name], x), name
    import_model(
        tmp_path / "m",
        caphuman=tmp_path / "out.safetensors",
        controlnets=[(tmp_path / "out.controlnet_pose.safetensors", "pose")],
    )
    assert same_weights(tmp_path / "m", model)


def test_diffusers_and_back(tmp_path, model):
    export_model(model, tmp_path / "out", "diffusers")
    assert sorted(os.listdir(tmp_path / "out")) == [
        "capface",
        "caphuman.json",
        "controlnet_pose",
        "identity",
        "image_encoder",
        "model_index.json",
        "scheduler",
        "text_encoder",
        "tokenizer",
        "unet",
        "vae",
    ]
    import_model(tmp_path / "m", caphuman=tmp_path / "out")
    assert same_weights(tmp_path / "m", model)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "m" / "tokenizer" / name).read_bytes() == (
            model / "tokenizer" / name
        ).read_bytes()
    import_model(
        tmp_path / "n",
        caphuman=tmp_path / "out",
        base=tmp_path / "out",
        vae=tmp_path / "out",
        clip=tmp_path / "out",
        image_encoder=tmp_path / "out",
        dtype="float32",
    )
    assert (tmp_path / "n" / "unet.safetensors").stat().st_size > (
        model / "unet.safetensors"
    ).stat().st_size


def test_diffusers_loads_it(tmp_path, model):
    """from_pretrained takes the folder, without a missing or surplus weight, and its UNet computes
    what ours does.
    """
    import jax
    import jax.numpy as jnp
    from diffusers import StableDiffusionPipeline
    from flax import nnx

    export_model(model, tmp_path / "out", "diffusers", dtype="float32")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "out", safety_checker=None)
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    latents, context = value("x", (1, 4, 8, 8)), value("c", (1, 5, 16))
    with torch.no_grad():
        theirs = (
            pipeline.unet(latents, torch.tensor([801]), context)
            .sample.numpy()
            .transpose(0, 2, 3, 1)
        )
        picture = pipeline.vae.decode(latents).sample.numpy().transpose(0, 2, 3, 1)
        ids = torch.tensor([[49406, 320, 1125, 49407]])
        hidden = pipeline.text_encoder(ids).last_hidden_state.numpy()

    config = model_folder.read_config(model)
    shapes = {
        name: registry.abstract(config, only=(name,))[name] for name in ("unet", "vae", "text")
    }
    params = model_folder.load_params(model, {name: tree for name, (_, tree) in shapes.items()})
    unet, vae, text = (nnx.merge(shapes[name][0], params[name]) for name in ("unet", "vae", "text"))
    x = jnp.asarray(latents.numpy().transpose(0, 2, 3, 1))
    for mine, reference in (
        (jax.jit(unet.__call__)(x, jnp.asarray([801.0]), jnp.asarray(context.numpy())), theirs),
        (jax.jit(vae.decode)(x), picture),
        (jax.jit(text.__call__)(jnp.asarray(ids.numpy(), jnp.int32))[0], hidden),
    ):
        assert np.abs(np.asarray(mine) - reference).max() < 1e-4 * np.abs(reference).max()


def test_diffusers_folders_are_bases(tmp_path, model, caphuman):
    """As diffusers itself saves them, in half precision; with the scheduler's settings, and the
    VAE's attention as it was named early.
    """
    from diffusers import StableDiffusionPipeline

    export_model(model, tmp_path / "out", "diffusers", dtype="float32")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "out", safety_checker=None)
    pipeline.scheduler.register_to_config(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        beta_schedule="linear",
        beta_end=0.015,
    )
    pipeline.to(torch.float16).save_pretrained(tmp_path / "saved", variant="fp16")
    vae = tmp_path / "saved" / "vae" / "diffusion_pytorch_model.fp16.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    sd = safetensors.torch.load_file(vae)
    for new, early in old.items():
        sd = {
            name.replace(f"attentions.0.{new}.", f"attentions.0.{early}."): x
            for name, x in sd.items()
        }
    assert any("proj_attn" in name for name in sd)
    torch.save(sd, vae.with_name("diffusion_pytorch_model.bin"))
    vae.unlink()

    import_model(tmp_path / "m", caphuman=caphuman, base=tmp_path / "saved", config=TINY)
    config = model_folder.read_config(tmp_path / "m")
    assert config.diffusion == DiffusionConfig(
        beta_end=0.015, beta_schedule="linear", prediction_type="v", zero_terminal_snr=True
    )
    written = exporter._scheduler(config)
    assert written["beta_schedule"] == "linear" and written["beta_end"] == 0.015
    scheduler = tmp_path / "saved" / "scheduler" / "scheduler_config.json"
    saved = json.loads(scheduler.read_text())
    scheduler.write_text(json.dumps(saved | {"beta_schedule": "squaredcos_cap_v2"}))
    with pytest.raises(ModelFolderError, match="squaredcos_cap_v2; known: scaled_linear, linear"):
        import_model(tmp_path / "n", caphuman=caphuman, base=tmp_path / "saved", config=TINY)
    scheduler.write_text(json.dumps(saved))
    export_model(tmp_path / "m", tmp_path / "again.safetensors", "ldm")
    again = safetensors.torch.load_file(tmp_path / "again.safetensors")
    for name, x in mixed().items():
        if name.startswith((PREFIXES["unet"], PREFIXES["vae"], PREFIXES["text"])):
            assert torch.equal(again[name], x.float().half()), name

    described = tmp_path / "saved" / "vae" / "config.json"
    described.write_text(described.read_text().replace("0.18215", "0.13025"))
    with pytest.raises(ModelFolderError, match="scales latents by 0.13025"):
        import_model(tmp_path / "n", caphuman=caphuman, vae=tmp_path / "saved" / "vae", config=TINY)

    (tmp_path / "saved" / "unet" / "config.json").write_text(
        json.dumps({"attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True})
    )
    with pytest.raises(ModelFolderError, match="saved is Stable Diffusion 2"):
        import_model(tmp_path / "n", caphuman=caphuman, base=tmp_path / "saved", config=TINY)


def test_shapes_at_full_size_are_the_published_ones():
    """Names and shapes of every tensor of caphuman.ckpt, from our shapes alone."""
    from flax import traverse_util

    recorded = json.loads((PARITY / "full_parameters.json").read_text())
    clip = json.loads((PARITY / "clip_parameters.json").read_text())
    recorded |= {PREFIXES["text"] + name: shape for name, shape in clip["clip_text"].items()}
    recorded |= {
        PREFIXES["image_encoder"] + name: shape for name, shape in clip["clip_vision"].items()
    }
    ours = {}
    for network, (_, tree) in registry.abstract(SD15).items():
        shapes = traverse_util.flatten_dict(tree, sep=".")
        for name, path in table(network, SD15, shapes).items():
            ours[PREFIXES[network] + name] = list(
                convert.shape_of_theirs(path, name, tuple(shapes[path].shape))
            )
    assert ours == recorded


def test_what_cannot_be_exported(tmp_path, model):
    with pytest.raises(SettingError, match="must end in .safetensors; pickles"):
        export_model(model, tmp_path / "x.ckpt", "ldm")
    with pytest.raises(ModelFolderError, match="networks that diffusers does not"):
        export_model("mini", tmp_path / "x", "diffusers")
    with pytest.raises(ModelFolderError, match="no model named none"):
        export_model("none", tmp_path / "x", "ldm")
    (tmp_path / "x.safetensors").write_text("mine")
    with pytest.raises(ModelFolderError, match="exists already"):
        export_model(model, tmp_path / "x.safetensors", "ldm")
    assert (tmp_path / "x.safetensors").read_text() == "mine" and os.listdir(tmp_path) == [
        "x.safetensors"
    ]


def test_mini_goes_out_and_comes_back(tmp_path):
    """The shipped model, whose parts are of other makes, has names too."""
    mini = model_folder.find_model("mini")
    export_model("mini", tmp_path / "mini.safetensors", "ldm")
    import_model(tmp_path / "m", caphuman=tmp_path / "mini.safetensors")
    a, b = (json.loads((path / "config.json").read_text()) for path in (mini, tmp_path / "m"))
    assert model_folder.read_metadata(tmp_path / "m")["trained_with_head"] == "anny"
    assert (
        model_folder.read_config(tmp_path / "m") == model_folder.read_config(mini)
        and MINI.image_encoder is None
    )
    for name, entry in a["files"].items():
        ours, theirs = (
            safetensors.torch.load_file(path / entry["file"]) for path in (tmp_path / "m", mini)
        )
        assert set(ours) == set(theirs) and all(torch.equal(ours[key], theirs[key]) for key in ours)
        assert name in b["files"]


def test_a_damaged_description_is_said(tmp_path):
    sd = {name: x for name, x in mixed().items() if name.startswith("id_")}
    for described in (
        "{",
        "[]",
        '{"config": 3}',
        '{"config": {"unet": {"color": 3}}, "trained_with_head": null}',
    ):
        safetensors.torch.save_file(
            sd, tmp_path / "x.safetensors", metadata={"caphuman_jax": described}
        )
        with pytest.raises(ModelFolderError, match="configuration in|config of unet"):
            import_model(tmp_path / "m", caphuman=tmp_path / "x.safetensors")


def test_a_damaged_folder_is_not_exported(tmp_path, model):
    import shutil

    shutil.copytree(model, tmp_path / "m")
    file = tmp_path / "m" / "unet.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelFolderError, match="damaged or was changed"):
        export_model(tmp_path / "m", tmp_path / "x.safetensors", "ldm")
    assert os.listdir(tmp_path) == ["m"]


def test_command(tmp_path, model, capsys):
    assert (
        main(
            [
                "export",
                str(model),
                str(tmp_path / "x.safetensors"),
                "--to",
                "ldm",
                "--dtype",
                "float16",
            ]
        )
        == 0
    )
    assert "769 tensors" in capsys.readouterr().out
    assert all(
        x.dtype == torch.float16
        for x in safetensors.torch.load_file(tmp_path / "x.safetensors").values()
    )
    assert main(["export", str(model), str(tmp_path / "x.ckpt"), "--to", "ldm"]) == 2
    error = capsys.readouterr().err
    assert "pickles" in error and error.count("\n") == 1


def test_overwriting_a_diffusers_folder_keeps_what_is_not_ours(tmp_path, model):
    out = tmp_path / "out"
    export_model(model, out, "diffusers")
    mine = ("notes.txt", "unet/mine.json", "pictures/a/b.png", ".hidden")
    for name in mine:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("mine")
    (out / "controlnet_old").mkdir()
    (out / "controlnet_old" / "config.json").write_text("{}")  # of an earlier export
    (out / "vae" / "config.json").write_text("{}")
    export_model(model, out, "diffusers", overwrite=True)
    assert all((out / name).read_text() == "mine" for name in mine)
    assert not (out / "controlnet_old").exists()
    assert json.loads((out / "vae" / "config.json").read_text())
    # A folder that somebody else wrote is left as it is.
    (out / "caphuman.json").unlink()
    with pytest.raises(ModelFolderError, match="is not a diffusers folder that caphuman export"):
        export_model(model, out, "diffusers", overwrite=True)


@pytest.mark.parametrize("name", ["unet/config.json", "vae/diffusion_pytorch_model.safetensors"])
def test_a_file_that_vanishes_is_noticed(tmp_path, model, name, monkeypatch):
    write = tokenizer_files.write

    def wrapped(folder, source):
        (folder.parent / name).unlink()
        return write(folder, source)

    monkeypatch.setattr(tokenizer_files, "write", wrapped)
    with pytest.raises(FileNotFoundError, match="something removed it"):
        export_model(model, tmp_path / "out", "diffusers")
    assert not list(tmp_path.iterdir())
