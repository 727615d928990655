"""CapHuman's training as a recipe of the loop: CapFace and the identity projector on a frozen base,
a model folder of Stable Diffusion 1.
"""

from __future__ import annotations

import dataclasses
import functools
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import SettingError
from caphuman_jax.models import registry
from caphuman_jax.models.tokenizer import ClipTokenizer
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.runtime import flops, sharding
from caphuman_jax.training import control, lora_layers, trainable
from caphuman_jax.training.control import ControlTraining
from caphuman_jax.training.previews import Previews
from caphuman_jax.training.recipe import Recipe, tree_hash
from caphuman_jax.weights import model_folder

PREVIEWED = 6  # held-out photos that pictures are made of while training
LORA_FILE = "lora.safetensors"
"""A trained LoRA's file in an exported model folder, for `--lora`; the folder's UNet is the base's.
"""


def networks_needed(cfg: ControlTraining, model: ModelConfig, stored: Collection[str]) -> list[str]:
    """The base's networks that training takes, where records have the `stored` of "moments", "text"
    and "image_tokens".
    """
    on_the_fly = {"moments": "vae", "text": "text", "image_tokens": "image_encoder"}
    needed = [
        "unet",
        *(registry.TRAINABLE if cfg.start == "base" else ()),
        *(net for name, net in on_the_fly.items() if name not in stored),
    ]
    if "image_encoder" in needed and model.image_encoder is None:
        raise SettingError(
            f"the model {model.name} has no image encoder: records for it need image tokens; "
            f"prepare them with --model"
        )
    return needed


def make_recipe(
    model: ModelConfig,
    cfg: ControlTraining,
    base: Mapping[str, Any],
    batch_shapes: Mapping[str, Any],
    *,
    mesh=None,
    platform: str | None = None,
    empty_text: Any = None,
    assemble: Callable | None = None,
    shared: Mapping[str, Any] | None = None,
    hashes: Mapping[str, str] | None = None,
    held_out: Callable[[], list] | None = None,
    previews: Previews | None = None,
    export: Callable | None = None,
) -> Recipe:
    """The recipe on a base's networks, of `networks_needed`: arrays on the host, or shapes alone,
    of which nothing but compiling can be done.

    batch_shapes: a global batch as the loader gives it; assemble: see `control.make_step`, shared:
    arrays for it, frozen as "data".
    held_out: () → batches as the loader gives them, whose error is reported as the evaluation;
    previews: pictures beside it. empty_text: {"ids" (L,)} and, where text is stored, {"text" (L,
    W)} of no prompt. hashes: {network: sha256}, computed if they are not known. mesh, platform: see
    `ComputeConfig`. Raises SettingError."""
    cfg.check()
    dtype = jnp.dtype(cfg.dtype)
    compute = ComputeConfig(dtype, cfg.attention, cfg.remat, platform, mesh)
    abstract = registry.abstract(model, compute, only={*base, *registry.TRAINABLE})
    graphs = {name: graph for name, (graph, _) in abstract.items()}
    shapes, _ = trainable.split(
        {name: leaves for name, (_, leaves) in abstract.items()}, cfg.unfreeze
    )
    given, frozen = trainable.split(
        {name: tree for name, tree in base.items() if name not in registry.TRAINABLE}, cfg.unfreeze
    )
    keep = []
    if cfg.lora_rank:
        shapes["lora"] = jax.eval_shape(lambda: _lora_start(abstract["unet"][1], cfg))
        keep = [
            f"unet.{path}" for path in lora_layers.targets(abstract["unet"][1], cfg.lora_targets)
        ]
    if hashes is None:
        hashes = {} if _is_abstract(base) else {name: tree_hash(base[name]) for name in frozen}
    frozen = trainable.stored(frozen, dtype, keep)
    frozen |= {name: dict(tree) for name, tree in (("empty", empty_text), ("data", shared)) if tree}
    optimizer = control.make_optimizer(
        cfg, trainable.rates(shapes, cfg.learning_rate, cfg.unfreeze)
    )
    make_step = lambda graphs, mesh: control.make_step(
        model, graphs, cfg, optimizer, mesh=mesh, assemble=assemble
    )
    begin = lambda params: control.begin(cfg, optimizer, params)
    plain = registry.abstract(model, ComputeConfig(dtype, "xla"), only=graphs)
    arithmetic = flops.count(
        make_step({name: graph for name, (graph, _) in plain.items()}, None),
        jax.eval_shape(begin, shapes),
        _shapes(frozen),
        dict(batch_shapes),
    )
    evaluate = (
        None
        if held_out is None
        else _Evaluation(
            held_out,
            control.make_evaluation(model, graphs, cfg, mesh=mesh, assemble=assemble),
            mesh,
        )
    )
    return Recipe(
        name=f"{model.name}: {', '.join(shapes)}",
        batch=cfg.batch,
        steps=cfg.steps,
        settings={"model": model.to_dict(), "training": dataclasses.asdict(cfg)},
        init_params=lambda: _init_params(model, cfg, base) | given,
        shapes=shapes,
        begin=begin,
        step=make_step(graphs, mesh),
        frozen=frozen,
        frozen_hashes={name: hashes[name] for name in frozen if name in hashes},
        batch_shapes=dict(batch_shapes),
        export=export,
        flops=arithmetic,
        evaluate=evaluate,
        pictures=None if previews is None else previews.pictures,
        judge=None if previews is None else previews.evaluate,
    )


