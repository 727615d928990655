"""A recipe of two layers on a frozen one, and batches without end: everything that the training
loop does, in seconds.

As a configuration: `caphuman train --config tests/tiny_recipe.py` with this folder on PYTHONPATH.
"""

import ctypes
import dataclasses
import functools
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from caphuman_jax.errors import DataError
from caphuman_jax.io import atomic
from caphuman_jax.training.loop import LoopConfig
from caphuman_jax.training.recipe import (
    Evaluation,
    Evaluator,
    Recipe,
    Stage,
    make_evaluators,
    tree_hash,
)
from caphuman_jax.training.run_config import from_config
from caphuman_jax.training.step import MovingAverage, TrainState, gradients_of, make_train_step

WIDTH, HIDDEN, BANDS = 128, 160, 4  # leaves large enough to be split


@dataclasses.dataclass(frozen=True)
class Training:
    """steps, batch, seed; bad_at: a step whose loss is not a number; frozen_seed: of the frozen
    layer.
    """

    steps: int = 12
    batch: int = 16
    seed: int = 0
    bad_at: int = -1
    frozen_seed: int = 7


class TinyRecipe(Recipe):
    def __init__(self, cfg: Training):
        self.cfg, self.optimizer = (
            cfg,
            optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)),
        )
        kernel = np.random.default_rng(cfg.frozen_seed).standard_normal((WIDTH, WIDTH))
        self.name, self.batch_size, self.steps = "tiny", cfg.batch, cfg.steps
        self.settings = {"training": dataclasses.asdict(cfg)}
        self.param_shapes = jax.eval_shape(self.init_params)
        self.frozen = {"base": {"kernel": kernel.astype(np.float32) / WIDTH**0.5}}
        self.frozen_hashes = {"base": tree_hash(self.frozen["base"])}
        self.evaluators = {
            "held_out": Evaluator(0, self.held_out_error),
            "previews": Evaluator(0, self.previews),
        }
        self._step = make_train_step(
            self.inputs,
            gradients_of(self.loss),
            self.optimizer,
            keys=lambda step: jax.random.fold_in(jax.random.key(cfg.seed), step),
            average=MovingAverage(0.9),
        )

    def init_params(self):
        rng = np.random.default_rng(self.cfg.seed)
        layer = lambda a, b: {
            "kernel": rng.standard_normal((a, b)).astype(np.float32) / a**0.5,
            "bias": np.zeros(b, np.float32),
        }
        return {"net": {"first": layer(WIDTH, HIDDEN), "second": layer(HIDDEN, WIDTH)}}

    def init_state(self, params):
        return TrainState.create(params, self.optimizer)

    def train_step(self, state, frozen, rows):
        return self._step(state, frozen, rows)

    def inputs(self, frozen, rows, key, step):
        noise = 0.1 * jax.random.normal(key, rows["x"].shape)
        return rows, noise, step == self.cfg.bad_at

    def loss(self, params, frozen, rows, noise, bad):
        net, x = params["net"], rows["x"]
        hidden = jnp.tanh((x + noise) @ net["first"]["kernel"] + net["first"]["bias"][None])
        output = hidden @ net["second"]["kernel"] + net["second"]["bias"][None]
        error = jnp.mean(jnp.square(output - x @ frozen["base"]["kernel"]), axis=-1)
        band = jax.nn.one_hot(rows["index"] % BANDS, BANDS, dtype=jnp.float32)
        total = jnp.mean(error) + jnp.where(bad, jnp.float32(jnp.nan), jnp.float32(0))
        return total, {"loss_band": error @ band, "loss_band_count": band.sum(0)}

    def held_out_error(self, params, frozen, step):
        held_out = {k: jnp.asarray(v) for k, v in rows(np.arange(10_000, 10_016)).items()}
        noise = jnp.zeros_like(held_out["x"])
        total, _ = jax.jit(self.loss)(params, frozen, held_out, noise, False)
        return Evaluation({"loss": total})

    def previews(self, params, frozen, step):
        first = np.asarray(params["net"]["first"]["kernel"])[:32, :32]
        image = np.clip(first * 127 + 128, 0, 255).astype(np.uint8)
        return Evaluation({}, {"kernel": np.repeat(image[..., None], 3, axis=-1)})


def recipe(cfg: Training = Training(), every=None, **changes) -> TinyRecipe:
    """The recipe; `every`: {evaluator: steps}; changes: attributes that are replaced."""
    made = TinyRecipe(cfg)
    for name, value in changes.items():
        assert hasattr(made, name), name
        setattr(made, name, value)
    for name, steps in (every or {}).items():
        made.evaluators[name] = dataclasses.replace(made.evaluators[name], every=steps)
    return made


def rows(index: np.ndarray) -> dict:
    """The samples of these numbers."""
    x = np.stack([np.random.default_rng(int(i)).standard_normal(WIDTH) for i in index])
    return {"x": x.astype(np.float32), "index": index.astype(np.int32)}


class Numbered:
    """Batches of samples 0, 1, 2 …; each host makes its rows alone and notes their numbers in
    `drawn`.
    """

    def __init__(self, batch: int, pause: float = 0.0, hang=""):
        self.batch, self.pause, self.drawn, self.started = batch, pause, [], []
        self.hang = hang

    def start(self, samples: int):
        self.started.append(samples)
        share = self.batch // jax.process_count()
        first = samples + jax.process_index() * share
        while True:
            index = np.arange(first, first + share)
            self.drawn.append(index)
            time.sleep(self.pause)
            if self.hang and first >= 12 * self.batch:
                hang_once(*self.hang.split(":"))
            yield rows(index)
            first += self.batch


def hang_once(host, how, mark) -> None:
    """The host of that number hangs, once: the file `mark` says that it has."""
    if jax.process_index() != int(host) or Path(mark).exists():
        return
    Path(mark).touch()
    if how == "lock":
        deadlock = threading.Lock()
        deadlock.acquire()
        deadlock.acquire()
    ctypes.PyDLL(None).sleep(10**6)  # a call that never lets other threads run


def save(folder, params, metadata) -> None:
    folder.mkdir(exist_ok=True)
    named = {
        jax.tree_util.keystr(path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    with atomic.file(folder / "params.npz") as part, open(part, "wb") as file:
        np.savez(file, **named)


def get_config() -> ml_collections.ConfigDict:
    return ml_collections.ConfigDict(
        {
            "recipe": "tiny_recipe",
            "data": "",
            "pause": 0.0,
            "hang": "",
            "slow_export": 0.0,
            "training": dataclasses.asdict(Training()),
            "evaluators": {"held_out": {"every": 0}, "previews": {"every": 0}},
            "loop": dataclasses.asdict(LoopConfig(log_every=5, save_every=5, tensorboard=False)),
        }
    )


def stages(config, workdir):
    def build(mesh, log):
        if config.data == "missing":
            raise DataError("no such records")
        made = recipe(from_config(Training, config.training, "training"))
        known = {"held_out": lambda: made.held_out_error, "previews": lambda: made.previews}
        made.evaluators = make_evaluators(config.evaluators, known)
        return made, Numbered(made.batch_size, config.pause, config.hang)

    write = functools.partial(export, config, workdir)
    return [Stage("tiny", workdir, config.loop, build, write)]


def export(config, workdir, params, folder, metadata):
    time.sleep(config.slow_export)
    save(folder, params, metadata)
