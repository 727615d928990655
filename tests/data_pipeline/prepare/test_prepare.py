import hashlib
import io
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cheap_measurer import SECONDS, CheapMeasurer, CheapSettings, write_photos

from caphuman_jax.errors import DataError, SettingError
from data_pipeline.prepare import beam_pipeline, prepare, workdir
from data_pipeline.prepare.settings import QualityThresholds

TESTS = Path(__file__).parents[2]


@pytest.fixture
def in_process(monkeypatch):
    """The pipeline in this process, without workers."""
    runs = []
    monkeypatch.setattr(beam_pipeline, "one_thread", lambda: None)
    monkeypatch.setattr(
        prepare,
        "_run_pipeline",
        lambda job, listing, arguments, stream: runs.append(job) or beam_pipeline.run(job, []),
    )
    return runs


def _photos(folder, count=40):
    return write_photos(
        folder, {f"{i:03d}.jpg": b"bad" if i % 9 == 4 else b"photo %d" % i for i in range(count)}
    )


def _prepare(photos, out, settings=None, **options):
    said = io.StringIO()
    options.setdefault("make_measurer", CheapMeasurer)
    return prepare.prepare(
        str(photos), str(out), settings or CheapSettings(), stream=said, **options
    ), said.getvalue()


def _contents(out):
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(Path(out).rglob("*"))
        if path.is_file()
    }


def test_worker_processes_make_the_same_files_as_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    photos = _photos(tmp_path / "photos", 3 * workdir.CHUNK)
    manifest, said = _prepare(photos, tmp_path / "processes", workers=2)
    assert f"{manifest['kept']} of 96 photos kept: " in said and re.search(
        r"11  no_face +shows no face\n", said
    )
    assert not list((tmp_path / "processes").glob(".work*"))
    monkeypatch.setattr(beam_pipeline, "one_thread", lambda: None)
    monkeypatch.setattr(prepare, "_run_pipeline", lambda job, *unused: beam_pipeline.run(job, []))
    assert _prepare(photos, tmp_path / "one")[0] == manifest
    assert _contents(tmp_path / "processes") == _contents(tmp_path / "one")


def test_a_finished_folder_is_left_as_it_is(tmp_path, in_process):
    photos, out = _photos(tmp_path / "photos"), tmp_path / "out"
    manifest, _ = _prepare(photos, out)
    before = _contents(out)
    again, said = _prepare(photos, out)
    assert (
        again == manifest
        and "is complete: " in said
        and f"{manifest['splits']['train']['records']} in train" in said
    )
    for change, message in (
        (
            {"settings": CheapSettings(size=24)},
            r"records of other settings \(size 16, now 24\); choose another --out, or remove ",
        ),
        (
            {"settings": CheapSettings(thresholds=QualityThresholds(max_yaw=20))},
            r"\(max_yaw 60.0, now 20\)",
        ),
        ({"file_format": "tfrecord"}, "holds array_record files, not tfrecord"),
        ({"limit": 39}, "holds records of 40 photos of .*photos, but .* now has 39"),
    ):
        with pytest.raises(DataError, match=message):
            _prepare(photos, out, **change)
    (tmp_path / "photos" / "new.jpg").write_bytes(b"new")
    with pytest.raises(
        DataError,
        match="now has 41, or others, or other captions or persons; choose another --out, or "
        "remove",
    ):
        _prepare(photos, out)
    assert _contents(out) == before and len(in_process) == 1