def _init_params(model: ModelConfig, cfg: ControlTraining, base: Mapping[str, Any]) -> dict:
    """CapFace, projector and LoRA factors at step 0, on the host; the same for the same seed,
    wherever it runs.
    """
    params = {}
    if cfg.start == "base":
        params = {name: base[name] for name in registry.TRAINABLE}
    else:
        with sharding.on_cpu():
            drawn = registry.init(model, jax.random.key(cfg.seed), only=registry.TRAINABLE)
            params = jax.device_get({name: tree for name, (_, tree) in drawn.items()})
        generator = np.random.default_rng([cfg.seed, 1])
        params = {name: _as_pytorch_begins(tree, generator) for name, tree in params.items()}
        params["capface"] = {
            **params["capface"],
            "encoder": jax.tree.map(np.copy, base["unet"]["encoder"]),
        }
    if cfg.lora_rank:
        params["lora"] = _lora_start(base["unet"], cfg)
    return params


def _as_pytorch_begins(tree: dict, generator: np.random.Generator) -> dict:
    """Layers as PyTorch's begin, uniform within ± 1 / sqrt(inputs), biases too; those that begin at
    zero stay so.
    """
    flat = traverse_util.flatten_dict(tree, sep=".")
    for path in sorted(path for path in flat if path.endswith(".kernel")):
        if path.startswith("encoder.") or not flat[path].any():
            continue  # copied from the UNet afterwards, or zero
        bound = np.float32(np.prod(flat[path].shape[:-1]) ** -0.5)
        for name in (path, path.removesuffix("kernel") + "bias"):
            flat[name] = generator.uniform(-bound, bound, flat[name].shape).astype(np.float32)
    return traverse_util.unflatten_dict(flat, sep=".")


def _lora_start(unet: Mapping[str, Any], cfg: ControlTraining) -> dict:
    return lora_layers.start(
        unet, cfg.lora_rank, cfg.lora_targets, np.random.default_rng([cfg.seed, 2])
    )


def build(config, workdir: Path, mesh, log) -> tuple[Recipe, Any]:
    """(recipe, batches) of a configuration such as configs/sd15.py. Raises CapHumanError."""
    from caphuman_jax.training.stream import RecordBatches

    cfg = ControlTraining(**config.training)
    cfg.check()
    where = _base(config)
    model = model_folder.read_config(where)
    hashes = _hashes(where)
    source = RecordBatches(config, model, cfg, mesh, hashes)
    needed = networks_needed(cfg, model, source.stored)
    log(f"base {where}: {', '.join(needed)}; {source.told}")
    shapes = {name: leaves for name, (_, leaves) in registry.abstract(model, only=needed).items()}
    base = model_folder.load_params(where, shapes)
    previews = None
    if config.loop.pictures_every and source.records.splits.get("test"):
        previews = Previews(
            model,
            source.held_out_photos(PREVIEWED),
            functools.partial(whole_model, where, model, cfg),
        )
    recipe = make_recipe(
        model,
        cfg,
        base,
        source.batch_shapes,
        mesh=mesh,
        empty_text=_empty_text(where, model, "text" in source.stored),
        assemble=source.assemble,
        shared=source.shared,
        hashes=hashes,
        held_out=lambda: source.held_out(config.held_out),
        previews=previews,
        export=lambda params, folder, metadata: export(config, workdir, params, folder, metadata),
    )
    return recipe, source


def whole_model(
    where: Path,
    model: ModelConfig,
    cfg: ControlTraining,
    trained: Mapping[str, Any],
    frozen: Mapping[str, Any],
) -> dict[str, Any]:
    """{network: parameters} of all that pictures need: what is trained, a LoRA added, and the rest
    of the base in the folder `where`.
    """
    known = registry.abstract(model) | registry.abstract(model, only=registry.OPTIONAL)
    there = {
        name: shapes
        for name, (_, shapes) in known.items()
        if name in _hashes(where) and name not in ("unet", *registry.TRAINABLE)
    }
    params = trainable.joined(
        {name: tree for name, tree in trained.items() if name != "lora"}, {"unet": frozen["unet"]}
    )
    if "lora" in trained:
        params["unet"] = lora_layers.added(params["unet"], trained["lora"], cfg.lora_scale)
    return params | model_folder.load_params(where, there)


