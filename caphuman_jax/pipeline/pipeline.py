"""A loaded model: from photos, a prompt and a head to images."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from caphuman_jax.config import ModelConfig
from caphuman_jax.head.head import Head
from caphuman_jax.head.hints import render_hints
from caphuman_jax.io.images import PhotoSource
from caphuman_jax.io.picture import Picture
from caphuman_jax.models.prompt import PromptEncoder
from caphuman_jax.models.tokenizer import ClipTokenizer
from caphuman_jax.nn import fp8
from caphuman_jax.person.person_reader import PersonReader
from caphuman_jax.pipeline import regions, small_faces
from caphuman_jax.pipeline.conditioning import Conditioning, Progress, create_conditioning
from caphuman_jax.pipeline.image_batches import make_images, rows_of
from caphuman_jax.pipeline.photo_latents import photo_latents, with_reconstruction
from caphuman_jax.pipeline.program import ProgramCache, Row, ShardFn, program_arguments
from caphuman_jax.pipeline.request import (
    Request,
    create_request,
    warn_if_other_size,
    warn_of_embeddings,
    warn_of_prompt,
)
from caphuman_jax.pipeline.result import Result, collect
from caphuman_jax.pipeline.sequence import of_sequence, with_measured
from caphuman_jax.pipeline.vocabulary import Vocabulary
from caphuman_jax.pipeline.weights_in_use import WeightsInUse, WeightSource
from caphuman_jax.runtime.executables import ExecutableStore
from caphuman_jax.version import __version__
from caphuman_jax.weights import embeddings, lora
from caphuman_jax.weights.placement import TILES

_BATCH_ON_ACCELERATOR = 8


class Pipeline:
    """A loaded model; call it, or take it in steps with `request`, `condition` and `make`."""

    def __init__(
        self,
        config: ModelConfig,
        params: dict[str, dict],
        graphs: tuple,
        record: dict[str, Any] | None = None,
        batch: int | None = None,
        tokenizer: ClipTokenizer | None = None,
        tile: int = TILES["normal"],
        source: WeightSource | None = None,
        shard_fn: ShardFn | None = None,
        compiler_options: dict[str, str | bool] | None = None,
        store: ExecutableStore | None = None,
    ):
        """Most callers want `caphuman_jax.load`.

        Args:
            config: the model's.
            params: {network: parameters}.
            graphs: ((network, graphdef), …), which contain the compute dtype.
            record: JSON types that say which weights these are, for the settings of every image.
            batch: images made at a time; None: 1 on a CPU (as fast there, and one program serves
                any number of images), 8 elsewhere.
            tokenizer: of the text encoder; None: CLIP's.
            tile: images with a longer side are decoded in tiles of this many pixels; 0: never.
            source: needed by `use_loras` where weights were rounded when they were loaded.
            shard_fn: runs the sampler on several devices, see `jobs.multi_device`.
            compiler_options: of XLA; None: those of `runtime.compiler`.
            store: keeps compiled samplers between processes.
        """
        self.config, self.graphs = config, graphs
        self.batch = batch or (1 if jax.default_backend() == "cpu" else _BATCH_ON_ACCELERATOR)
        self.person = PersonReader.of_model(
            config, {name: (graph, params[name]) for name, graph in graphs if name in params}
        )
        self.programs = ProgramCache(
            config,
            graphs,
            (record or {}).get("dtype") == "float32",
            shard_fn,
            compiler_options,
            store,
        )
        encode = PromptEncoder(
            tokenizer or ClipTokenizer(), config.text.length, config.text.vocabulary
        )
        self._tile, self._record = tile, record or {}
        self._weights, self._vocabulary = WeightsInUse(params, params, source), Vocabulary(encode)

    params = property(lambda self: self._weights.params)
    head_model = property(lambda self: self.person.head_model)
    head_of = property(lambda self: self.person.head_of)
    head_name = property(lambda self: self.person.head_name)

    @property
    def record(self) -> dict[str, Any]:
        """JSON types that say which weights images are made with."""
        more = {
            "head_by": self.head_of and self.head_of.name,
            "embeddings": list(self._vocabulary.records),
            "loras": list(self._weights.loras),
        }
        return {**self._record, **{name: value for name, value in more.items() if value}}

    def __call__(
        self,
        *,
        progress: Progress | None = None,
        on_image: Callable[[np.ndarray, dict], object] | None = None,
        keep: int | None = None,
        **asked: Any,
    ) -> Result:
        """Make images of the person in `reference` as the prompt says, with the head that is asked
        for: `request`, `condition` and `make` in one.

        Args:
            progress: see `conditioning.Progress`.
            on_image: (image (H, W, 3) uint8, its settings), called with each image once it is made.
            keep: how many of the images the result has; None: all of them.
            asked: arguments of `requests`.

        Raises:
            CapHumanError: a wrong setting, photo or head, or weights that the model lacks.
        """
        requests, started = self.requests(**asked), time.perf_counter()
        self.programs.expect(requests[0], min(self.batch, _count(requests)))
        conditionings = self.conditionings(requests, progress)
        first = next(conditionings)
        seconds = {"analysis": time.perf_counter() - started}
        rows = rows_of(itertools.chain([first], conditionings))
        made = self.images(rows, _count(requests), progress, seconds)
        return collect(first, made, seconds, self.head_model, on_image, keep)

    def stream(self, **asked: Any) -> Iterator[Picture]:
        """Make pictures one after another, for more of them than memory holds.

        Args:
            asked: arguments of `requests`.

        Yields:
            Each picture once it is made; its `save` writes the AI-generated mark and the settings.

        Raises:
            CapHumanError: see a call.
        """
        requests = self.requests(**asked)
        rows = rows_of(self.conditionings(requests))
        for (one, number), image, _ in self.images(rows, _count(requests)):
            yield Picture(image, {**one.settings, "index": number})

    def edit(
        self,
        photo: PhotoSource,
        *,
        mask: str | PhotoSource = "auto",
        face: int | None = None,
        person: bool = True,
        reference_face: int | None = None,
        **asked: Any,
    ) -> Result:
        """Change a photo: turn the head in it, change its expression or light, put another person's
        face there, or make again what a mask covers. Outside the mask no pixel changes.

        Args:
            photo: the photo.
            mask, face, person: see `request.EditRequest`.
            reference_face: number of the face in `reference`.
            asked: arguments of a call: `head`, `reference` (who is put into the photo; None: its
                own person), `prompt`, `denoise`, `seed`, `progress` and so on.

        Returns:
            Images of the photo's size.

        Raises:
            CapHumanError: a wrong setting, photo, mask or head.
        """
        edit = {"photo": photo, "mask": mask, "face": face, "person": person}
        return self(edit=edit, face=reference_face, **asked)

    def request(self, **asked: Any) -> Request:
        """Check what is asked for before any photo is read; see `request.create_request`."""
        return create_request(self.config, self.head_model, **asked)

    def requests(self, *, heads: Sequence[Mapping] | None = None, **asked: Any) -> list[Request]:
        """Check what is asked for before any photo is read.

        Args:
            heads: rows of numbers, see `head.sequence.read_table`: a request for each of them, in
                which they replace what `head` says; None: one request.
            asked: arguments of `request.create_request`.

        Raises:
            CapHumanError: a wrong setting or head.
        """
        request = self.request(**asked)
        return [request] if heads is None else of_sequence(request, heads, self.head_model)

    def condition(
        self,
        request: Request,
        progress: Progress | None = None,
        with_hints: bool = True,
        warn: bool = True,
    ) -> Conditioning:
        """What the images of a request are made from; see `conditioning.create_conditioning`."""
        if request.params.precision == "fp8":
            fp8.check_device(jax.devices()[0])
        if warn:
            warn_of_prompt(request.prompt, request.params.prompt_syntax, self._vocabulary.encode)
            warn_of_embeddings(request.texts, self._vocabulary.encode)
            warn_if_other_size(request.params, self.config)
        model = {"model": self.config.name, **self.record}
        ran_by = {"version": __version__, "jax": jax.__version__, "backend": jax.default_backend()}
        conditioning = create_conditioning(
            request,
            self.head_model,
            self.person,
            self._vocabulary.encode,
            {**model, **ran_by},
            progress or _silent,
            with_hints,
            warn,
        )
        conditioning = self._with_latents(self._with_regions(conditioning))
        vae, graph = self.params["vae"], dict(self.graphs)["vae"]
        return with_reconstruction(conditioning, self.config, vae, graph, self._tile)

    def conditionings(
        self, requests: Sequence[Request], progress: Progress | None = None
    ) -> Iterator[Conditioning]:
        """What the images of requests for the same people are made from, one after another. Photos
        are measured once, and only the first head is warned about.
        """
        yield (first := self.condition(requests[0], progress))
        for request in requests[1:]:
            yield self.condition(with_measured(request, first.subjects), warn=False)

    def make(
        self, rows: Sequence[Row], progress: Progress | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Make one batch, of any people, prompts and seeds with equal `Conditioning.batch_key`s.

        Each batch size is a program of its own, compiled when it is first needed.

        Args:
            rows: a conditioning with hints and the image's number, for each of B images.
            progress: see `conditioning.Progress`.

        Returns:
            Images (B, H, W, 3) float32 in [0, 1] and masks (B, P, h, w), still being computed.
        """
        run, arguments = self.program(rows, progress)
        return run(*arguments)

    def images(
        self,
        rows: Iterable[Row],
        total: int,
        progress: Progress | None = None,
        seconds: dict[str, float] | None = None,
    ) -> Iterator[tuple[Row, np.ndarray, np.ndarray]]:
        """Make any number of images, `batch` at a time; see `batches.make_images`."""
        seconds = {} if seconds is None else seconds
        detailed = lambda rows, images: self.detailed(rows, images, progress)
        progress = progress or _silent
        return make_images(self.program, detailed, rows, total, self.batch, progress, seconds)

    def detailed(
        self, rows: Sequence[Row], images: np.ndarray, progress: Progress | None = None
    ) -> np.ndarray:
        """Images (B, H, W, 3) in [0, 1] of these rows with their small faces sampled again, where
        `detail` asks for it; see `small_faces.detailed`.
        """
        if not rows[0][0].request.params.detail:
            return images
        make = lambda rows: self.make(rows, progress)
        return small_faces.detailed(
            rows, images, self.head_model, self.config, self._with_latents, make
        )

    def program(
        self, rows: Sequence[Row], progress: Progress | None = None
    ) -> tuple[jax.stages.Compiled, tuple]:
        """The compiled program that `make` runs on these rows, and its arguments."""
        arguments, static = self.arguments(rows)
        return self.programs(arguments, static, progress or _silent), arguments

    def arguments(self, rows: Sequence[Row]) -> tuple[tuple, dict[str, Any]]:
        """The arguments of `text_to_image.generate` for these rows, and its static ones."""
        return program_arguments(self.config, self.params, self._vocabulary, rows, self._tile)

    def hints(self, head: Head, size: tuple[int, int] | None = None) -> jax.Array:
        """Hints (H, W, 9) of a head for images of `size` (height, width)."""
        return render_hints(self.head_model, head, *(size or (self.config.image_size,) * 2))

    def _with_regions(self, conditioning: Conditioning) -> Conditioning:
        """With the people's parts of the picture, where they have words of their own."""
        request, heads = conditioning.request, [one.head for one in conditioning.subjects]
        if not request.has_regions:
            return conditioning
        size, factor = request.params.shape, self.config.vae.downsampling
        latents = (size[0] // factor, size[1] // factor)
        areas = regions.region_masks(self.head_model, request.subjects, heads, size, latents)
        return dataclasses.replace(conditioning, regions=areas)

    def _with_latents(self, conditioning: Conditioning) -> Conditioning:
        """With what the diffusion networks take of the photo that is edited."""
        vae, graph = self.params["vae"], dict(self.graphs)["vae"]
        latents = photo_latents(conditioning, self.config, vae, graph)
        return dataclasses.replace(conditioning, latents=latents)

    def with_params(self, params: dict[str, dict]) -> Pipeline:
        """This pipeline with other weights of the same shapes for sampling; photos are measured as
        before, and compiled programs are shared.
        """
        other = copy.copy(self)
        other._weights = WeightsInUse(params, params, loras=self._weights.loras)
        return other

    def use_loras(self, loras: Sequence[tuple[str | os.PathLike, lora.Strength]]) -> None:
        """From now on, sample with LoRAs added to the UNet and the text encoder.

        Args:
            loras: (file, strength) each; a strength is one number, or one for each of the two
                networks. They replace those in use; () goes back to the base, which stays in
                memory. Embeddings that the files hold are added, and stay.

        Raises:
            ModelFolderError: a file that cannot be read or does not fit the model.
        """
        weights = self._weights.with_loras(loras, self.config)
        read = [file for path, _ in loras for file in lora.files(path)]
        self.add_embeddings([(file, None) for file in read if embeddings.in_lora(file)])
        self._weights = weights

    def add_embeddings(self, files: Sequence[tuple[str | os.PathLike, str | None]]) -> None:
        """From now on, words in prompts stand for the vectors of textual-inversion files.

        Args:
            files: (file, word) each; None: the words that the file names.

        Raises:
            ModelFolderError: a file that cannot be read or does not fit the model.
            SettingError: a word that is taken.
        """
        self._vocabulary = self._vocabulary.with_files(files, self.config)


def _count(requests: Iterable[Request]) -> int:
    """How many images are asked for."""
    return sum(len(request.numbers) for request in requests)


def _silent(stage, done, total):
    """Ignores progress."""
