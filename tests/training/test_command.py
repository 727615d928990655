"""Overrides of `caphuman train` on the command line."""

import pytest

from caphuman_jax import cli
from caphuman_jax.errors import CapHumanError
from caphuman_jax.training.command import read_config


def test_overrides_keep_the_types_of_the_configuration():
    config = read_config("mini", ["data=records", "training.steps=3", "autoencoder.learning_rate=1e-3", "training.augment.mirror=0"])
    assert config.data == "records" and config.training.steps == 3 and config.autoencoder.learning_rate == 1e-3
    assert config.training.augment.mirror == 0.0 and isinstance(config.training.augment.mirror, float)


@pytest.mark.parametrize("entry, words", [
    ("training.stepz=3", "no entry training.stepz"), ("training.steps=three", "is not int"), ("training.steps", "write --config.training.steps=VALUE")])
def test_a_wrong_override_is_told(entry, words):
    with pytest.raises(CapHumanError, match=words):
        read_config("mini", [entry])


def test_no_such_configuration():
    with pytest.raises(CapHumanError, match="no configuration 'huge'"):
        read_config("huge", [])


def test_options_may_stand_in_any_order(tmp_path, capsys):
    status = cli.main(["train", "--config", "mini", f"--config.data={tmp_path}", "--workdir", str(tmp_path / "w"), "--config.training.steps=3"])
    assert status == 2 and "no records there" in capsys.readouterr().err
