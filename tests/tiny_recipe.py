"""A recipe of two layers on a frozen one, and batches without end: everything that the training
loop does, in seconds.

As a configuration: `caphuman train --config tests/tiny_recipe.py` with this folder on PYTHONPATH.
"""

import dataclasses
import time

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from caphuman_jax.errors import DataError
from caphuman_jax.training.loop import LoopConfig
from caphuman_jax.training.optimizer import average, update
from caphuman_jax.training.recipe import Recipe, tree_hash

WIDTH, HIDDEN, BANDS = 128, 160, 4  # leaves large enough to be split


@dataclasses.dataclass(frozen=True)
class Training:
    """steps, batch, seed; bad_at: a step whose loss is not a number; frozen_seed: of the frozen layer."""

    steps: int = 12
    batch: int = 16
    seed: int = 0
    bad_at: int = -1
    frozen_seed: int = 7


def recipe(cfg: Training = Training(), **changes) -> Recipe:
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
    frozen = {
        "base": {
            "kernel": np.random.default_rng(cfg.frozen_seed)
            .standard_normal((WIDTH, WIDTH))
            .astype(np.float32)
            / WIDTH**0.5
        }
    }

    def init_params():
        rng = np.random.default_rng(cfg.seed)
        layer = lambda a, b: {
            "kernel": rng.standard_normal((a, b)).astype(np.float32) / a**0.5,
            "bias": np.zeros(b, np.float32),
        }
        return {"net": {"first": layer(WIDTH, HIDDEN), "second": layer(HIDDEN, WIDTH)}}

    def begin(params):
        return {
            "params": params,
            "opt": optimizer.init(params),
            "ema": jax.tree.map(jnp.copy, params),
            "step": jnp.int32(0),
        }

    def loss_fn(params, frozen, x, noise, bad):
        net = params["net"]
        hidden = jnp.tanh((x + noise) @ net["first"]["kernel"] + net["first"]["bias"])
        error = jnp.mean(
            jnp.square(
                hidden @ net["second"]["kernel"]
                + net["second"]["bias"]
                - x @ frozen["base"]["kernel"]
            ),
            axis=-1,
        )
        return jnp.mean(error) + jnp.where(bad, jnp.float32(jnp.nan), jnp.float32(0)), error

    def step(state, frozen, batch):
        key = jax.random.fold_in(jax.random.key(cfg.seed), state["step"])
        noise = 0.1 * jax.random.normal(key, batch["x"].shape)
        band = jax.nn.one_hot(batch["index"] % BANDS, BANDS, dtype=jnp.float32)
        (loss, error), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state["params"], frozen, batch["x"], noise, state["step"] == cfg.bad_at
        )
        params, opt = update(optimizer, grads, state["opt"], state["params"])
        after = state["step"] + 1
        metrics = {
            "loss": loss,
            "gradient": optax.tree.norm(grads),
            "loss_band": error @ band,
            "loss_band_count": band.sum(0),
        }
        return {
            "params": params,
            "opt": opt,
            "ema": average(state["ema"], params, 0.9, after),
            "step": after,
        }, metrics

    @jax.jit
    def error(params, frozen):
        x = jnp.asarray(rows(np.arange(10_000, 10_016))["x"])
        return {"loss": jnp.mean(loss_fn(params, frozen, x, jnp.zeros_like(x), False)[1])}

    def evaluate(params, frozen, step):
        return error(params, frozen)

    def pictures(params, frozen, step):
        first = np.asarray(params["net"]["first"]["kernel"])[:32, :32]
        return {
            "kernel": np.repeat(
                np.clip(first * 127 + 128, 0, 255).astype(np.uint8)[..., None], 3, axis=-1
            )
        }

    return dataclasses.replace(
        Recipe(
            name="tiny",
            batch=cfg.batch,
            steps=cfg.steps,
            settings={"training": dataclasses.asdict(cfg)},
            init_params=init_params,
            shapes=jax.eval_shape(init_params),
            begin=begin,
            step=step,
            frozen=frozen,
            frozen_hashes={"base": tree_hash(frozen["base"])},
            batch_shapes={
                "x": jax.ShapeDtypeStruct((cfg.batch, WIDTH), jnp.float32),
                "index": jax.ShapeDtypeStruct((cfg.batch,), jnp.int32),
            },
            evaluate=evaluate,
            pictures=pictures,
            export=lambda params, folder, metadata: save(folder, params, metadata),
        ),
        **changes,
    )


def rows(index: np.ndarray) -> dict:
    """The samples of these numbers."""
    x = np.stack([np.random.default_rng(int(i)).standard_normal(WIDTH) for i in index])
    return {"x": x.astype(np.float32), "index": index.astype(np.int32)}


class Numbered:
    """Batches of samples 0, 1, 2 …; each host makes its rows alone and notes their numbers in
    `drawn`.
    """

    def __init__(self, batch: int, pause: float = 0.0):
        self.batch, self.pause, self.drawn, self.started = batch, pause, [], []

    def start(self, samples: int):
        self.started.append(samples)
        share = self.batch // jax.process_count()
        first = samples + jax.process_index() * share
        while True:
            index = np.arange(first, first + share)
            self.drawn.append(index)
            time.sleep(self.pause)
            yield rows(index)
            first += self.batch


def save(folder, params, metadata) -> None:
    folder.mkdir(exist_ok=True)
    np.savez(
        folder / "params.npz",
        **{
            jax.tree_util.keystr(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        },
    )


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "recipe": "tiny_recipe",
            "data": "",
            "pause": 0.0,
            "training": dataclasses.asdict(Training()),
            "loop": dataclasses.asdict(LoopConfig(log_every=5, save_every=5, tensorboard=False)),
        }
    )


def build(config, workdir, mesh, log):
    if config.data == "missing":
        raise DataError("no such records")
    cfg = Training(**config.training)
    return recipe(cfg), Numbered(cfg.batch, config.pause)


def export(config, workdir, params, folder, metadata):
    save(folder, params, metadata)
