"""`caphuman import`: every mix and form of files that people have, and everything that can be wrong
with them.
"""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import flame_standin
import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from weight_standins import EXTRAS, TINY, import_model, state_dict, value

from caphuman_jax.cli.app import main
from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import HeadError, ModelFolderError, SettingError
from caphuman_jax.head.models.deca_head import SOURCE
from caphuman_jax.models import registry
from caphuman_jax.weights import (
    clip_files,
    convert,
    importer,
    known_files,
    model_card,
    model_folder,
)
from caphuman_jax.weights.import_plan import control_name
from caphuman_jax.weights.lora import parse
from caphuman_jax.weights.names import PREFIXES, table

pytestmark = pytest.mark.usefixtures("shapes_once")
UNET, VAE, TEXT = PREFIXES["unet"], PREFIXES["vae"], PREFIXES["text"]


def stored(path, network="*") -> dict[str, np.ndarray]:
    """{network/path: array} of a model folder, by the safetensors library."""
    from safetensors.numpy import load_file

    return {
        f"{file.stem}/{name}": x
        for file in path.glob(f"{network}.safetensors")
        for name, x in load_file(file).items()
    }


def expected(sd: dict[str, torch.Tensor], network: str) -> dict[str, np.ndarray]:
    """What a network's folder entries must be: names by the table, layouts by hand."""
    wanted = {path: x.shape for path, x in convert_paths(network).items()}
    result = {}
    for name, path in table(network, TINY, wanted).items():
        tensor = sd[PREFIXES[network] + name]
        array = (
            tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
            if tensor.dtype == torch.bfloat16
            else tensor.numpy()
        )
        if path.endswith("kernel"):
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        result[f"{network}/{path}"] = array.reshape(wanted[path])
    return result


def convert_paths(network):
    from flax import traverse_util

    return traverse_util.flatten_dict(registry.abstract(TINY, only=(network,))[network][1], sep=".")


def assert_network(path, network, sd):
    ours, theirs = stored(path, network), expected(sd, network)
    assert set(ours) == set(theirs)
    for name, x in theirs.items():
        assert ours[name].dtype == x.dtype
        np.testing.assert_array_equal(
            ours[name].view(np.uint8), np.ascontiguousarray(x).view(np.uint8), err_msg=name
        )


ALL = ("unet", "capface", "identity", "vae", "text", "image_encoder")


def test_caphuman_alone(tmp_path, caphuman):
    report = import_model(tmp_path / "m", caphuman=caphuman, config=TINY)
    for network in ALL:
        assert_network(tmp_path / "m", network, state_dict())
    config = model_folder.read_config(tmp_path / "m")
    assert config == ModelConfig.from_dict(TINY.to_dict() | {"head": "anny"})
    model_folder.verify_model(tmp_path / "m")
    metadata = model_folder.read_metadata(tmp_path / "m")
    assert (
        metadata["trained_with_head"] == "flame"
        and metadata["imported"]["networks"]["capface"] == "caphuman.ckpt"
    )
    assert sum(metadata["imported"]["unused"]["caphuman.ckpt"].values()) == len(EXTRAS)
    assert any("noise schedule" in line for line in report)
    shapes = {name: params for name, (_, params) in registry.abstract(config).items()}
    loaded = model_folder.load_params(tmp_path / "m", shapes)
    assert np.array_equal(
        loaded["identity"]["image"]["kernel"], state_dict()["img_linear.weight"].numpy().T
    )


def test_the_tokenizer_is_clips(tmp_path, caphuman):
    from transformers import CLIPTokenizer

    from caphuman_jax.models.tokenizer import ClipTokenizer

    import_model(tmp_path / "m", caphuman=caphuman, config=TINY)
    assert all(file.is_file() for file in model_folder.tokenizer_files(tmp_path / "m"))
    assert model_folder.tokenizer_files(tmp_path) is None
    theirs = CLIPTokenizer.from_pretrained(tmp_path / "m" / "tokenizer")
    texts = ["a photo of a person, smiling", "", "naïve café 12:30"]
    ours = ClipTokenizer()(texts)
    np.testing.assert_array_equal(
        theirs(texts, padding="max_length", max_length=77)["input_ids"], ours
    )


