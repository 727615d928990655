"""Folders and files as diffusers, transformers, Flax and the hub's cache leave them: every naming
and form gives the same model, bit for bit, and what their config.json says is followed or refused.
"""

import json
import re
import shutil
from pathlib import Path

import flax.serialization
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.numpy import load_file, save_file
from weight_standins import TINY, import_model

from caphuman_jax.errors import ModelFolderError
from caphuman_jax.weights import folder_files, model_folder, names
from caphuman_jax.weights.checkpoint_files import open_checkpoint
from caphuman_jax.weights.exporter import export_model

pytestmark = pytest.mark.usefixtures("shapes_once")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, caphuman) -> Path:
    """A diffusers folder in float32, without our own parts."""
    out = tmp_path_factory.mktemp("diffusers")
    import_model(out / "m", caphuman=caphuman, config=TINY)
    export_model(out / "m", out / "base", "diffusers", dtype="float32")
    for part in ("capface", "identity", "image_encoder", "caphuman.json"):
        path = out / "base" / part
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return out / "base"


@pytest.fixture(scope="module")
def networks(folder, caphuman, tmp_path_factory) -> dict[str, np.ndarray]:
    return imported(tmp_path_factory.mktemp("reference"), folder, caphuman)


def imported(tmp_path, base, caphuman, **given) -> dict[str, np.ndarray]:
    """{network/path: array} of the networks that come from `base`."""
    import_model(tmp_path / "out", caphuman=caphuman, base=base, config=TINY, **given)
    return {
        f"{network}/{name}": array
        for network in ("unet", "vae", "text")
        for name, array in load_file(tmp_path / "out" / f"{network}.safetensors").items()
    }


def assert_same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].tobytes() == array.tobytes(), name


def copied(folder, tmp_path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "base"))


