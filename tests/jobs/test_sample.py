"""`caphuman sample`: pictures as `caphuman generate` makes them, in any company, on any devices,
however often it is interrupted.
"""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import xla_flags
from PIL import Image

from caphuman_jax.cli import app
from caphuman_jax.diffusion.sampling_params import SamplingParams
from caphuman_jax.io import metadata
from caphuman_jax.jobs import jobs
from caphuman_jax.jobs.order import Plan
from caphuman_jax.jobs.outputs import RECORD, output
from caphuman_jax.jobs.run_folder import RunFolder
from caphuman_jax.jobs.runner import Runner
from caphuman_jax.jobs.validate import Checker
from caphuman_jax.person import identity_file
from caphuman_jax.pipeline.pipeline import Pipeline
from caphuman_jax.pipeline.request import Request
from data_pipeline.records import tf_example


@pytest.fixture(scope="module")
def place(pipe, person, astronaut_file, tmp_path_factory):
    """A folder with a person as photo and identity file, one who makes NaN, and a photo without a
    face.
    """
    path = tmp_path_factory.mktemp("jobs")
    Image.open(astronaut_file).save(path / "a.png")
    identity_file.save(path / "a.identity", person, pipe.head_name)
    broken = dataclasses.replace(
        person, name="broken.png", image_tokens=person.image_tokens * np.nan
    )
    identity_file.save(path / "nan.identity", broken, pipe.head_name)
    Image.fromarray(np.full((64, 64, 3), 128, np.uint8)).save(path / "grey.png")
    return path


GOOD = [
    {
        "id": "plain",
        "reference": "a.png",
        "prompt": "a photo of a person",
        "num_images": 2,
        "seed": 5,
    },
    {
        "id": "head",
        "reference": "a.identity",
        "prompt": "a dog",
        "head": {"yaw": 20, "expression": "smile=0.8"},
        "negative_prompt": "blurry",
        "first_image": 3,
    },
    {
        "id": "photo",
        "reference": "a.identity",
        "prompt": "a dog",
        "head": {"photo": "a.png", "take": "expression", "light": "left"},
    },
    {"id": "steps", "reference": "a.identity", "prompt": "a dog", "guidance_scale": 2},
]
FAILING = [
    {"id": "nobody", "reference": "grey.png", "prompt": "x", "num_images": 2},
    {"id": "nan", "reference": "nan.identity", "prompt": "x"},
]
MADE = {("plain", 0), ("plain", 1), ("head", 3), ("photo", 0), ("steps", 0)}


def write(place, lines, name="jobs.jsonl"):
    path = place / name
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def sample(pipe, path, out, batch, kind="png"):
    """Everything of a jobs file with one device and so many pictures at a time: {(id, number):
    pixels}, and the folder.
    """
    asked = jobs.read_jobs(path, Checker(pipe.config), {})
    assert not asked.problems
    plan = Plan(asked.jobs)
    folder = RunFolder(out, {"jobs": asked.fingerprint}, plan.total, plan.units)
    told = []
    if batch != pipe.batch:
        pipe = Pipeline(pipe.config, pipe.params, pipe.graphs, pipe.record, batch)
    Runner(
        pipe,
        plan,
        folder,
        output(out, kind),
        batch,
        lambda *counts: told.append(counts),
        lambda *stage: None,
    ).run()
    assert sum(map(sum, told)) == plan.total
    folder.write_index({job.id: job.number for job in asked.jobs}.__getitem__)
    folder.close()
    read = lambda line: np.asarray(Image.open(out / line["file"])).astype(int)
    return (
        {(line["id"], line["number"]): read(line) for line in entries(out / "index.jsonl")}
        if kind != "array_record"
        else {}
    )


