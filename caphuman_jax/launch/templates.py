"""The scripts and manifests of launch/: in a checkout and in an installed package."""

from __future__ import annotations

from pathlib import Path

from caphuman_jax.errors import SettingError


def folder() -> Path:
    """The folder that holds them. Raises SettingError where it is missing."""
    here = Path(__file__).resolve().parent
    for place in (here / "templates", here.parents[1] / "launch"):
        if (place / "slurm.sh").is_file():
            return place
    raise SettingError(f"the scripts of launch/ are missing from {here}; install the package again")


def path(name: str) -> Path:
    """The path of one of them, such as "slurm.sh"."""
    return folder() / name


def fill(name: str, values: dict[str, str]) -> str:
    """A manifest with its ${NAMES} filled in, without the comment at its top."""
    import string

    text = path(name).read_text()
    return "apiVersion" + string.Template(text.split("\napiVersion", 1)[1]).substitute(values)
