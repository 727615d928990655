"""Compiled programs that are kept whole."""

import stat

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
from caphuman_jax.runtime import executables
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
