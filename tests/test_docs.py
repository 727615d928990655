"""What the pages show is what the program does: every code block is run or checked, with small
stand-ins for models and files. Pages that are added later are checked too.
"""

import argparse
import ast
import contextlib
import copy
import importlib.metadata
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import documentation
import pytest
import yaml
from documentation import (
    PAGES,
    PROGRAM,
    ROOT,
    Small,
    blocks,
    commands,
    configuration_of_sd15,
    inline_commands,
    is_pattern,
    large_photos,
    shelf,
    write_embedding,
    write_lora,
)
from PIL import Image
from records_standin import write_standin

import caphuman_jax
from caphuman_jax.cli import app
from caphuman_jax.config import MINI
from caphuman_jax.jobs.jobs import read_jobs
from caphuman_jax.jobs.validate import Checker
from caphuman_jax.person import identity_file
from caphuman_jax.pipeline import loading
from caphuman_jax.weights import model_folder

BLOCKS = [block for page in PAGES for block in blocks(page)]
INLINE = [(page.name, *found) for page in PAGES for found in inline_commands(page)]
COMMANDS = [
    (block, words)
    for block in BLOCKS
    if block.language not in ("python", "json", "yaml") and documentation.kind(block) == "shell"
    for words in commands(block.text)
]
OURS = [(block, words[1:]) for block, words in COMMANDS if words[0] == PROGRAM]


def of_kind(*kinds, where=lambda block: True):
    cases = [block for block in BLOCKS if documentation.kind(block) in kinds and where(block)]
    return pytest.mark.parametrize("block", cases, ids=str)


def reads_records(block):
    return "data_pipeline" in block.text


def of_verb(*verbs, without="\0"):
    """The commands of these verbs, each once, except those with a certain option."""
    cases = {tuple(words): (block, words) for block, words in reversed(OURS)}
    cases = [case for case in cases.values() if case[1][0] in verbs and without not in case[1]]
    return pytest.mark.parametrize(
        "block, words", cases, ids=[f"{block}-{' '.join(words)[:50]}" for block, words in cases]
    )


def test_every_block_is_known():
    kinds = [documentation.kind(block) for block in BLOCKS]
    unknown = [f"{block}: {kind}" for block, kind in zip(BLOCKS, kinds) if "nothing checks" in kind]
    assert not unknown, "\n".join(unknown)
    assert kinds.count("shell") > 10 and kinds.count("python") > 4 and len(OURS) > 30
    for table in (documentation.NOT_COMMANDS, documentation.NOT_EXECUTED):
        unused = [t for t in table if not any(block.text.startswith(t) for block in BLOCKS)]
        assert not unused, f"no page has these blocks any more: {unused}"


# ---------------------------------------------------------------------------- commands


def parse(words: list[str], where) -> argparse.Namespace:
    """The arguments as the command reads them."""
    errors = []
    parser, verb = app._parser(words[0])
    verb.error = parser.error = lambda message: errors.append(message)
    try:
        args, unknown = parser.parse_known_args(app._joined(words))
    except (SystemExit, TypeError):  # --help, and what argparse does after an error
        args, unknown = argparse.Namespace(), []
    told = f"{where}: {PROGRAM} {shlex.join(words)}"
    assert not errors and not unknown, f"{told}\n{errors or unknown}"
    return args