class _Evaluation:
    """The loop's `evaluate`: the loss on held-out records, with the same noise and timesteps every
    time.
    """

    def __init__(self, held_out: Callable[[], list], error: Callable, mesh):
        self.held_out, self.error, self.mesh, self.batches = held_out, jax.jit(error), mesh, None

    def __call__(self, params: dict, frozen: dict, step: int) -> dict[str, np.ndarray]:
        if self.batches is None:
            self.batches = self.held_out()
        place = (
            (lambda rows: rows)
            if self.mesh is None
            else functools.partial(sharding.place_batch, mesh=self.mesh)
        )
        found = [
            jax.device_get(self.error(params, frozen, place(rows), number))
            for number, rows in enumerate(self.batches)
        ]
        counts = np.asarray([each.pop("pictures") for each in found])
        return (
            {
                name: np.average([each[name] for each in found], axis=0, weights=counts)
                for name in found[0]
            }
            if found
            else {}
        )


def abstract_recipe(config, mesh, platform: str | None) -> Recipe:
    """The recipe of a configuration with shapes for numbers, to be compiled: of the base's
    configuration if `base` is given, else of `model`, for batches that hold hints, moments, encoded
    text and image tokens (`stored_batch`).
    """
    cfg = ControlTraining(**config.training)
    cfg.check()
    model = (
        model_folder.read_config(_base(config))
        if config.base
        else ModelConfig.from_dict(config.model.to_dict())
    )
    stored = ("moments", "text", "image_tokens")
    shapes = {
        name: leaves
        for name, (_, leaves) in registry.abstract(
            model, only=networks_needed(cfg, model, stored)
        ).items()
    }
    empty = {
        "ids": jax.ShapeDtypeStruct((model.text.length,), jnp.int32),
        "text": jax.ShapeDtypeStruct(
            (model.text.length, model.unet.cross_attention_dim), jnp.float32
        ),
    }
    return make_recipe(
        model,
        cfg,
        shapes,
        stored_batch(model, cfg.batch),
        mesh=mesh,
        platform=platform,
        empty_text=empty,
    )


def stored_batch(model: ModelConfig, batch: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes of a batch of which nothing has to be computed on the fly."""
    side, latent = model.image_size, model.image_size // model.vae.downsampling
    encoder = model.image_encoder
    tokens = (encoder.image_size // encoder.patch) ** 2 + 1 if encoder else 49
    array = lambda shape, dtype: jax.ShapeDtypeStruct((batch, *shape), dtype)
    return {
        "hints": array((side, side, model.capface.hint_channels), jnp.float32),
        "region": array((side, side, 1), jnp.float32),
        "moments": array((latent, latent, 2 * model.vae.latent_channels), jnp.float16),
        "text": array((model.text.length, model.unet.cross_attention_dim), jnp.float16),
        "image_tokens": array((tokens, model.identity.image_width), jnp.float16),
        "recognition": array((model.identity.recognition_width,), jnp.float32),
        "without_text": array((), bool),
        "without_identity": array((), bool),
    }


def export(config, workdir: Path, params: dict, folder: Path, metadata: dict) -> None:
    """A model folder: the base's networks as they are stored, with what was trained in their place;
    a LoRA as a file beside them.
    """
    where, cfg = _base(config), ControlTraining(**config.training)
    model = model_folder.read_config(where)
    lora = params.get("lora")
    with model_folder.stored_networks(where) as stored:
        networks = {
            name: traverse_util.unflatten_dict(
                {path: tensor.read() for path, tensor in tensors.items()}, sep="."
            )
            for name, tensors in stored.items()
            if name not in params or name == "unet"
        }
    networks = trainable.joined(
        {name: tree for name, tree in params.items() if name != "lora"}, networks
    )
    model_folder.save_model(
        folder,
        model,
        networks,
        dtype=None,
        overwrite=True,
        metadata={"base": str(config.base), **metadata},
    )
    if model_folder.tokenizer_files(where):
        shutil.copytree(where / "tokenizer", Path(folder) / "tokenizer", dirs_exist_ok=True)
    if lora:
        lora_layers.save(Path(folder) / LORA_FILE, model, lora, cfg.lora_scale * cfg.lora_rank)


def _base(config) -> Path:
    if not config.base:
        raise SettingError(
            "no base weights: --config.base=FOLDER, a model folder made by caphuman import of "
            "Stable Diffusion 1.5's file"
        )
    return model_folder.find_model(config.base)


def _hashes(where: Path) -> dict[str, str]:
    from caphuman_jax.io.metadata import checksums

    return checksums(where)


def _empty_text(where: Path, model: ModelConfig, encoded: bool) -> dict[str, np.ndarray]:
    """Token ids of no prompt and, if `encoded`, what the text encoder makes of them, in float32 on
    the host.
    """
    ids = np.asarray(
        ClipTokenizer(model_folder.tokenizer_files(where))([""], model.text.length), np.int32
    )
    if not encoded:
        return {"ids": ids[0]}
    graph, shapes = registry.abstract(model, only=("text",))["text"]
    params = model_folder.load_params(where, {"text": shapes})["text"]
    with sharding.on_cpu(), jax.default_matmul_precision("highest"):
        text = jax.jit(lambda params, ids: nnx.merge(graph, params)(ids)[0])(params, ids)
    return {"ids": ids[0], "text": np.asarray(text[0])}


def _is_abstract(tree: Any) -> bool:
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(tree))


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)