@pytest.mark.parametrize("form", ["new", "old", "safetensors", "without state_dict"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_forms_of_files(tmp_path, form, dtype):
    """fp16 and bf16 in each form, half of the tensors float32: each is stored as it came."""
    sd = {
        name: x.to(dtype if i % 2 else torch.float32)
        for i, (name, x) in enumerate(state_dict().items())
    }
    file = tmp_path / ("x.safetensors" if form == "safetensors" else "x.ckpt")
    if form == "safetensors":
        safetensors.torch.save_file(sd | EXTRAS, file)
    else:
        torch.save(
            sd | EXTRAS if form == "without state_dict" else {"state_dict": sd | EXTRAS},
            file,
            _use_new_zipfile_serialization=form != "old",
        )
    import_model(tmp_path / "m", caphuman=file, config=TINY)
    for network in ALL:
        assert_network(tmp_path / "m", network, sd)


@pytest.mark.parametrize(
    ("dtype", "numpy_dtype"),
    [("float32", np.float32), ("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)],
)
def test_one_type_for_all(tmp_path, caphuman, dtype, numpy_dtype):
    import_model(tmp_path / "m", caphuman=caphuman, config=TINY, dtype=dtype)
    for network in ALL:
        sd = {name: x.to(getattr(torch, dtype)) for name, x in state_dict().items()}
        assert_network(tmp_path / "m", network, sd)
    assert all(x.dtype == numpy_dtype for x in stored(tmp_path / "m").values())


def base_file(
    path, *, seed=1, dtype=torch.float16, change=lambda sd: sd, prefixes=(UNET, VAE, TEXT)
):
    safetensors.torch.save_file(change(state_dict(*prefixes, seed=seed, dtype=dtype)), path)
    return path


def test_caphuman_with_another_base_vae_and_clip(tmp_path, caphuman):
    base = base_file(tmp_path / "base.safetensors")
    vae = {name.removeprefix(VAE): x for name, x in state_dict(VAE, seed=2).items()}
    torch.save(
        {
            "state_dict": vae
            | {"loss.logvar": torch.zeros(()), "loss.discriminator.main.0.weight": torch.zeros(2)}
        },
        tmp_path / "vae.ckpt",
    )
    clip = {
        name.split("transformer.")[1]: x
        for name, x in state_dict(TEXT, PREFIXES["image_encoder"], seed=3).items()
    }
    (tmp_path / "clip").mkdir()
    safetensors.torch.save_file(
        clip
        | {
            "logit_scale": torch.tensor(1.0),
            "text_projection.weight": value("text_projection", (12, 16)),
            "visual_projection.weight": value("visual_projection", (12, 24)),
            "text_model.embeddings.position_ids": torch.arange(77)[None],
        },
        tmp_path / "clip" / "model.safetensors",
    )

    import_model(tmp_path / "a", caphuman=caphuman, base=base, config=TINY)
    for network, seed in (("unet", 1), ("vae", 1), ("text", 1)):
        assert_network(tmp_path / "a", network, state_dict(seed=seed, dtype=torch.float16))
    for network in ("capface", "identity", "image_encoder"):
        assert_network(tmp_path / "a", network, state_dict())

    import_model(
        tmp_path / "b",
        caphuman=caphuman,
        base=base,
        vae=tmp_path / "vae.ckpt",
        clip=tmp_path / "clip",
        config=TINY,
    )
    for network, seed in (("vae", 2), ("text", 3), ("image_encoder", 3)):
        assert_network(tmp_path / "b", network, state_dict(seed=seed))
    clip_kept = clip_files.of_model(tmp_path / "b")  # both encoders are this CLIP's
    for network, name in (("text", "text_projection"), ("image_encoder", "visual_projection")):
        wanted = value(name, (12, {"text": 16, "image_encoder": 24}[network])).numpy().T
        np.testing.assert_array_equal(clip_kept.projections[network], wanted)
        assert_network(tmp_path / "b", network, state_dict(seed=3))
    assert clip_files.of_model(tmp_path / "a") is None
    unused = model_folder.read_metadata(tmp_path / "b")["imported"]["unused"]
    assert unused["base.safetensors"] == {
        "vae, of which another file's is used": 248,
        "text, of which another file's is used": 36,
    }
    assert unused["vae.ckpt"] == {"the VAE's training loss": 2}

    import_model(
        tmp_path / "c", caphuman=caphuman, vae=base, config=TINY
    )  # a whole checkpoint as the VAE
    assert_network(tmp_path / "c", "vae", state_dict(seed=1, dtype=torch.float16))


@pytest.mark.parametrize("name", ["old", "new"])
def test_text_encoder_names_without_text_model(tmp_path, caphuman, name):
    """transformers 5 leaves `text_model.` out, and so do some merged files."""
    sd = {
        key.replace("text_model.", "") if name == "new" else key: x
        for key, x in state_dict(TEXT, seed=1).items()
    }
    safetensors.torch.save_file(sd | state_dict(UNET, VAE, seed=1), tmp_path / "base.safetensors")
    import_model(tmp_path / "m", caphuman=caphuman, base=tmp_path / "base.safetensors", config=TINY)
    assert_network(tmp_path / "m", "text", state_dict(seed=1))
    bare = {
        key.split("transformer.text_model.")[1]
        if name == "new"
        else key.split("transformer.")[1]: x
        for key, x in state_dict(TEXT, seed=2).items()
    }
    torch.save(bare, tmp_path / "pytorch_model.bin")
    import_model(
        tmp_path / "n", caphuman=caphuman, clip=tmp_path / "pytorch_model.bin", config=TINY
    )
    assert_network(tmp_path / "n", "text", state_dict(seed=2))


def test_moving_averages(tmp_path, caphuman):
    unet = state_dict(UNET, seed=1)
    averages = {
        "model_ema." + name.removeprefix("model.").replace(".", ""): value(name, x.shape, seed=9)
        for name, x in unet.items()
    }
    assert "model_ema.diffusion_modelinput_blocks00weight" in averages
    torch.save(
        {"state_dict": state_dict(UNET, VAE, TEXT, seed=1) | averages | EXTRAS},
        tmp_path / "ema.ckpt",
    )
    import_model(tmp_path / "m", caphuman=caphuman, base=tmp_path / "ema.ckpt", config=TINY)
    assert_network(tmp_path / "m", "unet", unet)
    import_model(
        tmp_path / "e", caphuman=caphuman, base=tmp_path / "ema.ckpt", config=TINY, ema=True
    )
    assert_network(
        tmp_path / "e", "unet", {name: value(name, x.shape, seed=9) for name, x in unet.items()}
    )
    with pytest.raises(ModelFolderError, match="no file has moving averages"):
        import_model(tmp_path / "n", caphuman=caphuman, config=TINY, ema=True)


def test_base_alone_lacks_what_was_trained(tmp_path, caphuman):
    base = base_file(tmp_path / "base.safetensors")
    with pytest.raises(ModelFolderError) as error:
        import_model(tmp_path / "m", base=base, config=TINY)
    for part in (
        "image_encoder (give --image-encoder or --clip or --caphuman)",
        "capface (give --caphuman)",
        "identity",
        "--init makes",
    ):
        assert part in str(error.value)
    assert not (tmp_path / "m").exists()

    vision = {
        name.split("transformer.")[1]: x
        for name, x in state_dict(PREFIXES["image_encoder"]).items()
    }
    safetensors.torch.save_file(vision, tmp_path / "vision.safetensors")
    import_model(
        tmp_path / "m",
        base=base,
        image_encoder=tmp_path / "vision.safetensors",
        init=True,
        config=TINY,
    )
    ours = stored(tmp_path / "m")
    for name in (name for name in ours if name.startswith("unet/encoder.")):
        np.testing.assert_array_equal(ours[name.replace("unet/", "capface/")], ours[name])
    assert not ours["capface/zero.0.kernel"].any() and ours["identity/image.kernel"].any()
    with pytest.raises(SettingError, match="--init is for a model without"):
        import_model(tmp_path / "n", caphuman=caphuman, init=True)


def test_every_wrong_key_is_named(tmp_path, caphuman):
    def spoil(sd):
        del sd[UNET + "out.2.bias"]
        return sd | {
            UNET + "out.0.weight": torch.zeros(7),
            UNET + "surplus.weight": torch.zeros(1),
            VAE + "quant_conv.weight": torch.zeros(16, 8, 1, 1),
        }

    base = base_file(tmp_path / "base.safetensors", change=spoil)
    with pytest.raises(ModelFolderError) as error:
        import_model(tmp_path / "m", caphuman=caphuman, base=base, config=TINY)
    for part in (
        "1 missing: out.2.bias",
        f"1 surplus: {UNET}surplus.weight",
        f"{UNET}out.0.weight 7, not 32",
        f"{VAE}quant_conv.weight 16×8×1×1, not 8×8×1×1",
    ):
        assert part in str(error.value)
    assert os.listdir(tmp_path) == ["base.safetensors"]

    stray = base_file(
        tmp_path / "stray.safetensors", change=lambda sd: sd | {"lora.something": torch.zeros(1)}
    )
    with pytest.raises(
        ModelFolderError,
        match=r"belong to no network: .*stray.safetensors: 1 surplus: lora.something",
    ):
        import_model(tmp_path / "m", caphuman=caphuman, base=stray, config=TINY)
    report = import_model(
        tmp_path / "m", caphuman=caphuman, base=stray, config=TINY, ignore=["lora."]
    )
    assert "not used of stray.safetensors: 1 tensor, left out as asked (--ignore)" in report

    quantized = base_file(
        tmp_path / "int8.safetensors",
        change=lambda sd: {
            k: x.to(torch.int8) if k.endswith("out.2.weight") else x for k, x in sd.items()
        },
    )
    with pytest.raises(ModelFolderError, match="out.2.weight of type int8"):
        import_model(tmp_path / "n", caphuman=caphuman, base=quantized, config=TINY)


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (
            lambda sd: {
                k: torch.zeros(x.shape[0], 1024) if "attn2.to_k" in k else x for k, x in sd.items()
            },
            "Stable Diffusion 2",
        ),
        (
            lambda sd: {
                k: torch.zeros(x.shape[0], 2048) if "attn2.to_k" in k else x for k, x in sd.items()
            },
            "SDXL",
        ),
        (
            lambda sd: {
                k: torch.zeros(32, 8, 3, 3) if k.endswith("input_blocks.0.0.weight") else x
                for k, x in sd.items()
            },
            "an editing model",
        ),
    ],
)
def test_other_kinds_of_model_are_named(tmp_path, caphuman, change, kind):
    base = base_file(tmp_path / "base.safetensors", change=change)
    with pytest.raises(
        ModelFolderError, match=f"base.safetensors is {kind}.*; only Stable Diffusion 1"
    ):
        import_model(tmp_path / "m", caphuman=caphuman, base=base, config=TINY)


def test_wrong_files_for_an_option(tmp_path, caphuman):
    base = base_file(tmp_path / "base.safetensors")
    for given, message in (
        ({"caphuman": base}, "holds no capface; it holds unet, vae, text"),
        (
            {"caphuman": caphuman, "clip": base_file(tmp_path / "v.safetensors", prefixes=(VAE,))},
            "holds no CLIP encoder",
        ),
        ({"base": tmp_path / "none.ckpt"}, "none.ckpt is missing"),
    ):
        with pytest.raises(ModelFolderError, match=message):
            import_model(tmp_path / "m", config=TINY, **given)
    with pytest.raises(SettingError, match="nothing to import"):
        import_model(tmp_path / "m")


def test_prediction(tmp_path, caphuman):
    def of(name, **given):
        import_model(tmp_path / name, caphuman=caphuman, config=TINY, **given)
        diffusion = model_folder.read_config(tmp_path / name).diffusion
        return diffusion.prediction_type, diffusion.zero_terminal_snr

    marked = base_file(
        tmp_path / "v.safetensors",
        change=lambda sd: sd | {"v_pred": torch.zeros(1), "ztsnr": torch.zeros(1)},
    )
    assert of("a") == ("epsilon", False)
    assert of("b", prediction="v", zero_snr=True) == ("v", True)
    sampling = model_folder.read_config(
        tmp_path / "b"
    ).sampling  # asked at the very last timestep, or the noise would not be all noise
    assert (sampling.spacing, sampling.guidance_rescale) == ("trailing", 0.7)
    assert of("c", base=marked) == ("v", True)
    with pytest.raises(SettingError, match="needs --prediction v"):
        of("d", zero_snr=True)


def test_known_files_are_named(tmp_path, caphuman, monkeypatch):
    monkeypatch.setitem(known_files.KNOWN, known_files.md5(caphuman), "caphuman.ckpt, in small")
    report = import_model(tmp_path / "m", caphuman=caphuman, config=TINY)
    assert "caphuman.ckpt is caphuman.ckpt, in small" in report
    assert model_folder.read_metadata(tmp_path / "m")["imported"]["files"] == [
        {
            "file": "caphuman.ckpt",
            "md5": known_files.md5(caphuman),
            "known": "caphuman.ckpt, in small",
        }
    ]


def test_loras_are_added(tmp_path, caphuman):
    key, rank = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q", 2
    up, down = torch.randn(32, rank), torch.randn(rank, 32)
    for name, factor in (("x", 1.0), ("y", 2.0)):
        safetensors.torch.save_file(
            {
                f"{key}.lora_up.weight": up * factor,
                f"{key}.lora_down.weight": down,
                f"{key}.alpha": torch.tensor(2.0),
            },
            tmp_path / f"{name}.safetensors",
        )
    import_model(
        tmp_path / "m",
        caphuman=caphuman,
        config=TINY,
        loras=[(tmp_path / "x.safetensors", 0.8), (tmp_path / "y.safetensors", -0.1)],
    )
    torch_name = UNET + "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
    ours = stored(tmp_path / "m")["unet/encoder.down.0.attention_0.self_attention.query.kernel"]
    np.testing.assert_allclose(
        ours, (state_dict()[torch_name] + 0.6 * up @ down).numpy().T, rtol=1e-5, atol=1e-6
    )
    sd = state_dict(UNET)
    del sd[torch_name]
    unchanged = expected(state_dict(), "unet")
    assert (
        sum(
            not np.array_equal(x, unchanged[name])
            for name, x in stored(tmp_path / "m").items()
            if name.startswith("unet/")
        )
        == 1
    )
    assert model_folder.read_metadata(tmp_path / "m")["imported"]["loras"] == [
        {"file": "x.safetensors", "strength": 0.8},
        {"file": "y.safetensors", "strength": -0.1},
    ]


def control_state(seed=0):
    """A ControlNet's names are CapFace's without the mask; three hint channels."""
    sd = {
        name: x
        for name, x in state_dict("control_model.", seed=seed).items()
        if "mask_predict" not in name
    }
    return sd | {"control_model.input_hint_block.0.weight": value("hint", (4, 3, 3, 3), seed)}


def test_controlnets(tmp_path, caphuman):
    torch.save(control_state(4), tmp_path / "control_v11p_sd15_openpose.pth")
    bare = {name.removeprefix("control_model."): x for name, x in control_state(5).items()}
    safetensors.torch.save_file(bare, tmp_path / "other.safetensors")
    import_model(
        tmp_path / "m",
        caphuman=caphuman,
        config=TINY,
        controlnets=[
            (tmp_path / "control_v11p_sd15_openpose.pth", None),
            (tmp_path / "other.safetensors", "depth"),
        ],
    )
    assert model_folder.read_config(tmp_path / "m").controlnets == ("openpose", "depth")
    ours = stored(tmp_path / "m")
    for network, sd in (
        ("controlnet_openpose", control_state(4)),
        ("controlnet_depth", control_state(5)),
    ):
        np.testing.assert_array_equal(
            ours[f"{network}/hint.convs.0.kernel"],
            sd["control_model.input_hint_block.0.weight"].numpy().transpose(2, 3, 1, 0),
        )
        np.testing.assert_array_equal(
            ours[f"{network}/encoder.time_1.kernel"],
            sd["control_model.time_embed.0.weight"].numpy().T,
        )
    with pytest.raises(ModelFolderError, match="is taken or not a name"):
        import_model(
            tmp_path / "n",
            caphuman=caphuman,
            config=TINY,
            controlnets=[(tmp_path / "other.safetensors", "a/b")],
        )
    with pytest.raises(ModelFolderError, match="holds no ControlNet"):
        import_model(tmp_path / "n", caphuman=caphuman, config=TINY, controlnets=[(caphuman, "x")])


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("x.safetensors", 1.0),
        ("x.safetensors:0.8", 0.8),
        ("C:/x.pt:-1", -1.0),
        ("x:0.5,0", (0.5, 0.0)),
    ],
)
def test_strengths_of_loras(text, meant):
    assert parse(text) == (Path(text.rpartition(":")[0] or text), meant)
    for wrong in ("x:1,2,3", "x:inf", "x:much"):
        with pytest.raises(SettingError, match="strength"):
            parse(wrong)


