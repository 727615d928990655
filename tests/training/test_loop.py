"""The loop: its order, what it draws, where it stops, what it writes, and that nothing waits for a
step.
"""

import dataclasses
import io
import json
import re
import sys

import jax
import numpy as np
import pytest
import tiny_recipe

from caphuman_jax.cli import app
from caphuman_jax.errors import DataError, SettingError
from caphuman_jax.runtime import sharding
from caphuman_jax.training import compiled_step, loop
from caphuman_jax.training.recipe import Evaluation, Evaluator, make_evaluators

QUIET = {"tensorboard": False, "log_every": 4}


def run(folder, recipe=None, batches=None, log=lambda line: None, devices=1, **kinds):
    recipe = recipe or tiny_recipe.recipe()
    cfg = loop.LoopConfig(**QUIET | {k: v for k, v in kinds.items() if k != "profile"})
    return loop.run(
        recipe,
        batches or tiny_recipe.Numbered(recipe.batch_size),
        cfg,
        folder,
        sharding.make_mesh(devices=jax.devices()[:devices]),
        profile=kinds.get("profile", 0),
        log=log,
    )


def test_evaluate_then_save_then_fetch_then_step(tmp_path):
    order = []
    recipe = tiny_recipe.recipe(tiny_recipe.Training(steps=4), {"held_out": 2, "previews": 2})
    noted = lambda name, function: (
        lambda *args: order.append(f"{name} {args[2]}") or function(*args)
    )
    for name, entry in recipe.evaluators.items():
        changed = dataclasses.replace(entry, evaluate=noted(name, entry.evaluate))
        recipe.evaluators[name] = changed
    training = loop._Loop
    before = training.save, training.fetch
    try:
        training.save = lambda self: order.append(f"save {self.step}") or before[0](self)
        training.fetch = lambda self: order.append(f"fetch {self.step}") or before[1](self)
        run(tmp_path, recipe, save_every=2)
    finally:
        training.save, training.fetch = before
    assert order == [
        "fetch 0",
        "fetch 1",
        "held_out 2",
        "previews 2",
        "save 2",
        "fetch 2",
        "fetch 3",
        "held_out 4",
        "previews 4",
        "save 4",
    ]
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == [
        "kernel-00000002.png",
        "kernel-00000004.png",
    ]


def evaluator(every, metrics):
    """metrics: step → {name: number}."""
    return Evaluator(every, lambda params, frozen, step: Evaluation(metrics(step)))


def test_an_evaluation_belongs_to_its_own_step(tmp_path):
    evaluators = {"held_out": evaluator(3, lambda step: {"loss": {3: 0.2}.get(step, 0.5)})}
    recipe = tiny_recipe.recipe(evaluators=evaluators)
    run(tmp_path, recipe, save_every=5, best="held_out/loss")
    kept = {
        path.name: json.loads((path / "metrics" / "metrics").read_text())
        for path in (tmp_path / "checkpoints").iterdir()
    }
    # The best, saved although no checkpoint was due, and the newest two.
    assert set(kept) == {"3", "10", "12"} and kept["3"] == {"held_out/loss": 0.2}
    assert "held_out/loss" not in kept["10"] and kept["12"] == {"held_out/loss": 0.5}


def test_an_evaluation_has_bands(tmp_path):
    bands = {"loss_by_time": np.asarray([2.0, 0.0]), "loss_by_time_count": np.asarray([4.0, 0.0])}
    evaluators = {"held_out": evaluator(12, lambda step: {"loss": np.float32(0.5), **bands})}
    said = []
    recipe = tiny_recipe.recipe(evaluators=evaluators)
    run(tmp_path, recipe, log=said.append, best="held_out/loss")
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1] == {"step": 12, "held_out/loss": 0.5, "held_out/loss_by_time": [0.5, None]}
    assert "step 12 held_out: loss 0.5" in said
    assert json.loads((tmp_path / "checkpoints" / "12" / "metrics" / "metrics").read_text()) == {
        "held_out/loss": 0.5
    }