def entries(path):
    return [json.loads(text) for text in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def one_by_one(pipe, place, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "one"
    return sample(pipe, write(place, [*GOOD, *FAILING]), out, 1), out


def test_pictures_are_those_of_generate(pipe, place, one_by_one):
    made, out = one_by_one
    assert set(made) == MADE
    for job in GOOD:
        settings = {name: value for name, value in job.items() if name != "id"}
        head = settings.pop("head", None)
        head = (
            head if head is None or "photo" not in head else head | {"photo": place / head["photo"]}
        )
        result = pipe(**settings | {"reference": place / job["reference"], "head": head})
        for i, picture in enumerate(result.images):
            number = job.get("first_image", 0) + i
            np.testing.assert_array_equal(made[job["id"], number], picture)
            said = metadata.read_settings(out / f"{job['id']}_{number:02d}.png")
            assert said == json.loads(
                json.dumps(result.settings | {"index": number, "job": job["id"]})
            )


def test_failures_are_told_and_the_rest_is_made(one_by_one):
    failed = entries(one_by_one[1] / "failed.jsonl")
    assert [(line["id"], line["number"], line["where"]) for line in failed] == [
        ("nobody", 0, "jobs.jsonl:5"),
        ("nobody", 1, "jobs.jsonl:5"),
        ("nan", 0, "jobs.jsonl:6"),
    ]
    assert "no face" in failed[0]["reason"] and "not finite" in failed[2]["reason"]
    index = entries(one_by_one[1] / "index.jsonl")
    assert [line["id"] for line in index] == ["plain", "plain", "head", "photo", "steps"] and index[
        0
    ]["seed"] == 5


def test_a_batch_of_many_makes_the_same_in_any_company(pipe, place, one_by_one, tmp_path):
    together = sample(pipe, write(place, [*GOOD, *FAILING]), tmp_path / "together", 4)
    others = sample(pipe, write(place, [GOOD[2], FAILING[1], GOOD[0]]), tmp_path / "others", 4)
    assert set(together) == MADE and set(others) == {("photo", 0), ("plain", 0), ("plain", 1)}
    for key, picture in together.items():
        assert (
            np.abs(picture - one_by_one[0][key]).max() <= 2
        )  # another batch size is another program, which may round otherwise
        if (
            key in others
        ):  # in another place of its batch, where a CPU may round the last of several otherwise
            assert np.abs(picture - others[key]).max() <= 1


def test_a_picture_does_not_depend_on_those_beside_it(pipe, person):
    conditionings = [
        pipe.condition(pipe.request(prompt="a dog", reference=person, head=head, seed=seed))
        for head, seed in ((None, 5), ({"yaw": 20}, 0), ({"light": "left"}, 1))
    ]
    made = lambda *numbers: np.asarray(pipe.make([(conditionings[i], 0) for i in numbers])[0])
    one, other = made(0, 1, 2), made(2, 1, 0)
    np.testing.assert_array_equal(one[1], other[1])
    assert np.abs(one[0] - other[0]).max() > 0.01


def test_the_command_on_all_devices(place, one_by_one, tiny_folder, tmp_path, capsys):
    path, out = write(place, [*GOOD, *FAILING]), tmp_path / "out"

    def run(*options, jobs=path):
        code = app.main(
            ["sample", "--jobs", str(jobs), "--model", str(tiny_folder), *map(str, options)]
        )
        return code, capsys.readouterr().err.splitlines()

    code, lines = run("--check")
    assert (
        code == 0
        and lines == ["8 pictures in 6 jobs, of 2 groups of settings"]
        and not out.exists()
    )
    assert len(jax.local_devices()) == 8
    code, lines = run("--out", out)
    assert code == 3 and any("job nobody (jobs.jsonl:5) failed" in line for line in lines)
    assert any("5 of 8 are done, 3 failed" in line for line in lines)
    for line in entries(out / "index.jsonl"):
        picture = np.asarray(Image.open(out / line["file"])).astype(int)
        assert np.abs(picture - one_by_one[0][line["id"], line["number"]]).max() <= 2
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("*.png")}
    assert (
        run("--out", out)[0] == 3
        and {file.name: file.stat().st_mtime_ns for file in out.glob("*.png")} == before
    )
    code, lines = run("--out", out, "--default", "steps=1")
    assert code == 2 and "was started with other jobs" in lines[-1] and len(lines) == 2
    code, lines = run(
        "--out", out, jobs=write(place, [*GOOD, {**GOOD[0], "id": "x", "steps": 0}], "wrong.jsonl")
    )
    assert (
        code == 2
        and "wrong.jsonl:5: steps: steps must lie between 1 and" in lines[0]
        and "1 wrong entry; nothing was made" in lines[1]
    )


@pytest.mark.parametrize("count", [0, pytest.param(1000, marks=pytest.mark.slow)])
def test_any_number_of_jobs(count, place, tiny_folder, tmp_path, capsys):
    """No job is said in one line; exactly a thousand are a thousand pictures, no two alike."""
    jobs_file = place / f"jobs{count}.jsonl"
    lines = [{"reference": "a.identity", "prompt": "a dog", "seed": i} for i in range(count)]
    jobs_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = tmp_path / "out"
    command = ["sample", "--jobs", str(jobs_file), "--model", str(tiny_folder), "--out", str(out)]
    code = app.main([*command, "--default", "steps=1", "--batch", "32"])
    if count == 0:
        said = capsys.readouterr().err
        assert code == 2 and said.count("\n") == 1 and not out.exists(), said
        return
    pictures = sorted(out.glob("*.png"))
    assert code == 0 and len(pictures) == count and len(entries(out / "index.jsonl")) == count
    with_seeds = {metadata.read_settings(picture)["seed"] for picture in pictures}
    assert with_seeds == set(range(count))


def test_pictures_that_vanish_after_the_end_are_made_again_by_the_command(
    place, tiny_folder, tmp_path, capsys
):
    path, out = write(place, GOOD[:1]), tmp_path / "out"
    command = ["sample", "--model", str(tiny_folder), "--jobs", str(path), "--out", str(out)]
    assert app.main(command) == 0
    pictures = {file: file.read_bytes() for file in out.glob("*.png")}
    first = next(iter(pictures))
    changed = bytearray(pictures[first])
    changed[len(changed) // 2] ^= 1
    for damage in (lambda: first.unlink(), lambda: first.write_bytes(changed)):
        damage()
        capsys.readouterr()
        assert app.main(command) == 0
        assert "missing or were changed; they are made again" in capsys.readouterr().err
        assert {file: file.read_bytes() for file in out.glob("*.png")} == pictures
    assert app.main(command) == 0 and "made again" not in capsys.readouterr().err


def test_missing_and_damaged_pictures_are_made_again_and_others_are_not(
    pipe, place, one_by_one, tmp_path
):
    path, out = write(place, GOOD), tmp_path / "out"
    made = sample(pipe, path, out, 1)
    for record in (
        out / ".sample" / "units"
    ).iterdir():  # as if it had been killed before a unit was done
        record.unlink()
    before = {file.name: file.stat().st_mtime_ns for file in out.glob("*.png")}
    (out / "plain_01.png").unlink()
    (out / "photo_00.png").write_bytes((out / "photo_00.png").read_bytes()[:3000])
    again = sample(pipe, path, out, 1)
    changed = {
        file.name for file in out.glob("*.png") if file.stat().st_mtime_ns != before[file.name]
    }
    assert changed == {"plain_01.png", "photo_00.png"}
    for key, picture in made.items():
        np.testing.assert_array_equal(picture, again[key])
        np.testing.assert_array_equal(picture, one_by_one[0][key])


def test_array_records_and_jpeg(pipe, place, one_by_one, tmp_path):
    from array_record.python.array_record_module import ArrayRecordReader

    path = write(place, GOOD)
    sample(pipe, path, tmp_path / "records", 1, "array_record")
    index = entries(tmp_path / "records" / "index.jsonl")
    assert {(line["id"], line["number"]) for line in index} == MADE
    assert all(
        file.suffix in (".array_record", ".jsonl")
        for file in (tmp_path / "records").iterdir()
        if file.name != ".sample"
    )
    for line in index:
        reader = ArrayRecordReader(str(tmp_path / "records" / line["file"]))
        record = tf_example.decode(RECORD, reader.read([line["record"]])[0])
        reader.close()
        name = f"{line['id']}_{line['number']:02d}.png"
        assert (
            bytes(record["picture"]) == (one_by_one[1] / name).read_bytes()
            and record["id"] == line["id"]
            and record["number"] == line["number"]
        )
        assert json.loads(record["settings"]) == metadata.read_settings(one_by_one[1] / name)

    sound = lambda line, deep: output(tmp_path / "records", "array_record").sound(line, deep)
    assert all(sound(line, True) for line in index)
    file = tmp_path / "records" / index[0]["file"]
    whole = file.read_bytes()
    middle = len(whole) // 2
    for damaged in (whole[:middle], whole[:middle] + b"\0\1\2" + whole[middle + 3 :], b"x", b""):
        file.write_bytes(damaged)
        lines = [line for line in index if line["file"] == file.name]
        assert not all(sound(line, True) for line in lines)
        assert all(sound(line, False) == bool(damaged) for line in lines)

    sample(pipe, path, tmp_path / "jpeg", 1, "jpeg")
    with Image.open(tmp_path / "jpeg" / "plain_00.jpg") as picture:
        assert picture.format == "JPEG" and metadata.DIGITAL_SOURCE.encode() in picture.info["xmp"]
        assert json.loads(picture.info["comment"])["job"] == "plain"
        assert np.abs(np.asarray(picture).astype(int) - one_by_one[0]["plain", 0]).mean() < 6


class SlowWriter:
    """An output that takes longer than making does, and counts what has been made and
    not written.
    """

    def __init__(self):
        self.made = self.written = self.most = 0

    def there(self, picture):
        return None

    def store(self, picture, pixels, settings):
        self.most = max(self.most, self.made - self.written)
        time.sleep(0.01)
        self.written += 1
        return {"file": picture.job.id}, None

    def finish(self, unit, units, lines, payloads):
        return lines


def test_pictures_do_not_pile_up_before_a_slow_disk(tmp_path):
    writer, batch = SlowWriter(), 2
    many = [
        jobs.Job(f"{i}", "", i, Request("", SamplingParams(num_images=10), ())) for i in range(20)
    ]

    class Instant:
        def make(self, rows, progress):
            writer.made += len(rows)
            return np.zeros((len(rows), 4, 4, 3), np.float32), None

        def detailed(self, rows, images, progress):
            return images

    Instant.batch = batch
    plan = Plan(many)
    folder = RunFolder(tmp_path / "out", {}, plan.total, plan.units)
    runner = Runner(
        Instant(), plan, folder, writer, batch, lambda *counts: None, lambda *stage: None
    )
    runner._conditionings = SimpleNamespace(start=lambda job: None)
    runner._prepared = lambda rows: (
        dataclasses.replace(
            row,
            conditioning=SimpleNamespace(batch_key=0, settings={}, finish=lambda image: image),
        )
        for row in rows
    )
    runner._hints = lambda conditionings: conditionings
    runner.run()
    assert folder.counts() == (200, 0) and writer.written == 200
    assert (
        writer.most <= 2 * batch + 2 * 16 + 2 * batch
    )  # the room for pictures that wait, at its largest, and two batches
    folder.close()


@pytest.mark.slow
def test_weights_divided_between_devices_make_the_same(
    place, one_by_one, tiny_folder, tmp_path, monkeypatch
):
    from caphuman_jax.runtime import sharding

    monkeypatch.setattr(sharding, "SMALL", 2**8)
    path = write(place, GOOD)
    assert (
        app.main(
            [
                "sample",
                "--jobs",
                str(path),
                "--model",
                str(tiny_folder),
                "--fsdp",
                "--out",
                str(tmp_path),
            ]
        )
        == 0
    )
    for line in entries(tmp_path / "index.jsonl"):
        picture = np.asarray(Image.open(tmp_path / line["file"])).astype(int)
        assert np.abs(picture - one_by_one[0][line["id"], line["number"]]).max() <= 2


MANY = [
    {
        "id": f"j{i}",
        "reference": "a.identity",
        "prompt": ("a dog", "a cat")[i % 2],
        "head": {"yaw": i % 3},
        "seed": i,
        "num_images": 3,
        "steps": 20,
    }
    for i in range(8)
]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png", "array_record"])
def test_two_processes_one_of_them_killed_and_started_again(place, tiny_folder, tmp_path, kind):
    path = write(place, MANY, "many.jsonl")
    environment = os.environ | {"XLA_FLAGS": xla_flags.ONE_DEVICE, "JAX_PLATFORMS": "cpu"}

    def start(out):
        command = [
            sys.executable,
            "-m",
            "caphuman_jax.cli",
            "sample",
            "--jobs",
            str(path),
            "--model",
            str(tiny_folder),
            "--format",
            kind,
            "--out",
            str(out),
        ]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    alone = start(tmp_path / "alone")
    assert alone.communicate()[0] and alone.returncode == 0
    out = tmp_path / "out"
    first, second = start(out), start(out)
    done = lambda: len(list((out / ".sample" / "units").glob("*.json"))) if out.exists() else 0
    wait_until(lambda: done() >= 4, (first, second))
    first.send_signal(signal.SIGKILL)
    first.wait()
    first.stdout.close()
    killed_at = done()
    assert killed_at < 24
    third = start(out)
    said = [process.communicate()[0] for process in (second, third)]
    assert second.returncode == third.returncode == 0, said
    ending = "png" if kind == "png" else "array_record"
    names = sorted(file.name for file in out.iterdir())
    assert names == sorted(file.name for file in (tmp_path / "alone").iterdir())
    assert len([name for name in names if name.endswith(ending)]) == 24
    for name in names:
        if name != ".sample":
            assert (out / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    keys = [(line["id"], line["number"]) for line in entries(out / "index.jsonl")]
    assert keys == [(f"j{i}", n) for i in range(8) for n in range(3)]


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_made_and_says_how_to_go_on(place, tiny_folder, tmp_path):
    path, out = write(place, MANY, "many.jsonl"), tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "caphuman_jax.cli",
        "sample",
        "--jobs",
        str(path),
        "--model",
        str(tiny_folder),
        "--out",
        str(out),
    ]
    process = subprocess.Popen(
        command,
        env=os.environ | {"XLA_FLAGS": xla_flags.ONE_DEVICE},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_until(lambda: len(list(out.glob("*.png"))) >= 4, (process,))
    process.send_signal(signal.SIGINT)
    said = process.communicate()[0]
    assert (
        process.returncode == 130
        and "rerun the same command to resume" in said
        and "Traceback" not in said
    )
    assert 4 <= len(entries(out / "index.jsonl")) < 24 and not list(out.glob(".*.part"))
    again = subprocess.run(
        command,
        env=os.environ | {"XLA_FLAGS": xla_flags.ONE_DEVICE},
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0 and len(entries(out / "index.jsonl")) == 24


def wait_until(there, processes, seconds=240):
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        for process in processes:
            assert process.poll() is None, process.stdout.read()
        time.sleep(0.1)