def check_flags(text: str, where) -> None:
    """The options of a usage pattern, or of a command in running text, are ones of its verb."""
    verb = re.match(rf"{PROGRAM} ([a-z]+)", text)[1]
    known = {name for name in app._parser(verb)[1]._option_string_actions}
    assert verb in app._VERBS, f"{where}: there is no {PROGRAM} {verb}"
    text = text.split(" -- ")[0]  # options of Beam
    flags = {flag for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", text) if flag != "--config"}
    assert flags <= known, f"{where}: `{text}` has {sorted(flags - known)}"


@pytest.mark.parametrize("page, line, text", INLINE, ids=lambda value: str(value)[:60])
def test_commands_in_running_text_have_options_that_exist(page, line, text):
    check_flags(text, f"{page}:{line}")


@of_kind("shell")
def test_shells_read_it(block):
    """Commands of clusters, too."""
    text = block.text if not is_pattern(block.text) else shlex.join(sum(commands(block.text), []))
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
    assert done.returncode == 0, f"{block}: {done.stderr}"


@pytest.mark.parametrize(
    "block, words", OURS, ids=[f"{block}-{' '.join(words)[:50]}" for block, words in OURS]
)
def test_command_is_understood(block, words, monkeypatch, tmp_path):
    """Its arguments are valid, down to the settings that are made of them."""
    if words == ["--version"]:
        return
    pattern = "…" in words[1:] or any(re.fullmatch("[A-Z:]+", word) for word in words[1:])
    if pattern and "PHOTOS" not in words:
        return check_flags(f"{PROGRAM} {' '.join(words)}", block)
    args = parse(words, block)
    monkeypatch.chdir(shelf(tmp_path, " ".join(words)))
    Path("me.identity").touch()
    if words[0] == "generate" and not args.repeat:
        from caphuman_jax.cli import generate

        asked = {
            k: v for k, v in generate._asked(args).items() if k not in ("controls", "heads") and v
        }
        controls = generate._asked(args)["controls"]
        assert all({"name", "picture"} <= set(control) for control in controls)
        wrong, _ = Checker(MINI)({**asked, "people": _people(asked["people"])}, tmp_path)
        assert not wrong, f"{block}: {wrong}"
    elif words[0] == "train":
        from caphuman_jax.training import run_config

        config = run_config.read_config(args.config, args.overrides)
        assert run_config.recipe_module(config)
    elif words[0] == "prepare":
        from caphuman_jax.cli import prepare as command

        made = []
        if args.model:
            args.model = str(configuration_of_sd15(tmp_path / "base"))
        monkeypatch.setattr(command, "prepare", lambda *given, **more: made.append(given[2]))
        command.run(args)
        assert made[0].size == args.size
    elif words[0] == "import":
        from caphuman_jax.cli import import_weights
        from caphuman_jax.weights import importer, lora

        for text in args.lora:
            lora.parse(text)
        for text in args.controlnet:
            import_weights._controlnet(text)
        if args.config:
            importer.read_configuration(args.config)
    elif words[0] == "compile":
        from caphuman_jax.aot import gpu_targets
        from caphuman_jax.cli import compile as command
        from caphuman_jax.training import run_config

        run_config.read_config(args.config, args.overrides)
        command._options(args)
        assert all(command._batch(text) for text in args.batch or ())
        for topology in args.topology:
            slice_ = re.fullmatch(r"v\d\w*:\d+(x\d+){1,2}", topology)
            assert topology == "local" or gpu_targets.is_gpu(topology) or slice_, topology


def _people(people):
    return [{k: v for k, v in person.items() if v is not None} for person in people]


@pytest.mark.parametrize(
    "block, words",
    [(block, words) for block, words in COMMANDS if words[0] != PROGRAM],
    ids=lambda value: shlex.join(value)[:50] if isinstance(value, list) else str(value),
)
def test_other_commands_name_what_exists(block, words):
    """Extras, targets of make, variables of the environment, and files of this repository."""
    program, *rest = words
    if program == "pip":
        extras = importlib.metadata.metadata("caphuman-jax").get_all("Provides-Extra")
        for word in rest:
            for names in re.findall(r"\[(.+)\]", word):
                assert set(names.split(",")) <= set(extras), f"{block}: {word}"
    elif program == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
        assert {word for word in rest if "=" not in word} <= targets, f"{block}: {rest}"
    elif program == "export":
        name = rest[0].partition("=")[0]
        sources = [*ROOT.glob("caphuman_jax/**/*.py"), *ROOT.glob("launch/*")]
        known = name.startswith(("JAX_", "XLA_", "TF_", "HF_"))
        assert known or any(name in path.read_text() for path in sources), f"{block}: {name}"
    elif program == "pre-commit":
        assert (ROOT / ".pre-commit-config.yaml").is_file()
    own = [
        word
        for word in rest
        if re.match(
            r"(launch|docs|benchmarks|examples|configs|tests|locks)/|constraints\.txt$", word
        )
    ]
    for word in own:
        assert (ROOT / word).exists(), f"{block}: there is no {word}"


@pytest.fixture
def desk(pipe, person, tmp_path, monkeypatch):
    """An empty folder to work in, with the tiny pipeline for every model, and `desk(text)`, which
    lays down the files that a text names.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CAPHUMAN_FLAME", raising=False)
    own = copy.copy(pipe)  # LoRAs and embeddings are added to it
    small = Small(own)
    monkeypatch.setattr(loading, "load", lambda *_, **__: small)
    monkeypatch.setattr(caphuman_jax, "load", lambda *_, **__: small)

    def lay(text):
        shelf(tmp_path, text)
        write_lora(pipe, tmp_path / "style.safetensors")
        for name in re.findall(r"--embedding (\S+)", text):
            write_embedding(pipe, tmp_path / name)
        if ".identity" in text and "--out me.identity" not in text:
            identity_file.save(tmp_path / "me.identity", person, pipe.head_name)
        for name in re.findall(r"--repeat (\S+)", text):
            result = small(reference=str(tmp_path / "me.jpg"), prompt="a photo")
            result.save(tmp_path / "made")[0].rename(tmp_path / name)
        return tmp_path

    return lay


# ---------------------------------------------------------------------------- what is run


# The tiny model has no ControlNets; tests/pipeline/test_people.py has some.
@of_verb("generate", "identity", without="--control")
def test_pictures_are_made(block, words, desk, capsys):
    folder = desk(" ".join(words))
    assert app.main([_home(word, folder) for word in words]) == 0, capsys.readouterr().err
    out = folder / (words[words.index("--out") + 1] if "--out" in words else "out")
    assert out.is_file() or list(out.glob("picture_*.png"))


@of_verb("edit")
def test_photos_are_edited(block, words, desk, capsys):
    text = " ".join(words)
    folder = desk(text.replace("--repeat", ""))
    for name in re.findall(r"--repeat (\S+)", text):
        Path(name).parent.mkdir(exist_ok=True)
        assert app.main(["edit", "--photo", "me.jpg", "--yaw", "5", "--out", "made"]) == 0
        (folder / "made" / "picture_00.png").rename(name)
    if "--face 2" in text:
        photo = Image.open(folder / "me.jpg")
        group = Image.new("RGB", (3 * photo.width, photo.height))
        for number in range(3):
            group.paste(photo, (number * photo.width, 0))
        group.save(folder / "team.jpg")
    words = [str(ROOT / word) if word.startswith("caphuman_jax/") else word for word in words]
    before = {path.name for path in folder.glob("out/*")}
    assert app.main(words) == 0, capsys.readouterr().err
    assert {path.name for path in folder.glob("out/picture_*.png")} - before


@of_verb("sample")
def test_jobs_are_checked(block, words, desk, capsys):
    desk(" ".join(words))
    code = app.main([*words, *([] if "--check" in words else ["--check"])])
    assert code == 0, capsys.readouterr().err
    assert "pictures in" in capsys.readouterr().err


@of_verb("head")
def test_heads_are_shown(block, words, desk, tiny_folder, capsys):
    folder = desk(" ".join(words))
    if "talk.mp4" in words:  # GIFs and videos are read alike
        frame = Image.open(folder / "me.jpg").resize((256, 256))
        frame.save(folder / "talk.gif", save_all=True, append_images=[frame], duration=40)
        words = ["talk.gif" if word == "talk.mp4" else word for word in words]
    if "out/head.json" in words:
        (folder / "out").mkdir()
        (folder / "out" / "head.json").write_text((folder / "head.json").read_text())
    if "--model" in words:
        words = words[: words.index("--model")] + words[words.index("--model") + 2 :]
    small = ["64" if word == "512" else word for word in words]
    assert app.main([*small, "--model", str(tiny_folder)]) == 0, capsys.readouterr().err


def _home(word, folder):
    return str(folder / word[2:]) if word.startswith("~/") else word


@of_verb("launch")
def test_launches_are_written_out(block, words, tmp_path, monkeypatch, capsys):
    """The commands of the platform, which tests/launch runs with stand-ins of it."""
    monkeypatch.chdir(tmp_path)
    at = words.index("--") if "--" in words else len(words)
    ours = [word for word in words[:at] if word != "--run"]
    assert app.main([*ours, "--dry-run", *words[at:]]) == 0, capsys.readouterr().err
    name = words[words.index("--name") + 1] if "--name" in words else "JAX_PLATFORMS"
    assert name in capsys.readouterr().out


@of_verb("config")
def test_configurations_are_shown(block, words, capsys):
    assert app.main(words) == 0, capsys.readouterr().err
    assert "training.batch_size" in capsys.readouterr().out


@pytest.mark.slow
@of_verb("status", "doctor")
def test_a_run_and_a_machine_are_looked_at(block, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = str(ROOT / "tests" / "tiny_recipe.py")
    assert app.main(["train", "--config", recipe, "--workdir", "runs/1"]) == 0
    more = ["--no-face"] if words[0] == "doctor" else []
    words = [word.replace("gs://my-bucket/", "") for word in words]
    assert app.main([*words, *more]) in (0, 1), capsys.readouterr().err
    assert "finished" in (said := capsys.readouterr().out) or "jax" in said


@of_verb("inspect")
def test_records_are_inspected(block, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_standin(tmp_path / "records", 6)
    assert app.main(words) in (0, 1), capsys.readouterr().err
    assert "checked 6 records" in capsys.readouterr().out


@pytest.mark.slow
@of_verb("prepare", without="--model")  # tests/data_pipeline encodes with a small model
def test_photos_are_prepared(block, words, desk, capsys):
    folder = desk(" ".join(words))
    large_photos(folder / "PHOTOS")
    assert app.main(words) == 0, capsys.readouterr().err
    assert list((folder / "records").rglob("dataset_info.json"))


@of_kind("jobs")
def test_lines_of_jobs(block, desk):
    folder = desk(block.text + " me.identity")
    (folder / "jobs.jsonl").write_text(block.text)
    if '"yaw"' in block.text and "reference" not in block.text:
        return [json.loads(line) for line in block.text.splitlines()]  # heads
    found = read_jobs(folder / "jobs.jsonl", Checker(MINI), {})
    assert not found.problems, f"{block}: {found.problems}"


@of_kind("json", "yaml")
def test_json_and_yaml(block):
    (entries, *_) = yaml.safe_load_all(block.text)
    if block.language == "json":
        assert json.loads(block.text) == entries
    if entries.get("format") == "caphuman_jax":
        config = ROOT / "caphuman_jax" / "assets" / "mini" / "config.json"
        real = json.loads(config.read_text())
        assert set(entries) == set(real) and set(entries["config"]) <= set(real["config"])


@of_kind("python", where=lambda block: not reads_records(block))
def test_python_is_run(block, desk, tiny_folder, monkeypatch):
    """As it is shown, except for what it loads."""
    tree = ast.parse(block.text)
    if any(block.text.startswith(text) for text in documentation.NOT_EXECUTED):
        exec(_imports_of(tree), {})
        return
    folder = desk(block.text)
    monkeypatch.setattr(model_folder, "find_model", lambda _: tiny_folder)
    with contextlib.chdir(folder):
        exec(compile(block.text, str(block), "exec"), {"__name__": "__main__"})


def _imports_of(tree):
    """The imports of a program, and that what it calls of the imported modules exists."""
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.asname or alias.name for node in imports for alias in node.names}
    used = [
        ast.Expr(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in names
    ]
    module = ast.fix_missing_locations(ast.Module([*imports, *used], []))
    return compile(module, "documentation", "exec")


@pytest.mark.slow
@of_kind("python", where=reads_records)
def test_python_that_reads_records_ends(block, tmp_path, monkeypatch):
    """By itself, in a process of its own."""
    if "tensorflow_datasets" in block.text:  # reads its own descriptions, too
        monkeypatch.chdir(tmp_path)
        large_photos(tmp_path / "PHOTOS")
        assert app.main("prepare --photos PHOTOS --out records".split()) == 0
    else:
        write_standin(tmp_path / "records", 40)
    done = subprocess.run(
        [sys.executable, "-c", block.text],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, f"{block}: {done.stderr}"


# ---------------------------------------------------------------------------- the map


def test_files_of_the_map_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)*(?:\w+\.py|\w+/))`", text)
    assert len(named) > 40
    tops = ("caphuman_jax", ".", "data_pipeline", "caphuman_jax/evaluation", "docs")
    assert not [name for name in named if not any((ROOT / top / name).exists() for top in tops)]
