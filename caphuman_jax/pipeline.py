"""The whole way from a photo and a sentence to pictures."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import caphuman_jax
from caphuman_jax import models, provenance
from caphuman_jax.config import ModelConfig
from caphuman_jax.diffusion.generate import generate
from caphuman_jax.diffusion.samplers import picture_keys
from caphuman_jax.errors import ModelFolderError, SettingError
from caphuman_jax.head.head import Head, to_numbers
from caphuman_jax.head.hints import render_hints
from caphuman_jax.head.morphable import load_head
from caphuman_jax.images import PhotoSource
from caphuman_jax.models.tokenizer import ClipTokenizer
from caphuman_jax.person import Person, WantedHead, measure, note_unusual
from caphuman_jax.weights import folder

log = logging.getLogger("caphuman_jax")

LARGEST_SIDE = 4096
_BATCH_ON_ACCELERATOR = 8

Progress = Callable[[str, int, int], None]
"""progress(stage, done, total): called as a stage begins (done 0) and as its parts are done.

Stages: "photo", "head photo", "hints", "compile", "pictures"."""


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """Pictures and what they were made from.

    pictures: (N, H, W, 3) uint8 RGB. masks: (N, h, w) float32 in [0, 1], at latent size: where CapFace took the face to be.
    hints: (H, W, 9) float32, see `head.hints`. person: of the reference photo; lender: of the head photo, if there was one.
    head: the head that was asked for. settings: everything that the pictures were made with, JSON types; `index` is added
    for each picture. seconds: time spent by stage: analysis, compile, sampling.
    """

    pictures: np.ndarray
    masks: np.ndarray
    hints: np.ndarray
    person: Person
    lender: Person | None
    head: Head
    settings: dict
    seconds: dict[str, float]


class Pipeline:
    """A loaded model; call it, or take it in steps with `person`, `head` and `hints`."""

    def __init__(self, config: ModelConfig, params: dict, graphs: tuple, record: dict | None = None, batch: int | None = None):
        """params: {network: parameters}; graphs: ((network, graphdef), …), with the compute dtype in them; record: JSON types that
        say which weights these are, added to the settings of every picture. batch: pictures made at a time; None: 1 on a CPU
        (as fast there, and one program serves any number of pictures), 8 elsewhere."""
        if config.identity.recogniser != "mobilefacenet" or config.identity.image_tokens != "recogniser":
            raise ModelFolderError(f"the model {config.name} takes identity from {config.identity.recogniser} and "
                                   f"{config.identity.image_tokens}; this program has mobilefacenet and recogniser")
        self.config, self.params, self.graphs = config, params, graphs
        self.record = record or {}
        self.batch = batch or (1 if jax.default_backend() == "cpu" else _BATCH_ON_ACCELERATOR)
        self.head_model = load_head(config.head)
        self.tokenize = ClipTokenizer()
        self._compiled = {}

    def __call__(self, *, reference: PhotoSource | Person, prompt: str, head: WantedHead | dict | PhotoSource | Person | None = None,
                 num: int = 1, seed: int = 0, steps: int | None = None, guidance: float | None = None, eta: float | None = None, strength: float = 1.0,
                 identity_until: float = 0, size: int | tuple[int, int] | None = None, face: int | None = None,
                 hard_gate: bool = True, first: int = 0, progress: Progress | None = None) -> Result:
        """Pictures of the person in `reference` as the prompt says, with the head that is wanted.

        Args:
            reference: photo, or a Person from `person`. face: number of the face in it, 0 the largest.
            head: None (the reference's own), a photo, a `WantedHead`, or a dict of its fields such as {"yaw": 20}.
            num, first: pictures `first` … `first + num - 1` of the seed; each depends on the seed and its own number alone.
            steps, guidance, eta: None for what the model is best sampled with; guidance 1 is none; eta 0 is DDIM, 1 as noisy as DDPM.
            strength: of CapFace, 1 as trained. identity_until: identity tokens are kept where the timestep (999 … 0) is at
                most this; 0: always, negative: never. hard_gate: CapFace's mask is cut at 0.5, not multiplied.
            size: pixels: a side, or (width, height); None for what the model was trained on.
        Raises SettingError, PhotoError (NoFaceError), HeadError: all CapHumanError.
        """
        sampling = self.config.sampling
        settings = {
            "prompt": _text(prompt), "seed": _whole(seed, "seed", 0, 2**32 - 1),
            "steps": _whole(sampling.steps if steps is None else steps, "steps", 1, self.config.diffusion.train_steps),
            "guidance": _real(sampling.guidance if guidance is None else guidance, "guidance", 0, 100),
            "eta": _real(sampling.eta if eta is None else eta, "eta", 0, 1),
            "strength": _real(strength, "strength", 0, 10),
            "identity_until": _real(identity_until, "identity_until", -1, self.config.diffusion.train_steps),
            "hard_gate": bool(hard_gate),
        }
        num, first = _whole(num, "num", 1, 10_000), _whole(first, "first", 0, 2**32 - 10_001)
        height, width = self.size(size)
        wanted = WantedHead.of(head)
        wanted.check(self.head_model)
        report = progress or (lambda stage, done, total: None)

        started = time.perf_counter()
        person = self._measured(reference, face, "photo", report)
        lender = self._measured(wanted.photo, wanted.photo_face, "head photo", report)
        used = wanted.build(self.head_model, person.head, lender)
        note_unusual(self.head_model, used)
        report("hints", 0, 1)
        hints = jax.block_until_ready(self.hints(used, (height, width)))
        report("hints", 1, 1)
        seconds = {"analysis": time.perf_counter() - started}

        pictures, masks = self._pictures(person, hints, settings, range(first, first + num), report, seconds)
        settings |= {
            "first": first, "size": [width, height], "spacing": sampling.spacing,
            "reference": {"name": person.name, "sha256": person.sha256, "face": face}, "asked_head": wanted.record(lender),
            "head": to_numbers(used, self.head_model), "model": self.config.name, **self.record,
            "version": caphuman_jax.__version__, "jax": jax.__version__, "backend": jax.default_backend(),
        }
        return Result(pictures, masks, np.asarray(hints), person, lender, used, settings, seconds)

    def person(self, photo: PhotoSource, face: int | None = None) -> Person:
        """The person in a photo, for use as `reference` or as a head; see `person.measure`."""
        return measure(self.head_model, photo, self.config.image_size, face)

    def hints(self, head: Head, size: tuple[int, int] | None = None) -> jax.Array:
        """Hints (H, W, 9) of a head for pictures of size (H, W)."""
        height, width = size or (self.config.image_size,) * 2
        return render_hints(self.head_model, head, height, width)

    def size(self, size: int | tuple[int, int] | None) -> tuple[int, int]:
        """(height, width) in pixels of a side, a (width, height) or None. Raises SettingError for sizes that cannot be made."""
        step = self.config.vae.downsampling * 2 ** (len(self.config.unet.multipliers) - 1)
        sides = np.full(2, self.config.image_size) if size is None else np.asarray(size)
        sides = np.repeat(sides, 2) if sides.ndim == 0 else sides
        if sides.shape != (2,) or sides.dtype.kind not in "iu" or (sides < step).any() or (sides > LARGEST_SIDE).any() or (sides % step).any():
            raise SettingError(f"the size {size} cannot be made; sides are multiples of {step} from {step} to {LARGEST_SIDE} pixels, "
                               f"best {self.config.image_size}")
        width, height = map(int, sides)
        if (height, width) != (self.config.image_size,) * 2:
            log.warning("the model was trained on %dx%d pixels; %dx%d may come out worse",
                        self.config.image_size, self.config.image_size, width, height)
        return height, width

    def _measured(self, photo, face, stage, report) -> Person | None:
        if photo is None or isinstance(photo, Person):
            return photo
        report(stage, 0, 1)
        person = self.person(photo, face)
        report(stage, 1, 1)
        return person

    def _pictures(self, person, hints, settings, indices, report, seconds):
        """Pictures (N, H, W, 3) uint8 and masks, `batch` at a time; the last batch is filled up, so one program serves all."""
        batch = min(self.batch, len(indices))
        repeat = lambda array: jnp.broadcast_to(jnp.asarray(array), (batch, *np.shape(array)))
        conditions = {
            "tokens": repeat(self.tokenize([settings["prompt"]], self.config.text.length)[0]),
            "empty_tokens": jnp.asarray(self.tokenize([""], self.config.text.length)), "hints": repeat(hints),
            "image_tokens": repeat(person.image_tokens), "recognition": repeat(person.vector),
        }
        numbers = {name: jnp.float32(settings[name]) for name in ("guidance", "strength", "identity_until")}
        static = {"steps": settings["steps"], "eta": settings["eta"], "size": hints.shape[:2], "guided": settings["guidance"] != 1, "hard_gate": settings["hard_gate"]}
        keys = lambda start: picture_keys(settings["seed"], np.minimum(np.arange(start, start + batch), indices[-1]))

        started = time.perf_counter()
        run = self._program(self.params, conditions, keys(indices[0]), numbers, static, report)
        seconds["compile"], started = time.perf_counter() - started, time.perf_counter()
        parts = []
        report("pictures", 0, len(indices))
        for start in range(0, len(indices), batch):
            made = run(self.params, conditions, keys(indices[start]), numbers)
            count = min(batch, len(indices) - start)
            parts.append([np.asarray(array)[:count] for array in made])
            report("pictures", start + count, len(indices))
        seconds["sampling"] = time.perf_counter() - started
        pictures, masks = (np.concatenate(arrays) for arrays in zip(*parts))
        return np.rint(pictures * 255).astype(np.uint8), masks[..., 0]

    def _program(self, params, conditions, keys, numbers, static, report):
        """`generate` compiled for these shapes, kept for the next call."""
        key = (len(keys), *static.items())
        if key not in self._compiled:
            report("compile", 0, 1)
            lowered = generate.lower(params, conditions, keys, numbers, cfg=self.config, graphs=self.graphs,
                                     spacing=self.config.sampling.spacing, **static)
            self._compiled[key] = lowered.compile()
            report("compile", 1, 1)
        return self._compiled[key]


def load(model: str | os.PathLike = "mini", *, dtype: str | None = None, batch: int | None = None, cache: bool = True) -> Pipeline:
    """The pipeline of a shipped model's name or a model folder.

    dtype: compute dtype, "float32" or "bfloat16"; None: float32 on a CPU, bfloat16 elsewhere. batch: see `Pipeline`.
    cache: keep compiled programs between runs in `cache_folder()`. Raises ModelFolderError.
    """
    path = folder.find_model(model)
    config = folder.read_config(path)
    if cache:
        keep_compiled()
    dtype = jnp.dtype(dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16"))
    networks = models.abstract(config, dtype)
    params = folder.load_params(path, {name: shapes for name, (_, shapes) in networks.items()})
    graphs = tuple((name, graph) for name, (graph, _) in networks.items())
    record = {"weights": provenance.checksums(path), "dtype": dtype.name}
    return Pipeline(config, jax.device_put(params), graphs, record, batch)


def cache_folder() -> Path:
    """Where compiled programs are kept: $CAPHUMAN_CACHE, or caphuman_jax in $XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("CAPHUMAN_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(own) if own else Path(base) / "caphuman_jax"


def keep_compiled() -> None:
    """Turn on JAX's persistent compilation cache in `cache_folder()`, unless one is set already or the folder cannot be made."""
    if jax.config.jax_compilation_cache_dir:
        return
    where = cache_folder() / "compiled"
    try:
        where.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("compiled programs cannot be kept in %s (%s); every run compiles again. Set CAPHUMAN_CACHE to another folder.", where, error)
        return
    jax.config.update("jax_compilation_cache_dir", str(where))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _text(prompt) -> str:
    if not isinstance(prompt, str):
        raise SettingError(f"the prompt is a text, not {type(prompt).__name__}")
    return prompt


def _whole(value, name: str, low: int, high: int) -> int:
    number = _real(value, name, low, high)
    if number != int(number):
        raise SettingError(f"{name} must be a whole number, not {value}")
    return int(number)


def _real(value, name: str, low: float, high: float) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise SettingError(f"{name} must be a number, not {value!r}") from None
    if not math.isfinite(number) or not low <= number <= high:
        raise SettingError(f"{name} must lie between {low:g} and {high:g}, not {number:g}")
    return number
