"""`caphuman train`: from a configuration and records to checkpoints and a model folder, on one
device or many hosts.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import logging
import os
from pathlib import Path

from caphuman_jax.errors import CapHumanError, DataError
from caphuman_jax.io import atomic

RECIPES = {
    "mini": "caphuman_jax.training.recipes.mini",
    "sd15": "caphuman_jax.training.recipes.capface",
}
"""A configuration's `recipe` → the module that builds it."""

FREE = ("loop", "data", "loader")
"""Entries of a configuration that may change when a run goes on."""


def add_arguments(parser) -> None:
    """The command's options; `--config.NAME=VALUE` overrides an entry of the configuration."""
    parser.add_argument(
        "--config",
        default="mini",
        help="name of a file in configs/, without .py, or the path of a file of one's own",
    )
    parser.add_argument(
        "--workdir",
        required=True,
        help="checkpoints, metrics and the finished model go here; the same folder resumes",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help="save and stop after so many minutes; the same command goes on",
    )
    parser.add_argument(
        "--profile",
        type=int,
        default=0,
        metavar="STEPS",
        help="write a trace of so many steps to WORKDIR/profile",
    )
    several = parser.add_argument_group(
        "several hosts",
        "each runs the same command; found out inside Slurm's srun and on GKE's TPU slices",
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    several.add_argument(
        "--process-id", type=int, metavar="N", help="number of this process, from 0"
    )
    several.add_argument("--process-count", type=int, metavar="N", help="number of all processes")
    several.add_argument(
        "--multihost", action="store_true", help="let JAX find the other hosts (TPU VMs)"
    )
    parser.add_argument(
        "--override",
        dest="overrides",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another way to write --config.NAME=VALUE, for example --config.data=records "
        "--config.training.batch=64",
    )


def read_config(name: str, overrides: list[str]):
    """The ConfigDict of configs/NAME.py with `a.b=value` entries applied (their types are those of
    the defaults).
    """
    import ml_collections

    config: ml_collections.ConfigDict = _find_config(name).get_config()
    for entry in overrides:
        key, equals, value = entry.partition("=")
        path = key.split(".")
        place = config
        try:
            for part in path[:-1]:
                place = place[part]
            before = place[path[-1]]
        except (KeyError, TypeError) as error:
            raise CapHumanError(
                f"{entry}: the configuration has no entry {'.'.join(path)}"
            ) from error
        if not equals:
            raise CapHumanError(f"{entry}: write --config.{'.'.join(path)}=VALUE")
        try:
            place[path[-1]] = _as(type(before), value)
        except ValueError as error:
            raise CapHumanError(f"{entry}: {value!r} is not {type(before).__name__}") from error
    return config


def _find_config(name: str):
    """The module configs/NAME.py: of the installed package, or of the checkout that is the working
    folder; or the file NAME.
    """
    if name.endswith(".py"):
        if not Path(name).is_file():
            raise CapHumanError(f"there is no file {name}")
        spec = importlib.util.spec_from_file_location(Path(name).stem, name)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    for package in ("caphuman_jax.configs", "configs"):
        try:
            return importlib.import_module(f"{package}.{name}")
        except ModuleNotFoundError as error:
            if error.name not in (package, f"{package}.{name}"):
                raise
    raise CapHumanError(f"there is no configuration {name!r} in configs/")


def _as(kind, text: str):
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    return kind(text)


def run(args) -> int:
    """Trains what is not trained yet and writes WORKDIR/model; the exit code: 0, 1 no numbers, 75
    "start me again", 130 interrupted.
    """
    from caphuman_jax.runtime import distributed

    distributed.join(
        distributed.distributed_arguments(
            os.environ,
            coordinator=args.coordinator,
            process_id=args.process_id,
            process_count=args.process_count,
        )
        if not args.multihost
        else {}
    )
    import jax

    from caphuman_jax.runtime import sharding
    from caphuman_jax.runtime.compile_cache import keep_compiled
    from caphuman_jax.training import logging as report
    from caphuman_jax.training import loop

    if jax.default_backend() != "cpu":
        # a run that goes on compiles the same step, which takes an accelerator's compiler minutes
        keep_compiled()
    logging.getLogger("absl").setLevel(
        logging.CRITICAL
    )  # Orbax's tracebacks: what went wrong is told in one line
    config = read_config(args.config, args.overrides)
    cfg = loop.LoopConfig(**config.loop)
    report.check_writers(cfg.tensorboard, cfg.wandb)
    module = recipe_module(config)
    workdir = Path(args.workdir)
    log = print if jax.process_index() == 0 else lambda line: None
    keep_config(workdir, args.config, config)
    mesh = sharding.make_mesh(cfg.fsdp)
    try:
        recipe, batches = module.build(config, workdir, mesh, log)
    except CapHumanError:
        _forget_config(workdir)
        raise
    result = loop.run(
        recipe,
        batches,
        cfg,
        workdir,
        mesh,
        minutes=args.minutes,
        profile=args.profile,
        config=config.to_dict(),
        log=log,
    )
    if result.exit_code == 0:  # who is told to stop has no time for more than the checkpoint
        params = sharding.on_host(result.state["ema"] or result.state["params"])
        if jax.process_index() == 0 and result.step > 0:
            recipe.export(
                params,
                workdir / "model",
                {
                    "steps": result.step,
                    "training": recipe.settings.get("training"),
                    **_held_out(config),
                },
            )
            log(f"{workdir / 'model'} after {result.step} steps")
    return result.exit_code


def recipe_module(config):
    """The module that a configuration's `recipe` names: it has build(config, workdir, mesh, log) ->
    (Recipe, Batches or None) and export(config, workdir, params, folder, metadata). Raises
    CapHumanError."""
    name = RECIPES.get(config.recipe, config.recipe)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name and not name.startswith(f"{error.name}."):
            raise
        raise CapHumanError(
            f"recipe is {config.recipe!r}; known: {', '.join(RECIPES)}, or the name of a module"
        ) from error


def keep_config(workdir: Path, name: str, config) -> None:
    """WORKDIR/config.json, which `caphuman export` reads. Raises DataError, with the differing
    entries, where the folder holds another run.
    """
    from caphuman_jax.training.checkpoints import differences

    path, now = (
        workdir / "config.json",
        json.loads(json.dumps({"name": name, "config": config.to_dict()})),
    )
    deciding = lambda content: {
        key: value for key, value in content["config"].items() if key not in FREE
    }
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if path.exists():
            found = differences(deciding(json.loads(path.read_text())), deciding(now))
            if found:
                raise DataError(
                    f"{workdir} holds a run with another configuration: {'; '.join(found)}; choose "
                    f"another --workdir or the same settings"
                )
        atomic.write_text(path, json.dumps(now, indent=1))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be read or written: {error}") from error


def _forget_config(workdir: Path) -> None:
    """Nothing has been made of the configuration yet, so that the next start may have another."""
    with contextlib.suppress(OSError):
        if [path.name for path in workdir.iterdir()] == ["config.json"]:
            (workdir / "config.json").unlink(missing_ok=True)
            workdir.rmdir()


def export_run(
    workdir: str | os.PathLike, folder: str | os.PathLike, step: str = "newest"
) -> list[str]:
    """A model folder from a checkpoint of a work folder: the "newest", the "best" or that of a
    step. Returns what to tell. Raises DataError.
    """
    import ml_collections

    from caphuman_jax.training.checkpoints import Checkpoints
    from caphuman_jax.training.loop import LoopConfig

    workdir, folder = Path(workdir), Path(folder)
    content = json.loads((workdir / "config.json").read_text())
    config = ml_collections.ConfigDict(content["config"])
    cfg = LoopConfig(**config.loop)
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        cfg.keep,
        cfg.best or None,
        highest=cfg.best_highest,
        read_only=True,
    )
    try:
        if not checkpoints.steps():
            raise DataError(f"{workdir} has no checkpoint yet")
        if step not in ("newest", "best") and not step.isdigit():
            raise DataError(f"--step is newest, best or a number, not {step!r}")
        chosen = {"newest": checkpoints.steps()[-1], "best": checkpoints.best_step()}.get(step)
        params, run = checkpoints.read_average(int(step) if chosen is None else chosen)
    finally:
        checkpoints.close()
    recipe_module(config).export(
        config,
        workdir,
        params,
        folder,
        {
            "steps": run["step"],
            "training": run["settings"].get("training"),
            **_held_out(config),
        },
    )
    return [f"{folder}: the model after {run['step']} steps"]


def _held_out(config) -> dict:
    """The entry of a model folder's metadata that says who was held out, for `caphuman evaluate`."""
    from data_pipeline.records.reader import held_out_rule

    data = config.get("data")
    return {"held_out": held_out_rule(data)} if data else {}


def is_run(path: str | os.PathLike) -> bool:
    """Whether a folder is the work folder of a training run."""
    return (Path(path) / "checkpoints").is_dir() and (Path(path) / "config.json").is_file()
