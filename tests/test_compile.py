"""`caphuman compile`: which batch fits, what is told, and real compilations of a tiny model for this machine and for a TPU slice."""

import dataclasses
import json
import platform
import sys

import jax
import numpy as np
import pytest

from caphuman_jax import ahead, cli, compile_command
from caphuman_jax.errors import SettingError

CONFIG = """
import dataclasses
from caphuman_jax.config import MINI, CapFaceConfig, IdentityConfig, TextConfig, UNetConfig, VAEConfig
from caphuman_jax.configs import sd15

def get_config():
    config = sd15.get_config()
    config.model = dataclasses.replace(
        MINI, name="tiny", image_size=8, capface=CapFaceConfig(hint_widths=(8,)), identity=IdentityConfig(16, 12, "mobilefacenet", "recogniser"),
        unet=UNetConfig(in_channels=3, out_channels=3, channels=8, multipliers=(1,), res_blocks=1, attention_downsamplings=(), heads=2, context_width=16,
                        groups=4),
        vae=VAEConfig(patch=1, encoder_channels=4, decoder_channels=4, multipliers=(1,), res_blocks=1, latent_channels=3, groups=4, scale=1.0),
        text=TextConfig(width=16, layers=1, heads=2, mlp_width=32, embed_width=4, vocabulary=100)).to_dict()
    config.loop.sharding = "zero"
    return config
"""
V5E = ahead.Target("v5e:1x1", (None,), "tpu", "TPU v5 lite")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(CONFIG)
    return str(path)


def outcome(batch, total, capacity=100.0):
    return ahead.Outcome("train", "x", "y", 1, batch, {}, total <= capacity, capacity, {"total": total}, None, None, None, None, None, 0.0)


@pytest.mark.parametrize("fixed, each, best", [(10, 3, 30), (10, 50, 1), (99, 0.001, 1000), (120, 1, 0), (0, 25, 4)])
def test_the_largest_batch_that_fits(fixed, each, best):
    tried = ahead.largest_batch(lambda batch: outcome(batch, fixed + each * batch), most=4096)
    assert max((o.batch_per_device for o in tried if o.fits), default=0) == best
    assert len({o.batch_per_device for o in tried}) == len(tried) <= 14


def test_memory_that_does_not_grow_evenly():
    needs = lambda n: 10 + n + (30 if n > 17 else 0)
    tried = ahead.largest_batch(lambda batch: outcome(batch, needs(batch)))
    assert max(o.batch_per_device for o in tried if o.fits) == 60
    assert max(o.batch_per_device for o in ahead.largest_batch(lambda batch: outcome(batch, batch), most=64) if o.fits) == 64


def test_roofline():
    seconds, bound = ahead.roofline(197e12, 819e9 / 2, V5E)
    assert (seconds, bound) == (pytest.approx(1), "arithmetic")
    assert ahead.roofline(197e12, 819e9 * 2, V5E) == (pytest.approx(2), "memory")
    assert ahead.roofline(1.0, 1.0, dataclasses.replace(V5E, kind="cpu")) == (None, None)
    assert V5E.capacity == pytest.approx(15.75 * 2**30, rel=2e-3)


def test_message_of_a_program_that_does_not_fit():
    found = ahead._memory_wanted("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.")
    assert found == 20.5 * 2**30
    assert ahead._memory_wanted("INTERNAL: something else") is None


@pytest.mark.parametrize("arguments, words", [
    (["--batch", "0"], "--batch 0"), (["--option", "x"], "NAME=VALUE"), (["--effort", "2"], "between -1 and 1"), (["--topology", "v5e:3x5x7"], "no TPU slice"),
    (["--topology", "abacus"], "no TPU slice"), (["--config.training.batch=3"], "cannot be divided over 8 devices"), (["--config", "mini"], "without its data")])
def test_what_cannot_be_compiled_is_told(arguments, words, config, capsys):
    extra = [] if "--config" in arguments else ["--config", config]
    assert cli.main(["compile", *extra, *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.slow
def test_for_this_machine(config, tmp_path, capsys):
    """The step and the sampler; the file is added to."""
    out = tmp_path / "found.json"
    arguments = ["compile", "--config", config, "--batch", "1", "--out", str(out)]
    with jax.numpy_dtype_promotion("standard"):
        assert cli.main([*arguments, "--what", "train"]) == 0 == cli.main([*arguments, "--what", "sample", "--steps", "2"])
    told = capsys.readouterr().out
    assert "memory of the device not known" in told and "train on local (8 × cpu), 1 pictures a device" in told
    train, sample = json.loads(out.read_text())
    assert (train["what"], sample["what"]) == ("train", "sample") and train["fits"] is None and train["versions"]["jax"] == jax.__version__
    assert train["memory"]["arguments"] > 0 and train["flops"] > 0 and train["settings"]["sharding"] == "zero" and sample["settings"]["steps"] == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="there is no libtpu for it")
def test_for_a_tpu_slice(config, tmp_path, capsys):
    out = tmp_path / "found.md"
    with jax.numpy_dtype_promotion("standard"):
        status = cli.main(["compile", "--config", config, "--topology", "v5e:2x2", "--batch", "2", "--effort", "-1", "--out", str(out)])
    assert status == 0, capsys.readouterr().err
    told = capsys.readouterr().out
    assert "train on v5e:2x2 (4 × TPU v5 lite), 2 pictures a device" in told and ": fits" in told and "pictures a second" in told
    header, _, row = out.read_text().splitlines()
    cells = dict(zip((c.strip() for c in header.split("|")), (c.strip() for c in row.split("|"))))
    assert cells["fits"] == "yes" and cells["slice"] == "v5e:2x2" and np.float32(cells["total"].split()[0]) >= 0


def test_no_libtpu_is_told(monkeypatch):
    from jax.experimental import topologies

    def missing(**_):
        raise ModuleNotFoundError("No module named 'libtpu'")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(SettingError, match="pip install 'caphuman-jax\\[compile\\]'"):
        ahead.find_target("v5e:4x4")
    assert compile_command.table([outcome(3, 50.0)]).count("|") == 3 * 16
