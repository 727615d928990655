"""The state of a run: units claimed once, freed by the end of a process, done once; the index."""

import hashlib
import json
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from caphuman_jax.errors import SettingError
from caphuman_jax.jobs import run_folder
from caphuman_jax.jobs.outputs import Files, Shards
from caphuman_jax.jobs.run_folder import RunFolder

UNITS = 6


def line(unit):
    return {"id": f"job{unit}", "number": 0, "file": f"job{unit}_00.png"}


@pytest.fixture
def open_folder(tmp_path):
    opened = []

    def again(facts=None, name="out"):
        opened.append(RunFolder(tmp_path / name, facts or {"jobs": "x"}, UNITS, UNITS))
        return opened[-1]

    yield again
    for one in opened:
        one.close()


def test_all_units_once_and_then_the_index(open_folder, tmp_path):
    run, seen = open_folder(), []
    for unit in run.claims():
        seen.append(unit)
        assert run.commit(
            unit,
            {
                "made": [line(unit)] if unit != 2 else [],
                "failed": [] if unit != 2 else [line(unit) | {"reason": "no"}],
            },
        )
        assert not run.commit(unit, {"made": [], "failed": []})  # nobody can say it twice
    assert seen == list(range(UNITS)) and run.counts() == (5, 1)
    assert run.write_index(lambda name: -int(name[3:])) == (5, 1)
    read = lambda name: [
        json.loads(text) for text in (tmp_path / "out" / name).read_text().splitlines()
    ]
    assert [entry["id"] for entry in read("index.jsonl")] == [
        "job5",
        "job4",
        "job3",
        "job1",
        "job0",
    ] and read("failed.jsonl")[0]["reason"] == "no"
    assert list(open_folder().claims()) == []
    run.reopen_failed()
    assert list(run.claims()) == [2]
    (tmp_path / "out" / ".job0_00.png.abc.part").write_text("")
    run.tidy()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        ".sample",
        "failed.jsonl",
        "index.jsonl",
    ]


HOLDER = """
import sys
from pathlib import Path
from caphuman_jax.jobs.outputs import Files, Shards
from caphuman_jax.jobs.run_folder import RunFolder
run = RunFolder(Path(sys.argv[1]), {"jobs": "x"}, 6, 6)
claims = run.claims()
print(*(next(claims) for _ in range(int(sys.argv[2]))), flush=True)
sys.stdin.read()
"""


def test_what_another_process_holds_is_free_when_it_is_killed(open_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "_WAIT", 0.01)
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "out"), "2"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "0 1\n"
        run, mine = open_folder(), []
        claims = run.claims()
        for unit in claims:
            if unit is None:
                break
            mine.append(unit)
            run.commit(unit, {"made": [line(unit)], "failed": []})
        assert mine[0] == 4 and sorted(mine) == [2, 3, 4, 5]  # begins in the middle of what is free
        assert next(claims) is None
        other.kill()
        other.wait()
        rest = []
        for unit in claims:
            if unit is not None:
                rest.append(unit)
                run.commit(unit, {"made": [line(unit)], "failed": []})
        assert rest == [0, 1] and run.counts() == (UNITS, 0)


def test_shares_are_parts_of_all(open_folder):
    run = open_folder()
    found = [unit for i in range(4) for unit in _until_waiting(run, (i, 4))]
    assert found == list(range(UNITS))


def _until_waiting(run, share):
    for unit in run.claims(share):
        run.commit(unit, {"made": [], "failed": []})
        yield unit


def test_a_folder_of_another_run_or_of_other_pictures_is_refused(open_folder, tmp_path):
    open_folder({"jobs": "x", "weights": {"unet": "1"}})
    open_folder({"jobs": "x", "weights": {"unet": "1"}})
    with pytest.raises(SettingError, match="out was started with other weights; use the same"):
        open_folder({"jobs": "x", "weights": {"unet": "2"}})
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "mine.png").write_bytes(b"")
    with pytest.raises(SettingError, match="holds mine.png and no run"):
        open_folder(name="pictures")
    assert [path.name for path in (tmp_path / "pictures").iterdir()] == ["mine.png"]
    (tmp_path / "file").write_text("")
    with pytest.raises(SettingError, match="not a directory"):
        open_folder(name="file")


def test_units_whose_pictures_are_missing_or_changed_are_done_again(open_folder, tmp_path):
    run, out = open_folder(), tmp_path / "out"
    files = Files(out, "png")
    for unit in run.claims():
        data = f"picture {unit}".encode()
        (out / f"job{unit}_00.png").write_bytes(data)
        made = [line(unit) | {"sha256": hashlib.sha256(data).hexdigest()}]
        run.commit(unit, {"made": made, "failed": []})
    for deep in (True, False):
        assert run.reopen_changed(lambda one, deep=deep: files.sound(one, deep)) == 0
    (out / "job1_00.png").unlink()
    (out / "job2_00.png").write_bytes(b"")
    (out / "job4_00.png").write_bytes(b"picture 5")
    assert run.reopen_changed(lambda one: files.sound(one, False)) == 2
    assert run.reopen_changed(lambda one: files.sound(one, True)) == 1
    assert sorted(run.claims()) == [1, 2, 4] and not (out / "job4_00.png").exists()
    assert not Shards(out).sound({"file": "pictures-0.array_record"}, True)


def test_a_folder_that_was_removed_is_not_made_again(tmp_path):
    """It would hold pictures and no run, and the same command would refuse it."""
    files = Files(tmp_path / "out", "png")
    picture = SimpleNamespace(job=SimpleNamespace(id="a"), number=0)
    settings = {
        "prompt": "",
        "negative_prompt": "",
        "seed": 0,
        "index": 0,
        "sampler": "ddim",
        "steps": 1,
    }
    settings |= {"guidance_scale": 1, "size": [4, 4], "model": "tiny", "people": []}
    settings |= {"control_scale": 1, "identity_max_timestep": 0, "version": "0"}
    with pytest.raises(FileNotFoundError):
        files.store(picture, np.zeros((4, 4, 3), np.uint8), settings)
    assert not (tmp_path / "out").exists()