def test_unfinished_work_is_of_its_settings_and_photos(tmp_path, monkeypatch):
    photos, out = _photos(tmp_path / "photos"), tmp_path / "out"
    monkeypatch.setattr(prepare, "_run_pipeline", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        _prepare(photos, out)
    with pytest.raises(
        DataError,
        match=r"is unfinished work with other settings \(size 16, now 24\); give those "
        r"settings again to resume it",
    ):
        _prepare(photos, out, CheapSettings(size=24))
    (tmp_path / "photos" / "000.jpg").unlink()
    with pytest.raises(
        DataError,
        match=r"has changed since this work began, when it had 40 photos; remove .*\.work-\w+ to "
        r"start again",
    ):
        _prepare(photos, out)


def test_photos_that_were_moved_are_found_again(tmp_path, in_process, monkeypatch):
    photos, out = _photos(tmp_path / "photos"), tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(prepare, "_run_pipeline", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            _prepare(photos, out)
    Path(photos).rename(tmp_path / "moved")
    assert _prepare(tmp_path / "moved", out)[0]["dropped"] == {"no_face": 4}


def test_two_at_a_time_in_one_folder_are_refused(tmp_path, monkeypatch):
    photos, out = _photos(tmp_path / "photos"), tmp_path / "out"
    monkeypatch.setattr(prepare, "_run_pipeline", lambda *args: _prepare(photos, out))
    with pytest.raises(
        DataError, match="another caphuman prepare is running in .*out; wait for it, or stop it"
    ):
        _prepare(photos, out)


def test_tfrecord_and_limit_and_keep_work(tmp_path, in_process):
    manifest, _ = _prepare(
        _photos(tmp_path / "photos"),
        tmp_path / "out",
        CheapSettings(hold_out=0),
        file_format="tfrecord",
        limit=7,
        keep_work=True,
    )
    assert (manifest["photos"], manifest["kept"], manifest["file_format"]) == (7, 6, "tfrecord")
    assert (
        tmp_path / "out/caphuman_records/1.0.0/caphuman_records-train.tfrecord-00000-of-00001"
    ).exists()
    assert list((tmp_path / "out").glob(".work-*/chunks/0000/0000000.index"))


def test_what_is_not_installed_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(
        prepare.importlib.util, "find_spec", lambda name: None if name == "array_record" else True
    )
    with pytest.raises(
        DataError,
        match=r"prepared with array_record, which is not installed: pip install '.\[data\]'",
    ):
        _prepare(_photos(tmp_path / "photos"), tmp_path / "out")


def test_arguments_for_beam():
    local = prepare._arguments("local", 8, 3, ["--x=1"])
    assert local == ["--direct_running_mode=multi_processing", "--direct_num_workers=3", "--x=1"]
    assert prepare._arguments("FlinkRunner", None, 3, ["--x=1"]) == [
        "--runner=FlinkRunner",
        "--x=1",
    ]
    with pytest.raises(SettingError, match="--workers is for this machine"):
        prepare._arguments("FlinkRunner", 2, 3, [])


_RUN = """
import sys
from caphuman_jax.cli import app
from cheap_measurer import CheapMeasurer, CheapSettings
from data_pipeline.prepare.prepare import prepare
settings, workers = CheapSettings(hold_out=4), int(sys.argv[3])
def work(_):
    prepare(*sys.argv[1:3], settings, make_measurer=CheapMeasurer, workers=workers)
app._dispatch = work
sys.exit(app.main([]))
"""


def _start(photos, out, seconds=0.0, workers=2):
    environment = {**os.environ, "PYTHONPATH": str(TESTS), SECONDS: str(seconds)}
    return subprocess.Popen(
        [sys.executable, "-c", _RUN, str(photos), str(out), str(workers)],
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for(condition, process, seconds=300):
    until = time.monotonic() + seconds
    while not condition() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)


def _work_done(out):
    """What has been written, of any stage; changes with every file."""
    return {
        (path, path.stat().st_mtime_ns)
        for part in ("chunks", "plan", "shards")
        for path in Path(out).glob(f".work-*/{part}/**/[!.]*.*")
    }


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_same_files(tmp_path):
    photos = _photos(tmp_path / "photos", 20 * workdir.CHUNK)
    with _start(photos, tmp_path / "whole", workers=1) as whole:
        assert whole.wait(600) == 0, whole.stderr.read()
    moments, out, kills, stages = random.Random(7), tmp_path / "killed", 0, set()
    while kills < 6 and not (out / "caphuman_records").exists():
        before = _work_done(out)
        with _start(photos, out, seconds=0.02, workers=1 + kills % 2) as run:
            _wait_for(
                lambda: _work_done(out) != before, run
            )  # that it is at work, and not at importing
            time.sleep(moments.uniform(0, 0.8))
            os.killpg(
                run.pid, signal.SIGKILL
            )  # the pipeline and its workers, a group of their own, notice and end
        kills += 1
        stages |= {path.parts[len(out.parts) + 1] for path, _ in _work_done(out) - before}
    assert kills >= 4 and "chunks" in stages
    with _start(photos, out) as last:
        assert last.wait(600) == 0, last.stderr.read()
    assert _contents(out) == _contents(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    "number, code, told", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 75, "terminated")]
)
def test_interrupted_it_leaves_no_process_and_goes_on(number, code, told, tmp_path):
    """As the command: one line and its exit code."""
    photos, out = _photos(tmp_path / "photos", 4 * workdir.CHUNK), tmp_path / "out"
    run = _start(photos, out, seconds=0.05)
    _wait_for(lambda: _work_done(out), run)
    run.send_signal(number)
    _, said = run.communicate(timeout=120)
    assert run.returncode == code and "Traceback" not in said
    assert said.endswith(f"\ncaphuman: {told}; rerun the same command to resume\n")
    measured = len(list(out.glob(".work-*/chunks/*/*.index")))
    assert 0 < measured < 4
    again = _start(photos, out)
    _, said = again.communicate(timeout=600)
    assert (
        again.returncode == 0
        and re.search(r"resuming: \d+ of 128 photos are done", said)
        and "of 128 photos kept" in said
    )


@pytest.mark.slow
def test_a_worker_that_is_ended_is_told_of(tmp_path):
    photos, out = _photos(tmp_path / "photos", 4 * workdir.CHUNK), tmp_path / "out"
    run = _start(photos, out, seconds=0.05)
    _wait_for(lambda: _work_done(out), run)
    for place in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (
                place.joinpath("cmdline").read_bytes(),
                place.joinpath("environ").read_bytes(),
            )
        except OSError:
            continue
        if (
            b"sdk_worker_main" in command
            and b"-c" not in command.split(b"\0")
            and str(TESTS).encode() in environment
            and _ancestor(int(place.name), run.pid)
        ):
            os.kill(int(place.name), signal.SIGKILL)
            break
    _, said = run.communicate(timeout=300)
    assert (
        run.returncode
        and "a worker was killed, most likely for lack of memory; run the same command again "
        "with fewer --workers"
        in said
    )


def _ancestor(process, wanted):
    while process > 1:
        if process == wanted:
            return True
        process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return False