@pytest.mark.slow
def test_facenet(tmp_path, caphuman):
    """As facenet-pytorch's file: a state dict with counters and the classifier of its training."""
    from flax import traverse_util

    from caphuman_jax.weights import face_names

    shapes = traverse_util.flatten_dict(
        registry.abstract(TINY, only=("facenet",))["facenet"][1], sep="."
    )
    names = face_names.table("facenet", shapes)
    sd = {
        name: value(name, convert.shape_of_theirs(path, name, tuple(shapes[path].shape)))
        for name, path in names.items()
    }
    sd |= {"logits.weight": torch.zeros(2, 2), "last_bn.num_batches_tracked": torch.tensor(1)}
    torch.save(sd, tmp_path / "20180402-114759-vggface2.pt")
    # FaceNet gives 512 numbers and the tiny projector takes 8.
    with pytest.raises(ModelFolderError, match="recognition_width is 8; it must be 512"):
        import_model(
            tmp_path / "m",
            caphuman=caphuman,
            config=TINY,
            facenet=tmp_path / "20180402-114759-vggface2.pt",
        )
    assert not (tmp_path / "m").exists()
    importer._write_face_network(tmp_path, "facenet", tmp_path / "20180402-114759-vggface2.pt")
    ours = safetensors.numpy.load_file(tmp_path / "facenet.safetensors")
    assert set(ours) == set(shapes)
    np.testing.assert_array_equal(ours["embed.kernel"], sd["last_linear.weight"].numpy().T)


