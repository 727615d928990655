"""`caphuman train` on the command line: overrides, work folders, exit codes, exports; several hosts
by flags and cluster variables.
"""

import dataclasses
import json
import logging
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny_recipe

from caphuman_jax.cli import app
from caphuman_jax.errors import CapHumanError, SettingError
from caphuman_jax.runtime import compile_cache
from caphuman_jax.runtime.distributed import distributed_arguments, first_node
from caphuman_jax.training import room
from caphuman_jax.training import run as training_run
from caphuman_jax.training.loop import LoopConfig
from caphuman_jax.training.recipes.autoencoder import AutoencoderTraining
from caphuman_jax.training.recipes.mini import MiniTraining
from caphuman_jax.training.recipes.sd15 import CapFaceTraining
from caphuman_jax.training.run_config import from_config, read_config, recipe_module


def test_overrides_keep_the_types_of_the_configuration():
    config = read_config(
        "mini",
        [
            "data=records",
            "training.steps=3",
            "autoencoder.learning_rate=1e-3",
            "training.augment.mirror=0",
        ],
    )
    assert (
        config.data == "records"
        and config.training.steps == 3
        and config.autoencoder.learning_rate == 1e-3
    )
    assert config.training.augment.mirror == 0.0 and isinstance(
        config.training.augment.mirror, float
    )


@pytest.mark.parametrize(
    "entry, words",
    [
        ("training.stepz=3", "no entry training.stepz"),
        ("training.steps=three", "training.steps is a whole number, not 'three'"),
        ("training.augment.mirror=much", "is a number, not 'much'"),
        ("training.steps", "write --config.training.steps=VALUE"),
    ],
)
def test_a_wrong_override_is_told(entry, words):
    with pytest.raises(CapHumanError, match=words):
        read_config("mini", [entry])


@pytest.mark.parametrize(
    "platform, overrides, dtype",
    [
        ("cpu", [], "float32"),
        (None, [], "float32"),  # tests run on CPUs
        ("gpu", [], "bfloat16"),
        ("tpu", [], "bfloat16"),
        ("cpu", ["training.dtype=bfloat16", "autoencoder.dtype=bfloat16"], "bfloat16"),
    ],
)
def test_cpus_compute_in_float32_unless_asked(platform, overrides, dtype):
    config = read_config("mini", overrides, platform)
    assert config.training.dtype == config.autoencoder.dtype == dtype


@pytest.mark.parametrize("name", ["mini", "sd15", "sd15_tpu"])
def test_a_configuration_shows_every_number(name):
    """Its entries are the settings' fields, with nothing left to a default that is not seen."""
    config = read_config(name, platform="gpu")
    settings = {"loop": LoopConfig, "training": CapFaceTraining}
    if name == "mini":
        settings |= {"training": MiniTraining, "autoencoder": AutoencoderTraining}
    for part, cls in settings.items():
        assert set(config[part]) == {field.name for field in dataclasses.fields(cls)}, part
        from_config(cls, config[part], part)
    if name == "sd15":  # whose defaults are the original's
        assert from_config(CapFaceTraining, config.training, "training") == CapFaceTraining()


@pytest.mark.parametrize(
    "entries, words",
    [
        ({"stepz": 3}, "loop.stepz is not a setting; known: log_every"),
        ({"keep": "two"}, "loop.keep is 'two'; it must be a whole number from 1"),
        ({"tensorboard": 1}, "loop.tensorboard is 1; it must be true or false"),
    ],
)
def test_settings_that_there_are_not_are_refused(entries, words):
    with pytest.raises(SettingError, match=words):
        from_config(LoopConfig, entries, "loop")


@pytest.mark.parametrize(
    "cls, entries, words",
    [
        (MiniTraining, {"batch_size": 0}, "training.batch_size is 0; it must be a whole number"),
        (MiniTraining, {"batch_size": -4}, "training.batch_size is -4; .*from 1 to 1,048,576"),
        (MiniTraining, {"steps": -1}, "training.steps is -1; .*from 1"),
        (MiniTraining, {"seed": 99999999999999999999}, "training.seed is 9999.*from 0 to"),
        (MiniTraining, {"learning_rate": float("nan")}, "training.learning_rate is nan; .*number"),
        (MiniTraining, {"learning_rate": -1.0}, "training.learning_rate is -1.0"),
        (MiniTraining, {"no_text_prob": 1.5}, "training.no_text_prob is 1.5; .*from 0 to 1"),
        (MiniTraining, {"no_control_prob_without_text": -1}, "_without_text is -1; .*0 to 1"),
        (MiniTraining, {"dtype": "int8"}, "training.dtype is 'int8'; it must be one of"),
        (MiniTraining, {"augment": {"mirror": 2}}, "training.augment.mirror is 2; .*0 to 1"),
        (MiniTraining, {"augment": 3}, "training.augment is 3; it holds settings"),
        (CapFaceTraining, {"b1": 1.0}, "training.b1 is 1.0"),
        (AutoencoderTraining, {"size": 0}, "training.size is 0"),
        (LoopConfig, {"fsdp": -1}, "training.fsdp is -1"),
        (LoopConfig, 5, "training is 5; it holds settings"),
    ],
)
def test_settings_out_of_their_range_are_refused(cls, entries, words):
    with pytest.raises(SettingError, match=words):
        from_config(cls, entries, "training")


