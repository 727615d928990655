"""LoRA files against diffusers with PEFT: the same file loaded there and here gives the same
weights and the same pictures.
"""

import copy
import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx, traverse_util
from safetensors.numpy import load_file, save_file

from caphuman_jax.config import ModelConfig, TextConfig, UNetConfig
from caphuman_jax.errors import ModelFolderError
from caphuman_jax.models import registry
from caphuman_jax.weights import lora
from caphuman_jax.weights.convert import to_ours
from caphuman_jax.weights.names import modules, table

TINY = ModelConfig(
    unet=UNetConfig(
        channels=16,
        channel_multipliers=(1, 2),
        blocks_per_level=1,
        attention_resolutions=(1, 2),
        heads=2,
        cross_attention_dim=16,
        groups=8,
    ),
    text=TextConfig(vocabulary=40, length=12, width=16, layers=2, heads=2, mlp_width=32),
    image_encoder=None,
)
RANK, ALPHA = 3, 5.0


def normal(name, *shape):
    return np.random.default_rng(list(name.encode())).standard_normal(shape).astype(
        np.float32
    ) / np.float32(2)


@pytest.fixture(scope="module")
def torch_networks():
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=[16, 32],
        layers_per_block=1,
        down_block_types=["CrossAttnDownBlock2D"] * 2,
        up_block_types=["CrossAttnUpBlock2D"] * 2,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=8,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=40,
            max_position_embeddings=12,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            bos_token_id=38,
            eos_token_id=39,
            pad_token_id=39,
        )
    )
    return {"unet": unet.eval(), "text": text.eval()}


@pytest.fixture(scope="module")
def shapes():
    return {
        name: params for name, (_, params) in registry.abstract(TINY, only=("unet", "text")).items()
    }


def ours(network, module, shapes):
    """Our parameters from a PyTorch network, with its LoRAs fused or not."""
    flat = traverse_util.flatten_dict(shapes[network], sep=".")
    top = "" if network == "unet" else "text_model."
    state = {
        top + key.removeprefix(top).replace(".base_layer.", "."): x.detach().numpy()
        for key, x in module.state_dict().items()
    }
    values = {
        path: to_ours(path, state[name], flat[path].shape).copy()
        for name, path in table(network, TINY, flat, "diffusers").items()
    }
    return traverse_util.unflatten_dict(values, sep=".")


@pytest.fixture(scope="module")
def base(torch_networks, shapes):
    return {name: ours(name, module, shapes) for name, module in torch_networks.items()}


@pytest.fixture(scope="module")
def layers(torch_networks):
    """{network: {diffusers name: PyTorch shape of its weight}}: every layer that a LoRA
    may change.
    """
    top = {"unet": "", "text": "text_model."}
    return {
        network: {
            top[network] + name.removeprefix(top[network]): tuple(part.weight.shape)
            for name, part in module.named_modules()
            if isinstance(part, torch.nn.Linear | torch.nn.Conv2d)
        }
        for network, module in torch_networks.items()
    }


def factors(name, shape):
    """(down, up) of a layer, as PEFT and kohya have them: a convolution's upward part is 1×1."""
    ones = (1,) * (len(shape) - 2)
    return normal(name + "down", RANK, *shape[1:]), normal(name + "up", shape[0], RANK, *ones)


def kohya(layers, networks=("unet", "text"), rename=lambda network, name: name):
    file = {}
    for network in networks:
        for name, shape in layers[network].items():
            key = {"unet": "lora_unet_", "text": "lora_te_"}[network] + rename(
                network, name
            ).replace(".", "_")
            down, up = factors(name, shape)
            file |= {
                f"{key}.lora_down.weight": down,
                f"{key}.lora_up.weight": up,
                f"{key}.alpha": np.array(ALPHA, np.float32),
            }
    return file