def test_evaluators_have_intervals_of_their_own_and_any_metric_may_be_the_best(tmp_path):
    evaluators = {
        "held_out": evaluator(2, lambda step: {"loss": 0.5}),
        "previews": evaluator(3, lambda step: {"likeness": {3: 0.9}.get(step, 0.1)}),
        "never": evaluator(0, lambda step: {"loss": 1.0}),
    }
    said = []
    run(
        tmp_path,
        tiny_recipe.recipe(tiny_recipe.Training(steps=6), evaluators=evaluators),
        log=said.append,
        save_every=0,
        best="previews/likeness",
        best_highest=True,
        keep=1,
    )
    evaluations = [line.split(": ")[0] for line in said if "held_out" in line or "previews" in line]
    expected = ["step 2 held_out", "step 3 previews", "step 4 held_out"]
    assert evaluations == [*expected, "step 6 held_out", "step 6 previews"]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["3", "6"]


def test_evaluators_of_a_configuration():
    known = {"held_out": lambda pictures: print, "previews": lambda: None}
    found = make_evaluators(
        {"held_out": {"every": 5, "pictures": 3}, "previews": {"every": 2}}, known
    )
    assert found == {"held_out": Evaluator(5, print)}  # there is nothing to preview
    assert make_evaluators({"held_out": {"every": 0, "pictures": 3}}, known) == {}
    for wrong, words in (
        ({"hold_out": {"every": 1}}, "evaluators.hold_out is not known; known: held_out"),
        ({"held_out": {"every": 1, "photos": 2}}, "evaluators.held_out: .*pictures"),
        ({"held_out": {"every": -1, "pictures": 1}}, "number of steps"),
    ):
        with pytest.raises(SettingError, match=words):
            make_evaluators(wrong, known)


def test_nothing_is_sent_to_the_devices_by_a_step(tmp_path):
    """Rows that were not placed on the devices stop the run, for they slow down every step."""
    recipe = tiny_recipe.recipe()
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        before = sharding.place_batch
        try:
            sharding.place_batch = lambda rows, mesh: rows
            run(tmp_path, recipe)
        finally:
            sharding.place_batch = before


@pytest.mark.parametrize("devices", [1, 4])
def test_operations_of_a_step(monkeypatch, tmp_path, devices):
    """Two products forward and three backward of the trained layers, one of the frozen layer;
    whatever the compiler calls for them.
    """
    found = []
    monkeypatch.setattr(
        loop,
        "MetricWriter",
        lambda *args, flops, report=loop.MetricWriter, **named: (
            found.append(flops) or report(*args, flops=flops, **named)
        ),
    )
    run(tmp_path, devices=devices)
    batch, width, hidden = 16, tiny_recipe.WIDTH, tiny_recipe.HIDDEN
    bands = 2 * batch * tiny_recipe.BANDS  # errors are added up by band, as a product too
    assert found == [2 * batch * width * (5 * hidden + width) + bands]


def test_a_run_that_goes_on_draws_where_it_left_off(tmp_path):
    batches = tiny_recipe.Numbered(16)
    run(tmp_path, tiny_recipe.recipe(tiny_recipe.Training(steps=8)), batches, save_every=3)
    assert batches.started == [0] and np.concatenate(batches.drawn)[: 8 * 16].tolist() == list(
        range(8 * 16)
    )
    (tmp_path / "checkpoints" / "8").rename(tmp_path / "lost")
    again = tiny_recipe.Numbered(16)
    told = []
    run(tmp_path, tiny_recipe.recipe(tiny_recipe.Training(steps=8)), again, told.append)
    assert again.started == [6 * 16] and "resumed at step 6" in told
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 4, 7, 8]  # none twice
    # A run that is at its end takes no step.
    finished = run(tmp_path, tiny_recipe.recipe(tiny_recipe.Training(steps=8)), again, told.append)
    assert finished.step == 8 and finished.exit_code == 0 and "resumed at step 8" in told


def test_numbers_that_are_none_stop_the_run_with_evidence(tmp_path):
    told = []
    recipe = tiny_recipe.recipe(tiny_recipe.Training(bad_at=6))
    result = run(tmp_path, recipe, log=told.append, save_every=5)
    assert result.exit_code == 1 and result.state is None and result.step == 7
    assert (
        told[-1].startswith("caphuman: error: loss of step 7 is NaN or infinite")
        and "step 5 stays" in told[-1]
    )
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["5"]
    with np.load(tmp_path / "nan-7" / "batch-0.npz") as batch:  # the very rows of the step
        np.testing.assert_array_equal(batch["index"], np.arange(6 * 16, 7 * 16))
        np.testing.assert_array_equal(batch["x"], tiny_recipe.rows(batch["index"])["x"])
    written = json.loads((tmp_path / "nan-7" / "step.json").read_text())
    assert (
        written["step"] == 7
        and written["metrics"]["loss"] == "nan"
        and written["settings"]["training"]["bad_at"] == 6
    )