def test_deca(tmp_path, caphuman, tiny_config, capsys):
    """deca_model.tar as DECA writes it, the other networks in it too; heads are FLAME's then."""
    from flax import traverse_util

    from caphuman_jax.weights import face_names

    shapes = traverse_util.flatten_dict(
        registry.abstract(TINY, only=("deca_encoder",))["deca_encoder"][1], sep="."
    )
    names = face_names.table("deca_encoder", shapes)
    theirs = {
        name: value(name, convert.shape_of_theirs(path, name, tuple(shapes[path].shape)))
        for name, path in names.items()
    }
    tar, without = tmp_path / "deca_model.tar", tmp_path / "flame"
    torch.save(
        {
            "E_flame": theirs | {"encoder.bn1.num_batches_tracked": torch.tensor(1)},
            "E_detail": {"layers.0.weight": torch.zeros(2, 2)},
        },
        tar,
    )
    common = [
        "import",
        str(tmp_path / "m"),
        "--caphuman",
        str(caphuman),
        "--config",
        str(tiny_config),
        "--dtype",
        "float16",
        "--partial",
    ]
    assert main([*common, "--deca", str(tar)]) == 0
    assert "set CAPHUMAN_FLAME to the folder" in capsys.readouterr().out
    config = model_folder.read_config(tmp_path / "m")
    assert config.head == "flame"
    loaded = model_folder.load_params(
        tmp_path / "m",
        {"deca_encoder": registry.abstract(config, only=("deca_encoder",))["deca_encoder"][1]},
    )["deca_encoder"]
    np.testing.assert_array_equal(
        loaded["codes"]["kernel"], theirs["layers.2.weight"].numpy().T
    )  # float32 still
    np.testing.assert_array_equal(
        loaded["resnet"]["stem"]["norm"]["variance"], theirs["encoder.bn1.running_var"].numpy()
    )

    without.mkdir()
    wrong = tmp_path / "wrong.tar"
    torch.save({"E_flame": {"layers.0.weight": torch.zeros(1024, 2048)}}, wrong)
    for arguments, message in (
        (["--deca", str(tar), "--head", "anny"], "--deca estimates heads of flame"),
        (["--deca", str(without / "none.tar")], "none.tar is missing"),
        (
            ["--deca", str(wrong)],
            "these are not the weights of deca_encoder: missing encoder.bn1.bias",
        ),
        (
            ["--deca", str(tar), "--flame", str(without)],
            "holds no FLAME model; it should hold one of generic_model.pkl",
        ),
    ):
        assert main([*common, "--overwrite", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert model_folder.read_config(tmp_path / "m") == config


def test_flame_is_checked(tmp_path):
    """What DECA needs beside the model is asked for; nothing is written of it."""
    flame_standin.write_folder(tmp_path)
    SOURCE.check(tmp_path, True)
    (tmp_path / "head_template.obj").unlink()
    SOURCE.check(tmp_path, False)
    with pytest.raises(HeadError, match=f"lacks what DECA needs: head_template.obj in {tmp_path}$"):
        SOURCE.check(tmp_path / "generic_model.pkl", True)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("control_v11p_sd15_openpose.pth", "openpose"),
        ("control_v11f1p_sd15_depth_fp16.safetensors", "depth_fp16"),
        ("control_sd15_canny.pth", "canny"),
        ("my net.pth", "my_net"),
        ("control.pth", "control"),
    ],
)
def test_names_of_controlnets(tmp_path, file, name):
    assert control_name(tmp_path / file) == name