def fuse(torch_networks, file, scale=1.0, metadata=None):
    """Copies of the networks with a LoRA fused by diffusers."""
    from diffusers.loaders import StableDiffusionLoraLoaderMixin as Loader

    networks = copy.deepcopy(torch_networks)
    state, alphas = Loader.lora_state_dict(
        {key: torch.from_numpy(np.array(x)) for key, x in file.items()},
        unet_config=networks["unet"].config,
    )
    settings = {} if alphas and not metadata else {"metadata": metadata}
    Loader.load_lora_into_unet(state, alphas, networks["unet"], adapter_name="it", **settings)
    networks["unet"].fuse_lora(scale)
    if any(key.startswith("text_encoder.") for key in state):
        Loader.load_lora_into_text_encoder(
            state, alphas, networks["text"], prefix="text_encoder", adapter_name="it", **settings
        )
        from diffusers.loaders.lora_base import fuse_text_encoder_lora

        fuse_text_encoder_lora(networks["text"], scale)
        # transformers 5 draws the position embeddings anew when an adapter is loaded.
        networks["text"].embeddings.load_state_dict(torch_networks["text"].embeddings.state_dict())
    return networks


def assert_same(a, b, tolerance=1e-5):
    a, b = traverse_util.flatten_dict(a, sep="."), traverse_util.flatten_dict(b, sep=".")
    assert a.keys() == b.keys()
    for path in a:
        assert np.abs(a[path] - b[path]).max() <= tolerance * np.abs(b[path]).max(), path


def changed(params, base):
    a, b = (traverse_util.flatten_dict(x, sep=".") for x in (params, base))
    return {path for path in a if a[path] is not b[path]}


def test_kohya_file_of_every_layer_gives_diffusers_weights_and_pictures(
    torch_networks, base, layers, shapes, tmp_path
):
    """Linear layers and convolutions, everything that LCM-LoRA changes, in both networks."""
    save_file(kohya(layers), tmp_path / "x.safetensors")
    file = load_file(tmp_path / "x.safetensors")
    theirs = fuse(torch_networks, file, 0.8)
    params = lora.apply(base, [(lora.read(file, TINY), 0.8)])
    for network in ("unet", "text"):
        assert_same(params[network], ours(network, theirs[network], shapes))
        assert len(changed(params[network], base[network])) == len(layers[network])

    latents, t, tokens = (
        normal("latents", 1, 8, 8, 4),
        np.array([501], np.float32),
        normal("text", 1, 7, 16),
    )
    with torch.no_grad():
        expected = theirs["unet"](
            *map(torch.from_numpy, (latents.transpose(0, 3, 1, 2).copy(), t, tokens))
        ).sample.numpy()
    graphdef, _ = registry.abstract(TINY, only=("unet",))["unet"]
    run = jax.jit(
        lambda params: nnx.merge(graphdef, params)(*map(jnp.asarray, (latents, t, tokens)))
    )
    got, before = (
        np.asarray(run(jax.tree.map(jnp.asarray, x["unet"]))).transpose(0, 3, 1, 2)
        for x in (params, base)
    )
    assert np.abs(got - expected).max() < 1e-5 * np.abs(expected).max()
    assert np.abs(before - expected).max() > 0.1 * np.abs(expected).max()


def test_kohya_file_with_the_original_block_names(torch_networks, base, layers, shapes):
    original = {diffusers: ldm for ldm, diffusers, _ in modules("unet", TINY)}
    file = kohya(layers, ("unet",), lambda network, name: original[name])
    assert "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight" in file
    params = lora.apply(base, [(lora.read(file, TINY), 1.0)])
    assert_same(params["unet"], ours("unet", fuse(torch_networks, file)["unet"], shapes))


