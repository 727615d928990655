"""A whole training run in a work folder: its stages one after the other, each on the loop."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import ml_collections
from jax.experimental import multihost_utils

from caphuman_jax.errors import CapHumanError, DataError, ModelFolderError
from caphuman_jax.io import buckets
from caphuman_jax.runtime import agreement, sharding
from caphuman_jax.training import loop, metric_writer, run_folder
from caphuman_jax.training.checkpoints import Checkpoints
from caphuman_jax.training.loop import LoopConfig
from caphuman_jax.training.recipe import Log
from caphuman_jax.training.run_config import check_settings, from_config, recipe_module
from caphuman_jax.weights import model_card, model_folder
from data_pipeline.records.reader import held_out_rule


def train(
    name: str,
    config: ml_collections.ConfigDict,
    workdir: Path,
    *,
    minutes: float | None = None,
    profile: int = 0,
    mirror: buckets.Mirror | None = None,
    log: Log = print,
) -> int:
    """Trains what is not trained yet and writes WORKDIR/model.

    Args:
        name: of the configuration, for config.json.
        config: of `run_config.read_config`.
        workdir: the same folder resumes; all hosts share it.
        minutes: save and stop after that long.
        profile: how many steps to write a trace of.
        mirror: what copies `workdir` to a bucket, if it is the stand-in of one.
        log: takes the lines for people.

    Returns:
        The exit code: 0 finished or out of time, 1 NaN, 75 preempted, 130 interrupted.

    Raises:
        CapHumanError: for settings, data or a work folder that do not fit.
    """
    log = log if jax.process_index() == 0 else lambda line: None
    module = recipe_module(config)
    check_settings(config)
    agreement.check("start", _facts(name, config, workdir))
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    with run_folder.locked(workdir):
        run_folder.check_config(workdir, name, config)
        begin = functools.partial(run_folder.keep_config, workdir, name, config)
        return _train_stages(module, config, workdir, begin, deadline, profile, mirror, log)


def _train_stages(
    module: ModuleType,
    config: ml_collections.ConfigDict,
    workdir: Path,
    begin: Callable[[], None],
    deadline: float | None,
    profile: int,
    mirror: buckets.Mirror | None,
    log: Log,
) -> int:
    """Every stage that is not trained yet; the exit code."""
    try:
        stages = module.stages(config, workdir)
        configs = [from_config(LoopConfig, stage.loop, "loop") for stage in stages]
        for cfg in configs:
            metric_writer.check_writers(cfg.tensorboard, cfg.wandb)
        for stage, cfg in zip(stages, configs):
            if stage is not stages[-1] and _is_whole(stage.model_folder):
                continue
            mesh = sharding.make_mesh(cfg.fsdp)
            recipe, source = stage.build(mesh, log)
            agreement.check(f"stage {stage.name}", run_folder.identity(recipe))
            result = loop.run(
                recipe,
                source,
                cfg,
                stage.workdir,
                mesh,
                minutes=None if deadline is None else (deadline - time.monotonic()) / 60,
                profile=profile,
                config=config.to_dict(),
                begin=begin,
                log=log,
            )
            if result.exit_code or result.step < recipe.steps:
                return result.exit_code
            assert result.state is not None, "the steps were taken"
            params = sharding.on_host(result.state.eval_params)
            if jax.process_index() == 0:
                stage.export(
                    params, stage.model_folder, _metadata(config, recipe.settings, result.step)
                )
                model_card.write(stage.model_folder)  # of a recipe that has not written it
                log(f"{stage.model_folder} after {result.step} steps")
                if mirror is not None:
                    mirror.push()
            _wait_for_all_hosts(stage.name)
            if mirror is not None and jax.process_index() != 0:
                mirror.pull()  # the next stage reads the model
    except CapHumanError:
        run_folder.forget(workdir)
        raise
    if jax.process_index() == 0 and not (workdir / "config.json").exists():
        raise DataError(
            f"something removed {workdir} while the model was trained; run the same command again"
        )
    return 0


def _is_whole(folder: Path) -> bool:
    """Whether the model folder of a stage is there, with all its files. If not, the stage is
    exported again from its last checkpoint.
    """
    try:
        model_folder.verify_model(folder)
    except ModelFolderError:
        return False
    return True


def export_run(
    workdir: str | os.PathLike, folder: str | os.PathLike, step: str = "newest"
) -> list[str]:
    """A model folder from a checkpoint of a work folder.

    Args:
        workdir: of `train`.
        folder: the model folder to write.
        step: "newest", "best" or a number.

    Returns:
        Lines for people.

    Raises:
        DataError: where there is no such checkpoint.
    """
    workdir, folder = Path(workdir), Path(folder)
    config = ml_collections.ConfigDict(run_folder.read_config(workdir))
    cfg = from_config(LoopConfig, config.loop, "loop")
    checkpoints = Checkpoints(
        run_folder.checkpoint_folder(workdir),
        cfg.keep,
        cfg.best or None,
        highest=cfg.best_highest,
        read_only=True,
    )
    try:
        if not checkpoints.steps():
            raise DataError(f"{workdir} has no checkpoint yet")
        if step not in ("newest", "best") and not step.isdecimal():
            raise DataError(f"--step is newest, best or a number, not {step!r}")
        chosen = {"newest": checkpoints.steps()[-1], "best": checkpoints.best_step()}.get(step)
        params, run = checkpoints.read_average(int(step) if chosen is None else chosen)
    finally:
        checkpoints.close()
    recipe_module(config).export(
        config, workdir, params, folder, _metadata(config, run["settings"], run["step"])
    )
    model_card.write(folder)
    return [f"{folder}: the model after {run['step']} steps"]


def held_out_metadata(config: Mapping[str, Any]) -> dict[str, Any]:
    """The entry of a model folder's metadata that says who was held out, for `caphuman
    evaluate`.
    """
    data = config.get("data")
    return {"held_out": held_out_rule(data)} if data else {}


def _facts(name: str, config: ml_collections.ConfigDict, workdir: Path) -> dict[str, Any]:
    """What has to be the same on all hosts before anything is read. Records may lie elsewhere."""
    entries = json.loads(json.dumps(config.to_dict()))
    data = entries.pop("data", None)
    return {
        "version": {package: version(package) for package in ("jax", "jaxlib", "flax", "optax")},
        "code": agreement.code_hash(),
        "--config": name,
        "--workdir": buckets.url_of(workdir) or str(workdir),
        "config": entries,
        "records": held_out_rule(data)["sha256"] if data else None,
    }


def _metadata(config, settings: Mapping[str, Any], steps: int) -> dict[str, Any]:
    training = {"steps": steps, "training": settings.get("training")}
    return training | held_out_metadata(config)


def _wait_for_all_hosts(name: str) -> None:
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