@pytest.mark.parametrize(
    "text, words",
    [
        ("def get_config(:", "cannot be run: SyntaxError"),
        ("x = 1", r"it has no function get_config\(\)"),
        ("def get_config(): return 5", "gives no ml_collections.ConfigDict"),
        ("def get_config(): return 1 / 0", "cannot be run: ZeroDivisionError"),
        ("import sys\nsys.exit(0)", "cannot be run: SystemExit: 0"),
        ("def get_config(): raise SystemExit", "cannot be run: SystemExit"),
        (
            "import ml_collections\ndef get_config(): return ml_collections.ConfigDict()",
            "names no recipe; known: mini, sd15",
        ),
    ],
)
def test_files_that_are_no_configuration(tmp_path, text, words):
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(CapHumanError, match=words):
        read_config(str(tmp_path / "own.py"))


@pytest.mark.parametrize("verb", ["config", "train"])
@pytest.mark.parametrize(
    "entry, words",
    [
        ("training.batch_size=0", "training.batch_size is 0; it must be"),
        ("training.steps=-1", "training.steps is -1; it must be"),
        ("training.learning_rate=nan", "training.learning_rate is nan; it must be"),
        ("autoencoder.steps=-1", "autoencoder.steps is -1; it must be"),
        ("loop.keep=-1", "loop.keep is -1; it must be"),
    ],
)
def test_wrong_settings_are_refused_before_records_are_asked_for(
    tmp_path, capfd, verb, entry, words
):
    if verb == "train" and entry.startswith("loop"):
        return  # checked with its stage
    workdir = tmp_path / "work"
    arguments = {
        "config": ["config", "show", "mini", "--platform", "cpu"],
        "train": ["train", "--config", "mini", "--workdir", str(workdir)],
    }
    assert app.main([*arguments[verb], f"--config.{entry}"]) == 2
    printed, said = capfd.readouterr()
    assert words in said and not workdir.exists() and "batch:" not in printed


def test_configurations_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.py")
    for name, words in (("pipe.py", "not a regular file"), ("none.py", "there is no such file")):
        with pytest.raises(CapHumanError, match=words):
            read_config(str(tmp_path / name))


def test_a_group_of_settings_is_not_a_value():
    with pytest.raises(CapHumanError, match="training holds settings; set one of them: --config"):
        read_config("mini", ["training=1"])