def test_early_diffusers_file(torch_networks, base, layers, shapes):
    """Attention processors and early text encoder names; no alpha, so that it is the rank."""
    file = {}
    for network, start in (("unet", "unet."), ("text", "text_encoder.")):
        for name, shape in layers[network].items():
            parts = factors(name, shape)
            if "attn" in name:
                block, _, projection = name.removesuffix(".0").rpartition(".")
                processor = "processor." if network == "unet" else ""
                projection = (
                    projection if network == "unet" else f"to_{projection.removesuffix('_proj')}"
                )
                name = f"{block}.{processor}{projection}_lora"
            else:
                name = f"{name}.{'lora' if network == 'unet' else 'lora_linear_layer'}"
            file |= {f"{start}{name}.{part}.weight": x for part, x in zip(("down", "up"), parts)}
    assert (
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.down.weight"
        in file
    )
    assert "text_encoder.text_model.encoder.layers.0.self_attn.to_q_lora.up.weight" in file
    theirs = fuse(torch_networks, file)
    params = lora.apply(base, [(lora.read(file, TINY), 1.0)])
    for network in ("unet", "text"):
        assert_same(params[network], ours(network, theirs[network], shapes))
    bare = {
        key.removeprefix("unet."): x for key, x in file.items() if key.startswith("unet.")
    }  # earlier still
    for path, part in lora.read(bare, TINY).parts["unet"].items():
        np.testing.assert_array_equal(
            part.weight(), lora.read(file, TINY).parts["unet"][path].weight()
        )


@pytest.mark.parametrize("rslora", [False, True])
def test_file_written_by_diffusers_has_alpha_in_its_header(
    torch_networks, base, shapes, tmp_path, rslora
):
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

    patterns = (
        {}
        if rslora
        else {
            "alpha_pattern": {"conv1": 7.0, "mid_block.attentions.0.proj_in": 2.5},
            "rank_pattern": {"to_v": 5},
        }
    )
    targets = [
        "to_q",
        "to_v",
        "to_out.0",
        "proj_in",
        "conv1",
        "time_emb_proj",
        "ff.net.0.proj",
        "downsamplers.0.conv",
    ]
    configs = {
        "unet": LoraConfig(
            r=4,
            lora_alpha=10,
            target_modules=targets,
            init_lora_weights=False,
            use_rslora=rslora,
            **patterns,
        ),
        "text": LoraConfig(
            r=2, lora_alpha=3, target_modules=["q_proj", "fc1"], init_lora_weights=False
        ),
    }
    torch.manual_seed(1)
    networks = {
        name: inject_adapter_in_model(config, copy.deepcopy(torch_networks[name]))
        for name, config in configs.items()
    }
    states = {name: get_peft_model_state_dict(module) for name, module in networks.items()}
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        states["unet"],
        states["text"],
        unet_lora_adapter_metadata=configs["unet"].to_dict(),
        text_encoder_lora_adapter_metadata=configs["text"].to_dict(),
    )
    params = lora.apply(
        base, [(lora.read_file(tmp_path / "pytorch_lora_weights.safetensors", TINY), 1.0)]
    )
    for network, module in networks.items():
        for layer in module.modules():
            if hasattr(layer, "merge"):
                layer.merge()
        assert_same(params[network], ours(network, module, shapes))
        assert changed(params[network], base[network])


def test_convolution_in_three_parts_is_three_convolutions(base):
    """LoCon's Tucker form: 1×1, 3×3 and 1×1 one after another, as kohya runs them."""
    key, path = "lora_unet_down_blocks_0_resnets_0_conv1", "encoder.down.0.res_0.conv_1.kernel"
    down, mid, up = (
        normal("d", RANK, 16, 1, 1),
        normal("m", RANK, RANK, 3, 3),
        normal("u", 16, RANK, 1, 1),
    )
    file = {
        f"{key}.lora_down.weight": down,
        f"{key}.lora_mid.weight": mid,
        f"{key}.lora_up.weight": up,
        f"{key}.alpha": np.float32(ALPHA),
    }
    delta = lora.read(file, TINY).delta("unet", path, (3, 3, 16, 16), 2.0)
    image = torch.from_numpy(normal("image", 1, 16, 6, 6))
    conv = torch.nn.functional.conv2d
    expected = (
        conv(
            conv(conv(image, torch.from_numpy(down)), torch.from_numpy(mid), padding=1),
            torch.from_numpy(up),
        )
        * 2
        * ALPHA
        / RANK
    )
    got = conv(image, torch.from_numpy(delta.transpose(3, 2, 0, 1).copy()), padding=1)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("effective", [False, True], ids=["flat", "tucker"])
