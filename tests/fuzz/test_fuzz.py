"""A short, seeded form of `make fuzz`, and all inputs that once were findings."""

import ast
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import again, engine
from fuzz.readers import READERS

_INPUTS = 60


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.filterwarnings("ignore")  # of the decoders, about damaged files
@pytest.mark.parametrize("name", READERS)
def test_mutated_inputs_give_a_value_or_one_line(name, tmp_path):
    run = READERS[name].make(tmp_path)
    for data in engine.inputs(READERS[name], _INPUTS):
        engine.outcome(run, data)


@pytest.fixture(scope="module")
def found_again() -> dict[str, str]:
    return dict(again.reports(engine.regressions()))


@pytest.mark.parametrize("name", engine.regressions())
def test_what_was_found_stays_mended(name, found_again):
    assert found_again[name] == ""


def test_inputs_that_hang_take_too_much_or_kill_the_process_are_reported(tmp_path):
    """By readers of a package that stands in for `fuzz.readers`."""
    package = Path(again.__file__).parent
    (tmp_path / "fuzz").mkdir()
    for file in package.glob("*.py"):
        (tmp_path / "fuzz" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "fuzz" / "readers.py").write_text(_BAD_READERS)
    names = ["fine", "slow", "dead", "large", "wrong", "refused"]
    for name in names:
        for folder in ("corpus", "regressions"):
            file = tmp_path / "fuzz" / folder / name / "input"
            file.parent.mkdir(parents=True)
            file.write_bytes(b"seed" if folder == "corpus" else b"finding")
    code = "from fuzz import again; import sys; print(list(again.reports(sys.argv[1:])))"
    done = subprocess.run(
        [sys.executable, "-c", code, *(f"{name}/input" for name in names)],
        env=again.environment(tmp_path),
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr
    found = dict(ast.literal_eval(done.stdout))
    assert list(found) == [f"{name}/input" for name in names]
    assert found["fine/input"] == found["refused/input"] == ""
    assert "more than 0.5 s of the processor's time" in found["slow/input"]
    assert "the process died" in found["dead/input"]
    assert "MemoryError" in found["large/input"]
    assert "ValueError" in found["wrong/input"]


_BAD_READERS = """
import os
from types import SimpleNamespace

from fuzz import engine

from caphuman_jax.errors import CapHumanError

engine.SECONDS = 0.25  # half of the limit


def work():
    while True:
        sum(range(10_000))


def refuse():
    raise CapHumanError("no")


WHAT = {
    "fine": lambda: 1, "slow": work, "dead": lambda: os._exit(3), "refused": refuse,
    "large": lambda: bytearray(engine.MEMORY + 2**24), "wrong": lambda: int("one"),
}


def reader(name):
    return SimpleNamespace(make=lambda folder: lambda data: data == b"finding" and WHAT[name]())


READERS = {name: reader(name) for name in WHAT}
"""


def test_the_corpus_is_valid(tmp_path):
    """At least one seed of each reader is read; otherwise mutations do not get far."""
    for name, reader in READERS.items():
        (tmp_path / name).mkdir()
        run = reader.make(tmp_path / name)
        found = [engine.outcome(run, data) for data in engine.seeds(name)]
        assert any(one.startswith("value") for one in found), (name, found)


def test_the_time_of_this_thread_is_limited_and_that_of_others_is_not():
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED], env=again.environment(), capture_output=True, text=True
    )
    assert done.stdout == "slept, busy, lost and busy, waited\n", done.stderr


_LIMITED = """
import threading, time
import pytest
from fuzz import engine

stop, end = threading.Event(), time.monotonic() + 60

def busy():
    while not stop.is_set() and time.monotonic() < end:
        sum(range(10_000))

threading.Thread(target=busy, daemon=True).start()
with engine.limited_time(0.3, still=60):
    time.sleep(1)
print("slept", end=", ")
with pytest.raises(engine.Hang, match="0.3 s of the processor's"), engine.limited_time(0.3, 60):
    busy()
print("busy", end=", ")
with pytest.raises(engine.Hang, match="0.3 s of the processor's"), engine.limited_time(0.3, 60):
    try:
        busy()
    except engine.Hang:  # as an exception is lost that rises while objects are collected
        busy()
print("lost and busy", end=", ")
with pytest.raises(engine.Hang, match="0.2 s by the clock"), engine.limited_time(60, 0.2):
    time.sleep(60)
assert time.monotonic() < end - 10
print("waited")
"""
