"""Commands in the documentation are commands that the program takes."""

import re
import shlex
from pathlib import Path

import pytest

from caphuman_jax.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    """The words after `caphuman` of every command in the page's code blocks."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    blocks += re.findall(r"(?:^    \S.*\n)+", text, re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines if "caphuman " in line]
    found = [words for words in found if not any(c in " ".join(words) for c in "…|[")]  # patterns
    return [words[words.index("caphuman") + 1 :] for words in found if "caphuman" in words[:4]]


EVERY = [(page.name, words) for page in PAGES for words in commands(page)]


def test_there_are_commands():
    assert len(EVERY) > 20


@pytest.mark.parametrize("page, words", EVERY, ids=lambda value: str(value)[:60])
def test_command_is_understood(page, words):
    if words == ["--version"]:
        return
    parser, verb = app._parser(words[0])
    args, unknown = parser.parse_known_args(app._joined(words))
    assert not unknown, f"{page}: caphuman {shlex.join(words)}"


def test_files_of_the_map_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"`((?:\w+/)*(?:\w+\.py|\w+/))`", text)
    assert len(named) > 40
    tops = ("caphuman_jax", ".", "data_pipeline", "caphuman_jax/evaluation", "docs")
    assert not [name for name in named if not any((ROOT / top / name).exists() for top in tops)]
