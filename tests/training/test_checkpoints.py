"""Checkpoints: the same numbers on another arrangement of devices, what is kept, what is damaged,
what does not fit, what cannot be written.
"""

import concurrent.futures.thread
import dataclasses
import errno
import gc
import json
import os
import resource
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_recipe

from caphuman_jax.errors import DataError
from caphuman_jax.runtime import sharding
from caphuman_jax.training import loop
from caphuman_jax.training.checkpoints import Checkpoints, checksum
from caphuman_jax.training.recipe import tree_hash
from caphuman_jax.training.run_folder import differences

# Where reading or writing fails, Orbax leaves coroutines behind that nobody waits for.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning",
    "ignore::pytest.PytestUnhandledThreadExceptionWarning",
)

RUN = {"settings": {"steps": 12, "training": {"rate": 0.1}}, "frozen": {"base": "abc"}}
RECIPE = tiny_recipe.recipe()
SHAPES = RECIPE.abstract_state()


@pytest.fixture(autouse=True)
def nothing_is_left_for_other_tests():
    yield
    gc.collect()


def places(mode="replicated", devices=1, fsdp=1):
    return sharding.state_shardings(sharding.make_mesh(fsdp, jax.devices()[:devices]), SHAPES, mode)


@pytest.fixture(scope="module")
def state():
    """A state whose every number differs."""
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(x.dtype), SHAPES)
    return sharding.place(dataclasses.replace(drawn, step=np.int32(7)), places("zero", 8, 2))


def equal(a, b):
    return all(
        jax.tree.leaves(
            jax.tree.map(lambda x, y: np.array_equal(np.asarray(x), np.asarray(y)), a, b)
        )
    )


def save(folder, state, *steps, keep=2, **kinds):
    checkpoints = Checkpoints(folder, keep, **kinds)
    for step in steps:
        checkpoints.save(step, state, RUN | {"samples": 16 * step}, {"loss": abs(step - 4.5)})
    checkpoints.close()


def restore(folder, shardings=None, run=RUN, log=lambda line: None, shapes=SHAPES):
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore(shapes, shardings or places(), run, log)
    finally:
        checkpoints.close()


@pytest.mark.parametrize(
    "mode, devices, fsdp", [("replicated", 1, 1), ("zero", 4, 1), ("fsdp", 2, 2)]
)
def test_saved_on_eight_devices_and_restored_on_others(state, tmp_path, mode, devices, fsdp):
    save(tmp_path / "c", state, 7)
    wanted = places(mode, devices, fsdp)
    found, run = restore(tmp_path / "c", wanted)
    assert equal(found, state) and run["step"] == 7 and run["samples"] == 112
    assert all(
        jax.tree.leaves(
            jax.tree.map(lambda x, where: x.sharding.is_equivalent_to(where, x.ndim), found, wanted)
        )
    )


def test_the_newest_and_the_best_are_kept(state, tmp_path):
    save(tmp_path / "c", state, 1, 4, 6, 8, 9, keep=2, best="loss")
    checkpoints = Checkpoints(tmp_path / "c", 2, "loss")
    assert checkpoints.steps() == [4, 8, 9] and checkpoints.best_step() == 4
    checkpoints.close()
    save(tmp_path / "d", state, 1, 4, 6, 8, 9, keep=2)
    assert sorted(os.listdir(tmp_path / "d")) == ["8", "9"]
    assert not list((tmp_path / "d").glob("*tmp*"))


def test_nothing_there_is_a_beginning(tmp_path):
    assert restore(tmp_path / "c") is None