def test_too_large_for_half_precision(tmp_path, caphuman):
    base = base_file(
        tmp_path / "base.safetensors",
        dtype=torch.float32,
        change=lambda sd: sd | {UNET + "out.2.bias": torch.full((4,), 1e6)},
    )
    with pytest.raises(
        ModelFolderError, match="unet: conv_out.bias has values too large for float16"
    ):
        import_model(tmp_path / "m", caphuman=caphuman, base=base, config=TINY, dtype="float16")
    assert os.listdir(tmp_path) == ["base.safetensors"]


def test_overwriting(tmp_path, caphuman):
    import_model(tmp_path / "m", caphuman=caphuman, config=TINY)
    (tmp_path / "m" / "notes.txt").write_text("mine")
    with pytest.raises(ModelFolderError, match="exists already"):
        import_model(tmp_path / "m", caphuman=caphuman, config=TINY)
    import_model(tmp_path / "m", caphuman=caphuman, config=TINY, name="again", overwrite=True)
    assert (
        model_folder.read_config(tmp_path / "m").name == "again"
        and (tmp_path / "m" / "notes.txt").read_text() == "mine"
    )


def test_command(tmp_path, caphuman, tiny_config, capsys):
    assert (
        main(
            [
                "import",
                str(tmp_path / "m"),
                "--caphuman",
                str(caphuman),
                "--config",
                str(tiny_config),
                "--dtype",
                "bfloat16",
                "--name",
                "mine",
                "--head",
                "anny",
                "--partial",
            ]
        )
        == 0
    )
    assert "capface: 156 tensors of caphuman.ckpt (float32)" in capsys.readouterr().out
    for arguments, message in (
        (["--caphuman", "none.ckpt"], "none.ckpt is missing"),
        ([], "nothing to import"),
        (["--caphuman", str(caphuman)], "text of width 16"),
        (["--caphuman", str(caphuman), "--config", "none.json"], "no such file"),
        (["--caphuman", str(caphuman), "--lora", "x:y"], "not a strength"),
        (
            [
                "--caphuman",
                str(caphuman),
                "--config",
                str(tiny_config),
                "--lora",
                "none.safetensors:0.8",
            ],
            "none.safetensors is missing",
        ),
    ):
        assert main(["import", str(tmp_path / "n"), "--partial", *arguments]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1 and error.startswith("caphuman: error: ")
    assert os.listdir(tmp_path) == ["m"]


def test_killed_in_the_middle(tmp_path, caphuman, tiny_config):
    """kill -9 while networks are being written: nothing that reads as a model folder is left where
    it was to be.
    """
    program = (
        "import sys, os; from caphuman_jax.weights import importer; original = importer._write\n"
        "def slow(beside, network, *rest):\n"
        "    made = original(beside, network, *rest)\n"
        "    print(network, flush=True); import time; time.sleep(60)\n"
        "importer._write = slow\n"
        "from caphuman_jax.cli.app import main; main(sys.argv[1:])"
    )
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            program,
            "import",
            str(tmp_path / "m"),
            "--caphuman",
            str(caphuman),
            "--config",
            str(tiny_config),
            "--partial",
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline().strip() == "unet"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    left = list(tmp_path.iterdir())
    assert [x.name.startswith(".m.") and x.name.endswith(".part") for x in left] == [True]
    assert (left[0] / "unet.safetensors").is_file()
    for path in (tmp_path / "m", left[0]):
        with pytest.raises(ModelFolderError, match="no config.json|no model named"):
            model_folder.find_model(path)
    import_model(tmp_path / "m", caphuman=caphuman, config=TINY)
    model_folder.verify_model(tmp_path / "m")


def test_a_killed_export_of_two_files_is_made_again(tmp_path, monkeypatch, capsys):
    """The ControlNet's file is there and the other one is not: it is ours, so it is replaced."""
    from caphuman_jax.weights import exporter
    from caphuman_jax.weights.model_folder import save_model

    config = dataclasses.replace(TINY, controlnets=("edges",))
    zeros = lambda leaf: np.zeros(leaf.shape, np.float32)
    shapes = {name: tree for name, (_, tree) in registry.abstract(config).items()}
    save_model(tmp_path / "m", config, jax.tree.map(zeros, shapes))
    out, beside = tmp_path / "x.safetensors", tmp_path / "x.controlnet_edges.safetensors"
    export = lambda: main(["export", str(tmp_path / "m"), str(out), "--to", "ldm"])
    assert export() == 0 and out.is_file() and beside.is_file()
    assert export() == 2 and "exists already" in capsys.readouterr().err
    out.unlink()
    assert export() == 0 and out.is_file()
    out.unlink()
    beside.write_bytes(b"somebody else's")
    assert export() == 2 and beside.read_bytes() == b"somebody else's" and not out.exists()
    assert exporter._part_of(out) is None


def test_layout_back_and_forth():
    array = np.arange(24.0).reshape(2, 3, 2, 2)
    ours = convert.to_ours("x.kernel", array, (2, 2, 3, 2))
    np.testing.assert_array_equal(convert.to_theirs("x.kernel", ours, array.shape), array)


@pytest.mark.alone
@pytest.mark.slow
def test_four_gigabytes_in_a_minute_and_six_gigabytes_of_memory(tmp_path):
    """A stand-in for caphuman.ckpt in half precision: 1.73 billion numbers."""
    parity = os.path.join(os.path.dirname(__file__), "..", "parity", "data")
    with (
        open(os.path.join(parity, "full_parameters.json")) as full,
        open(os.path.join(parity, "clip_parameters.json")) as clip,
    ):
        shapes, clip = json.load(full), json.load(clip)
    shapes |= {TEXT + name: shape for name, shape in clip["clip_text"].items()}
    shapes |= {
        PREFIXES["image_encoder"] + name: shape for name, shape in clip["clip_vision"].items()
    }
    pool = torch.randn(2**24 + 11).half()
    sd = {
        name: pool.repeat(int(np.prod(shape)) // pool.numel() + 1)[: int(np.prod(shape))]
        .clone()
        .reshape(shape)
        for name, shape in shapes.items()
    }
    torch.save({"state_dict": sd}, tmp_path / "caphuman.ckpt")
    del sd
    program = (
        "import sys; from caphuman_jax.cli.app import main; code = main(sys.argv[1:]);"
        "print(next(line.split()[1] for line in open('/proc/self/status') if "
        "line.startswith('VmHWM'))); sys.exit(code)"
    )
    start = time.monotonic()
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            program,
            "import",
            str(tmp_path / "m"),
            "--caphuman",
            str(tmp_path / "caphuman.ckpt"),
            "--partial",
        ],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
    )
    seconds, kilobytes = time.monotonic() - start, int(done.stdout.split()[-1])
    print(f"{seconds:.0f} s, {kilobytes / 1e6:.2f} GB")
    assert seconds < 120 and kilobytes < 2e6  # 35 s and 0.4 GB on two busy cores


