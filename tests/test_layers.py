"""The layers of the packages and their imports; the rules stand in pyproject.toml.

Imports inside functions count as well: a lazy import makes a start faster, it does not hide a
circle.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
RULES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]


@pytest.fixture(scope="module", autouse=True)
def checkout():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)  # `configs` is imported from here
        yield


@pytest.fixture(scope="module")
def imports(checkout) -> dict[str, set[str]]:
    """Module → modules that it imports anywhere in its file."""
    graph = grimp.build_graph(*RULES["root_packages"], cache_dir=None)
    return {m: set(graph.find_modules_directly_imported_by(m)) for m in sorted(graph.modules)}


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Modules of one circle of imports, in order; empty when there is none."""
    done: set[str] = set()
    path: list[str] = []

    def visit(module: str) -> list[str]:
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        path.append(module)
        for imported in sorted(imports[module]):
            if found := visit(imported):
                return found
        done.add(path.pop())
        return []

    return next((found for module in imports if (found := visit(module))), [])


def test_a_circle_is_found():
    chain = {"a": {"b"}, "b": {"c"}, "c": set(), "d": {"a"}}
    assert circle(chain) == []
    assert circle(chain | {"c": {"a"}}) == ["a", "b", "c"]


def test_contracts_are_kept():
    program = (
        "import sys; from importlinter.cli import lint_imports_command as main; sys.exit(main())"
    )
    command = [sys.executable, "-c", program, "--no-cache", "--no-logo"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_module_imports_itself_by_a_detour(imports):
    assert circle(imports) == []


def test_every_package_has_its_layer():
    layers = {
        name.strip(" ()") for line in RULES["contracts"][0]["layers"] for name in line.split("|")
    }
    here = {
        f"caphuman_jax.{path.stem}"
        for path in (ROOT / "caphuman_jax").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert here - layers == {"caphuman_jax.__init__"}


def test_at_most_four_modules_stand_outside_of_a_package():
    assert len(list((ROOT / "caphuman_jax").glob("*.py"))) <= 4
