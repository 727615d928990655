"""A short, seeded form of `make fuzz`, and all inputs that once were findings."""

import contextlib
import logging
import threading
import time

import pytest
from fuzz import engine
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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", engine.regressions())
def test_what_was_found_stays_mended(name, tmp_path):
    data = engine.regressions()[name]()
    run = READERS[name.partition("/")[0]].make(tmp_path)
    with contextlib.suppress(Exception):  # readers import late, which is not what they take
        run(engine.seeds(name.partition("/")[0])[0])
    found: list[str] = []
    while len(found) < 3:  # what other tests left running takes memory, too, but ends
        with engine.limited_time(2 * engine.SECONDS), engine.limited_memory():
            try:
                engine.outcome(run, data)
                return
            except engine.Finding as finding:  # reported without the limits
                found.append(f"{finding.place}: {finding}")
    pytest.fail("; ".join(found))


def test_the_corpus_is_valid(tmp_path):
    """At least one seed of each reader is read; otherwise mutations do not get far."""
    for name, reader in READERS.items():
        (tmp_path / name).mkdir()
        run = reader.make(tmp_path / name)
        found = [engine.outcome(run, data) for data in engine.seeds(name)]
        assert any(one.startswith("value") for one in found), (name, found)


def test_the_time_of_this_thread_is_limited_and_that_of_others_is_not():
    stop, began = threading.Event(), time.monotonic()

    def busy():
        while not stop.is_set():
            sum(range(10_000))

    other = threading.Thread(target=busy)
    other.start()
    try:
        with engine.limited_time(0.3, still=60):
            time.sleep(1)
        with pytest.raises(engine.Hang, match="0.3 s of the processor's"):  # noqa: SIM117
            with engine.limited_time(0.3, still=60):
                while time.monotonic() < began + 60:
                    sum(range(10_000))
        with pytest.raises(engine.Hang, match="0.2 s by the clock"), engine.limited_time(60, 0.2):
            time.sleep(60)
    finally:
        stop.set()
        other.join()
    assert time.monotonic() < began + 50
