"""The whole way from a photo and a sentence to pictures."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion import acceleration
from caphuman_jax.diffusion.guidance import branch_weights, guided_steps
from caphuman_jax.diffusion.sampling_loop import picture_key
from caphuman_jax.diffusion.text_to_image import generate
from caphuman_jax.errors import ModelFolderError, PhotoError, SettingError
from caphuman_jax.head.head import Head, to_numbers
from caphuman_jax.head.hints import render_hints
from caphuman_jax.head.models import registry as heads
from caphuman_jax.head.models.registry import load_head
from caphuman_jax.io import metadata
from caphuman_jax.io.images import PhotoSource
from caphuman_jax.models import registry
from caphuman_jax.models.tokenizer import ClipTokenizer
from caphuman_jax.nn.compute_config import ComputeConfig
from caphuman_jax.person import identity_file
from caphuman_jax.person.identity import Identifier
from caphuman_jax.person.person import (
    TOGETHER,
    Person,
    WantedHead,
    measure,
    note_unusual,
    stack_people,
    together,
)
from caphuman_jax.pipeline.conditioning import (
    Appearance,
    Scene,
    control_picture,
    picture_record,
    side_by_side,
)
from caphuman_jax.pipeline.request import (
    Asked,
    Reference,
    Request,
    asked_people,
    checked_controls,
    checked_settings,
    picture_size,
    whole,
)
from caphuman_jax.runtime import compiler
from caphuman_jax.runtime.compile_cache import keep_compiled
from caphuman_jax.version import __version__
from caphuman_jax.weights import lora, model_folder
from caphuman_jax.weights.placement import MEMORY, TILES, packed, put, put_stored

_BATCH_ON_ACCELERATOR = 8
_READERS = 4  # threads that read weights
# of the UNet's decoder, how many blocks run at every step where the others' features are reused
_SHALLOW = 1

_SAMPLING = ("text", "identity", "capface", "unet", "vae")
"""The networks that `generate` runs, besides ControlNets."""

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total): called as a stage begins (done 0) and as its parts are done.

Stages: "photo", "head photo", "hints", "compile", "pictures"."""


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """Pictures and what they were made from.

    pictures: (N, H, W, 3) uint8 RGB. masks: (N, P, h, w) float32 in [0, 1], at latent size: where
    CapFace took each face to be.
    people: the P people in them; `person`, `lender`, `head`, `hints` are those of the first.
    controls: {ControlNet: its picture (H, W, 3) uint8}. settings: everything that the pictures were
    made with, JSON types; `index` is added for each picture.
    seconds: time spent by stage: analysis, compile, sampling.
    """

    pictures: np.ndarray
    masks: np.ndarray
    people: tuple[Appearance, ...]
    controls: dict[str, np.ndarray]
    settings: dict
    seconds: dict[str, float]

    person = property(lambda self: self.people[0].person)
    lender = property(lambda self: self.people[0].lender)
    head = property(lambda self: self.people[0].head)
    hints = property(lambda self: self.people[0].hints)


@dataclasses.dataclass(frozen=True)
class Source:
    """read(network) → its parameters in float32 on the host; put(network, those) → as a pipeline
    keeps them.
    """

    read: Callable[[str], dict]
    put: Callable[[str, dict], dict]