def largest_file(folder):
    return max(
        (path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )


def truncate(folder):
    file = largest_file(folder)
    os.truncate(file, file.stat().st_size // 2)


def flip(folder):
    file = largest_file(folder)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def change_the_description(folder):
    file = next((folder / "run").glob("metadata"))
    file.write_text(
        file.read_text()
        .replace('"samples": 144', '"samples": 145')
        .replace('"samples":144', '"samples":145')
    )


def lose(folder):
    (folder / "opt" / "manifest.ocdbt").unlink()


@pytest.mark.parametrize("damage", [truncate, flip, change_the_description, lose])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(state, tmp_path, damage):
    save(tmp_path / "c", state, 8, 9)
    damage(tmp_path / "c" / "9")
    told = []
    found, run = restore(tmp_path / "c", log=told.append)
    assert run["step"] == 8 and equal(found.params, state.params)
    assert (
        len(told) == 1
        and "WARNING: the checkpoint of step 9" in told[0]
        and "is damaged" in told[0]
    )
    assert os.listdir(tmp_path / "damaged") == ["9"] and os.listdir(tmp_path / "c") == ["8"]
    save(tmp_path / "c", state, 9)  # the run comes by again
    assert restore(tmp_path / "c")[1]["step"] == 9


def test_every_single_flipped_byte_of_the_numbers_is_noticed(state, tmp_path):
    save(tmp_path / "c", state, 9)
    checkpoints = Checkpoints(tmp_path / "c")
    file = largest_file(tmp_path / "c" / "9" / "params")
    content = file.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(content), 12):
        changed = bytearray(content)
        changed[place] ^= 0x10
        file.write_bytes(changed)
        with pytest.raises(Exception):  # noqa: B017 - whatever it is, it is not silence
            checkpoints._read_state(9, checkpoints._read_run(9), SHAPES, places())
    file.write_bytes(content)
    checkpoints._read_state(9, checkpoints._read_run(9), SHAPES, places())
    checkpoints.close()


def test_no_whole_checkpoint_is_no_fresh_start(state, tmp_path):
    save(tmp_path / "c", state, 8, 9)
    for step in ("8", "9"):
        truncate(tmp_path / "c" / step)
    for _ in range(2):  # what starts again by itself does not start from nothing, either
        with pytest.raises(
            DataError, match=r"no checkpoint in .* can be read \(steps 9, 8 are damaged\)"
        ):
            restore(tmp_path / "c")
    assert sorted(os.listdir(tmp_path / "c")) == ["8", "9"]


def test_what_does_not_fit_is_named_key_by_key(state, tmp_path):
    save(tmp_path / "c", state, 9)
    other = tiny_recipe.recipe().abstract_state()
    net = other.params["net"]
    net["third"] = net.pop("second")
    net["first"]["bias"] = jax.ShapeDtypeStruct((161,), jnp.float32)
    with pytest.raises(DataError) as told:
        restore(tmp_path / "c", shapes=other)
    for name in (
        "params/net/second/kernel was float32(160, 128), is gone",
        "params/net/third/kernel is new",
        "params/net/third/bias",
        "params/net/first/bias was float32(160,), is float32(161,)",
    ):
        assert name in str(told.value)
    with pytest.raises(
        DataError, match="frozen.base was 'abc', is 'abd'.*settings.training.rate was 0.1, is 0.2"
    ):
        restore(
            tmp_path / "c",
            run={"settings": {"steps": 12, "training": {"rate": 0.2}}, "frozen": {"base": "abd"}},
        )
    assert os.listdir(tmp_path / "c") == ["9"]  # it is whole, and stays


def test_a_folder_that_cannot_be(state, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="checkpoints cannot be kept in .*file/c"):
        Checkpoints(tmp_path / "file" / "c")


def test_nothing_waits_for_a_folder_that_cannot_be_made(state, tmp_path, monkeypatch):
    """A program ends only when all threads have; those of executors end by themselves."""
    before, make = set(threading.enumerate()), os.mkdir

    def fail(path, *rest, **named):
        if "checkpoint-tmp/" in os.fspath(path):
            raise OSError(errno.ENOSPC, "No space left on device", path)
        make(path, *rest, **named)

    checkpoints = Checkpoints(tmp_path / "c")
    monkeypatch.setattr(os, "mkdir", fail)
    with pytest.raises(DataError, match="cannot be written to .*there is none yet"):
        checkpoints.save(5, state, RUN | {"samples": 80})
        checkpoints.wait()
    before |= set(concurrent.futures.thread._threads_queues)
    left = [one for one in threading.enumerate() if one not in before and not one.daemon]
    for thread in left:
        thread.join(20)
    assert not [thread for thread in left if thread.is_alive()]


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(state, tmp_path):
    save(tmp_path / "c", state, 3)
    checkpoints = Checkpoints(tmp_path / "c")
    limits, handler = (
        resource.getrlimit(resource.RLIMIT_FSIZE),
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN),
    )
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (20_000, limits[1])
    )  # what a full disk is to whoever writes
    try:
        with pytest.raises(
            DataError,
            match=f"cannot be written to {tmp_path / 'c'}: .*the newest whole one is of step 3",
        ):
            checkpoints.save(5, state, RUN | {"samples": 80})
            checkpoints.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    # Orbax's other writers of step 5 may still run for a moment; a process that ended has none.
    deadline = time.monotonic() + 120
    while True:
        assert restore(tmp_path / "c")[1]["step"] == 3
        if os.listdir(tmp_path / "c") == ["3"] or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert os.listdir(tmp_path / "c") == ["3"]


