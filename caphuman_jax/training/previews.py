"""What training shows of itself: a sheet of a few held-out people, always the same requests and
seeds, and what `evaluate` measures on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from caphuman_jax.config import ModelConfig
from caphuman_jax.errors import CapHumanError
from caphuman_jax.evaluation import bulk, prompt_suite, report, statistics
from caphuman_jax.evaluation.measure import measure_images, recognition_vectors
from caphuman_jax.evaluation.outcome import HeadParams, Outcome, Subject
from caphuman_jax.models import registry
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.pipeline.pipeline import Pipeline
from caphuman_jax.runtime.fixed_batches import batches
from caphuman_jax.runtime.sharding import on_host
from caphuman_jax.training.recipe import Evaluation
from caphuman_jax.training.step import Tree

PROMPTS = (
    "a photo of a person",
    "a photo of a person, blue background",
    "a photo of a person, black background",
    "a black-and-white photo of a person",
)
HEADS = ("own", "yaw=-20", "yaw=20", "smile=0.8", "light=left", "random")


class Previews:
    """An evaluator: pictures of people in held-out photos, and numbers of `statistics.PREVIEWED`.

    Args of the constructor:
        model: with all networks that pictures need.
        photos: (H, W, 3) uint8, one person each; those without a usable face are left out.
        networks: (trained on the host, {name: frozen networks}) → {network: parameters}.
        per_person: pictures of each person.
        steps: of the sampler, the model's own where None.
        dtype: of what is computed; where None, float32 on CPUs, else bfloat16.
    """

    def __init__(
        self,
        model: ModelConfig,
        photos: Sequence[np.ndarray],
        networks: Callable[[dict, dict], dict[str, Any]],
        *,
        per_person: int = 4,
        steps: int | None = None,
        dtype: str | None = None,
    ):
        self.model, self.photos, self.networks, self.per_person = (
            model,
            photos,
            networks,
            per_person,
        )
        self.steps = steps or model.sampling.steps
        self.dtype = jnp.dtype(
            dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
        )
        self.pipe: Pipeline | None = None

    def __call__(self, params: Tree, frozen: Tree, step: int) -> Evaluation:
        """Metrics, and the image "sheet", a person a row; the same requests and seeds
        every time.
        """
        trained = on_host(params)  # on every host; the first alone makes pictures, on one device
        if jax.process_index() > 0:
            return Evaluation({})
        metrics, sheet = self._evaluate_samples(trained, frozen)
        return Evaluation(metrics, {} if sheet is None else {"sheet": sheet})

    def _evaluate_samples(
        self, trained: Tree, frozen: Tree
    ) -> tuple[dict[str, float], np.ndarray | None]:
        device = jax.local_devices()[0]
        params = jax.device_put(on_local(self.networks(trained, frozen)), device)
        with jax.default_device(device):
            if self.pipe is None:
                graphs = registry.abstract(
                    self.model, ComputeConfig(self.dtype), only=tuple(params)
                )
                self.pipe = Pipeline(
                    self.model, params, tuple((name, graph) for name, (graph, _) in graphs.items())
                )
                subjects = [self._subject(self.pipe, photo) for photo in self.photos]
                self.subjects = [subject for subject in subjects if subject is not None]
            pipe = self.pipe.with_params(params)
            return self._measure(pipe) if self.subjects else ({}, None)

    @staticmethod
    def _subject(pipe: Pipeline, photo: np.ndarray) -> Subject | None:
        try:
            person = pipe.person(photo, face=0)
        except CapHumanError:
            return None
        return Subject(
            "",
            person.square,
            jax.device_get(person.head),
            person,
            recognition_vectors(person.square, person.landmarks),
        )

    def _measure(self, pipe: Pipeline) -> tuple[dict[str, float], np.ndarray]:
        subjects = self.subjects
        head_model, requests = (
            pipe.head_model,
            prompt_suite.deal_requests(len(subjects), HEADS, PROMPTS, self.per_person),
        )
        generate = bulk.bulk_generator(pipe, self.steps, pipe.config.sampling.guidance_scale)
        heads = [
            prompt_suite.requested_head(head_model, subjects[r.person].head, r) for r in requests
        ]
        pictures = []
        for _, filled in batches(list(zip(requests, heads)), pipe.batch):
            pictures.extend(
                generate(
                    [subjects[request.person].person for request, _ in filled],
                    [head for _, head in filled],
                    [request.prompt for request, _ in filled],
                    [request.seed for request, _ in filled],
                )
            )
        pictures = pictures[: len(requests)]
        measured = measure_images(head_model, pictures, pipe.head_of)
        outcomes = [
            Outcome(
                request,
                request.person,
                HeadParams.of(head_model, head),
                HeadParams.of(head_model, subjects[request.person].head),
                seen,
            )
            for request, head, seen in zip(requests, heads, measured)
        ]
        rows = [
            [(subject.picture, "held out", "")]
            + [
                (picture, request.head, request.prompt)
                for picture, request in zip(pictures, requests)
                if request.person == number
            ]
            for number, subject in enumerate(subjects)
        ]
        return select_metrics(statistics.compute(head_model, subjects, outcomes)), report.sheet(
            rows
        )


def select_metrics(results: dict) -> dict[str, float]:
    """The numbers of `statistics.PREVIEWED` in `statistics.compute`'s, where there are any."""
    found = {name: statistics.at(results, place) for name, place in statistics.PREVIEWED.items()}
    return {
        name: float(value)
        for name, value in found.items()
        if value is not None and math.isfinite(value)
    }


def on_local(tree):
    """Arrays that are whole on this host, as numpy or on one of its devices."""
    return jax.tree.map(
        lambda leaf: (
            leaf.addressable_data(0)
            if isinstance(leaf, jax.Array) and leaf.is_fully_replicated
            else np.asarray(leaf)
        ),
        tree,
    )