def file_of(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


# Flax


def module_of(network: Path) -> torch.nn.Module:
    """The PyTorch module whose weights a folder holds: it says what a norm and an embedding is."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    kind = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    return kind[network.name].from_pretrained(network)


def flax_tree(module: torch.nn.Module, clip: bool, dtype) -> dict:
    """Parameters as the Flax models of diffusers and transformers name and lay them out."""
    tree: dict = {}
    kinds = dict(module.named_modules())
    for name, tensor in module.state_dict().items():
        owner, leaf = name.rsplit(".", 1)
        array = tensor.numpy()
        if leaf == "weight" and isinstance(kinds[owner], torch.nn.Embedding):
            leaf = "embedding"
        elif leaf == "weight" and array.ndim == 1:
            leaf = "scale"
        elif leaf == "weight":
            leaf = "kernel"
            array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
        if not clip:
            owner = re.sub(r"(\w+)\.(\d+)", r"\1_\2", owner)
        elif not owner.startswith("text_model."):
            owner = f"text_model.{owner}"
        place = tree
        for part in owner.split("."):
            place = place.setdefault(part, {})
        place[leaf] = np.ascontiguousarray(array).astype(dtype)
    return tree


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_flax_folders_are_the_same_weights_as_from_pytorch(
    tmp_path, folder, networks, caphuman, dtype
):
    base = copied(folder, tmp_path)
    for network in ("unet", "vae", "text_encoder"):
        clip = network == "text_encoder"
        tree = flax_tree(module_of(base / network), clip, dtype)
        assert "kernel" in str(tree.keys()) or tree
        file_of(base / network).unlink()
        name = "flax_model.msgpack" if clip else "diffusion_flax_model.msgpack"
        (base / network / name).write_bytes(flax.serialization.to_bytes(tree))
    found = imported(tmp_path, base, caphuman)
    assert_same(found, {name: array.astype(dtype) for name, array in networks.items()})


def test_flax_arrays_of_jax_and_params_around_them(tmp_path):
    tree = {"params": {"conv_in": {"kernel": jnp.ones((3, 3, 4, 8), jnp.bfloat16)}, "n": 5}}
    (tmp_path / "diffusion_flax_model.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.format == "flax" and list(checkpoint) == ["conv_in.weight"]
        assert checkpoint.shape("conv_in.weight") == (8, 4, 3, 3)
        assert checkpoint["conv_in.weight"].dtype == ml_dtypes.bfloat16
        assert checkpoint.extra == {"n": 5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d[:-3], "ends before"),
        (lambda d: d + b"\0", "more in it"),
        (lambda d: d.replace(b"float32", b"float99"), "an array of type float99"),
        (lambda d: d.replace(b"\xa1a", b"\xa1b"), "a name that is no text, or that there is twice"),
        (lambda d: d[:-30] + b"\xc9\xff\xff\xff\xff" + d[-30:], "damaged|refused"),
        (lambda d: b"\x82\xa1a" + b"\x91" * 100 + b"\xa1b\x01", "nested without end"),
        (lambda d: b"\xdf\xff\xff\xff\xff" + d[1:], "damaged"),
        (lambda d: b"\x81\xa1a\xd4\x05\x00", "extension 5"),
    ],
)
def test_damaged_flax_files_are_one_line(tmp_path, change, message):
    data = flax.serialization.to_bytes({"a": np.ones(3, np.float32), "b": np.ones(4, np.float32)})
    (tmp_path / "x.msgpack").write_bytes(change(data))
    with pytest.raises(ModelFolderError, match=message) as error:
        open_checkpoint(tmp_path / "x.msgpack")
    assert "\n" not in str(error.value)


# Names of files


def test_names_of_files_in_every_order_that_there_is():
    shards = [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    for there, wanted in (
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin", "flax_model.msgpack"], ["pytorch_model.bin"]),
        (["model.fp16.safetensors", "pytorch_model.bin"], ["pytorch_model.bin"]),
        (["model.fp16.safetensors", "model.non_ema.safetensors"], ["model.fp16.safetensors"]),
        (["model.safetensors.index.json", *shards], ["model.safetensors.index.json"]),
        (["model.safetensors.index.fp16.json"], ["model.safetensors.index.fp16.json"]),
        (["model.fp16.safetensors.index.json"], ["model.fp16.safetensors.index.json"]),
        (["pytorch_model.bin.index.json"], ["pytorch_model.bin.index.json"]),
        (shards, shards),
        (shards[1:], []),
        (
            [f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (2, 1)],
            [f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)],
        ),
        (
            [f"diffusion_pytorch_model-0000{i}-of-00002.fp16.bin" for i in (1, 2)],
            [f"diffusion_pytorch_model-0000{i}-of-00002.fp16.bin" for i in (1, 2)],
        ),
        (["realistic.safetensors", "README.md"], ["realistic.safetensors"]),
        (["a.safetensors", "b.safetensors"], []),
        (["model_index.json", "config.json", "model.json"], []),
    ):
        assert folder_files.choose(there) == wanted, there


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("index", [True, False], ids=["index", "no index"])
def test_shards_as_diffusers_writes_them(tmp_path, folder, networks, caphuman, variant, index):
    from diffusers import UNet2DConditionModel

    base = copied(folder, tmp_path)
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    file_of(base / "unet").unlink()
    unet.save_pretrained(base / "unet", max_shard_size="200KB", variant=variant)
    files = sorted(path.name for path in (base / "unet").iterdir())
    assert sum("-of-" in name for name in files) > 2 and any("index" in name for name in files)
    if not index:
        for path in (base / "unet").glob("*index*"):
            path.unlink()
    assert_same(imported(tmp_path, base, caphuman), networks)
    next((base / "unet").glob("*-of-*")).unlink()
    with pytest.raises(ModelFolderError, match="lacks some of its parts|is missing"):
        imported(tmp_path, base, caphuman, overwrite=True)


def test_folders_of_the_hubs_cache(tmp_path, folder, networks, caphuman):
    """Blobs and links, as huggingface_hub lays them out."""
    repo = tmp_path / "models--org--name"
    for number, path in enumerate(sorted(folder.rglob("*.*"))):
        if path.is_file():
            blob = repo / "blobs" / f"{number:040x}"
            blob.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, blob)
            link = repo / "snapshots" / ("a" * 40) / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
    (repo / "snapshots" / ("b" * 40)).mkdir()
    with pytest.raises(ModelFolderError, match="2 snapshots and no branch main"):
        imported(tmp_path, repo, caphuman)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("a" * 40)
    assert_same(imported(tmp_path, repo, caphuman), networks)


# Names of weights


@pytest.mark.parametrize(
    "style",
    [
        {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"},
        {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn", "norm": "group_norm"},
    ],
    ids=["new", "early"],
)
@pytest.mark.parametrize("convolutions", [True, False])
def test_the_vaes_attention_under_the_names_of_converters(tmp_path, caphuman, style, convolutions):
    """Names of the original with diffusers' names of the attention's parts."""
    sd = torch.load(caphuman, weights_only=False)["state_dict"]
    vae = {k: x for k, x in sd.items() if k.startswith("first_stage_model.") and "loss" not in k}
    renamed = {}
    for name, tensor in vae.items():
        found = re.fullmatch(r"(.*mid\.attn_1\.)([^.]+)\.(weight|bias)", name)
        if found and found[2] in style:
            name = f"{found[1]}{style[found[2]]}.{found[3]}"
            if not convolutions and tensor.ndim == 4:
                tensor = tensor[:, :, 0, 0].contiguous()
        renamed[name] = tensor
    assert renamed.keys() != vae.keys()
    safetensors.torch.save_file(renamed, tmp_path / "vae.safetensors")
    for name, given in (("a", {}), ("b", {"vae": tmp_path / "vae.safetensors"})):
        import_model(tmp_path / name, caphuman=caphuman, config=TINY, **given)
    assert_same(*(load_file(tmp_path / name / "vae.safetensors") for name in "ba"))


def test_modern_name_leaves_other_names_alone():
    for name in ("encoder.mid.attn_1.q.weight", "encoder.mid.block_1.norm1.weight"):
        assert names.modern_name(name, "vae") == name
    assert names.modern_name("mid.attn_1.to_q.weight", "unet") == "mid.attn_1.to_q.weight"


# What config.json says


def describe(folder: Path, network: str, **entries):
    path = folder / network / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_the_number_of_layers_in_config_json_counts(tmp_path, folder, networks, caphuman):
    """A clip skip that is baked in: with all layers of weights there, and with one less."""
    base = copied(folder, tmp_path)
    describe(base, "text_encoder", num_hidden_layers=1)
    for step in ("all layers are there", "one is gone"):
        found = imported(tmp_path, base, caphuman, overwrite=True)
        assert model_folder.read_config(tmp_path / "out").text.layers == 1
        assert_same(
            {name: x for name, x in found.items() if name.startswith("text/")},
            {
                name: x
                for name, x in networks.items()
                if name.startswith("text/") and "layers.1." not in name
            },
        )
        unused = model_folder.read_metadata(tmp_path / "out")["imported"]["unused"]
        beyond = unused.get("base", {}).get("layers that its config.json does not use", 0)
        assert (beyond > 0) == (step == "all layers are there")
        file = file_of(base / "text_encoder")
        sd = {k: x for k, x in load_file(file).items() if "layers.1." not in k}
        save_file(sd, file)
    describe(base, "text_encoder", num_hidden_layers=2)
    with pytest.raises(ModelFolderError, match="missing: .*layers.1"):
        imported(tmp_path, base, caphuman, overwrite=True)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu", "gelu_new"])
def test_the_activation_and_the_length_are_those_of_transformers(tmp_path, caphuman, act):
    """Our encoder against CLIPTextModel with random weights, with 77 and 248 tokens."""
    from flax import nnx
    from transformers import CLIPTextConfig, CLIPTextModel

    from caphuman_jax.models import registry

    length = 248 if act == "gelu" else 77
    cfg = TINY.text
    torch.manual_seed(0)
    theirs = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=cfg.width,
            intermediate_size=cfg.mlp_width,
            num_hidden_layers=cfg.layers,
            num_attention_heads=4,
            max_position_embeddings=length,
            hidden_act=act,
            vocab_size=cfg.vocabulary,
        )
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path / "clip")
    import_model(tmp_path / "m", caphuman=caphuman, clip=tmp_path / "clip", config=TINY)
    config = model_folder.read_config(tmp_path / "m")
    assert (config.text.length, config.text.heads) == (length, 4)
    assert config.text.activation == {"gelu_new": "gelu_tanh"}.get(act, act)
    graph, shapes = registry.abstract(config, only=("text",))["text"]
    params = model_folder.load_params(tmp_path / "m", {"text": shapes})["text"]
    ids = np.random.default_rng(0).integers(0, 49000, (1, length))
    ids[0, -1] = 49407
    ours, _ = nnx.merge(graph, params)(jnp.asarray(ids, jnp.int32))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(ids)).last_hidden_state.numpy()
    np.testing.assert_allclose(np.asarray(ours), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("network", "entries", "message"),
    [
        ("text_encoder", {"hidden_act": "relu"}, "hidden_act = 'relu', which cannot be followed"),
        ("text_encoder", {"layer_norm_eps": 1e-6}, "layer_norm_eps = 1e-06"),
        ("text_encoder", {"num_hidden_layers": "two"}, "num_hidden_layers = 'two'"),
        ("unet", {"norm_num_groups": 4}, "norm_num_groups = 4"),
        ("unet", {"flip_sin_to_cos": False}, "flip_sin_to_cos = False"),
        ("unet", {"act_fn": "gelu"}, "act_fn = 'gelu'"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type = 'timestep'"),
        ("vae", {"norm_num_groups": 8}, "norm_num_groups = 8"),
        ("vae", {"shift_factor": 0.1}, "shift_factor = 0.1"),
        ("vae", {"scaling_factor": 0.13025}, "scales latents by 0.13025"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused_by_name(
    tmp_path, folder, caphuman, network, entries, message
):
    base = copied(folder, tmp_path)
    describe(base, network, **entries)
    with pytest.raises(ModelFolderError, match=message):
        imported(tmp_path, base, caphuman)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["time_embedding.cond_proj.weight", "time_embed.cond_proj.weight"])
def test_guidance_distilled_unets_are_named(tmp_path, folder, caphuman, name):
    base = copied(folder, tmp_path)
    file = file_of(base / "unet")
    save_file(load_file(file) | {name: np.zeros((128, 32), np.float32)}, file)
    describe(base, "unet", time_cond_proj_dim=256)
    with pytest.raises(ModelFolderError, match=r"guidance-distilled model \(LCM\).*LCM-LoRA"):
        imported(tmp_path, base, caphuman)


@pytest.mark.parametrize("name", ["scale_weight", "weight_scale"])
@pytest.mark.parametrize("per", ["tensor", "channel"])
def test_scaled_fp8_is_multiplied_out(tmp_path, caphuman, name, per):
    sd = torch.load(caphuman, weights_only=False)["state_dict"]
    base, wanted = {}, {}
    for key, tensor in sd.items():
        if not key.startswith("model.diffusion_model."):
            continue
        base[key] = wanted[key] = tensor
        if tensor.ndim == 2 and key.endswith("to_q.weight"):
            top = tensor.abs().amax(None if per == "tensor" else 1)
            scale = (top / 448).float()
            base[key] = (tensor / (scale if per == "tensor" else scale[:, None])).to(
                torch.float8_e4m3fn
            )
            base[key.replace(".weight", f".{name}")] = scale
            base[key.replace(".weight", ".scale_input")] = torch.ones(())
            factor = scale if per == "tensor" else scale[:, None]
            wanted[key] = base[key].float() * factor
    base["model.diffusion_model.scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
    for file, content in (("a", base), ("b", wanted)):
        safetensors.torch.save_file(content, tmp_path / f"{file}.safetensors")
        import_model(
            tmp_path / file, caphuman=caphuman, base=tmp_path / f"{file}.safetensors", config=TINY
        )
    assert_same(*(load_file(tmp_path / file / "unet.safetensors") for file in "ab"))


@pytest.mark.parametrize(
    ("option", "keys", "message"),
    [
        (
            "controlnets",
            ["difference", "control_model.input_hint_block.0.weight"],
            "stored as a difference from its base",
        ),
        ("controlnets", ["lora_controlnet", "input_blocks.0.0.weight"], "a Control-LoRA"),
        ("controlnets", ["body.0.block1.weight", "conv_in.weight"], "a T2I-Adapter"),
        ("controlnets", ["adapter.body.0.resnets.0.block1.weight"], "a T2I-Adapter"),
        ("controlnets", ["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"], "an IP-Adapter"),
        ("base", ["lora_unet_mid_block_attentions_0_proj_in.lora_down.weight"], "with --lora"),
        ("vae", ["emb_params"], "with --embedding"),
    ],
)
def test_other_kinds_of_files_are_refused_by_name_whatever_is_ignored(
    tmp_path, caphuman, option, keys, message
):
    """No advice leads to weights that are silently wrong."""
    file = tmp_path / "x.safetensors"
    save_file({key: np.ones((1, 1), np.float32) for key in keys}, file)
    given = {option: [(file, "pose")] if option == "controlnets" else file}
    for ignore in ((), ("difference", "body", "lora")):
        with pytest.raises(ModelFolderError, match=message):
            import_model(tmp_path / "m", caphuman=caphuman, config=TINY, ignore=ignore, **given)


def test_gguf_is_named(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF\3\0\0\0" + bytes(100))
    with pytest.raises(ModelFolderError, match="GGUF file of quantized weights"):
        open_checkpoint(tmp_path / "x.gguf")
