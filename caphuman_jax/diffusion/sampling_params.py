"""Every number that sampling takes, from the command line, a job or Python to the compiled program.

A field of `SamplingParams` is declared once. Its metadata (kind, range, help) makes the flag of
`caphuman generate`, the check of a job's field and the entry in a picture's settings, so that a new
number needs a field here, its use in the program (here, in `program_inputs`, and in
`text_to_image.py` or `guidance.py`), and a line in docs/generate.md.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from caphuman_jax.config import DiffusionConfig, ModelConfig
from caphuman_jax.diffusion.sampling_field import TIMESTEPS, FieldSpec, check, field
from caphuman_jax.errors import SettingError

if TYPE_CHECKING:
    from caphuman_jax.diffusion.samplers import SamplerCoefficients

# Blocks of the UNet's decoder that run at every step with cache_interval > 1.
_DEEP_BLOCKS_KEPT = 1


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """The numbers of a request. None stands for what the model is best sampled with, see `resolve`.

    Raises SettingError for a value of the wrong type or out of its range.
    """

    negative_prompt: str = field("", "what the picture does not show", "text", per_image=True)
    prompt_syntax: bool = field(
        True,
        (
            "read (word:1.3), [word] and BREAK in prompts as syntax (default), or all "
            "brackets as literal text"
        ),
        "switch",
        per_image=True,
    )
    clip_skip: int = field(
        1,
        ("use the output of the text encoder's N-th layer from the end; default 1, the last"),
        "int",
        1,
        24,
        metavar="N",
    )
    num_images: int = field(
        1,
        ("number of pictures, default 1; each depends only on the seed and on its own number"),
        "int",
        1,
        10_000,
        per_image=True,
    )
    first_image: int = field(
        0, "number of the first picture", "int", 0, 2**32 - 10_001, flag=False, per_image=True
    )
    seed: int = field(0, "default 0", "int", 0, 2**32 - 1, per_image=True)
    sampler: str | None = field(
        None,
        "ddim, dpmpp_2m, dpmpp_2m_karras, euler_a, unipc or lcm; default: the model's own",
        "sampler",
        metavar="NAME",
    )
    steps: int | None = field(None, "default: the model's own", "int", 1, TIMESTEPS)
    denoise: float | None = field(
        None,
        (
            "how much of an edited photo may change inside the mask, from 0 (nothing) to 1 "
            "(everything); this share of the steps is computed"
        ),
        "float",
        0.01,
        1,
        flag=False,
    )
    detail: float = field(
        0.0,
        "sample each small face (under 0.4 of the model's size) again, enlarged, with this share "
        "of the steps, such as 0.45; default 0: not at all",
        "float",
        0,
        1,
    )
    bind_until: float = field(
        0.5,
        "people with prompts of their own: share of the steps at which each region of the picture "
        "sees its own prompt alone; default 0.5",
        "float",
        0,
        1,
    )
    spacing: str | None = field(None, "how timesteps are spaced", "spacing", flag=False)
    eta: float | None = field(
        None,
        "noise added again at each step of ddim, from 0 (none) to 1 (as DDPM); default: the "
        "model's own",
        "float",
        0,
        1,
    )
    guidance_scale: float | None = field(
        None,
        "how strongly the prompt is followed; 1 is no guidance; default: the model's own",
        "float",
        0,
        100,
        metavar="G",
    )
    identity_guidance: float | None = field(
        None,
        "how strongly the identity is followed; 1: as trained; default: the model's own, or 1 with "
        "--guidance-scale 1",
        "float",
        0,
        100,
        metavar="G",
    )
    head_guidance: float | None = field(
        None,
        "how strongly the head is followed; 1: as trained; default: the model's own, or 1 with "
        "--guidance-scale 1",
        "float",
        0,
        100,
        metavar="G",
    )
    guidance_rescale: float | None = field(
        None,
        "0 to 1: reduces the contrast that strong guidance adds (arXiv 2305.08891); default: the "
        "model's own",
        "float",
        0,
        1,
        metavar="PHI",
    )
    control_scale: float = field(
        1.0, "weight of CapFace's residuals, which carry face and head; default 1", "float", 0, 10
    )
    identity_max_timestep: float = field(
        0.0,
        (
            "use the identity only at timesteps up to T (999 is noise, 0 the picture); "
            "default 0: at all of them; negative: at none"
        ),
        "float",
        -1,
        TIMESTEPS,
        metavar="T",
    )
    guidance_interval: tuple[float, float] | None = field(
        None,
        (
            "guide only at timesteps between A and B (999 to 0; arXiv 2404.07724); the "
            "other steps take half the time"
        ),
        "interval",
        0,
        TIMESTEPS,
        metavar=("A", "B"),
    )
    cache_interval: int = field(
        1,
        (
            "run the deep part of the UNet only at every N-th step and reuse its features "
            "in between (DeepCache, arXiv 2312.00858); default 1"
        ),
        "int",
        1,
        TIMESTEPS,
        metavar="N",
    )
    precision: str = field(
        "exact",
        (
            "fp8: feed-forward layers of UNet and CapFace in 8-bit floating point, experimental "
            "(NVIDIA Ada, Hopper or newer); default exact: in --dtype"
        ),
        "choice",
        choices=("exact", "fp8"),
    )
    gate: str = field(
        "hard",
        (
            "how CapFace's mask gates its output: hard: thresholded at one half (default); "
            "soft: multiplied"
        ),
        "choice",
        choices=("hard", "soft"),
    )
    size: tuple[int, int] | None = field(
        None, "pixels, width by height; default: the model's own", "size", metavar="SIDE|WxH"
    )

    def __post_init__(self):
        for name in FIELDS:
            object.__setattr__(self, name, check(name, getattr(self, name), FIELDS[name]))

    @classmethod
    def create(cls, config: ModelConfig, **given: Any) -> SamplingParams:
        """The parameters for a model, from keywords; None counts as not given.

        Args:
            config: the model's.
            given: values by field name.

        Raises:
            SettingError: an unknown name, or a value that this model cannot be sampled with.
        """
        for name in FIELDS.keys() & given:  # with the model's limits in the message
            check(name, given[name], FIELDS[name], config)
        return cls.from_json(given).resolve(config)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SamplingParams:
        """Inverse of `to_json`; what is missing or None has its default.

        Raises:
            SettingError: an unknown name or a wrong value.
        """
        for name in data:
            if name not in FIELDS:
                close = difflib.get_close_matches(name, list(FIELDS), 1)
                raise SettingError(
                    f"there is no setting {name!r}"
                    + (
                        f"; did you mean {close[0]}?"
                        if close
                        else f"; there are {', '.join(FIELDS)}"
                    )
                )
        return cls(**{name: value for name, value in data.items() if value is not None})

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON types."""
        values = {name: getattr(self, name) for name in FIELDS}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }

    def resolve(self, config: ModelConfig) -> SamplingParams:
        """With the model's own values where nothing was given, checked against the model.

        Raises:
            SettingError: a value, or a combination, that this model cannot be sampled with.
        """
        best = config.sampling
        sampler = best.sampler if self.sampler is None else self.sampler
        # Another sampler than the model's own takes its standard noise.
        own = {"sampler": sampler, "eta": best.eta if sampler == best.sampler else 0.0}
        own |= {
            name: getattr(best, name)
            for name in ("steps", "spacing", "guidance_scale", "guidance_rescale")
        }
        # Whoever turns guidance off means all of it.
        for name in ("identity_guidance", "head_guidance"):
            own[name] = 1.0 if self.guidance_scale == 1 else getattr(best, name)
        own |= {"size": (config.image_size,) * 2, "denoise": 1.0}
        missing = {name: value for name, value in own.items() if getattr(self, name) is None}
        resolved = dataclasses.replace(self, **missing)
        for name in FIELDS:
            check(name, getattr(resolved, name), FIELDS[name], config)
        if resolved.clip_skip > config.text.layers:
            raise SettingError(
                f"clip_skip is {resolved.clip_skip}, but the text encoder of {config.name} has "
                f"{config.text.layers} layers"
            )
        resolved.coefficients(config)
        return resolved

    def with_own(self, own: Mapping[str, Any]) -> SamplingParams:
        """These parameters with other values of an image's own fields (`FieldSpec.per_image`); the
        others, which were checked before, are not checked again.

        Raises:
            SettingError: a wrong value.
        """
        changed = object.__new__(type(self))
        changed.__dict__.update(self.__dict__)
        for name, value in own.items():
            changed.__dict__[name] = check(name, value, FIELDS[name])
        return changed

    def coefficients(self, config: ModelConfig) -> SamplerCoefficients:
        """The sampler's coefficients for all steps; only once `resolve`d. Raises SettingError."""
        return _coefficients(config.diffusion, self.sampler, self.steps, self.spacing, self.eta)

    def first_step(self, config: ModelConfig) -> int:
        """Number of the first step that `denoise` leaves, as in Diffusers; only once `resolve`d.

        Raises:
            SettingError: it leaves none.
        """
        assert self.denoise is not None, "resolve comes first"
        steps = self.coefficients(config).steps
        left = min(int(steps * self.denoise), steps)
        if left == 0:
            raise SettingError(
                f"denoise {self.denoise:g} of {steps} steps leaves no step; raise denoise or steps"
            )
        return steps - left

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) in pixels; only once `resolve`d."""
        assert self.size is not None, "resolve comes first"
        return self.size[1], self.size[0]

    @property
    def shared(self) -> tuple:
        """What images must have in common to be made in one batch: hashable."""
        return tuple(getattr(self, name) for name, spec in FIELDS.items() if not spec.per_image)

    def program_inputs(
        self,
        config: ModelConfig,
        control_scales: Mapping[str, float] | None = None,
        photo: Literal["whole", "masked"] | None = None,
        regions: bool = False,
    ) -> tuple[dict[str, Any], SamplerCoefficients, dict[str, Any]]:
        """What `text_to_image.generate` takes of these parameters; only once `resolve`d.

        Args:
            config: the model's.
            control_scales: weight of each ControlNet that is used.
            photo: what images begin with besides noise: a whole photo, or one whose mask hides a
                part. Where nothing is left of that part (denoise 1), it begins with noise alone.
            regions: whether parts of the image have prompts of their own.

        Returns:
            Its `settings` (float32 scalars and masks over the steps), its sampler coefficients, and
            its static arguments.
        """
        # Brings JAX, which `--help` does not need.
        import jax.numpy as jnp
        import numpy as np

        from caphuman_jax.diffusion import acceleration
        from caphuman_jax.diffusion.guidance import branch_weights, guided_steps
        from caphuman_jax.diffusion.samplers import start_at

        text, identity, head = self.guidance_scale, self.identity_guidance, self.head_guidance
        assert text is not None and identity is not None and head is not None, "resolve first"
        coefficients, first = self.coefficients(config), 0
        if photo:
            first = self.first_step(config)
            coefficients = start_at(coefficients, first)
        weights = branch_weights(text, identity, head)
        guided = None
        if self.guidance_interval and set(weights) != {"text"}:
            weights = weights | {"text": weights.get("text", 0.0)}
            guided = guided_steps(coefficients, self.guidance_interval)
        scalars = lambda numbers: {name: jnp.float32(value) for name, value in numbers.items()}
        settings = scalars(
            {"strength": self.control_scale, "identity_until": self.identity_max_timestep}
        )
        settings |= {"weights": scalars(weights), "controls": scalars(control_scales or {})}
        if self.guidance_rescale:
            settings["rescale"] = jnp.float32(self.guidance_rescale)
        if guided is not None:
            settings["guided"] = jnp.asarray(guided)
        if self.cache_interval > 1:
            mask = acceleration.recompute_mask(coefficients, self.cache_interval, guided, first)
            settings["recompute_mask"] = jnp.asarray(mask)
        if regions:
            share = np.arange(coefficients.steps) < self.bind_until * coefficients.steps
            settings["bound"] = jnp.asarray(share)
        if photo:
            level = coefficients.alpha_t[first], coefficients.sigma_t[first]
            alpha, sigma = (0.0, 1.0) if photo == "masked" and self.denoise == 1 else level
            settings["start"] = {
                "step": jnp.int32(first),
                **scalars({"alpha": alpha, "sigma": sigma}),
            }
        static = {
            "size": self.shape,
            "branches": tuple(weights),
            "hard_gate": self.gate == "hard",
            "shallow": _DEEP_BLOCKS_KEPT if self.cache_interval > 1 else 0,
            "clip_skip": self.clip_skip,
            "fp8_products": self.precision == "fp8",
        }
        return settings, coefficients, static


@functools.lru_cache(64)
def _coefficients(
    config: DiffusionConfig, sampler: str, steps: int, spacing: str, eta: float
) -> SamplerCoefficients:
    from caphuman_jax.diffusion import samplers  # brings NumPy, which `--help` does not need

    return samplers.make_sampler(sampler, config, steps, spacing=spacing, eta=eta)


FIELDS: dict[str, FieldSpec] = {
    field.name: field.metadata["spec"] for field in dataclasses.fields(SamplingParams)
}
"""The fields of `SamplingParams` by name, in their order."""
