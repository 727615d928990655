"""Pictures of many people under many heads in one batch, with a loaded pipeline; and people as the evaluation sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from caphuman_jax.diffusion import samplers
from caphuman_jax.diffusion.generate import generate
from caphuman_jax.diffusion.guidance import branch_weights
from caphuman_jax.errors import PhotoError
from caphuman_jax.evaluation.benchmark import Generator, Subject
from caphuman_jax.evaluation.measure import recognition_vectors
from caphuman_jax.face import attributes, recognise
from caphuman_jax.head.head import Head, stack
from caphuman_jax.head.hints import render_hints_batch
from caphuman_jax.person import Person
from caphuman_jax.pipeline import Pipeline


def bulk_generator(pipe: Pipeline, steps: int, guidance: float) -> Generator:
    """A `benchmark.Generator`. Each picture is the one that `pipe(reference=…, seed=…, num=1)` makes, up to rounding."""
    size, sampling = (pipe.config.image_size,) * 2, pipe.config.sampling
    scales = branch_weights(guidance)
    settings = {"strength": jnp.float32(1), "identity_until": jnp.float32(0), "controls": {},
                "weights": {name: jnp.float32(weight) for name, weight in scales.items()}}
    if sampling.guidance_rescale:
        settings["rescale"] = jnp.float32(sampling.guidance_rescale)
    plan = samplers.plan(pipe.config.diffusion, sampling.sampler, steps, spacing=sampling.spacing, eta=sampling.eta)
    keys_of = jax.jit(jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), jnp.uint32(0))))

    def make(persons: Sequence[Person], heads: Sequence[Head], prompts: Sequence[str], seeds: Sequence[int]) -> np.ndarray:
        length = pipe.config.text.length
        conditions = {
            "tokens": jnp.asarray(pipe.tokenize(list(prompts), length)), "empty_tokens": jnp.asarray(pipe.tokenize([""] * len(prompts), length)),
            "hints": render_hints_batch(pipe.head_model, stack(list(heads)), *size)[:, None], "controls": {},
            "image_tokens": jnp.asarray(np.stack([p.image_tokens for p in persons]))[:, None],
            "recognition": jnp.asarray(np.stack([p.vectors for p in persons]))[:, None],
        }
        with pipe.precision():
            pictures, _ = generate(pipe.params, conditions, keys_of(jnp.asarray(seeds, jnp.uint32)), settings, plan, cfg=pipe.config,
                                   graphs=pipe.graphs, size=size, branches=tuple(scales))
        return np.rint(np.asarray(pictures, np.float32) * 255).astype(np.uint8)

    return make


def subject_reader(pipe: Pipeline, drawings: bool = True) -> Callable[[Path], Subject]:
    """read(photo) → Subject. It raises PhotoError for a photo of no face, of several, and without `drawings` of a drawn one."""
    drawn = attributes.names().index("drawing")

    def read(path: Path) -> Subject:
        person = pipe.person(path, face=0)
        if person.face_count > 1:
            raise PhotoError(f"{path} shows {person.face_count} faces; the evaluation takes photos of one person")
        if not drawings and attributes.scores(recognise.identity(person.square, person.landmarks)[1][None])[0, drawn] > 0:
            raise PhotoError(f"{path} looks like a drawing or painting")
        return Subject(person.name, person.square, jax.device_get(person.head), person, recognition_vectors(person.square, person.landmarks))

    return read
