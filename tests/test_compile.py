"""`caphuman compile`: which batch fits, what is told, and real compilations of a tiny model for
this machine and for a TPU slice.
"""

import dataclasses
import json
import platform
import re
import sys
import types

import jax
import numpy as np
import pytest
from small_configs import SMALLEST_CONFIG

from caphuman_jax.aot import compile as ahead
from caphuman_jax.aot import gpu_targets
from caphuman_jax.cli import app
from caphuman_jax.cli import compile as compile_command
from caphuman_jax.errors import SettingError
from caphuman_jax.runtime import device_specs

V5E = ahead.Target("v5e:1x1", (None,), "tpu", "TPU v5 lite")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(SMALLEST_CONFIG)
    return str(path)


def outcome(batch, total, capacity=100.0):
    return ahead.Outcome(
        "train",
        "x",
        "y",
        1,
        batch,
        {},
        total <= capacity,
        capacity,
        {"total": total},
        None,
        None,
        None,
        None,
        None,
        0.0,
    )


@pytest.mark.parametrize(
    "fixed, each, best", [(10, 3, 30), (10, 50, 1), (99, 0.001, 1000), (120, 1, 0), (0, 25, 4)]
)
def test_the_largest_batch_that_fits(fixed, each, best):
    tried = ahead.largest_batch(lambda batch: outcome(batch, fixed + each * batch), most=4096)
    assert max((o.batch_per_device for o in tried if o.fits), default=0) == best
    assert len({o.batch_per_device for o in tried}) == len(tried) <= 14


def test_memory_that_does_not_grow_evenly():
    needs = lambda n: 10 + n + (30 if n > 17 else 0)
    tried = ahead.largest_batch(lambda batch: outcome(batch, needs(batch)))
    assert max(o.batch_per_device for o in tried if o.fits) == 60
    assert (
        max(
            o.batch_per_device
            for o in ahead.largest_batch(lambda batch: outcome(batch, batch), most=64)
            if o.fits
        )
        == 64
    )


def test_roofline():
    seconds, bound = ahead.roofline(197e12, 819e9 / 2, V5E)
    assert (seconds, bound) == (pytest.approx(1), "arithmetic")
    assert ahead.roofline(197e12, 819e9 * 2, V5E) == (pytest.approx(2), "memory")
    assert ahead.roofline(1.0, 1.0, dataclasses.replace(V5E, kind="cpu")) == (None, None)
    assert V5E.capacity == pytest.approx(15.75 * 2**30, rel=2e-3)


def test_message_of_a_program_that_does_not_fit():
    found = ahead._memory_wanted(
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 20.50G of 15.75G hbm."
    )
    assert found == 20.5 * 2**30
    assert ahead._memory_wanted("INTERNAL: something else") is None


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--batch", "0"], "--batch 0"),
        (["--option", "x"], "NAME=VALUE"),
        (["--effort", "2"], "between -1 and 1"),
        (["--topology", ""], "--topology must not be empty"),
        (["--topology", "v5e:3x5x7"], "no TPU slice"),
        (["--topology", "abacus"], "no TPU slice"),
        (["--config.training.batch_size=3"], "cannot be divided over 8 devices"),
        (["--config", "mini"], "without its data"),
    ],
)
def test_what_cannot_be_compiled_is_told(arguments, words, config, capsys):
    extra = [] if "--config" in arguments else ["--config", config]
    assert app.main(["compile", *extra, *arguments]) == 2
    assert words in capsys.readouterr().err


def test_an_option_that_the_compiler_does_not_have():
    with pytest.raises(SettingError, match="--option a: the compiler has no such option"):
        ahead.compile_outcome(
            lambda: jax.jit(lambda x: x + 1).lower(1.0),
            what="train",
            target=ahead.find_target("local"),
            batch_per_device=1,
            settings={},
            flops=None,
            options={"a": "b"},
        )


@pytest.mark.parametrize("name", gpu_targets.GPUS)
def test_gpus_that_are_not_here(name, monkeypatch):
    """What the compiler is told of them is what programs are then held against."""
    from jax.experimental import topologies

    asked = []
    monkeypatch.setattr(
        topologies,
        "get_topology_desc",
        lambda **given: asked.append(given) or types.SimpleNamespace(devices=[None] * 4),
    )
    target = ahead.find_target(f"{name}:4")
    assert asked[0]["topology"] == "1x1x4" and target.platform == "gpu" and len(target.devices) == 4
    told = dict(re.findall(r"(\w+): (\S+)", asked[0]["target_config"]))
    assert (float(told["device_memory_size"]), float(told["memory_bandwidth"])) == (
        target.capacity,
        target.bandwidth,
    )
    peak = device_specs.peak_flops(target.kind)
    # Four tensor cores a multiprocessor; their sparse and dense peaks are often confused.
    assert peak / (int(told["core_count"]) * float(told["clock_rate_ghz"]) * 1e9) == pytest.approx(
        {"8": {"0": 2048, "9": 1024}, "9": {"0": 4096}}[told["major"]][told["minor"]], rel=0.12
    )