@pytest.mark.parametrize(
    ("kind", "settings"),
    [("LoHa", {}), ("LoKr", {}), ("LoKr", {"decompose_both": True}), ("LoKr", {"r": 40})],
)
def test_lycoris_kinds_equal_peft(torch_networks, layers, shapes, kind, settings, effective):
    import peft

    network = copy.deepcopy(torch_networks["unet"])
    config = getattr(peft, f"{kind}Config")(
        **{
            "r": 2,
            "alpha": 3,
            "target_modules": r".*(to_q|ff\.net\.2|conv1|proj_in|downsamplers\.0\.conv)",
            "use_effective_conv2d": effective,
            "init_weights": False,
        }
        | settings
    )
    torch.manual_seed(2)
    peft.inject_adapter_in_model(config, network)
    layer_of = {
        name: part for name, part in network.named_modules() if hasattr(part, "get_delta_weight")
    }
    file = {key: x.numpy() for key, x in peft.get_peft_model_state_dict(network).items()}
    for form in ("unet.", "lora_unet_"):  # diffusers' form and kohya's, which LyCORIS writes
        renamed = {
            form
            + (
                key
                if form == "unet."
                else key.rpartition(".")[0].replace(".", "_") + "." + key.rpartition(".")[2]
            ): x
            for key, x in file.items()
        }
        # In PEFT alpha stands in the configuration, in LyCORIS beside the arrays.
        alphas = {
            f"{key.rpartition('.')[0]}.alpha": np.float32(
                layer_of[key.rpartition(".")[0]].scaling["default"] * config.r
            )
            for key in file
        }
        if form == "unet.":
            renamed |= {form + key: x for key, x in alphas.items()}
        else:
            renamed |= {
                form + key.removesuffix(".alpha").replace(".", "_") + ".alpha": x
                for key, x in alphas.items()
            }
        read = lora.read(renamed, TINY)
        assert len(read.parts["unet"]) == len(layer_of) > 10
        flat = traverse_util.flatten_dict(shapes["unet"], sep=".")
        names = {name: path for name, path in table("unet", TINY, flat, "diffusers").items()}
        for name, part in layer_of.items():
            path = names[f"{name}.weight"]
            whole = kind == "LoKr" and not any(
                role.endswith("_b") for role in read.parts["unet"][path].arrays
            )
            expected = part.get_delta_weight("default").detach().numpy() / (
                part.scaling["default"] if whole else 1
            )
            got = read.delta("unet", path, flat[path].shape)
            np.testing.assert_allclose(
                got, to_ours(path, expected, flat[path].shape), rtol=1e-5, atol=1e-6
            )


@pytest.fixture
def two(layers):
    file = kohya(layers)
    half = {key: x * np.float32(0.5) if key.endswith("up.weight") else x for key, x in file.items()}
    return lora.read(file, TINY), lora.read(half, TINY)


