"""What importing costs, and what an installation holds."""

import os
import pkgutil
import re
import shlex
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import documentation
import pytest

import caphuman_jax

ROOT = Path(__file__).parents[1]
CHECK = """
import importlib, sys, warnings
warnings.simplefilter("ignore")
for name in sys.argv[1:]:
    importlib.import_module(name)
heavy = {"tensorflow", "torch", "transformers", "diffusers", "apache_beam", "gradio"} & set(sys.modules)
assert not heavy, f"imported {heavy}"
if "jax" in sys.modules:
    from jax._src import xla_bridge
    assert not xla_bridge._backends, f"a device was touched: {list(xla_bridge._backends)}"
"""  # noqa: E501


def run(*modules):
    result = subprocess.run([sys.executable, "-c", CHECK, *modules], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_import_touches_no_device_and_no_heavy_library():
    run("caphuman_jax")


def test_no_module_touches_a_device_or_a_heavy_library_when_imported():
    run(
        *(
            m.name
            for m in pkgutil.walk_packages(
                caphuman_jax.__path__, "caphuman_jax.", onerror=pytest.fail
            )
        )
    )


@pytest.mark.parametrize("folder", ["face", "head", "text"])
def test_shipped_parts_come_with_their_notices(folder):
    notice = (files("caphuman_jax") / "assets" / folder / "NOTICE.md").read_text()
    for item in (files("caphuman_jax") / "assets" / folder).iterdir():
        assert item.name == "NOTICE.md" or item.name in notice, item.name
    assert f"assets/{folder}/NOTICE.md" in (ROOT / "NOTICE").read_text()


def command(*words, **options) -> str:
    """Output of a program that must succeed, outside of the checkout."""
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS")}
    result = subprocess.run(
        [str(w) for w in words], capture_output=True, text=True, env=clean, **options
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.slow
def test_the_wheel_alone_is_enough(tmp_path):
    """Builds sdist and wheel, and installs the wheel into an empty environment: from the
    network.
    """
    command(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", ROOT)
    built = sorted((tmp_path / "dist").iterdir())
    assert [p.name.removeprefix("caphuman_jax-") for p in built] == [
        f"{caphuman_jax.__version__}-py3-none-any.whl",
        f"{caphuman_jax.__version__}.tar.gz",
    ]
    command(sys.executable, "-m", "twine", "check", "--strict", *built)

    command(sys.executable, "-m", "venv", tmp_path / "venv")
    bin_ = tmp_path / "venv" / "bin"
    install = [bin_ / "python", "-m", "pip", "install", "--quiet", "--prefer-binary"]
    install.append("--no-compile")  # what is never imported, too
    command(*install, "--constraint", ROOT / "constraints.txt", built[0])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert "generate" in command(bin_ / "caphuman", "--help", cwd=elsewhere)
    version = command(bin_ / "caphuman", "--version", cwd=elsewhere)
    assert version == f"caphuman {caphuman_jax.__version__}\n"
    configs = "from caphuman_jax.configs import mini; print(mini.get_config())"
    assert "steps" in command(bin_ / "python", "-c", configs, cwd=elsewhere)
    for package in ("caphuman_jax", "data_pipeline"):
        typed = f"from importlib.resources import files; print((files('{package}') / 'py.typed'))"
        assert Path(command(bin_ / "python", "-c", typed, cwd=elsewhere).strip()).exists()
    for words in (
        ["slurm"],
        ["tpu-vm", "--accelerator=v5litepod-16", "--zone=z", "--bucket=b", "--repository=r"],
    ):
        launch = ["launch", "--on", *words, "--", "train", "--workdir", "run"]
        printed = shlex.split(command(bin_ / "caphuman", *launch, cwd=elsewhere))
        script = next(Path(word) for word in printed if word.endswith(".sh"))
        assert script.is_relative_to(tmp_path / "venv") and os.access(script, os.X_OK)
    words = ["--reference", files("caphuman_jax") / "assets" / "astronaut_nasa.png"]
    words += ["--prompt", "a photo of a person", "--steps", "2", "--out", "out"]
    command(bin_ / "caphuman", "generate", *words, cwd=elsewhere)
    assert list((elsewhere / "out").glob("picture_*.png"))


def anchors(page: Path) -> set[str]:
    """What GitHub and other renderers call the headings of a page."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-") for words in headings}


@pytest.mark.parametrize("page", documentation.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_the_pages_lead_somewhere(page):
    """To files that exist, and to headings of them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}: there is no such heading"


def test_messages_name_installs_that_work():
    """The package is not on PyPI: extras are installed from the checkout, as README says."""
    for package in ("caphuman_jax", "data_pipeline", "configs"):
        for file in (ROOT / package).rglob("*.py"):
            assert "caphuman-jax[" not in file.read_text(encoding="utf-8"), file
