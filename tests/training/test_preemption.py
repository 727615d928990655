"""Signals: noted, answered before the next step, and with the exit codes that a cluster reads."""

import os
import signal

import jax
import pytest
import tiny_recipe

from caphuman_jax.runtime import preemption, sharding
from caphuman_jax.runtime.preemption import Preemption
from caphuman_jax.training import loop


def test_signals_are_noted_and_their_handlers_put_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with Preemption() as stop:
        assert not stop.reached(1) and stop.exit_code == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.reached(1) and stop.exit_code == 75 == os.EX_TEMPFAIL
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_second_interruption_stops_at_once():
    with Preemption() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.reached(3) and stop.exit_code == 130
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_time_is_looked_at_now_and_then(monkeypatch):
    with Preemption(minutes=1) as stop:
        assert not stop.reached(0)
        now = preemption.time.monotonic()
        monkeypatch.setattr(preemption.time, "monotonic", lambda: now + 61)
        assert not stop.reached(7) and stop.reached(20) and stop.exit_code == 0


@pytest.mark.parametrize(
    "number, code, words",
    [(signal.SIGTERM, 75, "asked to stop"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_run_that_is_told_to_stop_saves_and_goes_on_later(tmp_path, number, code, words):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    cfg = loop.LoopConfig(log_every=1, save_every=0, tensorboard=False)
    run = lambda folder, log: loop.run(
        tiny_recipe.recipe(), tiny_recipe.Numbered(16), cfg, folder, mesh, log=log
    )
    told = []

    def log(line):
        told.append(line)
        if line.startswith("step 7/"):
            os.kill(os.getpid(), number)

    stopped = run(tmp_path / "a", log)
    assert stopped.exit_code == code and stopped.step == 7
    assert told[-1] == f"{words}: saved at step 7 of 12; rerun the same command to resume"
    assert [path.name for path in (tmp_path / "a" / "checkpoints").iterdir()] == ["7"]
    finished, undisturbed = run(tmp_path / "a", told.append), run(tmp_path / "b", lambda line: None)
    assert "resumed at step 7" in told and finished.exit_code == 0
    assert all(
        jax.tree.leaves(
            jax.tree.map(lambda x, y: (x == y).all(), finished.state, undisturbed.state)
        )
    )
