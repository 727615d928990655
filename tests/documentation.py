"""What the pages show in code blocks, and what stands in for the files that they name."""

import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from caphuman_jax.config import ModelConfig
from caphuman_jax.io import images

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")])
PROGRAM = "caphuman"

NOT_COMMANDS = {
    "@inproceedings": "BibTeX",
    "errors · version": "the layers, which import-linter checks in pyproject.toml",
    "photo ─ ": "a diagram",
}
"""Beginnings of blocks that are neither run nor checked, and what they are."""

NOT_EXECUTED = {
    "import base64, json, pathlib, requests": "needs a server; "
    "tests/studio/test_documented.py runs it with one",
    "from caphuman_jax.head.models import deca": "needs the weights of DECA, which a tiny model "
    "cannot stand in for; its imports are checked",
}
"""Beginnings of Python blocks of which only syntax and imports are checked, and why."""

OTHER_PROGRAMS = {
    "pip": "extras and files are checked",
    "make": "targets are checked",
    "export": "the variable must be one that the code reads",
    "bash": "a script of this repository, which tests/launch checks",
    "sbatch": "the same",
    "kubectl": "needs a cluster; its files must exist",
    "docker": "needs Docker; its files must exist",
    "gcloud": "needs a cloud",
    "xpk": "tests/launch makes its dry run where it is installed",
    "python": "a script of this repository, or a module",
    "python3": "the same",
    "pre-commit": "its configuration must exist",
    "curl": "asks a server; tests/studio/test_documented.py runs those of docs/serve.md",
    "cd": "of the shell",
    "ln": "the same",
    "git": "of everyone's",
}
"""Commands besides `caphuman`, and how they are checked."""


@dataclass(frozen=True)
class Block:
    """A code block: page, number of its first line, language or "", text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self):
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, and indented lines that begin with `caphuman`."""
    found, fence, start, lines = [], None, 0, []
    name = str(page.relative_to(ROOT))
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        opened = re.match(r"\s*```+\s*([\w-]*)", line)
        if fence is not None and opened:
            found.append(Block(name, start, fence, _dedent(lines)))
            fence = None
        elif fence is not None:
            lines.append(line)
        elif opened:
            fence, start, lines = opened[1], number + 1, []
        elif re.match(rf"(    |\t)\s*(\$ )?{PROGRAM} ", line):
            found.append(Block(name, number, "bash", line.strip()))
    assert fence is None, f"{name}:{start}: the block does not end"
    return found


def _dedent(lines):
    width = min((len(x) - len(x.lstrip()) for x in lines if x.strip()), default=0)
    return "\n".join(line[width:] for line in lines) + "\n"


