"""`caphuman status`, `config show` and `doctor`: known work folders, configurations, machines."""

import json

import pytest

from caphuman_jax.cli import app
from caphuman_jax.errors import DataError
from caphuman_jax.launch import doctor, status
from caphuman_jax.training import describe

DAY = 1_700_000_000.0


def write_run(folder, starts, metrics, checkpoints=(), steps=1000):
    """A work folder as training writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"name": "x", "config": {"training": {"steps": steps}}}
    (folder / "config.json").write_text(json.dumps(content))
    lines = lambda entries: "".join(json.dumps(entry) + "\n" for entry in entries)
    (folder / "starts.jsonl").write_text(lines(starts))
    (folder / "metrics.jsonl").write_text(lines(metrics) + '{"step": 9')
    for step in checkpoints:
        (folder / "checkpoints" / str(step)).mkdir(parents=True)


def start(step, second):
    stamp = status.datetime.datetime.fromtimestamp(DAY + second).astimezone().isoformat()
    return {"time": stamp, "step": step, "hosts": 4, "devices": {"NVIDIA H100": 32}}


def line(step, second, seconds):
    numbers = {"loss": 0.5, "samples_per_second": 100.0, "seconds": seconds}
    return {"step": step, "time": DAY + second, **numbers}


def test_goodput_counts_restarts_and_lost_steps(tmp_path):
    """Two starts; steps 200 to 300 of the first were lost, so their line is no longer there: 30 +
    30 of 200 seconds count.
    """
    starts = [start(0, 0), start(200, 150)]
    write_run(tmp_path, starts, [line(200, 50, 30), line(400, 200, 30)], (200, 400))
    (found,) = status.read(str(tmp_path), now=DAY + 205)
    assert found.goodput == pytest.approx(60 / 200) and found.starts == 2
    assert (found.state, found.step, found.steps, found.checkpoint) == ("running", 400, 1000, 400)
    assert found.seconds_left == pytest.approx(600 * 30 / 200)
    assert found.hosts == 4 and found.seconds_silent == pytest.approx(5)
    text = "\n".join(status.lines(found))
    assert "step 400 of 1,000 (40.0 %)" in text and "2 (1 restarts)" in text
    assert "30.0 % of 0:03:20" in text and "4 (32 × NVIDIA H100)" in text


@pytest.mark.parametrize(
    "metrics, later, model, state",
    [
        ([], 0, False, "starting"),
        ([line(400, 200, 30)], 1000, False, "not running"),
        ([line(400, 200, 500)], 1000, False, "running"),  # a line only every 500 seconds
        ([line(1000, 200, 30)], 1e6, True, "finished"),
    ],
)
def test_states(tmp_path, metrics, later, model, state):
    write_run(tmp_path, [start(0, 0)], metrics)
    if model:
        (tmp_path / "model").mkdir()
    assert status.read(str(tmp_path), now=DAY + 200 + later)[-1].state == state


def test_status_of_what_is_not_a_run(tmp_path, capsys):
    with pytest.raises(DataError, match="not the work folder of a run"):
        status.read(str(tmp_path))
    write_run(tmp_path / "run", [start(0, 0)], [line(400, 200, 30)])
    assert app.main(["status", str(tmp_path / "run"), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["step"] == 400 and found["checkpoint"] is None


def test_config_show_says_where_entries_come_from():
    config, entries = describe.entries("sd15", ["training.batch_size=64"], "tpu")
    found = {entry.name: entry for entry in entries}
    assert found["training.batch_size"].value == 64
    assert found["training.batch_size"].source == "command line"
    assert found["training.dtype"].value == "bfloat16"
    assert found["training.dtype"].source == "auto on tpu"
    assert found["training.steps"].source == "configs/sd15.py"


def test_memory_of_the_state_is_that_of_its_numbers():
    """AdamW keeps two numbers for each of the 362,464,049 that are trained; eight devices share
    them.
    """
    config, _ = describe.entries("sd15", ["loop.sharding=zero"], "gpu")
    found = describe.memory(config, "gpu")
    assert found.whole["params"] == 4 * 362_464_049
    assert found.whole["opt"] == pytest.approx(8 * 362_464_049, rel=1e-6)
    assert found.device["params"] == found.whole["params"]
    assert found.device["opt"] == pytest.approx(found.whole["opt"] / 8, rel=0.01)
    assert found.checkpoint == found.whole["params"] + found.whole["opt"] + found.whole["ema"]


def test_doctor(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CAPHUMAN_CACHE", str(tmp_path / "cache"))
    assert app.main(["doctor", "--no-face", "--workdir", str(tmp_path / "run"), "--json"]) == 0
    found = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert {entry["state"] for entry in found.values()} <= {"ok", "warning"}
    assert found["devices"]["numbers"] == {"cpu": 8}
    assert found["collectives"]["numbers"]["bytes_per_second"] > 0
    assert not list((tmp_path / "run").iterdir()), "nothing stays behind"


def test_doctor_reports_what_fails(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert app.main(["doctor", "--no-face", "--workdir", str(tmp_path / "file" / "run")]) == 1
    assert "FAIL work folder" in capsys.readouterr().out
    for place in ("file", "file/run"):
        found = doctor._tried("x", lambda place=place: doctor._work_folder(str(tmp_path / place)))
        assert found.text == f"{tmp_path / 'file'} is not a directory; choose another --workdir"
    assert doctor._tried("x", lambda: 1 / 0).text == "ZeroDivisionError: division by zero"


def test_bucket_that_cannot_be_reached(monkeypatch):
    def no_network(self):
        raise ConnectionError("cannot resolve storage.googleapis.com")

    monkeypatch.setattr("etils.epath.gpath.PosixGPath.read_bytes", no_network)
    with pytest.raises(DataError, match="gs://b/run cannot be read: .*cannot resolve"):
        status.read("gs://b/run")