def peft_network(torch_networks, config, seed=0):
    """A copy of a network with PEFT's adapter, whose numbers are random, magnitudes near the
    norms."""
    import peft

    network = copy.deepcopy(torch_networks)
    with warnings.catch_warnings():  # PEFT asks transformers for something that it deprecates
        warnings.simplefilter("ignore", FutureWarning)
        adapted = peft.get_peft_model(network, config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "magnitude" in name:
                parameter.mul_(1 + 0.3 * torch.randn_like(parameter))
            elif parameter.requires_grad:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return adapted


def assert_merged(merged, network, params, names):
    """Our parameters are those of PEFT's merged module."""
    flat = traverse_util.flatten_dict(params[network], sep=".")
    sd = {names.get(key, key): x.numpy() for key, x in merged.state_dict().items()}
    rows = table(network, TINY, flat.keys(), "diffusers")
    for name, path in rows.items():
        name = name if name in sd else name.removeprefix("text_model.")
        expected = to_ours(path, sd[name], flat[path].shape)
        np.testing.assert_allclose(flat[path], expected, atol=2e-6, err_msg=path)


TARGETS = ["to_q", "to_v", "to_out.0", "conv1", "proj_in", "ff.net.2", "time_emb_proj"]


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("rslora", [False, True], ids=["", "rslora"])
def test_folders_of_peft_equal_its_merged_weights(torch_networks, base, tmp_path, dora, rslora):
    """UNet (dense layers and convolutions) and text encoder, each in a folder of its own."""
    from peft import LoraConfig

    settings = {"use_dora": dora, "use_rslora": rslora, "r": 4, "lora_alpha": 6}
    adapted = {
        "unet": peft_network(
            torch_networks["unet"],
            LoraConfig(target_modules=TARGETS, alpha_pattern={"proj_in": 3}, **settings),
        ),
        "text": peft_network(
            torch_networks["text"],
            LoraConfig(target_modules=["q_proj", "fc1"], rank_pattern={"fc1": 2}, **settings),
        ),
    }
    for network, module in adapted.items():
        folder = {"unet": "unet", "text": "text_encoder"}[network]
        module.save_pretrained(tmp_path / folder)
    read = lora.read_file(tmp_path, TINY)
    assert {n: len(parts) for n, parts in read.parts.items()}["text"] == 4
    assert any(p.magnitude is not None for p in read.parts["unet"].values()) is dora
    params = lora.apply(base, [(read, 1.0)])
    for network, module in adapted.items():
        assert_merged(module.merge_and_unload(), network, params, {})
    # One of them alone, and its weights file with adapter_config.json next to it.
    for given in (tmp_path / "unet", tmp_path / "unet" / "adapter_model.safetensors"):
        alone = lora.apply(base, [(lora.read_file(given, TINY), 1.0)])
        jax.tree.map(np.testing.assert_array_equal, alone["unet"], params["unet"])
        jax.tree.map(np.testing.assert_array_equal, alone["text"], base["text"])


@pytest.mark.parametrize("kind", ["LoHa", "LoKr"])
def test_folders_of_pefts_other_kinds(torch_networks, base, tmp_path, kind):
    import peft

    config = getattr(peft, f"{kind}Config")(r=3, alpha=5, target_modules=["to_q", "conv1"])
    adapted = peft_network(torch_networks["unet"], config)
    adapted.save_pretrained(tmp_path / "x")
    params = lora.apply(base, [(lora.read_file(tmp_path / "x", TINY), 1.0)])
    assert_merged(adapted.merge_and_unload(), "unet", params, {})


def test_dora_files_of_kohya_and_lycoris(base):
    """dora_scale of the outputs (out, 1) and, in early files, of the inputs (1, in), against the
    formula in double precision."""
    path = "encoder.middle.attention.self_attention.query.kernel"
    key = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    up, down = normal("up", 32, RANK), normal("down", RANK, 32)
    weight = traverse_util.flatten_dict(base["unet"], sep=".")[path].astype(np.float64).T
    total = weight + up.astype(np.float64) @ down * (ALPHA / RANK)
    for axis, scale in ((1, np.abs(normal("m", 32, 1)) + 1), (0, np.abs(normal("n", 1, 32)) + 1)):
        file = {
            f"{key}.lora_up.weight": up,
            f"{key}.lora_down.weight": down,
            f"{key}.alpha": np.float32(ALPHA),
            f"{key}.dora_scale": scale,
        }
        read = lora.read(file, TINY)
        expected = scale * total / np.linalg.norm(total, axis=axis, keepdims=True)
        for strength in (1.0, 0.25):
            merged = traverse_util.flatten_dict(
                lora.apply(base, [(read, strength)])["unet"], sep="."
            )[path]
            wanted = weight + strength * (expected - weight)
            np.testing.assert_allclose(merged, wanted.T, atol=1e-5)
    with pytest.raises(ModelFolderError, match="5 magnitudes, this model's layer has 32 outputs"):
        lora.apply(base, [(lora.read({**file, f"{key}.dora_scale": np.ones((5, 1))}, TINY), 1.0)])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "without its alpha; its adapter_config.json has to lie next to it"),
        ({"peft_type": "IA3"}, "a PEFT adapter of type IA3"),
        ({"peft_type": "LORA", "r": 4, "lora_alpha": "4"}, "alpha in its header is '4'"),
        ([], "is not a JSON object"),
    ],
)
def test_peft_folders_that_cannot_be_used_are_one_line(tmp_path, config, message):
    key = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file(
        {
            f"{key}.lora_A.weight": normal("a", 4, 32),
            f"{key}.lora_B.weight": normal("b", 32, 4),
        },
        tmp_path / "adapter_model.safetensors",
    )
    if config is not None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFolderError, match=message):
        lora.read_file(tmp_path, TINY)
    with pytest.raises(ModelFolderError, match="holds no LoRA"):
        (tmp_path / "empty").mkdir()
        lora.read_file(tmp_path / "empty", TINY)