class Pipeline:
    """A loaded model; call it, or take it in steps with `request`, `scene` and `make`."""

    def __init__(
        self,
        config: ModelConfig,
        params: dict,
        graphs: tuple,
        record: dict | None = None,
        batch: int | None = None,
        tokenizer: ClipTokenizer | None = None,
        tile: int = TILES["normal"],
        source: Source | None = None,
    ):
        """params: {network: parameters}; graphs: ((network, graphdef), …), with the compute dtype
        in them; record: JSON types that say which weights these are, added to the settings of every
        picture. batch: pictures made at a time; None: 1 on a CPU (as fast there, and one program
        serves any number of pictures), 8 elsewhere. tile: pictures with a longer side are decoded
        in tiles of so many pixels; 0: never. source: where params come from, if they are not kept
        as they were read.
        """
        self.config, self.params, self.graphs = config, params, graphs
        self._base, self._source, self.tile = params, source, tile
        self.identify = Identifier(config, params, dict(graphs))
        self.record = dict(record or {})
        self.batch = batch or (1 if jax.default_backend() == "cpu" else _BATCH_ON_ACCELERATOR)
        self.head_model = load_head(config.head)
        source, path = heads.find(config.head)
        networks = {
            name: (dict(graphs)[name], params[name]) for name in source.networks if name in params
        }
        self.head_of = source.estimator(self.head_model, path, networks)
        if self.head_of:
            self.record["head_by"] = self.head_of.name
        self.tokenize = tokenizer or ClipTokenizer()
        self.spread: Callable | None = (
            # what makes a function of `generate`'s arguments run on several devices, see
            # `bulk.devices`
            None
        )
        self.compiler_options = (
            compiler.options()
        )  # of XLA, for programs that are compiled from now on
        self._compiled = {}

    def __call__(self, *, progress: Progress | None = None, **asked) -> Result:
        """Pictures of the person in `reference` as the prompt says, with the head that is wanted:
        `request`, whose arguments these are, `scene` and `make` in one. Raises SettingError,
        PhotoError (NoFaceError), HeadError, ModelFolderError: all CapHumanError.
        """
        request, report = self.request(**asked), progress or _silent
        started = time.perf_counter()
        scene = self.scene(request, report)
        seconds = {"analysis": time.perf_counter() - started}
        pictures, masks = self._pictures(scene, report, seconds)
        return Result(pictures, masks, scene.people, scene.controls, scene.settings, seconds)

    def request(
        self,
        *,
        prompt: str,
        reference: Reference | Sequence[Reference] | None = None,
        head: WantedHead | dict | PhotoSource | Person | None = None,
        face: int | None = None,
        people: Sequence[Mapping] = (),
        photos: str = "average",
        negative: str = "",
        num: int = 1,
        seed: int = 0,
        first: int = 0,
        sampler: str | None = None,
        steps: int | None = None,
        eta: float | None = None,
        guidance: float | None = None,
        identity_guidance: float = 1.0,
        head_guidance: float = 1.0,
        guidance_rescale: float | None = None,
        strength: float = 1.0,
        identity_until: float = 0,
        controls: Sequence[Mapping] = (),
        size: int | tuple[int, int] | None = None,
        hard_gate: bool = True,
        guidance_interval: Sequence[float] | None = None,
        reuse: int = 1,
    ) -> Request:
        """What is asked for, checked before any photo is looked at.

        Args:
            reference: photo, identity file, or a Person from `person`; or several of one person,
                put together as `photos` says: "average" of their tokens, or "stack", each with
                tokens of its own. face: number of the face in it, 0 the largest.
            head: None (the reference's own), a photo, a `WantedHead`, or a dict of its fields such
            as {"yaw": 20}.
            people: instead of these three, for several people in one picture: a {"reference",
                "head", "face"} each. Those whose position is not asked for stand side by side.
            negative: what takes the place of "no prompt" in guidance.
            num, first: pictures `first` … `first + num - 1` of the seed; each depends on the seed
                and its own number alone. sampler, steps, eta, guidance, guidance_rescale: None for
                what the model is best sampled with. sampler: one of `samplers.SAMPLERS`; eta (of
                "ddim") 0 is DDIM, 1 as noisy as DDPM; guidance counts the text and 1 is none;
                identity_guidance and head_guidance count those conditions in the same way (see
                `diffusion.guidance`); guidance_rescale in [0, 1] tames the contrast of strong
                guidance (arXiv 2305.08891).
            strength: of CapFace, 1 as trained. identity_until: identity tokens are kept where the
                timestep (999 … 0) is at most this; 0: always, negative: never. hard_gate: CapFace's
                mask is cut at 0.5, not multiplied.
            controls: ControlNets of the model, a {"name", "picture", "strength"} each; the picture
                is a photo, or "landmarks" for the 68 landmarks of the wanted heads as dots.
            size: pixels: a side, or (width, height); None for what the model was trained on.
            guidance_interval: two timesteps (999 … 0) between which guidance is used (arXiv
                2404.07724); the other steps take the prediction with all conditions alone, in half
                the time. None: every step.
            reuse: the deep part of the UNet is run at one of so many steps, and its features reused
                at the others (DeepCache, arXiv 2312.00858); CapFace's and the ControlNets'
                residuals for that part with it. 1: at every step.
        Raises SettingError, HeadError.
        """
        settings, plan = checked_settings(
            self.config,
            prompt,
            negative,
            seed,
            sampler,
            steps,
            eta,
            guidance,
            identity_guidance,
            head_guidance,
            guidance_rescale,
            strength,
            identity_until,
            hard_gate,
            guidance_interval,
            reuse,
        )
        num, first = whole(num, "num", 1, 10_000), whole(first, "first", 0, 2**32 - 10_001)
        if photos not in TOGETHER:
            raise SettingError(
                f"photos are put together by {' or '.join(TOGETHER)}, not {photos!r}"
            )
        return Request(
            settings,
            plan,
            self.size(size),
            tuple(asked_people(people, reference, head, face, self.head_model)),
            photos,
            tuple(checked_controls(controls, self.config)),
            num,
            first,
        )

    def scene(
        self, request: Request, progress: Progress | None = None, with_hints: bool = True
    ) -> Scene:
        """What the pictures of a request are made from: people measured, heads posed and,
        `with_hints`, rendered. Raises PhotoError (NoFaceError), HeadError, ModelFolderError.
        """
        report, (height, width) = progress or _silent, request.size
        cast = [self._measured(one, request.photos, report) for one in request.people]
        wanted = side_by_side([one.head for one in request.people], height, width)
        report("hints", 0, 1)
        appearances = []
        for (person, lender), want in zip(cast, wanted):
            used = want.build(self.head_model, person.head, lender)
            note_unusual(self.head_model, used)
            appearances.append(
                Appearance(
                    person,
                    lender,
                    used,
                    np.asarray(self.hints(used, request.size)) if with_hints else None,
                )
            )
        heads = [look.head for look in appearances]
        pictures = {
            name: control_picture(picture, self.head_model, heads, height, width)
            for name, picture, _ in request.controls
        }
        report("hints", 1, 1)
        settings = request.settings | {
            "first": request.first,
            "size": [width, height],
            "photos": request.photos,
            "people": [
                {
                    "reference": {"name": person.name, "sha256": person.sha256, "face": one.face},
                    "asked_head": want.record(lender),
                    "head": to_numbers(look.head, self.head_model),
                }
                for one, (person, lender), want, look in zip(
                    request.people, cast, wanted, appearances
                )
            ],
            "controls": [
                {"name": name, "strength": strength, "picture": picture_record(picture)}
                for name, picture, strength in request.controls
            ],
            "model": self.config.name,
            **self.record,
            "version": __version__,
            "jax": jax.__version__,
            "backend": jax.default_backend(),
        }
        return Scene(request, tuple(appearances), pictures, settings)

    def make(
        self, rows: Sequence[tuple[Scene, int]], progress: Progress | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """One batch: pictures (B, H, W, 3) float32 in [0, 1] and masks (B, P, h, w) of B rows, a
        scene with hints and the picture's number each.

        The scenes are those of any people, prompts and seeds, but otherwise alike (`Scene.kind`).
        The arrays are still being computed when they are returned. Each batch size is a program of
        its own, compiled when it is first needed."""
        run, arguments = self.program(rows, progress)
        return run(*arguments)

    def program(
        self, rows: Sequence[tuple[Scene, int]], progress: Progress | None = None
    ) -> tuple[jax.stages.Compiled, tuple]:
        """The compiled program that `make` runs on these rows, and its arguments."""
        arguments, static = self._arguments(rows)
        return self._program(arguments, static, progress or _silent), arguments

    def precision(self):
        """A context to compile in: float32 means float32, also where the device would take a
        shorter type for products by itself.
        """
        return jax.default_matmul_precision(
            "highest" if self.record.get("dtype") == "float32" else "default"
        )

    def use_loras(self, loras: Sequence[tuple[str | os.PathLike, lora.Strength]]) -> None:
        """From now on, sample with these LoRA files added to the base's UNet and text encoder, each
        at its strength: one number, or one for each of the two. They take the place of those in
        use; () goes back to the base as it was loaded, which stays in memory.

        Raises ModelFolderError.
        """
        read = [(lora.read_file(path, self.config), strength) for path, strength in loras]
        if read and self._source is not None:  # added before the weights are rounded
            summed = lora.apply({name: self._source.read(name) for name in lora.NETWORKS}, read)
            self.params = self._base | {
                name: self._source.put(name, params) for name, params in summed.items()
            }
        else:
            self.params = lora.apply(self._base, read)
        self.record = {name: value for name, value in self.record.items() if name != "loras"}
        if loras:
            self.record["loras"] = [
                {
                    "name": Path(path).name,
                    "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest(),
                    "strength": strength,
                }
                for path, strength in loras
            ]

    def person(self, photo: PhotoSource, face: int | None = None) -> Person:
        """The person in a photo or an identity file, for use as `reference` or as a head; see
        `person.measure`.
        """
        if identity_file.is_identity_file(photo):
            return identity_file.load(photo, self.head_name, self.identify.name)
        return measure(
            self.head_model, photo, self.config.image_size, face, self.identify, self.head_of
        )

    @property
    def head_name(self) -> str:
        """The head model and what measures its heads, in words; people measured otherwise do not
        fit.
        """
        return self.head_model.name + (f" by {self.head_of.name}" if self.head_of else "")

    def hints(self, head: Head, size: tuple[int, int] | None = None) -> jax.Array:
        """Hints (H, W, 9) of a head for pictures of size (H, W)."""
        height, width = size or (self.config.image_size,) * 2
        return render_hints(self.head_model, head, height, width)

    def size(self, size: int | tuple[int, int] | None) -> tuple[int, int]:
        """(height, width) in pixels of a side, a (width, height) or None. Raises SettingError for
        sizes that cannot be made.
        """
        return picture_size(size, self.config)

    def _measured(self, one: Asked, photos, report) -> tuple[Person, Person | None]:
        """The person of the reference and that of the head photo."""

        def person(photo, face, stage):
            if isinstance(photo, Person):
                if photo.known_by != self.identify.name:
                    raise PhotoError(
                        f"{photo.name} was measured by {photo.known_by}; the model "
                        f"{self.config.name} takes {self.identify.name}"
                    )
                return photo
            report(stage, 0, 1)
            measured = self.person(photo, face)
            report(stage, 1, 1)
            return measured

        reference = together([person(photo, one.face, "photo") for photo in one.references], photos)
        return reference, None if one.head.photo is None else person(
            one.head.photo, one.head.photo_face, "head photo"
        )

    def _pictures(self, scene, report, seconds):
        """Pictures (N, H, W, 3) uint8 and masks, `batch` at a time; the last batch is filled up, so
        one program serves all.
        """
        first, num, batch = (
            scene.request.first,
            scene.request.num,
            min(self.batch, scene.request.num),
        )
        rows = lambda start: [(scene, min(i, first + num - 1)) for i in range(start, start + batch)]
        started = time.perf_counter()
        self._program(*self._arguments(rows(first)), report)
        seconds["compile"], started = time.perf_counter() - started, time.perf_counter()
        parts = []
        report("pictures", 0, num)
        for start in range(0, num, batch):
            made = self.make(rows(first + start))
            count = min(batch, num - start)
            parts.append([np.asarray(array)[:count] for array in made])
            report("pictures", start + count, num)
        seconds["sampling"] = time.perf_counter() - started
        pictures, masks = (np.concatenate(arrays) for arrays in zip(*parts))
        return to_bytes(pictures), masks

    def _arguments(self, rows):
        """The arguments of `generate` for a batch of rows, and those that are static."""
        scenes, numbers_of = [scene for scene, _ in rows], [number for _, number in rows]
        request, settings = scenes[0].request, scenes[0].request.settings
        each = {id(scene): self._conditions(scene) for scene in scenes}
        conditions = jax.tree.map(
            lambda *leaves: jnp.stack(leaves), *(each[id(scene)] for scene in scenes)
        )
        keys = _keys(
            np.array([scene.request.settings["seed"] for scene in scenes], np.uint32),
            np.array(numbers_of, np.uint32),
        )
        scales, guided = (
            branch_weights(
                settings["guidance"], settings["identity_guidance"], settings["head_guidance"]
            ),
            None,
        )
        if settings["guidance_interval"] and set(scales) != {"text"}:
            scales, guided = (
                scales | {"text": scales.get("text", 0.0)},
                guided_steps(request.plan, settings["guidance_interval"]),
            )
        numbers = {name: jnp.float32(settings[name]) for name in ("strength", "identity_until")}
        numbers |= {
            "weights": {name: jnp.float32(weight) for name, weight in scales.items()},
            "controls": {name: jnp.float32(strength) for name, _, strength in request.controls},
        }
        if settings["guidance_rescale"]:
            numbers["rescale"] = jnp.float32(settings["guidance_rescale"])
        if guided is not None:
            numbers["guided"] = jnp.asarray(guided)
        if settings["reuse"] > 1:
            numbers["recompute_mask"] = jnp.asarray(
                acceleration.recompute_mask(request.plan, settings["reuse"], guided)
            )
        static = {
            "size": request.size,
            "branches": tuple(scales),
            "hard_gate": settings["hard_gate"],
            "shallow": _SHALLOW if settings["reuse"] > 1 else 0,
            "tile": self.tile if max(request.size) > self.tile else 0,
        }
        params = {
            name: params
            for name, params in self.params.items()
            if name in _SAMPLING or name.startswith("controlnet_")
        }
        return (params, conditions, keys, numbers, request.plan), static

    def _conditions(self, scene):
        """A scene as the networks get it, without a batch axis."""
        length, settings = self.config.text.length, scene.request.settings
        conditions = {
            "tokens": self.tokenize([settings["prompt"]], length)[0],
            "empty_tokens": self.tokenize([settings["negative"]], length)[0],
            "controls": {
                name: picture.astype(np.float32) / 255 for name, picture in scene.controls.items()
            },
            **stack_people([look.person for look in scene.people]),
        }
        return jax.tree.map(jnp.asarray, conditions) | {
            "hints": jnp.stack([look.hints for look in scene.people])
        }

    def _program(self, arguments, static, report):
        """`generate` compiled for these shapes, kept for the next call."""
        shapes = jax.tree.map(lambda leaf: (np.shape(leaf), jnp.result_type(leaf)), arguments[1:])
        key = (self.graphs, str(shapes), *static.items())
        if key not in self._compiled:
            report("compile", 0, 1)
            with self.precision():
                run = functools.partial(generate, cfg=self.config, graphs=self.graphs, **static)
                self._compiled[key] = (
                    jax.jit(self.spread(run) if self.spread else run)
                    .lower(*arguments)
                    .compile(compiler_options=self.compiler_options)
                )
            report("compile", 1, 1)
        return self._compiled[key]


def load(
    model: str | os.PathLike = "mini",
    *,
    dtype: str | None = None,
    batch: int | None = None,
    cache: bool = True,
    place: Callable[[str, dict], dict] | None = None,
    memory: str = "normal",
) -> Pipeline:
    """The pipeline of a shipped model's name or a model folder.

    dtype: compute dtype, "float32" or "bfloat16"; None: float32 on a CPU, bfloat16 elsewhere.
    batch: see `Pipeline`.
    cache: keep compiled programs between runs in `compile_cache.cache_folder()`. place(network, its
    parameters on the host) → the parameters on devices; None: on the first one. memory: one of
    `memory.MEMORY`. Raises ModelFolderError, SettingError."""
    if memory not in MEMORY:
        raise SettingError(
            f"there is no memory setting {memory!r}; choose one of {', '.join(MEMORY)}"
        )
    path = model_folder.find_model(model)
    config = model_folder.read_config(path)
    if cache:
        keep_compiled()
    dtype = jnp.dtype(dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16"))
    there = metadata.checksums(path)
    by_device = place is None and memory != "least" and jax.default_backend() != "cpu"
    place = place or (lambda name, host: put(name, host, memory))
    with ThreadPoolExecutor(_READERS) as pool:
        # Where there are cores for it, checksums are made while the networks are laid out and their
        # weights go to the device.
        whole = (
            {name: pool.submit(model_folder.verify_network, path, name) for name in there}
            if by_device
            else {}
        )
        networks = registry.abstract(config, ComputeConfig(dtype)) | registry.abstract(
            config, only=[name for name in registry.OPTIONAL if name in there]
        )
        source = Source(
            lambda name: model_folder.load_params(path, {name: networks[name][1]})[name],
            lambda name, host: place(name, packed(name, host, dtype, memory)),
        )
        params = {}
        for name in networks:
            if name in whole:  # as stored, which is what goes over the bus, and converted there
                params[name] = put_stored(
                    name,
                    _as_stored(path, name, networks[name][1], whole[name].result),
                    dtype,
                    memory,
                )
            else:  # one network after another: what is read does not lie in memory twice
                params[name] = source.put(name, source.read(name))
        for check in whole.values():
            check.result()
    graphs = tuple((name, graph) for name, (graph, _) in networks.items())
    record = {"weights": there, "dtype": dtype.name} | (
        {"memory": memory} if memory in ("low", "least") else {}
    )
    rounded = memory == "least" or (memory != "full" and dtype != jnp.float32)
    batch = batch or (1 if memory in ("low", "least") else None)
    return Pipeline(
        config,
        params,
        graphs,
        record,
        batch,
        ClipTokenizer(model_folder.tokenizer_files(path)),
        TILES[memory],
        source if rounded else None,
    )


def _as_stored(path: Path, name: str, shapes: dict, verify: Callable[[], None]) -> dict:
    """A network's weights in the types of its file, not compared with the checksum; what cannot be
    read is told as `verify` tells it, if it does.
    """
    try:
        return model_folder.load_params(path, {name: shapes}, dtype=None, verify=False)[name]
    except ModelFolderError:
        verify()
        raise


_keys = jax.jit(jax.vmap(picture_key))


def to_bytes(pictures: np.ndarray) -> np.ndarray:
    """Pictures in [0, 1] as uint8."""
    return np.rint(pictures * 255).astype(np.uint8)


def _silent(stage, done, total):
    """Progress that nobody asked for."""
