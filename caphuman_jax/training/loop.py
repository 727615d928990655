"""The training loop: restore, step, report, save. `caphuman train` calls `train`."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import DataError
from caphuman_jax.training import diffusion, sharding
from caphuman_jax.training.checkpoints import Checkpoints

ON_DEVICE = ("pictures", "covered", "region", "hints", "tokens", "vectors", "partner", "captions", "grey", "empty", "features", "person",
             "background_ids", "background_rgb")


def place_data(data: dict, mesh) -> dict:
    """The resident arrays on every device of the mesh, with the index of photos in colour and without."""
    chosen = {k: data[k] for k in ON_DEVICE}
    chosen["colour_index"] = np.flatnonzero(~data["grey"]).astype(np.int32)
    chosen["grey_index"] = np.flatnonzero(data["grey"]).astype(np.int32)
    for kind in ("colour_index", "grey_index"):
        if not len(chosen[kind]):
            chosen[kind] = np.arange(len(data["grey"]), dtype=np.int32)
    return jax.device_put(chosen, sharding.replicated(mesh))


def train(model: ModelConfig, cfg: diffusion.DiffusionTraining, vae_params: dict, data: dict, workdir: str | Path, *,
          stop_after_minutes: float | None = None, save_every: int = 2000, log_every: int = 100, log=print):
    """Trains until `cfg.steps`, or saves and returns early after `stop_after_minutes`. Resumes from `workdir`.

    Returns (graphs, state). Raises FloatingPointError when the loss is not a number: nothing is saved then.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    _pin(workdir / "training.json", {"model": model.to_dict(), "training": dataclasses.asdict(cfg)})
    mesh = sharding.make_mesh()
    graphs, state = diffusion.init_state(model, cfg)
    state = jax.device_put(state, sharding.replicated(mesh))
    checkpoints = Checkpoints(workdir / "checkpoints")
    restored = checkpoints.restore(state)
    if restored is not None:
        state = restored
        log(f"resumed at step {int(state['step'])}")
    frozen = jax.device_put({"vae": vae_params}, sharding.replicated(mesh))
    resident = place_data(data, mesh)
    step_fn = jax.jit(diffusion.make_step(model, graphs, cfg, mesh), donate_argnums=0)
    began = measured = time.perf_counter()
    first = step = int(state["step"])
    sums, count = None, 0
    try:
        with open(workdir / "metrics.jsonl", "a") as report:
            while step < cfg.steps:
                state, metrics = step_fn(state, frozen, resident)
                step += 1
                sums = metrics if sums is None else jax.tree.map(jnp.add, sums, metrics)
                count += 1
                if step % log_every == 0 or step == cfg.steps or step == first + 1:
                    means = {k: float(v) / count for k, v in sums.items()}
                    now = time.perf_counter()
                    means |= {"step": step, "samples_per_second": count * cfg.batch / (now - measured)}
                    report.write(json.dumps(means) + "\n")
                    report.flush()
                    log(" ".join(f"{k} {v:.5g}" for k, v in means.items()))
                    if not np.isfinite(means["loss"]):
                        raise FloatingPointError(f"the loss is not a number at step {step}; the last checkpoint is in {workdir}")
                    sums, count, measured = None, 0, now
                out_of_time = stop_after_minutes is not None and step % 20 == 0 and time.perf_counter() - began > stop_after_minutes * 60
                if step % save_every == 0 or step == cfg.steps or out_of_time:
                    checkpoints.save(step, state)
                if out_of_time:
                    log(f"stopping at step {step}; the same command goes on from here")
                    break
    finally:
        checkpoints.close()
    return graphs, state


def _pin(path: Path, settings: dict) -> None:
    """Writes the settings beside the run, or refuses to go on with other ones."""
    if path.exists():
        before = json.loads(path.read_text())
        if before != json.loads(json.dumps(settings)):
            raise DataError(f"{path} holds a run with other settings; choose another --workdir or the same settings")
    else:
        path.write_text(json.dumps(settings, indent=1))