def test_options_of_a_gpu_that_is_not_here():
    """Nothing can be tried out on it; what is said on the command line comes last."""
    given = []

    class Lowered:
        def compile(self, compiler_options):
            given.append(compiler_options)
            return jax.jit(lambda x: x @ x).lower(np.zeros((4, 4), np.float32)).compile()

    target = ahead.Target(
        "h100", (None,), "gpu", "NVIDIA H100 80GB HBM3", dict(gpu_targets.OPTIONS)
    )
    found = ahead.compile_outcome(
        Lowered,
        what="train",
        target=target,
        batch_per_device=1,
        settings={},
        flops=128.0,
        options={"xla_gpu_autotune_level": 2},
    )
    assert (
        given[0]["xla_gpu_enable_triton_gemm"] is False
        and given[0]["xla_gpu_autotune_level"] == 2
        and "xla_gpu_dot_merger_threshold_mb" in given[0]
    )
    assert found.fits and found.memory["arguments"] == 64
    alone = dataclasses.replace(found, bytes_accessed=None)
    assert "bytes moved are not known" in compile_command._told(
        alone
    ) and "moved" in compile_command._told(dataclasses.replace(found, bytes_accessed=1e9))
    assert ahead.roofline(989e12, None, target) == (pytest.approx(1), "arithmetic")


@pytest.mark.slow
def test_for_this_machine(config, tmp_path, capsys):
    """The step and the sampler; the file is added to."""
    out = tmp_path / "found.json"
    arguments = ["compile", "--config", config, "--batch", "1", "--out", str(out)]
    with jax.numpy_dtype_promotion("standard"):
        assert (
            app.main([*arguments, "--what", "train"])
            == 0
            == app.main([*arguments, "--what", "sample", "--steps", "2"])
        )
    told = capsys.readouterr().out
    assert (
        "memory of the device not known" in told
        and "train on local (8 × cpu), 1 pictures a device" in told
    )
    train, sample = json.loads(out.read_text())
    assert (
        (train["what"], sample["what"]) == ("train", "sample")
        and train["fits"] is None
        and train["versions"]["jax"] == jax.__version__
    )
    assert (
        train["memory"]["arguments"] > 0
        and train["flops"] > 0
        and train["settings"]["sharding"] == "zero"
        and sample["settings"]["steps"] == 2
    )


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="there is no libtpu for it"
)
def test_for_a_tpu_slice(config, tmp_path, capsys):
    out = tmp_path / "found.md"
    with jax.numpy_dtype_promotion("standard"):
        status = app.main(
            [
                "compile",
                "--config",
                config,
                "--topology",
                "v5e:2x2",
                "--batch",
                "2",
                "--effort",
                "-1",
                "--out",
                str(out),
            ]
        )
    assert status == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert (
        "train on v5e:2x2 (4 × TPU v5 lite), 2 pictures a device" in told
        and ": fits" in told
        and "pictures a second" in told
    )
    header, _, row = out.read_text().splitlines()
    cells = dict(zip((c.strip() for c in header.split("|")), (c.strip() for c in row.split("|"))))
    assert (
        cells["fits"] == "yes"
        and cells["slice"] == "v5e:2x2"
        and np.float32(cells["total"].split()[0]) >= 0
    )


@pytest.mark.parametrize(
    "topology, error, advice",
    [
        (
            "v5e:4x4",
            ModuleNotFoundError("No module named 'libtpu'"),
            "pip install '.\\[compile\\]'",
        ),
        (
            "h100",
            NotImplementedError("topology not implemented for cuda"),
            "pip install 'jax\\[cuda13\\]'",
        ),
        ("h100:many", None, "h100:N"),
    ],
)
def test_a_missing_compiler_is_told(monkeypatch, topology, error, advice):
    from jax.experimental import topologies

    def missing(**_):
        raise error

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(SettingError, match=advice):
        ahead.find_target(topology)


def test_a_table_has_a_cell_for_every_column():
    assert compile_command.table([outcome(3, 50.0)]).count("|") == 3 * 16


@pytest.mark.parametrize("kind, filled", [("TPU v5 lite", 128), ("TPU v6 lite", 256), ("cpu", 1)])
def test_a_steps_roofline_counts_what_matrix_units_fill_up(config, monkeypatch, kind, filled):
    given = {}
    monkeypatch.setattr(ahead, "compile_outcome", lambda lower, **told: given.update(told))
    target = dataclasses.replace(ahead.find_target("local"), kind=kind)
    args = types.SimpleNamespace(config=config, overrides=[], effort=None)
    compile_command._train(args, target, {})(1)
    # The widest of its layers has 32 channels.
    assert (
        given["padded"] == given["flops"] if filled == 1 else given["padded"] > 8 * given["flops"]
    )
    assert device_specs.matrix_unit(kind) == filled
