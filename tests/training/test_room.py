"""What does not fit is refused before the first step."""

import os
import signal

import jax
import jax.numpy as jnp
import pytest
import tiny_recipe

from caphuman_jax.errors import DataError, SettingError
from caphuman_jax.runtime import profiling, sharding
from caphuman_jax.training import loop, room
from caphuman_jax.training.loop import LoopConfig


def test_bytes_of_a_checkpoint():
    """Two layers of 128 × 160 with biases; AdamW keeps twice as many and a count, the average as
    many.
    """
    numbers = 2 * 128 * 160 + 128 + 160
    state = tiny_recipe.recipe().abstract_state()
    found = room.checkpoint_bytes(state)
    assert found == pytest.approx(4 * 4 * numbers, abs=64)


def test_a_disk_that_is_too_small(tmp_path):
    room.check_disk(tmp_path, 1000)
    with pytest.raises(DataError, match="free, but one checkpoint needs 9.31e\\+05 GiB"):
        room.check_disk(tmp_path, 10**15)


def test_memory_that_is_too_small(monkeypatch):
    compiled = (
        jax.jit(lambda x: (x @ x).sum() + jnp.sort(x)[0]).lower(jnp.ones((512, 512))).compile()
    )
    room.check_memory(compiled)
    monkeypatch.setattr(room, "available_memory", lambda: 1000)
    with pytest.raises(SettingError, match="a step needs .* this machine has .* smaller training"):
        room.check_memory(compiled)


class Asking(tiny_recipe.Numbered):
    """Asks this process for a trace while it trains."""

    def start(self, samples):
        for number, rows in enumerate(super().start(samples)):
            if number == 3:
                os.kill(os.getpid(), signal.SIGUSR1)
            yield rows


@pytest.mark.parametrize("source", [tiny_recipe.Numbered, Asking], ids=["file", "signal"])
def test_a_trace_on_demand(tmp_path, source):
    """The file is removed, and the trace has the steps after it was seen, or after the signal."""
    if source is not Asking:
        (tmp_path / profiling.MARK).write_text("")
    recipe = tiny_recipe.recipe(tiny_recipe.Training(steps=14))
    cfg = LoopConfig(log_every=1, save_every=0, tensorboard=False)
    loop.run(recipe, source(16), cfg, tmp_path, sharding.make_mesh(), log=lambda _: 0)
    assert not (tmp_path / profiling.MARK).exists()
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
