"""A model folder to a pipeline."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import ModelFolderError, SettingError
from caphuman_jax.io import metadata
from caphuman_jax.models import registry
from caphuman_jax.models.network import Network
from caphuman_jax.models.tokenizer import ClipTokenizer
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.pipeline.pipeline import Pipeline
from caphuman_jax.pipeline.program import ShardFn
from caphuman_jax.pipeline.weights_in_use import WeightSource
from caphuman_jax.runtime import executables
from caphuman_jax.runtime.compile_cache import cache_folder, keep_compiled
from caphuman_jax.weights import embeddings, model_folder
from caphuman_jax.weights.placement import MEMORY, TILES, packed, put, put_stored

log = logging.getLogger("caphuman_jax")

_READERS = 8  # threads that read weights and compute checksums


def load(
    model: str | os.PathLike = "mini",
    *,
    dtype: str | None = None,
    batch: int | None = None,
    cache: bool = True,
    place: Callable[[str, dict], dict] | None = None,
    memory: str = "normal",
    shard_fn: ShardFn | None = None,
    compiler_options: dict[str, str | bool] | None = None,
    kind: Any = None,
) -> Pipeline:
    """Load a shipped model or a model folder.

    Args:
        model: the name of a shipped model, or a model folder.
        dtype: compute dtype, "float32" or "bfloat16"; None: float32 on a CPU, bfloat16 elsewhere.
        batch: see `Pipeline`.
        cache: keep compiled programs between runs in `compile_cache.cache_folder()`.
        place: (network, its parameters on the host) → the parameters on devices; None: on the first
            device.
        memory: one of `placement.MEMORY`.
        shard_fn, compiler_options: see `Pipeline`.
        kind: what is known already of the pictures to be made. The compiled programs that the last
            process with an equal `kind` took are read while the weights are.

    Raises:
        ModelFolderError: the folder does not exist, or a file in it is damaged.
        SettingError: an unknown memory setting.
    """
    if memory not in MEMORY:
        raise SettingError(
            f"there is no memory setting {memory!r}; choose one of {', '.join(MEMORY)}"
        )
    path = model_folder.find_model(model)
    config = model_folder.read_config(path)
    facts = model_folder.read_metadata(path)
    trained_with = facts.get("trained_with_head")
    if trained_with not in (None, config.head):
        log.warning(
            "%s renders hints with the head model %s, but its weights were trained with %s "
            "(caphuman import --head %s)",
            path,
            config.head,
            trained_with,
            trained_with,
        )
    if cache:
        keep_compiled()
    compute = jnp.dtype(dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16"))
    there = metadata.checksums(path)
    by_device = place is None and memory != "least" and jax.default_backend() != "cpu"
    place = place or (lambda name, host: put(name, host, memory))
    store = executables.shared(cache_folder() / "executables") if cache else None
    if store is not None and kind is not None:
        store.expect((config, compute.name, batch, memory, kind))
    with ThreadPoolExecutor(_READERS) as pool:
        # Checksums are computed while the networks are laid out and their weights are copied to the
        # device.
        checks = (
            {name: pool.submit(model_folder.verify_network, path, name) for name in there}
            if by_device
            else {}
        )
        optional = [name for name in registry.OPTIONAL if name in there]
        find = functools.partial(_networks, config, compute, optional)
        networks = store.graphs(find, (config, compute, optional)) if store else find()
        source = WeightSource(
            lambda name: model_folder.load_params(path, {name: networks[name][1]})[name],
            lambda name, host: place(name, packed(name, host, compute, memory)),
        )

        def as_stored(name):  # copied as stored and converted on the device
            verify = checks[name].result if name in checks else lambda: None
            host = _as_stored(path, name, networks[name][1], verify)
            return put_stored(name, host, compute, memory)

        if by_device:
            waiting = {name: pool.submit(as_stored, name) for name in networks}
            params = {name: future.result() for name, future in waiting.items()}
        else:  # one network after another, so that the host holds only one of them twice
            params = {name: source.put(name, source.read(name)) for name in networks}
        for check in checks.values():
            check.result()
    graphs = tuple((name, graph) for name, (graph, _) in networks.items())
    record = {"weights": there, "dtype": compute.name} | (
        {"memory": memory} if memory in ("low", "least") else {}
    )
    rounded = memory == "least" or (memory != "full" and compute != jnp.float32)
    batch = batch or (1 if memory in ("low", "least") else None)
    pipe = Pipeline(
        config,
        params,
        graphs,
        record,
        batch,
        ClipTokenizer(model_folder.tokenizer_files(path), facts.get("prompt_words", "").split()),
        TILES[memory],
        source if rounded else None,
        shard_fn,
        compiler_options,
        store,
    )
    pipe.add_embeddings(embeddings.of_folder(path))
    return pipe


def _networks(config: ModelConfig, compute: jnp.dtype, optional: list[str]) -> dict[str, Network]:
    networks = registry.abstract(config, ComputeConfig(compute))
    return networks | registry.abstract(config, only=optional)


def _as_stored(path: Path, name: str, shapes: dict, verify: Callable[[], None]) -> dict:
    """Load a network in its stored dtypes without checking its hash. If reading fails, `verify`
    runs first, so that a checksum mismatch is reported as the cause.
    """
    try:
        return model_folder.load_params(path, {name: shapes}, dtype=None, verify=False)[name]
    except ModelFolderError:
        verify()
        raise