def test_a_second_run_in_the_same_folder_is_refused(tmp_path, capsys):
    """By another process, as the system's lock is of the process that opened the file."""
    import fcntl

    (tmp_path / "w").mkdir()
    with open(tmp_path / "w" / ".lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert train(tmp_path / "w", "--config.training.steps=1") == 2
        error = capsys.readouterr().err
        assert "another caphuman train is running in" in error and error.count("\n") == 1
    assert not (tmp_path / "w" / "config.json").exists()
    assert train(tmp_path / "w", "--config.training.steps=1") == 0


def test_no_such_configuration():
    with pytest.raises(CapHumanError, match="no configuration 'huge'; there are mini, sd15"):
        read_config("huge", [])
    with pytest.raises(CapHumanError, match=r"did you mean mini\? there are mini, sd15"):
        read_config("minny", [])


def test_options_may_stand_in_any_order(tmp_path, capsys):
    status = app.main(
        [
            "train",
            "--config",
            "mini",
            f"--config.data={tmp_path}",
            "--workdir",
            str(tmp_path / "w"),
            "--config.training.steps=3",
        ]
    )
    assert status == 2 and "no records there" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()  # nothing has begun, so the next start may be another


CONFIG = str(Path(__file__).parents[1] / "tiny_recipe.py")


def train(workdir, *options, config=CONFIG):
    return app.main(["train", "--config", config, "--workdir", str(workdir), *options])


def weights(folder):
    with np.load(folder / "params.npz") as file:
        return {name: file[name] for name in file.files}


def test_a_run_from_its_configuration_to_its_export(tmp_path, capsys, caplog):
    workdir = tmp_path / "run"
    assert train(workdir, "--config.training.steps=7", "--config.loop.save_every=3") == 0
    out = capsys.readouterr().out
    assert "step 7/7 · loss" in out and f"{workdir / 'model'} after 7 steps" in out
    config = json.loads((workdir / "config.json").read_text())
    assert config["name"] == CONFIG and config["config"]["training"]["steps"] == 7
    # Once more: it is at its end, and says so.
    assert train(workdir, "--config.training.steps=7", "--config.loop.log_every=9") == 0
    assert "resumed at step 7" in capsys.readouterr().out

    # Orbax would warn that a folder which is only read is not written to.
    logging.getLogger("absl").setLevel(logging.WARNING)
    assert app.main(["export", str(workdir), str(tmp_path / "a")]) == 0
    assert app.main(["export", str(workdir), str(tmp_path / "b"), "--step", "6"]) == 0
    assert not [record for record in caplog.records if record.name == "absl"]
    said = capsys.readouterr().out
    assert "after 7 steps" in said and "after 6 steps" in said
    trained, exported, earlier = (
        weights(workdir / "model"),
        weights(tmp_path / "a"),
        weights(tmp_path / "b"),
    )
    assert all(np.array_equal(trained[name], exported[name]) for name in trained) and set(
        trained
    ) == set(exported)
    assert any(not np.array_equal(trained[name], earlier[name]) for name in trained)


def test_another_configuration_in_the_same_folder_is_refused(tmp_path, capsys):
    assert train(tmp_path, "--config.training.steps=1") == 0
    # Before any data is read:
    assert (
        train(
            tmp_path,
            "--config.training.steps=2",
            "--config.training.seed=1",
            "--config.data=missing",
        )
        == 2
    )
    assert "training.seed was 0, is 1; training.steps was 1, is 2" in capsys.readouterr().err
    assert train(tmp_path, "--config.training.steps=1", "--config.loop.log_every=7") == 0


def _no_data(self, samples):
    raise CapHumanError("record 7 is damaged")
    yield


@pytest.mark.parametrize(
    "target, name, value, words",
    [
        (room.shutil, "disk_usage", lambda _: SimpleNamespace(free=1), "one checkpoint needs"),
        (room, "available_memory", lambda: 1, "a step needs"),
        (tiny_recipe.Numbered, "start", _no_data, "record 7 is damaged"),
        (tiny_recipe, "tree_hash", lambda _: "other", "frozen.base was"),
    ],
    ids=["disk", "memory", "data", "frozen"],
)
def test_a_refused_start_writes_nothing(monkeypatch, tmp_path, capsys, target, name, value, words):
    options = ("--config.training.bad_at=3", "--config.loop.save_every=2")
    assert train(tmp_path / "w", *options) == 1  # with a checkpoint of step 2
    capsys.readouterr()
    before = files(tmp_path / "w")
    assert {"config.json", "settings.json"} <= before.keys()
    monkeypatch.setattr(target, name, value)
    assert train(tmp_path / "w", *options, "--config.loop.log_every=9") == 2
    assert words in capsys.readouterr().err
    assert files(tmp_path / "w") == before
    if name != "tree_hash":
        assert train(tmp_path / "new", *options) == 2
        assert not (tmp_path / "new").exists()


def files(folder):
    """{path: (content, when it was written)}; what is locked does not count."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def test_exit_codes_and_one_line(tmp_path, capsys):
    assert train(tmp_path / "a", "--config.training.bad_at=2") == 1
    assert "loss of step 3 is NaN or infinite" in capsys.readouterr().out
    assert train(tmp_path / "b", "--config.data=missing") == 2
    assert capsys.readouterr().err == "caphuman: error: no such records\n"
    assert train(tmp_path / "c", "--process-id", "0") == 2
    assert "--coordinator, --process-count missing" in capsys.readouterr().err
    assert train(tmp_path / "d", config=str(tmp_path / "none.py")) == 2
    assert train(tmp_path / "e", "--config.loop.sharding=zero9") == 2
    assert "'zero9'; there are replicated, zero, fsdp" in capsys.readouterr().err
    assert app.main(["export", str(tmp_path / "b"), str(tmp_path / "f"), "--to", "ldm"]) == 2


def test_a_work_folder_that_was_removed_is_told(monkeypatch, tmp_path, capsys):
    """Its checkpoints are gone; a code of 0 would say that they are there."""
    monkeypatch.setattr(tiny_recipe, "export", lambda _, workdir, *__: shutil.rmtree(workdir))
    assert train(tmp_path / "w") == 2
    assert "something removed" in capsys.readouterr().err


def test_a_stage_counts_as_made_with_all_its_files(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    assert training_run._is_whole(folder) and not training_run._is_whole(tmp_path)
    (folder / "vae.safetensors").unlink()
    assert not training_run._is_whole(folder)


def test_a_signal_before_the_loop_is_answered_at_once(monkeypatch, tmp_path, capsys):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(
        training_run, "train", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM)
    )
    assert train(tmp_path) == 75 and signal.getsignal(signal.SIGTERM) == before
    error = capsys.readouterr().err.strip()
    assert "\n" not in error and "rerun the same command to resume" in error


def test_compiled_programs_are_kept_on_any_device(monkeypatch, tmp_path, capsys):
    found = []
    monkeypatch.setattr(compile_cache, "keep_compiled", lambda: found.append(1))
    assert app.main(["train", f"--config.data={tmp_path}", "--workdir", str(tmp_path / "w")]) == 2
    said = capsys.readouterr()
    assert "no records there" in said.err and found == [1]
    assert said.out.startswith("training on a CPU, in float32") and "needs a GPU" in said.out


def test_each_type_of_cpu_has_a_folder_of_compiled_programs(monkeypatch):
    here = compile_cache.cpu_type()
    assert here == compile_cache.cpu_type() and here.startswith("cpu-")
    text = "processor\t: 0\nmodel name\t: X\nflags\t\t: sse2{}\ncpu MHz\t\t: {}\n"
    kind = lambda *parts: (
        monkeypatch.setattr(Path, "read_text", lambda self: text.format(*parts))
        or compile_cache.cpu_type()
    )
    assert kind("", 2000) == kind("", 3000) != kind(" avx512f", 2000)


def test_an_unknown_recipe_is_told():
    config = read_config(CONFIG, ["recipe=nothing.of.the.kind"])
    with pytest.raises(CapHumanError, match="recipe is 'nothing.of.the.kind'; known: mini"):
        recipe_module(config)


@pytest.mark.parametrize(
    "environment, expected",
    [
        ({}, None),
        (
            {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"},
            None,
        ),  # a batch script outside of srun
        (
            {
                "CAPHUMAN_COORDINATOR": "run-0.run:8476",
                "CAPHUMAN_PROCESS_COUNT": "4",
                "JOB_COMPLETION_INDEX": "3",
            },
            {"coordinator_address": "run-0.run:8476", "num_processes": 4, "process_id": 3},
        ),
        (
            {
                "CAPHUMAN_COORDINATOR": "a:1",
                "CAPHUMAN_PROCESS_COUNT": "1",
                "CAPHUMAN_PROCESS_ID": "0",
            },
            None,
        ),
        (
            {
                "SLURM_JOB_ID": "8193",
                "SLURM_STEP_NUM_TASKS": "3",
                "SLURM_PROCID": "2",
                "SLURM_LOCALID": "0",
                "SLURM_STEP_NODELIST": "gpu[003-004,9]",
                "SLURM_STEP_TASKS_PER_NODE": "1(x3)",
            },
            {"coordinator_address": "gpu003:61441", "num_processes": 3, "process_id": 2},
        ),
        (
            {
                "SLURM_JOB_ID": "5",
                "SLURM_STEP_NUM_TASKS": "8",
                "SLURM_PROCID": "5",
                "SLURM_LOCALID": "1",
                "SLURM_STEP_NODELIST": "a1,a2",
                "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
            },
            {
                "coordinator_address": "a1:61445",
                "num_processes": 8,
                "process_id": 5,
                "local_device_ids": [1],
            },
        ),
        ({"TPU_WORKER_HOSTNAMES": "t-0,t-1", "TPU_WORKER_ID": "1"}, {}),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ],
)
def test_cluster_variables_become_arguments_of_jax(environment, expected):
    found = distributed_arguments(environment)
    assert found == (expected and expected | {"cluster_detection_method": "deactivate"})


def test_flags_come_before_variables_and_are_checked():
    environment = {
        "CAPHUMAN_COORDINATOR": "a:1",
        "CAPHUMAN_PROCESS_COUNT": "4",
        "JOB_COMPLETION_INDEX": "3",
    }
    assert (
        distributed_arguments(environment, coordinator="b:2", process_id=1, process_count=2)[
            "coordinator_address"
        ]
        == "b:2"
    )
    for given, words in (
        ({"coordinator": "b:2"}, "--process-id, --process-count missing"),
        ({"process_id": 2, "process_count": 2, "coordinator": "b:2"}, "2 of 2"),
        ({"process_id": 0, "process_count": 2, "coordinator": "b"}, "HOST:PORT"),
    ):
        with pytest.raises(SettingError, match=words):
            distributed_arguments({}, **given)
    with pytest.raises(SettingError, match="CAPHUMAN_PROCESS_ID missing"):
        distributed_arguments({"CAPHUMAN_COORDINATOR": "a:1", "CAPHUMAN_PROCESS_COUNT": "4"})


@pytest.mark.parametrize(
    "nodes, first",
    [
        ("gpu[003-005,9],login", "gpu003"),
        ("gpu7", "gpu7"),
        ("n1,n2", "n1"),
        ("rack[2,4]-a", "rack2-a"),
    ],
)
def test_the_first_node_of_a_slurm_list(nodes, first):
    assert first_node(nodes) == first