def inline_commands(page: Path) -> list[tuple[int, str]]:
    """(line, text) of every `caphuman …` in running text."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"^\s*```.*?^\s*```", lambda m: "\n" * m[0].count("\n"), text, flags=re.M | re.S)
    return [
        (text[: found.start()].count("\n") + 1, found[1])
        for found in re.finditer(rf"`({PROGRAM} [a-z][^`]*)`", text)
    ]


def kind(block: Block) -> str:
    """What a block is: python, json, yaml, jobs, shell; or the reason why it is none of them; or
    that nothing checks it.
    """
    if block.language in ("python", "json", "yaml"):
        return block.language
    lines = [line for line in block.text.splitlines() if line.strip()]
    if block.language in ("jsonl", "") and lines and all(line[0] == "{" for line in lines):
        return "jobs"
    for beginning, reason in NOT_COMMANDS.items():
        if block.text.startswith(beginning):
            return reason
    if block.language not in ("", "bash", "sh", "shell", "console"):
        return f"nothing checks blocks of {block.language!r}"
    for program in {words[0] for words in commands(block.text)} - {*OTHER_PROGRAMS, PROGRAM}:
        return (
            f"nothing checks {program!r}; is it a command (OTHER_PROGRAMS of "
            "tests/documentation.py), or the block none (NOT_COMMANDS)?"
        )
    return "shell"


def commands(text: str) -> list[list[str]]:
    """The commands of a shell block, each as words: without prompts, comments, assignments before
    them, launchers such as srun, folders of programs, and redirections.
    """
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        line = re.sub(r"^\s*\$ ", "", line)
        if is_pattern(line):
            line = re.sub(r"[\[\]]", " ", line)
            line = re.sub(r"(?<=\w)\|(?=[\w.])", "/", line)
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&;|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set("&;|"):
                if words:
                    found.append(_simplified(words))
                words = []
            else:
                words.append(word)
    return [words for words in found if words]


def _simplified(words):
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if words and words[0] in ("srun", "nohup", "time", "sudo"):
        rest = [i for i, word in enumerate(words) if Path(word).name == PROGRAM]
        words = words[rest[0] :] if rest else words[1:]
    if not words:
        return words
    words = [word for word in words if word not in (">", "2>", ">>")]
    return [Path(words[0]).name if "/" in words[0] else words[0], *words[1:]]


def is_pattern(line: str) -> bool:
    """Whether a line shows how commands look, with [options] and A|B, instead of being one."""
    return "[-" in line or "…" in re.sub(r"\"[^\"]*\"|'[^']*'", "", line)


SMALL = {"num_images": 1, "steps": 2, "size": None}
"""Settings of the pictures that are made here, whatever the page says: they need other programs, or
time. That the page's own are valid is checked before.
"""
PHOTO = re.compile(r"[\w./~-]+\.(?:jpe?g|png|webp)")


def shelf(folder: Path, text: str = "") -> Path:
    """A folder with what pages name: photos, and every other picture in `text`."""
    photo = images.read_photo(ROOT / "caphuman_jax" / "assets" / "astronaut_nasa.png")
    named = {"photo.jpg", "me.jpg", "you.jpg", "other.jpg", "a.jpg", "b.jpg", "photos/a.jpg"}
    in_text = {name for name in PHOTO.findall(text) if name[0] not in "/~"}
    for name in named | in_text:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            Image.fromarray(photo).save(path)
    files = {
        "head.json": json.dumps({"yaw": 10, "expression": {"smile": 0.5}}),
        "edited.json": json.dumps({"yaw": 10}),
        "prompts.txt": "a photo of a person\n",
        "heads.jsonl": '{}\n{"yaw": 20}\n',
        "heads.csv": "yaw,pitch\n0,0\n5,\n",
        "sequence.json": '[{"yaw": 0}, {"yaw": 10}]',
        "jobs.jsonl": '{"reference": "me.jpg", "prompt": "a photo of a person"}\n',
    }
    for name, written in files.items():
        (folder / name).write_text(written)
    return folder


def large_photos(folder: Path) -> None:
    """A folder of one photo whose face is large enough for training."""
    folder.mkdir()
    with Image.open(ROOT / "caphuman_jax" / "assets" / "astronaut_nasa.png") as photo:
        photo.resize((1024, 1024)).save(folder / "a.png")


class Small:
    """The tiny pipeline, which makes one small picture whatever it is asked for."""

    def __init__(self, pipe):
        self._pipe = pipe

    def __getattr__(self, name):
        return getattr(self._pipe, name)

    def __call__(self, *given, **asked):
        wanted = {k: v for k, v in SMALL.items() if v is not None}
        asked = {k: v for k, v in asked.items() if k not in SMALL}
        return self._pipe(*given, **asked, **wanted)


def write_lora(pipe, path):
    """A LoRA of one layer of the tiny model."""
    from safetensors.numpy import save_file

    width = pipe.config.unet.channels
    layer = "lora_unet_input_blocks_1_1_transformer_blocks_0"
    matrices = {"down": (2, width), "up": (width, 2)}
    rng = np.random.default_rng(0)
    save_file(
        {
            f"{layer}_attn1_to_q.lora_{role}.weight": rng.normal(0, 1, shape).astype(np.float32)
            for role, shape in matrices.items()
        },
        path,
    )


def write_embedding(pipe, path):
    """A textual-inversion embedding of two vectors."""
    from safetensors.numpy import save_file

    vectors = np.random.default_rng(0).normal(0, 1, (2, pipe.config.text.embed_width))
    save_file({"emb_params": vectors.astype(np.float32)}, path)


def configuration_of_sd15(folder: Path) -> Path:
    """A model folder without weights."""
    folder.mkdir()
    document = {"format": "caphuman_jax", "format_version": 1, "files": {}, "metadata": {}}
    document["config"] = ModelConfig().to_dict()
    (folder / "config.json").write_text(json.dumps(document))
    return folder