@pytest.mark.parametrize("verb", ["import", "export --to ldm", "export --to diffusers"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, caphuman, tiny_config, verb, capsys):
    """The system refuses to write more, in the middle of a file."""
    name, *how = verb.split()
    command = ["import", str(tmp_path / "m"), "--caphuman", str(caphuman)]
    command += ["--config", str(tiny_config), "--partial", "--head", "anny"]
    if name == "export":
        assert main(command) == 0
        out = tmp_path / ("x.safetensors" if "ldm" in how else "x")
        command = ["export", str(tmp_path / "m"), str(out), *how]
    before = sorted(path.name for path in tmp_path.iterdir())
    capsys.readouterr()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        status = main(command)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert status == 2 and error.count("\n") == 1 and "File too large" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["unet.safetensors", "config.json", "tokenizer/merges.txt"])
def test_a_file_that_vanishes_is_noticed(
    tmp_path, caphuman, tiny_config, name, capsys, monkeypatch
):
    """Something else removes a file that was written, before the folder is complete."""
    write = model_card.write

    def wrapped(folder, **options):
        written = write(folder, **options)
        (folder / name).unlink()
        return written

    monkeypatch.setattr(model_card, "write", wrapped)
    command = ["import", str(tmp_path / "m"), "--caphuman", str(caphuman), "--partial"]
    assert main([*command, "--config", str(tiny_config), "--head", "anny"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"caphuman: error: {name}: something removed it")
    assert error.count("\n") == 1 and not list(tmp_path.iterdir())