def test_parameters_that_are_none_are_never_saved(tmp_path):
    # The loss of step 5 is sound; its gradient is not, and neither would be the checkpoint after
    # it.
    plain = tiny_recipe.recipe()

    def step(state, frozen, batch):
        after, metrics = plain.train_step(state, frozen, batch)
        norm = jax.numpy.where(after.step == 5, jax.numpy.inf, metrics["grad_norm"])
        return after, metrics | {"grad_norm": norm}

    result = run(tmp_path, tiny_recipe.recipe(train_step=step), save_every=5)
    assert result.exit_code == 1 and not list((tmp_path / "checkpoints").glob("*"))


def test_another_runs_folder_is_refused_by_name_of_what_differs(tmp_path):
    run(tmp_path, tiny_recipe.recipe(tiny_recipe.Training(steps=1)))
    with pytest.raises(
        DataError, match="settings.training.batch was 16, is 32; settings.training.seed was 0, is 3"
    ):
        run(tmp_path, tiny_recipe.recipe(tiny_recipe.Training(steps=1, batch=32, seed=3)))


def test_data_that_ends_or_breaks_is_told(tmp_path):
    class Short(tiny_recipe.Numbered):
        def start(self, samples):
            yield tiny_recipe.rows(np.arange(16))

    class Broken(tiny_recipe.Numbered):
        def start(self, samples):
            yield from Short(16).start(samples)
            raise DataError("records-00003: record 7 is damaged")

    with pytest.raises(DataError, match="the data ended"):
        run(tmp_path / "a", batches=Short(16))
    with pytest.raises(DataError, match="record 7 is damaged"):
        run(tmp_path / "b", batches=Broken(16))


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="work folder .*file/run cannot be written"):
        run(tmp_path / "file" / "run")


def test_no_step_is_waited_for(tmp_path, monkeypatch):
    """Metrics are looked at when `STEPS_IN_FLIGHT` further steps are under way, and never sooner
    between two lines of the report.
    """
    looked = []
    before = loop._Loop.check_oldest
    monkeypatch.setattr(
        loop._Loop,
        "check_oldest",
        lambda self: looked.append((self.pending[0][0], self.step)) or before(self),
    )
    run(tmp_path, tiny_recipe.recipe(tiny_recipe.Training(steps=9)), log_every=100, save_every=0)
    assert looked[0] == (1, 1)  # the first line
    assert looked[1:6] == [(step, step + loop.STEPS_IN_FLIGHT) for step in range(2, 7)]


def test_a_run_says_that_it_compiles_before_it_does(tmp_path, monkeypatch):
    """Compiling takes a minute or more, on a CPU too: the line is in a log file before it."""
    target = io.BytesIO()
    before = []
    compile_step = compiled_step.compile_step

    def compiles(*given, **more):
        before.extend(target.getvalue().decode().splitlines())
        return compile_step(*given, **more)

    monkeypatch.setattr(compiled_step, "compile_step", compiles)
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(target, encoding="utf-8"))
    words = ["--config", tiny_recipe.__file__, "--config.training.steps=1", "--workdir"]
    assert app.main(["train", *words, str(tmp_path / "w")]) == 0
    assert re.fullmatch(r"\d+ × cpu, .*; compiling the step", before[-1])
    after = target.getvalue().decode().splitlines()[len(before)]
    assert re.fullmatch(r"step compiled in \d+\.\d s", after)


def test_a_trace_is_written(tmp_path):
    run(tmp_path, profile=2)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_settings_of_the_loop_are_checked():
    for wrong in ({"sharding": "zero3"}, {"log_every": 0}, {"save_every": -1}, {"keep": 0}):
        with pytest.raises(SettingError):
            loop.LoopConfig(**wrong)


def test_where_a_run_came_from_is_noted(tmp_path):
    run(tmp_path, tiny_recipe.recipe(tiny_recipe.Training(steps=1)))
    start = json.loads((tmp_path / "starts.jsonl").read_text())
    assert (
        start["step"] == 0
        and start["devices"] == {"cpu": 8}
        and start["hosts"] == 1
        and start["jax"] == jax.__version__
    )
    assert set(start["git"]) in ({"commit", "dirty"}, set())
