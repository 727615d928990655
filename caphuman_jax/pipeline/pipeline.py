"""A loaded model: from photos, a prompt and a head to images."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion.text_to_image import encode_photos
from caphuman_jax.errors import CapHumanError, PhotoError
from caphuman_jax.head.head import Head
from caphuman_jax.head.hints import render_hints
from caphuman_jax.head.models import registry as heads
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.io.images import PhotoSource
from caphuman_jax.io.picture import Picture
from caphuman_jax.models.prompt import PromptEncoder
from caphuman_jax.models.tokenizer import ClipTokenizer
from caphuman_jax.person import identity_file
from caphuman_jax.person.identity import Identifier
from caphuman_jax.person.person import Person, analyze_photo
from caphuman_jax.pipeline.conditioning import Conditioning, Progress, create_conditioning
from caphuman_jax.pipeline.edit_mask import latent_mask
from caphuman_jax.pipeline.program import ProgramCache, Row, ShardFn, program_arguments
from caphuman_jax.pipeline.request import (
    Request,
    create_request,
    warn_if_other_size,
    warn_of_prompt,
)
from caphuman_jax.pipeline.result import Result
from caphuman_jax.pipeline.sequence import of_sequence, with_measured
from caphuman_jax.version import __version__
from caphuman_jax.weights import embeddings, lora
from caphuman_jax.weights.placement import TILES

_BATCH_ON_ACCELERATOR = 8


@dataclasses.dataclass(frozen=True)
class WeightSource:
    """Where a pipeline's weights come from, if they are not kept as they were read.

    Attributes:
        read: network → its parameters in float32 on the host.
        put: network, those parameters → as the pipeline keeps them.
    """

    read: Callable[[str], dict]
    put: Callable[[str, dict], dict]


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
        """
        self.config, self.params, self.graphs, self.tile = config, params, graphs, tile
        self._base, self._source = params, source
        self.record = dict(record or {})
        self.batch = batch or (1 if jax.default_backend() == "cpu" else _BATCH_ON_ACCELERATOR)
        text = config.text
        self._plain = PromptEncoder(tokenizer or ClipTokenizer(), text.length, text.vocabulary)
        self.encode, self._words = self._plain, {}
        self.embeddings: np.ndarray | None = None
        self.identify = Identifier(config, params, dict(graphs))
        self.head_model = load_head(config.head)
        source, path = heads.find(config.head)
        networks = {
            name: (dict(graphs)[name], params[name]) for name in source.networks if name in params
        }
        self.head_of = source.estimator(self.head_model, path, networks)
        if self.head_of:
            self.record["head_by"] = self.head_of.name
        float32 = self.record.get("dtype") == "float32"
        self.programs = ProgramCache(config, graphs, float32, shard_fn, compiler_options)

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
        report = progress or _silent
        requests, started = self.requests(**asked), time.perf_counter()
        total = sum(len(request.numbers) for request in requests)
        conditionings = self.conditionings(requests, report)
        first = next(conditionings)
        seconds = {"analysis": time.perf_counter() - started}
        every = itertools.chain([first], conditionings)
        rows = ((one, number) for one in every for number in one.request.numbers)
        images, masks = [], []
        for (one, number), image, mask in self.images(rows, total, report, seconds):
            if keep is None or len(images) < keep:
                images.append(image)
                masks.append(mask)
            if on_image is not None:
                on_image(image, {**one.settings, "index": number})
        return Result(
            np.stack(images),
            np.stack(masks),
            first.subjects,
            first.controls,
            first.settings,
            seconds,
            self.head_model,
            first.canvas,
        )

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
        rows = (
            (one, number) for one in self.conditionings(requests) for number in one.request.numbers
        )
        total = sum(len(request.numbers) for request in requests)
        for (one, number), image, _ in self.images(rows, total):
            yield Picture(image, {**one.settings, "index": number})

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
        if heads is None:
            return [request]
        return of_sequence(request, heads, self.head_model)

    def conditionings(
        self, requests: Sequence[Request], progress: Progress | None = None
    ) -> Iterator[Conditioning]:
        """What the images of requests for the same people are made from, one after another. Photos
        are measured once, and only the first head is warned about.
        """
        first = None
        for request in requests:
            if first is None:
                yield (first := self.condition(request, progress))
            else:
                yield self.condition(with_measured(request, first.subjects), warn=False)

    def edit(
        self,
        photo: PhotoSource,
        *,
        mask: str | PhotoSource = "auto",
        face: int | None = None,
        person: bool = True,
        reference_face: int | None = None,
        progress: Progress | None = None,
        on_image: Callable[[np.ndarray, dict], object] | None = None,
        keep: int | None = None,
        **asked: Any,
    ) -> Result:
        """Change a photo: turn the head in it, change its expression or light, put another person's
        face there, or make again what a mask covers. Outside the mask no pixel changes.

        Args:
            photo: the photo.
            mask, face, person: see `request.EditRequest`.
            reference_face: number of the face in `reference`.
            progress, on_image, keep: see a call.
            asked: other arguments of `request.create_request`: `head`, `reference` (who is put into
                the photo; None: its own person), `prompt`, `denoise`, `seed` and so on.

        Returns:
            Images of the photo's size.

        Raises:
            CapHumanError: a wrong setting, photo, mask or head.
        """
        edit = {"photo": photo, "mask": mask, "face": face, "person": person}
        return self(
            edit=edit,
            face=reference_face,
            progress=progress,
            on_image=on_image,
            keep=keep,
            **asked,
        )

    def request(self, **asked: Any) -> Request:
        """Check what is asked for before any photo is read; see `request.create_request`."""
        return create_request(self.config, self.head_model, **asked)

    def condition(
        self,
        request: Request,
        progress: Progress | None = None,
        with_hints: bool = True,
        warn: bool = True,
    ) -> Conditioning:
        """What the images of a request are made from; see `conditioning.create_conditioning`."""
        if warn:
            warn_of_prompt(request.prompt, request.params.prompt_syntax, self.encode)
            warn_if_other_size(request.params, self.config)
        record = {
            "model": self.config.name,
            **self.record,
            "version": __version__,
            "jax": jax.__version__,
            "backend": jax.default_backend(),
        }
        conditioning = create_conditioning(
            request,
            self.head_model,
            self.person,
            self.encode,
            record,
            progress or _silent,
            with_hints,
            warn,
        )
        return dataclasses.replace(conditioning, latents=self._photo_latents(conditioning))

    def encode_photo(self, images: np.ndarray) -> jax.Array:
        """Latents (B, H/f, W/f, C) of images (B, H, W, 3) uint8; see `encode_photos`."""
        pixels, graph = jnp.asarray(images, jnp.float32) / 255, dict(self.graphs)["vae"]
        return encode_photos(self.params["vae"], pixels, cfg=self.config, graph=graph)

    def _photo_latents(self, conditioning: Conditioning) -> dict[str, dict[str, jax.Array]]:
        """See `Conditioning.latents`."""
        canvas, factor = conditioning.canvas, self.config.vae.downsampling
        size, found = conditioning.request.params.shape, {}
        mask = np.ones((size[0] // factor, size[1] // factor, 1), np.float32)
        if canvas is not None:
            mask = latent_mask(canvas.mask, factor)
            # An inpainting model sees the photo, and fits what it makes to it by itself.
            kept = np.ones_like(mask) if self.config.inpainting else mask
            found["known"] = {"latents": self.encode_photo(canvas.rough[None])[0], "mask": kept}
        if self.config.inpainting:
            gray = np.full((*size, 3), 128, np.uint8)
            image = gray
            if canvas is not None:
                image = np.where(canvas.mask[..., None] > 1 / 255, gray, canvas.image)
            found["visible"] = {"latents": self.encode_photo(image[None])[0], "mask": mask}
        return jax.tree.map(jnp.asarray, found)

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

    def program(
        self, rows: Sequence[Row], progress: Progress | None = None
    ) -> tuple[jax.stages.Compiled, tuple]:
        """The compiled program that `make` runs on these rows, and its arguments."""
        arguments, static = self.arguments(rows)
        return self.programs(arguments, static, progress or _silent), arguments

    def arguments(self, rows: Sequence[Row]) -> tuple[tuple, dict[str, Any]]:
        """The arguments of `text_to_image.generate` for these rows, and its static ones."""
        return program_arguments(
            self.config, self.params, self.encode, rows, self.tile, self.embeddings
        )

    def with_params(self, params: dict[str, dict]) -> Pipeline:
        """This pipeline with other weights of the same shapes for sampling; photos are measured as
        before, and compiled programs are shared.
        """
        other = copy.copy(self)
        other.params = other._base = params
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
        read = [(lora.read_file(path, self.config), strength) for path, strength in loras]
        if read and self._source is not None:  # added before the weights are rounded
            summed = lora.apply({name: self._source.read(name) for name in lora.NETWORKS}, read)
            put = {name: self._source.put(name, params) for name, params in summed.items()}
            self.params = self._base | put
        else:
            self.params = lora.apply(self._base, read)
        self.add_embeddings([(path, None) for path, _ in loras if embeddings.in_lora(path)])
        self.record.pop("loras", None)
        if loras:
            self.record["loras"] = [
                {
                    "name": Path(path).name,
                    "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
                    "strength": strength,
                }
                for path, strength in loras
            ]

    def add_embeddings(self, files: Sequence[tuple[str | os.PathLike, str | None]]) -> None:
        """From now on, words in prompts stand for the vectors of textual-inversion files.

        Args:
            files: (file, word) each; None: the words that the file names.

        Raises:
            ModelFolderError: a file that cannot be read or does not fit the model.
            SettingError: a word that is taken.
        """
        if not files:
            return
        read, records = embeddings.read_files(files, self.config, taken=self._words)
        self._words = self._words | read
        self.encode = self._plain.with_words({w: len(rows) for w, rows in self._words.items()})
        self.embeddings = np.concatenate(list(self._words.values()))
        self.record["embeddings"] = [*self.record.get("embeddings", ()), *records]

    def person(self, photo: PhotoSource | Person, face: int | None = None) -> Person:
        """The person in a photo or an identity file, for use as `reference` or as a head.

        Raises:
            PhotoError: a photo that cannot be read, without a face (NoFaceError), or a person who
                was measured for another model.
        """
        if isinstance(photo, Person):
            if photo.known_by != self.identify.name:
                raise PhotoError(
                    f"{photo.name} was measured by {photo.known_by}; the model {self.config.name} "
                    f"takes {self.identify.name}"
                )
            return photo
        if isinstance(photo, str | os.PathLike) and identity_file.is_identity_file(photo):
            return identity_file.load(photo, self.head_name, self.identify.name)
        size = self.config.image_size
        return analyze_photo(self.head_model, photo, size, face, self.identify, self.head_of)

    @property
    def head_name(self) -> str:
        """The head model and what estimates its heads; other persons do not fit."""
        return self.head_model.name + (f" by {self.head_of.name}" if self.head_of else "")

    def hints(self, head: Head, size: tuple[int, int] | None = None) -> jax.Array:
        """Hints (H, W, 9) of a head for images of `size` (height, width)."""
        height, width = size or (self.config.image_size,) * 2
        return render_hints(self.head_model, head, height, width)

    def images(
        self,
        rows: Iterable[Row],
        total: int,
        progress: Progress | None = None,
        seconds: dict[str, float] | None = None,
    ) -> Iterator[tuple[Row, np.ndarray, np.ndarray]]:
        """Make images, `batch` at a time; the last batch is filled up, so that one program serves
        all.

        Args:
            rows: as of `make`, of any number.
            total: how many rows there are.
            progress: see `conditioning.Progress`.
            seconds: gets the time by stage.

        Yields:
            Row, image (H, W, 3) uint8 and masks (P, h, w) once they are made.
        """
        report, seconds = progress or _silent, {} if seconds is None else seconds
        count, rows, made = min(self.batch, total), iter(rows), 0
        started = time.perf_counter()
        while part := list(itertools.islice(rows, count)):
            filled = [*part, *[part[-1]] * (count - len(part))]
            run, arguments = self.program(filled, report)
            if not made:
                seconds["compile"], started = time.perf_counter() - started, time.perf_counter()
                report("pictures", 0, total)
            images, masks = (np.asarray(array) for array in run(*arguments))
            check_finite(images[: len(part)])
            for row, image, mask in zip(part, images, masks):
                yield row, row[0].finish(to_bytes(image)), mask
            made += len(part)
            report("pictures", made, total)
        seconds["sampling"] = time.perf_counter() - started


def check_finite(images: np.ndarray) -> None:
    """Raises CapHumanError for images that are not numbers, before they are written."""
    if not np.isfinite(images).all():
        raise CapHumanError(
            "the picture contains numbers that are not finite: the weights, a LoRA or the identity "
            "are damaged, or the precision does not suffice (--dtype float32, a lower "
            "guidance_scale); nothing was written of it"
        )


def to_bytes(images: np.ndarray) -> np.ndarray:
    """Images in [0, 1] as uint8."""
    return np.rint(images * 255).astype(np.uint8)


def _silent(stage, done, total):
    """Ignores progress."""
