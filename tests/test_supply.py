"""The locked versions belong to what setup.py requires, and say nothing of where they were made."""

import importlib.metadata
import re
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
LOCKS = {
    "core": (),
    "cuda": ("cuda",),
    "tpu": ("tpu",),
    "all": ("train", "data", "studio", "heic", "buckets", "insightface"),
}


def entries(name) -> list[str]:
    """Requirements with their hashes, one a line."""
    text = (ROOT / "locks" / f"{name}.txt").read_text().replace("\\\n", "")
    return [line for line in text.splitlines() if not line.startswith("#")]


def pinned(requirement: Requirement) -> str:
    (pin,) = requirement.specifier
    assert pin.operator == "==", requirement
    return pin.version


@pytest.mark.parametrize("name", LOCKS)
def test_every_requirement_is_locked_with_hashes(name):
    text = (ROOT / "locks" / f"{name}.txt").read_text()
    assert "://" not in text and "--index" not in text and not re.search(r"(^|\s)/\w", text)
    locked: dict[str, list[Requirement]] = {}
    for line in entries(name):
        requirement, *hashes = line.split("--hash=")
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}\s*", h) for h in hashes), line
        found = Requirement(requirement)
        locked.setdefault(canonicalize_name(found.name), []).append(found)

    for text in importlib.metadata.requires("caphuman-jax"):
        needed = Requirement(text)
        extra = re.search(r'extra == "(\w+)"', text)
        if extra and extra[1] not in LOCKS[name]:
            continue
        for python in ("3.11", "3.12", "3.13"):
            here = default_environment() | {
                "python_version": python,
                "python_full_version": f"{python}.0",
            }
            versions = [
                pinned(found)
                for found in locked[canonicalize_name(needed.name)]
                if not found.marker or found.marker.evaluate(here)
            ]
            assert len(versions) == 1 and Version(versions[0]) in needed.specifier, (text, python)

    constraints = [
        Requirement(line)
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    for constraint in constraints:
        of_name = locked.get(canonicalize_name(constraint.name))
        if of_name:
            assert pinned(constraint) in map(pinned, of_name), f"{constraint}: run make lock"


def test_workflows_run_targets_that_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    used = set()
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        jobs = yaml.safe_load(path.read_text())["jobs"]
        for step in (step for job in jobs.values() for step in job["steps"]):
            used |= set(re.findall(r"^make ([\w-]+)", step.get("run", ""), re.M))
    assert {"lint", "test", "test-slow", "audit", "sbom"} <= used <= targets
