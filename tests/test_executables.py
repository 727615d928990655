"""Compiled programs that are kept whole."""

import stat
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import caphuman_jax
from caphuman_jax.config import MINI
from caphuman_jax.models import registry
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.pipeline import program as sampler
from caphuman_jax.runtime import compile_cache, executables, kept_programs
from caphuman_jax.runtime.executables import ExecutableStore, key


@pytest.fixture
def fresh():
    """Programs that JAX's own cache gives are not kept, so it gives none."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it asks for the option only once
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


class Program:
    """x, y → x @ y + scale, counting how often it is traced."""

    def __init__(self, scale):
        self.scale, self.traced = scale, 0

    def __call__(self, arguments):
        self.traced += 1
        return {"sum": arguments["x"] @ arguments["y"] + self.scale}

    def of(self, store, arguments):
        compile = lambda: jax.jit(self).lower(arguments).compile()
        return store.get(compile, ("program", self.scale), arguments)


@pytest.fixture
def arguments():
    draw = lambda *shape: np.random.default_rng(0).normal(size=shape).astype(np.float32)
    return {"x": jnp.asarray(draw(5, 3)), "y": jnp.asarray(draw(3, 2))}


def is_right(made, arguments):
    np.testing.assert_allclose(
        made["sum"], np.asarray(arguments["x"]) @ np.asarray(arguments["y"]) + 2, rtol=1e-5
    )


def test_second_store_loads_what_the_first_compiled(tmp_path, arguments, fresh):
    first, second = Program(2), Program(2)
    made = first.of(ExecutableStore(tmp_path / "kept"), arguments)(arguments)
    again = second.of(ExecutableStore(tmp_path / "kept"), arguments)(arguments)
    assert (first.traced, second.traced) == (1, 0)
    np.testing.assert_array_equal(made["sum"], again["sum"])
    is_right(again, arguments)
    [file] = (tmp_path / "kept").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


def test_damaged_file_is_compiled_again(tmp_path, arguments, fresh):
    Program(2).of(ExecutableStore(tmp_path / "kept"), arguments)
    [file] = (tmp_path / "kept").iterdir()
    whole = file.read_bytes()
    for damaged in (b"", b"nonsense", whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        program = Program(2)
        is_right(program.of(ExecutableStore(tmp_path / "kept"), arguments)(arguments), arguments)
        assert program.traced == 1
    assert len(file.read_bytes()) > len(whole) // 2


def test_what_others_can_write_is_not_read(tmp_path, arguments, fresh):
    Program(2).of(ExecutableStore(tmp_path / "kept"), arguments)
    [file] = (tmp_path / "kept").iterdir()
    file.chmod(0o620)
    program = Program(2)
    program.of(ExecutableStore(tmp_path / "kept"), arguments)
    assert program.traced == 1
    (tmp_path / "kept").chmod(0o777)
    assert ExecutableStore(tmp_path / "kept").folder is None


def test_folder_that_cannot_be_made(tmp_path, arguments):
    (tmp_path / "file").touch()
    store = ExecutableStore(tmp_path / "file" / "kept")
    is_right(Program(2).of(store, arguments)(arguments), arguments)


def test_programs_of_jax_s_cache_are_not_kept(tmp_path, arguments):
    """Such a program lacks functions once it is stored a second time (XLA on CPUs)."""
    store = ExecutableStore(tmp_path / "kept")
    compiled = jax.jit(Program(2)).lower(arguments).compile()

    def compile():
        jax.monitoring.record_event("/jax/compilation_cache/cache_hits")
        return compiled

    assert store.get(compile, "static", arguments) is compiled
    assert not list((tmp_path / "kept").iterdir())


def test_key_contains_what_programs_depend_on(arguments, monkeypatch):
    base = key(("static", 1), arguments)
    assert base == key(("static", 1), jax.tree.map(lambda x: x + 1, arguments))
    assert base == key(("static", 1), jax.tree.map(np.asarray, arguments))
    others = [
        key(("static", 2), arguments),
        key(("static", 1), {**arguments, "x": jnp.zeros((5, 4))}),
        key(("static", 1), {**arguments, "x": jnp.zeros((5, 3), jnp.bfloat16)}),
        key(("static", 1), {**arguments, "z": jnp.zeros(())}),
    ]
    with jax.default_matmul_precision("bfloat16"):
        others.append(key(("static", 1), arguments))
    with monkeypatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_cpu_use_onednn=false")
        others.append(key(("static", 1), arguments))
    with monkeypatch.context() as patch:
        patch.setattr(executables, "source_hash", lambda: "another version of the library")
        others.append(key(("static", 1), arguments))
    assert len({base, *others}) == 1 + len(others)


def test_graphs_of_other_compute_choices_have_other_keys():
    """Graphs are keyed by their repr, which has to contain every choice."""
    choices = (
        ComputeConfig(),
        ComputeConfig(jnp.bfloat16),
        ComputeConfig(attention="xla"),
        ComputeConfig(remat="blocks"),
        ComputeConfig(platform="tpu"),
    )
    graph = lambda choice: registry.abstract(MINI, choice, only=["text"])["text"][0]
    names = [key(graph(choice), ()) for choice in choices]
    assert len(set(names)) == len(choices)
    assert key(graph(choices[0]), ()) == names[0]


def test_second_process_s_pipeline_does_not_trace_the_sampler(
    tiny_folder, person, tmp_path, monkeypatch, fresh
):
    monkeypatch.setenv("CAPHUMAN_CACHE", str(tmp_path))
    asked = {"reference": person, "prompt": "a photo", "steps": 2}
    made = caphuman_jax.load(tiny_folder)(**asked).images

    def traced(*_, **__):
        raise AssertionError("traced again")

    monkeypatch.setattr(sampler, "generate", traced)
    np.testing.assert_array_equal(caphuman_jax.load(tiny_folder)(**asked).images, made)
    with pytest.raises(AssertionError, match="traced again"):
        caphuman_jax.load(tiny_folder)(**asked | {"steps": 3})


def keeper(traced):
    """A kept function that notes when it is traced."""

    def scaled_sum(numbers, times):
        traced.append(times)
        return {"sum": numbers["x"].sum() * times}

    return kept_programs.jit(scaled_sum, static_argnames=("times",))


@pytest.fixture
def kept_here(tmp_path, monkeypatch, fresh):
    monkeypatch.setenv("CAPHUMAN_CACHE", str(tmp_path))
    monkeypatch.setattr(compile_cache, "_keeps", True)
    return tmp_path / "executables"


def test_kept_function_is_traced_once_for_all_processes(kept_here):
    traced, numbers = [], {"x": np.arange(4, dtype=np.float32)}
    for times in (2, 3):
        for _ in range(2):  # as two processes
            function = keeper(traced)
            assert function(numbers, times=times)["sum"] == 6 * times
            assert function(jax.tree.map(jnp.asarray, numbers), times)["sum"] == 6 * times
    assert traced == [2, 3]
    assert len(list(kept_here.glob("*.executable"))) == 2


@pytest.mark.parametrize("case", ["in a trace", "another device", "nothing is kept"])
def test_kept_function_elsewhere_is_that_of_jit(case, kept_here, monkeypatch):
    traced, numbers = [], {"x": np.arange(4, dtype=np.float32)}
    function = keeper(traced)
    if case == "in a trace":
        double = jax.jit(lambda numbers: 2 * function(numbers, times=2)["sum"])
        assert double(numbers) == 24
    elif case == "another device":
        there = jax.devices()[1]
        made = function(jax.device_put(numbers, there), times=2)["sum"]
        assert made == 12 and made.devices() == {there}
    else:
        monkeypatch.setattr(compile_cache, "_keeps", False)
        assert function(numbers, times=2)["sum"] == 12
    assert traced == [2] and not list(kept_here.glob("*"))


def test_expected_programs_are_read_ahead(tmp_path, arguments, fresh):
    first = ExecutableStore(tmp_path / "kept")
    first.expect("a picture")
    Program(2).of(first, arguments)
    [listed] = (tmp_path / "kept").glob("*.list")
    [name] = (file.stem for file in (tmp_path / "kept").glob("*.executable"))
    assert listed.read_text() == name

    second = ExecutableStore(tmp_path / "kept")
    second.expect("a picture")
    assert list(second._ahead) == [name]
    second._ahead[name].result()
    (tmp_path / "kept" / f"{name}.executable").unlink()  # it is not read again
    program = Program(2)
    is_right(program.of(second, arguments)(arguments), arguments)
    assert program.traced == 0

    second.expect("a picture")  # again: its programs are in memory
    second.expect("another kind")
    assert not second._ahead
    Program(3).of(second, arguments)
    lists = [path.read_text().split() for path in (tmp_path / "kept").glob("*.list")]
    assert [len(names) for names in lists] == [2, 2] and all(name in names for names in lists)


@pytest.mark.parametrize("case", ["damaged list", "damaged program", "writable program"])
def test_wrong_expectations_change_nothing(case, tmp_path, arguments, fresh):
    first = ExecutableStore(tmp_path / "kept")
    first.expect("a picture")
    Program(2).of(first, arguments)
    [listed] = (tmp_path / "kept").glob("*.list")
    [kept] = (tmp_path / "kept").glob("*.executable")
    if case == "damaged list":
        listed.write_bytes(b"\xff../../etc/passwd\n" + kept.stem.encode() + b"\n" + b"0" * 40)
    elif case == "damaged program":
        kept.write_bytes(kept.read_bytes()[:1000])
    else:
        kept.chmod(0o620)
    store, program = ExecutableStore(tmp_path / "kept"), Program(2)
    store.expect("a picture")
    is_right(program.of(store, arguments)(arguments), arguments)
    assert program.traced == (case != "damaged list")


def test_names_change_with_the_library(monkeypatch):
    """JAX's cache knows a program by its name, too: what it gives could not be kept."""
    names = set()
    for version in ("a" * 64, "b" * 64):
        monkeypatch.setattr(executables, "source_hash", lambda version=version: version)
        names.add(executables.named(is_right).__name__)
    assert len(names) == 2


_DECOMPOSED = """
import sys, numpy as np, jax.numpy as jnp
from caphuman_jax.runtime import compile_cache, kept_programs
compile_cache.keep_compiled()
@kept_programs.jit
def decomposed(matrix):
    return jnp.linalg.cholesky(matrix)
print(np.asarray(decomposed(np.diag([4, 9]).astype(np.float32))).tolist())
"""


@pytest.mark.slow  # two processes that import JAX
def test_a_loaded_program_finds_lapack(tmp_path, monkeypatch):
    monkeypatch.setenv("CAPHUMAN_CACHE", str(tmp_path))
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", _DECOMPOSED], capture_output=True, text=True, check=True
        )
        assert done.stdout.strip() == "[[2.0, 0.0], [0.0, 3.0]]"
    assert len(list((tmp_path / "executables").glob("*.executable"))) == 1