def test_strengths_add_up_and_are_separate_for_the_networks(base, two):
    whole, half = two
    assert_same(lora.apply(base, [(whole, 0.5), (half, 1.0)]), lora.apply(base, [(whole, 1.0)]))
    assert_same(lora.apply(base, [(whole, 0.75), (half, -0.5)]), lora.apply(base, [(half, 1.0)]))
    params = lora.apply(base, [(whole, (0.0, 1.0)), (half, (1.0, 0.0))])
    assert_same(params["unet"], lora.apply(base, [(half, 1.0)])["unet"])
    assert_same(params["text"], lora.apply(base, [(whole, 1.0)])["text"])
    assert not changed(lora.apply(base, [(whole, (0.0, 1.0))])["unet"], base["unet"])


def test_base_stays_as_it_is_and_the_rest_is_shared(base, two):
    before = jax.tree.map(np.copy, base)
    params = lora.apply(base, [(two[0], 1.0)])
    jax.tree.map(np.testing.assert_array_equal, base, before)
    same = {path for path in traverse_util.flatten_dict(base, sep=".")} - changed(params, base)
    assert same and all(path.endswith(("bias", "scale", "embedding", "positions")) for path in same)
    assert not changed(lora.apply(params | base, []), base)  # taken away: the base, leaf by leaf


def test_jax_arrays_and_types(base, two):
    for dtype in (jnp.float32, jnp.bfloat16):
        on_device = jax.tree.map(lambda x: jax.device_put(x.astype(dtype), jax.devices()[3]), base)
        params = lora.apply(on_device, [(two[0], 0.3), (two[1], 0.3)])
        flat, host = (
            traverse_util.flatten_dict(x, sep=".")
            for x in (
                params,
                lora.apply(jax.tree.map(np.asarray, on_device), [(two[0], 0.3), (two[1], 0.3)]),
            )
        )
        for path, leaf in flat.items():
            assert (
                leaf.dtype == dtype
                and leaf.devices() == {jax.devices()[3]}
                and isinstance(host[path], np.ndarray)
            )
            np.testing.assert_array_equal(np.asarray(leaf), host[path])


def test_one_parameter_at_a_time_gives_the_same(base, two):
    loras = [(two[0], (0.7, 0.2)), (two[1], 0.4)]
    for network, tree in lora.apply(base, loras).items():
        flat = traverse_util.flatten_dict(base[network], sep=".")
        for path, leaf in traverse_util.flatten_dict(tree, sep=".").items():
            np.testing.assert_array_equal(lora.merged(network, path, flat[path], loras), leaf)


KEY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"


@pytest.fixture
def small():
    return {
        f"{KEY}.lora_down.weight": normal("a", 2, 16),
        f"{KEY}.lora_up.weight": normal("b", 32, 2),
    }


