"""The compiled sampler: its arguments from conditionings, and the programs that were compiled."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion.sampling_loop import picture_key
from caphuman_jax.diffusion.text_to_image import generate, networks_of
from caphuman_jax.models.prompt import PromptEncoder
from caphuman_jax.person.person import stack_people
from caphuman_jax.pipeline.conditioning import Conditioning, Progress, encode_prompts
from caphuman_jax.pipeline.request import Request
from caphuman_jax.pipeline.vocabulary import Vocabulary
from caphuman_jax.runtime import compiler, executables, kept_programs
from caphuman_jax.runtime.executables import ExecutableStore

Row = tuple[Conditioning, int]
"""An image to be made: its conditioning and its number."""

ShardFn = Callable[[Callable, dict], Callable]
"""shard_fn(function of `generate`'s arguments, its first argument) → the same function on several
devices."""


def program_arguments(
    config: ModelConfig,
    params: Mapping[str, dict],
    vocabulary: Vocabulary,
    rows: Sequence[Row],
    tile: int,
) -> tuple[tuple, dict[str, Any]]:
    """The arguments of `generate` for one batch.

    Args:
        config: the model's.
        params: {network: parameters}.
        vocabulary: words of prompts.
        rows: one of each image; their conditionings have equal `batch_key`s.
        tile: see `Pipeline`.

    Returns:
        The arguments, and those that are static.
    """
    conditionings = [conditioning for conditioning, _ in rows]
    each = {id(one): _conditions(one, vocabulary.encode, config) for one in conditionings}
    conditions = jax.tree.map(
        lambda *leaves: jax.device_put(_stack(leaves)), *(each[id(one)] for one in conditionings)
    )
    keys = _keys(
        np.array([one.request.params.seed for one in conditionings], np.uint32),
        np.array([number for _, number in rows], np.uint32),
    )
    request = conditionings[0].request
    settings, coefficients, static = request.params.program_inputs(
        config,
        {control.name: control.scale for control in request.controls},
        request.photo,
        request.has_regions,
    )
    if vocabulary.added and _needs_embeddings(each.values(), config.text.vocabulary):
        settings["embeddings"] = jnp.asarray(vocabulary.vectors)
    if not request.subjects:
        settings["strength"] = jnp.float32(0)
    static["tile"] = tile if max(request.params.shape) > tile else 0
    return (networks_of(params), conditions, keys, settings, coefficients), static


class ProgramCache:
    """`generate` compiled for the shapes and static arguments that were asked for."""

    def __init__(
        self,
        config: ModelConfig,
        graphs: tuple,
        float32: bool,
        shard_fn: ShardFn | None = None,
        compiler_options: dict[str, str | bool] | None = None,
        store: ExecutableStore | None = None,
    ):
        """float32: compute in float32 also on devices that would shorten factors of products;
        store: keeps programs of one device between processes.
        """
        self.config, self.graphs, self.shard_fn = config, graphs, shard_fn
        self.store = store if shard_fn is None else None
        self.precision = "highest" if float32 else "default"
        self.compiler_options = compiler.options() if compiler_options is None else compiler_options
        self._compiled: dict[tuple, jax.stages.Compiled] = {}

    def expect(self, request: Request, count: int) -> None:
        """Begin to read the programs that such a request took last time, before its photos are
        measured.

        Args:
            request: what is asked for.
            count: images at a time.
        """
        if self.store is not None:
            photos = [len(subject.references) for subject in request.subjects]
            kind = (self.config, self.precision, request.program_key, photos, count)
            self.store.expect(kind)

    def __call__(
        self, arguments: tuple, static: dict[str, Any], progress: Progress
    ) -> jax.stages.Compiled:
        """The program for these arguments, compiled at the first call."""
        shapes = jax.tree.map(lambda leaf: (np.shape(leaf), jnp.result_type(leaf)), arguments[1:])
        key = (str(shapes), *static.items())
        if key not in self._compiled:
            progress("compile", 0, 1)
            compile = functools.partial(self._compile, arguments, static)
            with jax.default_matmul_precision(self.precision):
                if self.store is None:
                    self._compiled[key] = compile()
                else:
                    all_static = (self.config, self.graphs, static, self.compiler_options)
                    self._compiled[key] = self.store.get(compile, all_static, arguments)
            progress("compile", 1, 1)
        return self._compiled[key]

    def _compile(self, arguments: tuple, static: dict[str, Any]) -> jax.stages.Compiled:
        run = functools.partial(generate, cfg=self.config, graphs=self.graphs, **static)
        if self.shard_fn:
            run = self.shard_fn(run, arguments[0])
        elif self.store is not None:
            run = executables.named(functools.update_wrapper(run, generate))
        return jax.jit(run).lower(*arguments).compile(compiler_options=self.compiler_options)


def _conditions(
    conditioning: Conditioning, encode: PromptEncoder, config: ModelConfig
) -> dict[str, Any]:
    """A conditioning as the networks take it, without a batch axis; arrays stay where they are."""
    request, subjects = conditioning.request, conditioning.subjects
    prompt, negative, *own = conditioning.prompts or encode_prompts(request, encode)
    weights = {"weights": prompt.weights, "empty_weights": negative.weights}
    people = stack_people([subject.person for subject in subjects]) if subjects else nobody(config)
    conditions = {
        "token_ids": prompt.token_ids,
        "empty_token_ids": negative.token_ids,
        **{name: value for name, value in weights.items() if value is not None},
        "controls": {
            name: picture.astype(np.float32) / 255
            for name, picture in conditioning.controls.items()
        },
        **people,
        **conditioning.latents,
    }
    if conditioning.regions is not None:
        weights = [one.weights for one in own if one.weights is not None]
        conditions["regions"] = {
            "token_ids": np.stack([one.token_ids for one in own]),
            "masks": conditioning.regions,
            **({"weights": np.stack(weights)} if weights else {}),
        }
    blank = np.zeros((*request.params.shape, config.capface.hint_channels), np.float32)
    rendered = [subject.hints for subject in subjects if subject.hints is not None]
    return conditions | {"hints": _stack(rendered or [blank])}


def _stack(arrays: Sequence) -> np.ndarray | jax.Array:
    """On the host, if they are there: nothing is compiled for that."""
    on_host = all(isinstance(array, np.ndarray) for array in arrays)
    return np.stack(arrays) if on_host else jnp.stack(arrays)


def _needs_embeddings(conditions: Collection[dict[str, Any]], vocabulary: int) -> bool:
    """Whether a prompt has ids that are not the vocabulary's."""
    ids = [np.asarray(one[name]) for one in conditions for name in ("token_ids", "empty_token_ids")]
    ids += [np.asarray(one["regions"]["token_ids"]) for one in conditions if "regions" in one]
    return any((row >= vocabulary).any() for row in ids)


def nobody(config: ModelConfig) -> dict[str, np.ndarray]:
    """`stack_people` of a picture without a person; CapFace's strength is then 0."""
    identity = config.identity
    return {
        "image_tokens": np.zeros((1, 1, 1, identity.image_width), np.float32),
        "recognition": np.zeros((1, 1, identity.recognition_width), np.float32),
    }


@kept_programs.jit
def _keys(seeds: Any, numbers: Any) -> jax.Array:
    return jax.vmap(picture_key)(seeds, numbers)