def test_the_average_is_read_without_devices(state, tmp_path):
    save(tmp_path / "c", state, 9)
    checkpoints = Checkpoints(tmp_path / "c", read_only=True)
    params, run = checkpoints.read_average(9)
    assert (
        equal(params, state.ema)
        and run["step"] == 9
        and all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(params))
    )
    with pytest.raises(DataError, match="no checkpoint of step 5; there are: 9"):
        checkpoints.read_average(5)
    truncate(tmp_path / "c" / "9" / "ema")
    with pytest.raises(DataError, match="step 9 .* is damaged"):
        checkpoints.read_average(9)
    checkpoints.close()


def test_a_state_without_an_average(state, tmp_path):
    bare = dataclasses.replace(state, ema={})
    save(tmp_path / "c", bare, 9)
    assert not (tmp_path / "c" / "9" / "ema").exists()
    found, _ = restore(
        tmp_path / "c",
        shapes=dataclasses.replace(SHAPES, ema={}),
        shardings=dataclasses.replace(places(), ema={}),
    )
    assert found.ema == {} and equal(found.opt_state, state.opt_state)
    checkpoints = Checkpoints(tmp_path / "c", read_only=True)
    assert equal(checkpoints.read_average(9)[0], state.params)
    checkpoints.close()


def test_checkpoints_of_a_run_hold_no_frozen_weight_and_frozen_weights_stay(tmp_path, monkeypatch):
    on_device = []
    close = loop._Loop.close
    monkeypatch.setattr(
        loop._Loop, "close", lambda self: on_device.append(self.frozen) or close(self)
    )
    loop.run(
        RECIPE,
        tiny_recipe.Numbered(16),
        loop.LoopConfig(tensorboard=False),
        tmp_path,
        sharding.make_mesh(devices=jax.devices()[:1]),
        log=lambda line: None,
    )
    assert on_device[0]["base"]["kernel"].devices() == {jax.devices()[0]}
    assert (
        tree_hash(jax.device_get(on_device[0]["base"])) == RECIPE.frozen_hashes["base"]
    )  # bit for bit
    checkpoints = Checkpoints(tmp_path / "checkpoints", read_only=True)
    run = checkpoints._read_run(12)
    checkpoints.close()
    assert run["frozen"] == RECIPE.frozen_hashes and not any(
        "base" in name for name in run["arrays"]
    )
    assert {name.split("/")[0] for name in run["arrays"]} == {"params", "ema", "opt"}
    numbers = sum(int(np.prod(leaf["shape"])) for leaf in run["arrays"].values())
    assert numbers == sum(
        x.size for x in jax.tree.leaves((SHAPES.params, SHAPES.ema, SHAPES.opt_state))
    )
    metadata = [
        json.loads(path.read_text())
        for path in (tmp_path / "checkpoints" / "12").glob("*/_METADATA")
    ]
    assert len(metadata) == 3 and "base" not in json.dumps(metadata)


def test_a_frozen_network_that_was_changed_is_refused(tmp_path):
    run = lambda cfg: loop.run(
        tiny_recipe.recipe(cfg),
        tiny_recipe.Numbered(16),
        loop.LoopConfig(tensorboard=False),
        tmp_path,
        sharding.make_mesh(devices=jax.devices()[:1]),
        log=lambda line: None,
    )
    run(tiny_recipe.Training(steps=1))
    changed = tiny_recipe.recipe(tiny_recipe.Training(steps=1), frozen_hashes={"base": "another"})
    with pytest.raises(DataError, match="frozen.base was '[0-9a-f]{64}', is 'another'"):
        loop.run(
            changed,
            tiny_recipe.Numbered(16),
            loop.LoopConfig(tensorboard=False),
            tmp_path,
            sharding.make_mesh(devices=jax.devices()[:1]),
        )


@pytest.mark.parametrize("dtype", ["float32", "int32", "uint8", "bfloat16", "bool"])
def test_checksums_do_not_depend_on_the_arrangement_but_on_every_number(dtype):
    numbers = np.random.default_rng(0).integers(0, 2, (64, 8, 3)).astype(jnp.dtype(dtype))
    split = jax.device_put(numbers, sharding.by_batch(sharding.make_mesh()))
    assert int(checksum(split)) == int(checksum(numbers))
    other = numbers.copy()
    other[17, 3, 1] = 1 - int(other[17, 3, 1])
    assert int(checksum(other)) != int(checksum(numbers))
    assert int(checksum(numbers[::-1].copy())) != int(checksum(numbers))


def test_differences_are_named():
    assert differences({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": 2, "d": 4}, "e": "x"}) == [
        "a was 1, is gone",
        "b.d was 3, is 4",
        "e is new, 'x'",
    ]