def test_pytorch_files_too(small, tmp_path):
    tensors = {key: torch.from_numpy(x).half() for key, x in small.items()}
    torch.save(tensors | {f"{KEY}.alpha": 4.0}, tmp_path / "x.pt")
    path = "encoder.middle.attention.cross_attention.key.kernel"
    delta = lora.read_file(tmp_path / "x.pt", TINY).delta("unet", path, (16, 32))
    down, up = (tensors[f"{KEY}.lora_{part}.weight"].float().numpy() for part in ("down", "up"))
    np.testing.assert_allclose(delta, 2 * (up @ down).T, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda x: x | {"lora_unet_mid_block_nose.lora_down.weight": 0, "strange": 0},
            "no place for: lora_unet_mid_block_nose.lora_down.weight, strange;",
        ),
        (
            lambda x: x | {f"lora_unet_{i}.alpha": 0 for i in range(50)},
            "lora_unet_19.alpha and 30 more",
        ),
        (lambda x: x | {f"{KEY}.dora_scale": np.ones(())}, "damaged: .*dora_scale has the shape"),
        (lambda x: x | {f"{KEY}.oft_blocks": 0}, "is an OFT"),
        (lambda x: x | {"lora_unet_x.diff": 0}, "a full difference"),
        (
            lambda x: x | {"lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha": 0},
            "a LoRA for SDXL",
        ),
        (
            lambda x: {f"{KEY}.lora_down.weight": x[f"{KEY}.lora_down.weight"]},
            "incomplete: of lora_unet_mid_block.* has only down",
        ),
        (lambda x: x | {f"{KEY}.alpha": np.ones(2)}, f"damaged: {KEY}.alpha has the shape .2,."),
        (lambda x: x | {f"{KEY}.lora_up.weight": np.ones(32)}, f"damaged: {KEY}.lora_up.weight"),
        (lambda x: x | {f"{KEY}.hada_w1_a": np.ones((2, 2))}, "incomplete"),
        (
            lambda x: (
                x
                | {
                    f"{KEY.replace('mid_block_attentions_0', 'middle_block_1')}.lora_up.weight": np.ones(  # noqa: E501
                        (32, 2)
                    )
                }
            ),
            "says twice",
        ),
        (lambda x: {}, "is empty"),
    ],
)
def test_a_file_that_is_not_understood_is_refused_in_one_line(small, change, message):
    with pytest.raises(ModelFolderError, match=message) as caught:
        lora.read(change(small), TINY, name="x.safetensors")
    assert str(caught.value).startswith("x.safetensors") and "\n" not in str(caught.value)


def test_damaged_header(small):
    for text in ("{", "[]"):
        with pytest.raises(ModelFolderError, match="lora_adapter_metadata"):
            lora.read(small, TINY, metadata={"lora_adapter_metadata": text})
    with pytest.raises(ModelFolderError, match="not a number"):
        lora.read(
            small, TINY, metadata={"lora_adapter_metadata": json.dumps({"unet.lora_alpha": "much"})}
        )


def test_a_lora_for_another_base_does_not_fit(base, small):
    small[f"{KEY}.lora_down.weight"] = normal("c", 2, 64)
    with pytest.raises(ModelFolderError, match=f"{KEY}.*another base model"):
        lora.apply(base, [(lora.read(small, TINY), 1.0)])


def test_what_is_not_there_cannot_be_changed(base, two):
    with pytest.raises(ModelFolderError, match="network text, which is not here"):
        lora.apply({"unet": base["unet"]}, [(two[0], 1.0)])
    assert lora.apply({"unet": base["unet"]}, [(two[0], (1.0, 0.0))]).keys() == {"unet"}
    key = (
        "lora_unet_down_blocks_0_resnets_0_conv_shortcut"  # of a block whose width does not change
    )
    file = {
        f"{key}.lora_down.weight": normal("a", 2, 16, 1, 1),
        f"{key}.lora_up.weight": normal("b", 16, 2, 1, 1),
    }
    with pytest.raises(ModelFolderError, match=f"layers that this model does not have: {key}"):
        lora.apply(base, [(lora.read(file, TINY), 1.0)])
