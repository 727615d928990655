"""The command: options, errors in one line that leave nothing behind, and what it writes."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import xla_flags
from PIL import Image

from caphuman_jax.cli import app
from caphuman_jax.errors import SettingError
from caphuman_jax.head import editing
from caphuman_jax.io import metadata
from caphuman_jax.io.picture import PictureWriter
from caphuman_jax.pipeline import loading
from caphuman_jax.runtime import platforms


@pytest.fixture
def generate(tiny_folder, astronaut_file, tmp_path, capsys):
    """Run `caphuman generate` in-process: (exit code, lines of stderr); pictures go to
    tmp_path/out.
    """

    def run(*options, reference=astronaut_file, prompt="a photo", out=tmp_path / "out"):
        arguments = ["generate", "--model", str(tiny_folder)] + (
            [] if reference is None else ["--reference", str(reference)]
        )
        arguments += ["--out", str(out), *map(str, options)]
        if prompt is not None:
            arguments += ["--prompt", prompt]
        try:
            code = app.main(arguments)
        except SystemExit as stop:
            code = stop.code
        run.printed, errors = capsys.readouterr()
        return code, errors.splitlines()

    run.model = str(tiny_folder)
    return run


def test_pictures_their_record_and_repeating_one(generate, tmp_path, astronaut_file):
    code, lines = generate(
        "--num-images",
        2,
        "--seed",
        7,
        "--yaw",
        20,
        "--expression",
        "smile=0.8,jawOpen=0.1",
        "--light",
        "-1,0.2,0.4,0.6",
        "--head-from",
        astronaut_file,
        "--take",
        "expression",
        "--size",
        "64x64",
        "--guidance-interval",
        900,
        0,
        "--cache-interval",
        2,
    )
    assert code == 0, lines
    out = tmp_path / "out"
    assert generate.printed.split() == [
        str(out / name) for name in ("picture_00.png", "picture_01.png", "sheet.png")
    ]
    assert sorted(path.name for path in out.iterdir()) == [
        "picture_00.png",
        "picture_01.png",
        "sheet.png",
    ]
    made = metadata.read_settings(out / "picture_01.png")
    assert (
        made["seed"] == 7
        and made["index"] == 1
        and made["people"][0]["asked_head"]["take"] == ["expression"]
        and made["size"] == [64, 64]
    )
    assert made["guidance_interval"] == [0, 900] and made["cache_interval"] == 2
    assert (
        any(line.startswith("preparing the sampler (compiled once") for line in lines)
        and "sampling" in lines[-1]
        and "compile" in lines[-1]
    )

    code, lines = generate(
        "--repeat", out / "picture_01.png", "--head-from", astronaut_file, prompt=None
    )
    assert code == 0, lines
    assert not any("not the one" in line for line in lines)
    np.testing.assert_array_equal(
        np.asarray(Image.open(out / "picture_02.png")),
        np.asarray(Image.open(out / "picture_01.png")),
    )
    code, lines = generate("--repeat", out / "picture_01.png", prompt=None)
    assert code == 2 and "name that photo with --head-from" in lines[-1]


def test_several_faces_are_a_notice(generate, two_faces, tmp_path):
    Image.fromarray(two_faces).save(tmp_path / "two.png")
    code, lines = generate(reference=tmp_path / "two.png")
    assert code == 0 and any("notice" in line and "2 faces" in line for line in lines)
    code, lines = generate("--face", 1, reference=tmp_path / "two.png")
    assert code == 0 and not any("2 faces" in line for line in lines)


def test_lora_from_the_command_line(generate, tmp_path):
    from safetensors.numpy import save_file

    layer, file = (
        "lora_unet_middle_block_1_transformer_blocks_0_attn1_to_q",
        tmp_path / "style.safetensors",
    )
    save_file(
        {
            f"{layer}.lora_down.weight": np.ones((1, 32), np.float32),
            f"{layer}.lora_up.weight": np.ones((32, 1), np.float32),
        },
        file,
    )
    code, lines = generate("--lora", f"{file}:0.5")
    assert code == 0, lines
    (used,) = metadata.read_settings(tmp_path / "out" / "picture_00.png")["loras"]
    assert used["name"] == "style.safetensors" and used["strength"] == 0.5
    code, lines = generate("--lora", tmp_path / "gone.safetensors")
    assert code == 2 and "gone.safetensors" in lines[-1]


def test_numbers_of_caphuman_head(generate, tmp_path):
    """`--numbers` takes what `caphuman head` writes; the person stays that of the reference."""
    file = tmp_path / "head.json"
    record = {
        "model": "anny",
        "identity": [3.0],
        "fit": {},
        "yaw": 12.0,
        "light": "left",
        "pitch": 3,
    }
    file.write_text(json.dumps(record | {"expression": {"jawOpen": 0.5}}))
    code, lines = generate("--numbers", file, "--pitch", 5)
    assert code == 0, lines
    (shown,) = metadata.read_settings(tmp_path / "out" / "picture_00.png")["people"]
    assert shown["asked_head"] == {
        "yaw": 12.0,
        "pitch": 5.0,
        "expression": {"jawOpen": 0.5},
        "light": "left",
    }
    code, lines = generate("--head-from", file)
    assert code == 2 and "give the numbers of a head with --numbers" in lines[-1]
    file.write_text('{"x": 0.4, "jawOpen": 0.25}')
    code, lines = generate("--numbers", file, "--overwrite")
    assert code == 0, lines
    (shown,) = metadata.read_settings(tmp_path / "out" / "picture_00.png")["people"]
    assert shown["asked_head"] == {"position": [0.4, None, None], "weights": {"jawOpen": 0.25}}
    assert shown["head"]["expression"]["jawOpen"] == 0.25
    file.write_text('{"yaw": 12, "smirk": 1}')
    code, lines = generate("--numbers", file)
    assert code == 2 and "a head has no 'smirk'" in lines[-1]


BAD = {
    "no face": (["--reference", "{none}"], "no face found"),
    "no face in the head photo": (["--head-from", "{none}"], "none.png"),
    "missing file": (["--reference", "gone.jpg"], "does not exist"),
    "damaged": (["--reference", "{damaged}"], "damaged"),
    "no picture": (["--reference", "{text}"], "format"),
    "expression": (["--expression", "smirk=1"], "smirk"),
    "weight": (["--expression", "smile=2"], "between 0 and 1"),
    "NaN": (["--yaw", "nan"], "yaw"),
    "yaw": (["--yaw", "200"], "between -90 and 90"),
    "no number": (["--yaw", "left"], "--yaw"),
    "light": (["--light", "blue"], "blue"),
    "position": (["--position", "1,a,2"], "--position"),
    "size": (["--size", "65"], "multiples of 8"),
    "size text": (["--size", "big"], "WIDTHxHEIGHT"),
    "model": (["--model", "nobody"], "nobody"),
    "steps": (["--steps", "0"], "steps"),
    "num_images": (["--num-images", "0"], "num_images"),
    "face": (["--face", "3"], "no face 3"),
    "take": (["--take", "pose"], "--head-from"),
    "batch": (["--batch", "0"], "batch"),
    "large batch": (["--batch", "5000"], "between 1 and 4096"),
    "digits": (["--batch", "9" * 400], "--batch: a whole number has at most 18 digits, not 400"),
    "take what": (["--head-from", "{none}", "--take", "nose"], "nose"),
    "option": (["--color"], "color"),
    "repeat": (["--repeat", "{none}"], "--prompt"),
    "sampler": (["--sampler", "magic"], "dpmpp_2m"),
    "control": (["--control", "pose={none}"], "no ControlNet"),
    "control form": (["--control", "pose"], "NAME=PICTURE"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(
    case, generate, astronaut, astronaut_file, tmp_path
):
    options, told = BAD[case]
    files = {name: tmp_path / f"{name}.png" for name in ("none", "damaged", "text")}
    Image.fromarray(astronaut[250:]).save(files["none"])
    files["damaged"].write_bytes(astronaut_file.read_bytes()[:20_000])
    files["text"].write_text("no picture")
    code, lines = generate(*(option.format(**files) for option in options))
    errors = [line for line in lines if line.startswith("caphuman: error: ")]
    assert (
        code == 2
        and errors == lines[-1:]
        and told in errors[0]
        and "Traceback" not in "".join(lines)
    )
    assert not (tmp_path / "out").exists() and generate.printed == ""
    if case == "yaw":  # a number is checked before the photo
        assert not any("analyzing" in line for line in lines)


def test_other_bad_calls(generate, capsys):
    code, lines = generate(prompt=None)
    assert code == 2 and "--prompt is required" in lines[-1]
    code, lines = generate(out="/dev/null/out")
    assert code == 2 and "cannot be written" in lines[-1]
    with pytest.raises(SystemExit) as stop:
        app.main(["fly"])
    assert stop.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1
    assert app.main([]) == 0 and "generate" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        app.main(["generate", "--expresion", "smile=1"])
    assert capsys.readouterr().err.rstrip().endswith("see caphuman generate --help")
    for arguments, told in (
        (["generate"], "--prompt"),
        (["generate", "--prompt", "x"], "--reference"),
    ):
        assert app.main(arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert told in line


def test_several_people_from_the_command_line(generate, tmp_path, astronaut_file, capsys):
    file = tmp_path / "her.identity"
    assert (
        app.main(
            [
                "identity",
                "--reference",
                str(astronaut_file),
                "--model",
                generate.model,
                "--out",
                str(file),
            ]
        )
        == 0
    )
    assert (
        app.main(
            [
                "identity",
                "--reference",
                str(astronaut_file),
                "--model",
                generate.model,
                "--out",
                str(file),
            ]
        )
        == 2
    )
    assert "exists" in capsys.readouterr().err
    people = [
        "--person",
        f"ref={astronaut_file},yaw=15,expression=smile:0.8+jawOpen:0.1,light=left:0.5",
        "--person",
        f"ref={file},position=0.7/0.5/0.3",
    ]
    code, lines = generate(*people, reference=None)
    assert code == 0, lines
    picture = tmp_path / "out" / "picture_00.png"
    first, second = metadata.read_settings(picture)["people"]
    assert (
        first["asked_head"]["expression"] == "smile=0.8,jawOpen=0.1"
        and first["asked_head"]["position"][0] == 0.25
    )
    assert (
        second["asked_head"]["position"] == [0.7, 0.5, 0.3]
        and first["reference"]["sha256"] == second["reference"]["sha256"]
    )
    code, lines = generate(
        "--repeat",
        picture,
        "--person",
        f"ref={astronaut_file}",
        "--person",
        f"ref={file}",
        prompt=None,
        reference=None,
    )
    assert code == 0, lines
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "out" / "picture_01.png")), np.asarray(Image.open(picture))
    )
    for options, told in (
        ([*people, "--yaw", "3"], "leave out --yaw"),
        (["--person", "yaw=3"], "ref=PHOTO"),
        (["--person", "me.jpg"], "ref=me.jpg"),
        (["--person", f"ref={file},tilt=3"], "tilt"),
        (["--person", f"ref={file},yaw=left"], "yaw"),
    ):
        code, lines = generate(*options, reference=None)
        assert code == 2 and told in lines[-1], lines


@pytest.mark.parametrize(
    "number, code, told", [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 75, "terminated")]
)
def test_a_signal_keeps_what_is_made(number, code, told, generate, tmp_path, monkeypatch):
    write = PictureWriter.write

    def third_then_signal(self, image, settings):
        path = write(self, image, settings)
        if len(self.paths) == 3:
            os.kill(os.getpid(), number)
        return path

    monkeypatch.setattr(PictureWriter, "write", third_then_signal)
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    found, lines = generate("--num-images", 10_000)
    out = tmp_path / "out"
    assert found == code and lines[-1] == f"caphuman: {told}; 3 pictures are in {out}"
    assert sorted(path.name for path in out.iterdir()) == [f"picture_{i:02d}.png" for i in range(3)]
    assert metadata.read_settings(out / "picture_02.png")["index"] == 2
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize(("given", "kept"), [(None, "false"), ("true", "true")])
def test_memory_of_a_gpu_is_taken_as_needed(given, kept, generate, monkeypatch):
    """Unless the user says otherwise; decided before the model is loaded."""
    name, seen = "XLA_PYTHON_CLIENT_PREALLOCATE", []
    monkeypatch.setenv(name, given or "")
    if given is None:
        monkeypatch.delenv(name)

    def load(*_, **__):
        seen.append(os.environ[name])
        raise SettingError("stopped here")

    monkeypatch.setattr(loading, "load", load)
    monkeypatch.setattr(platforms, "start_device", lambda: seen.append(os.environ[name]))
    code, lines = generate()
    assert (code, lines, seen) == (2, ["caphuman: error: stopped here"], [kept, kept])


def test_a_device_that_cannot_be_used_is_reported_once(tmp_path, astronaut_file):
    """It is started in a thread, which leaves the report to the one who uses it."""
    words = ("--reference", astronaut_file, "--prompt", "a photo", "--out", tmp_path / "out")
    command = [sys.executable, "-m", "caphuman_jax.cli.app", "generate", *map(str, words)]
    env = os.environ | {"JAX_PLATFORMS": "nonsense"}
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.count("\n") == 1 and "nonsense" in done.stderr, done.stderr


def test_interrupted(monkeypatch, capsys):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "_dispatch", interrupt)
    assert app.main(["generate"]) == 130 and "interrupted" in capsys.readouterr().err


def test_help_is_light_and_names_every_preset():
    script = "import sys; from caphuman_jax.cli import app\ntry: app.main(sys.argv[1:])\nfinally: assert not {'jax', 'numpy', 'flax'} & set(sys.modules)"  # noqa: E501
    top = subprocess.run([sys.executable, "-c", script, "--help"], capture_output=True, text=True)
    assert top.returncode == 0 and all(
        name in top.stdout for name in ("generate", "evaluate", "train", "prepare", "inspect")
    ), top.stderr
    wide = {**os.environ, "COLUMNS": "400"}
    text = subprocess.run(
        [sys.executable, "-c", script, "generate", "--help"],
        capture_output=True,
        text=True,
        env=wide,
    ).stdout
    words = text.replace(",", " ").replace(";", " ").replace("\n", " ").split()
    assert {*editing.PRESETS, *editing.LIGHTS, *editing.PARTS} <= set(words)


@pytest.mark.parametrize("command", ["evaluate", "identity", "train", "prepare", "inspect"])
def test_other_commands_have_their_own_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        app.main([command, "--help"])
    assert stop.value.code == 0 and len(capsys.readouterr().out.splitlines()) > 5


@pytest.mark.slow
def test_the_second_run_compiles_nothing(tiny_folder, astronaut_file, tmp_path):
    environment = {
        "PATH": "",
        "CAPHUMAN_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": ":".join(sys.path),
        "XLA_FLAGS": xla_flags.ONE_DEVICE,  # compiled fast
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",  # also what a fast machine compiles fast
    }

    def run():
        subprocess.run(
            [
                sys.executable,
                "-m",
                "caphuman_jax.cli",
                "generate",
                "--reference",
                astronaut_file,
                "--prompt",
                "a photo",
                "--model",
                tiny_folder,
                "--out",
                tmp_path / "out",
            ],
            check=True,
            env=environment,
        )
        return {
            path.name
            for path in (tmp_path / "cache" / "compiled").rglob("*")  # a folder per type of CPU
            if path.name.endswith("-cache")
        }

    first = run()
    for program in ("jit_generate", "jit_heads_from_photos", "jit_render_hints_batch"):
        assert any(name.startswith(program) for name in first), first
    assert run() == first


def test_a_table_of_heads(generate, tmp_path):
    """`--sequence`: pictures of every row, each repeatable by itself; a photo is measured once."""
    table = tmp_path / "heads.csv"
    table.write_text("yaw,x,jawOpen\n-15,0.4,\n15,,0.5\n")
    code, lines = generate(
        "--sequence", table, "--num-images", 2, "--position", "0.5,0.5,0.4", "--pitch", 5
    )
    assert code == 0, lines
    assert sum("analyzing the photo" in line for line in lines) == 1
    out = tmp_path / "out"
    made = [metadata.read_settings(out / f"picture_{i:02d}.png") for i in range(4)]
    heads = [one["people"][0]["asked_head"] for one in made]
    assert heads[:2] == [{"yaw": -15.0, "pitch": 5.0, "position": [0.4, 0.5, 0.4]}] * 2
    assert heads[2] == {
        "yaw": 15.0,
        "pitch": 5.0,
        "position": [0.5, 0.5, 0.4],
        "weights": {"jawOpen": 0.5},
    }
    assert [one["index"] for one in made] == [0, 1, 0, 1]
    code, lines = generate("--repeat", out / "picture_03.png", prompt=None)
    assert code == 0 and not any("not the one" in line for line in lines), lines
    again, first = (np.asarray(Image.open(out / f"picture_{i:02d}.png")) for i in (4, 3))
    np.testing.assert_array_equal(again, first)
    table.write_text("yaw\n5\n200\n")
    code, lines = generate("--sequence", table)
    assert code == 2 and "row 2 of the sequence: yaw" in lines[-1]
    code, lines = generate("--sequence", tmp_path / "talk.mp4")
    assert code == 2 and "caphuman head --sequence" in lines[-1]
