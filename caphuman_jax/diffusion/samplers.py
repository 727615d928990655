"""Every sampler as a table of numbers, made on the host with NumPy; `sampling_loop.sample` is the
one loop that follows any of them.

All samplers here are linear in what they remember: in the latents, in the last few estimates of the
clean latents (x0) and in noise. So a step is no more than their coefficients, computed in float64
and kept as float32.

Latents are variance-preserving throughout: sqrt(ᾱ) x0 + sqrt(1 − ᾱ) noise, unit normal at the
start. Samplers written for latents x0 + σ noise, with σ² = (1 − ᾱ)/ᾱ, are converted: they differ by
the factor sqrt(ᾱ) alone. λ = log(sqrt(ᾱ)/sqrt(1 − ᾱ)) = −log σ."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from caphuman_jax.config import DiffusionConfig
from caphuman_jax.diffusion import schedule
from caphuman_jax.errors import SettingError

SAMPLERS = {
    "ddim": "DDIM, the original's: as many steps as you like; with eta above 0 noise is put back "
    "(20-50 steps)",
    "dpmpp_2m": "DPM-Solver++ 2M: as good as DDIM in about half its steps (10-25)",
    "dpmpp_2m_karras": "DPM-Solver++ 2M with Karras' noise levels: closer together at the end, "
    "where detail is made (10-25)",
    "euler_a": "Euler ancestral: noise put back at every step, so pictures change with the number "
    "of steps (20-40)",
    "unipc": "UniPC: DPM-Solver++ 2M and a corrector that costs no further pass; for very few "
    "steps (5-20)",
    "lcm": "LCM: for models distilled as latent consistency models only, or with such a LoRA, and "
    "guidance 1-2 (1-8)",
}
"""Names of the samplers, with a line each on what they are for."""

LCM_STEPS = 50
"""Steps of the schedule that latent consistency models are distilled on."""

_NEARLY_ZERO = 2.0**-24  # for ᾱ = 0, where σ is infinite: what Diffusers puts there


class Corrector(NamedTuple):
    """Coefficients (S,) of the latents before the last step, this step's x0, the one before and the
    one before that.
    """

    last_latents: np.ndarray
    x0: np.ndarray
    last_x0: np.ndarray
    earlier_x0: np.ndarray


class SamplerCoefficients(NamedTuple):
    """A sampler's steps, noisiest first: arrays (S,) float32. None: the sampler does not
    use this term, which then costs nothing.

    At each step the network is asked at `timesteps`, and its answer taken apart with `alpha_t` =
    sqrt(ᾱ) and `sigma_t` = sqrt(1 − ᾱ). Where there is a `corrector`, the latents are first
    replaced by what it makes. Then next latents = latents · x + x0 · x0 + last_x0 · (x0 of the step
    before) + noise · (unit normal noise). A pytree, so it may be an argument of a compiled
    function: samplers that differ in numbers alone share the program.
    """

    timesteps: np.ndarray
    alpha_t: np.ndarray
    sigma_t: np.ndarray
    latents: np.ndarray
    x0: np.ndarray
    last_x0: np.ndarray | None = None
    noise: np.ndarray | None = None
    corrector: Corrector | None = None

    @property
    def steps(self) -> int:
        """How often the network is asked; with the original's spacing it may be one more than was
        wanted.
        """
        return self.timesteps.shape[0]


def make_sampler(
    name: str,
    config: DiffusionConfig,
    steps: int = 20,
    *,
    spacing: str = "original",
    eta: float = 0.0,
) -> SamplerCoefficients:
    """The table of one of SAMPLERS; without a device, in well under a millisecond a step.

    steps: see `schedule.timesteps`; "lcm" takes at most LCM_STEPS. spacing: one of
    `schedule.SPACINGS`; "original" is the original's for "ddim" and "leading" for the others;
    "dpmpp_2m_karras" and "lcm" have a spacing of their own. A zero-terminal-SNR model wants
    "trailing": the others leave the last timestep out. eta: of "ddim" alone, 0 deterministic to 1
    as noisy as DDPM. Raises SettingError."""
    if name not in SAMPLERS:
        raise SettingError(f"there is no sampler {name!r}; choose one of {', '.join(SAMPLERS)}")
    schedule.check_spacing(spacing)
    if not 0 <= eta <= 1:
        raise SettingError(f"eta must lie between 0 and 1, not {eta:g}")
    if name == "ddim":
        table = _ddim(config, steps, spacing, eta)
    elif eta != 0:
        raise SettingError(f"eta belongs to the sampler ddim; {name} takes none")
    else:
        make = {
            "dpmpp_2m": _dpmpp_2m,
            "dpmpp_2m_karras": _dpmpp_2m_karras,
            "euler_a": _euler_a,
            "unipc": _unipc,
            "lcm": _lcm,
        }[name]
        table = make(config, steps, "leading" if spacing == "original" else spacing)
    return _float32(table)


def start_at(table: SamplerCoefficients, first: int) -> SamplerCoefficients:
    """The table for a run whose first step is number `first`: same shapes, so same program.

    A multistep sampler has nothing to look back to at its first step, and its corrector knows only
    the end of that step at the next one (as in Diffusers, whose history begins empty).
    """
    if first == 0:
        return table
    changed = table
    if table.last_x0 is not None:
        x0, last_x0 = table.x0.copy(), table.last_x0.copy()
        x0[first], last_x0[first] = x0[first] + last_x0[first], 0.0
        changed = changed._replace(x0=x0, last_x0=last_x0)
    if table.corrector is not None:
        last_latents, x0, last_x0, earlier_x0 = (column.copy() for column in table.corrector)
        last_latents[first], x0[first], last_x0[first], earlier_x0[first] = 1.0, 0.0, 0.0, 0.0
        if first + 1 < table.steps:
            whole = x0[first + 1] + last_x0[first + 1] + earlier_x0[first + 1]
            x0[first + 1] = last_x0[first + 1] = whole / 2
            earlier_x0[first + 1] = 0.0
        changed = changed._replace(corrector=Corrector(last_latents, x0, last_x0, earlier_x0))
    return changed


def _ddim(config: DiffusionConfig, steps: int, spacing: str, eta: float) -> SamplerCoefficients:
    """DDIM (arXiv 2010.02502, eq. 12 and 16). The last step ends at ᾱ₀, not at 1, as the original's
    and Diffusers' for SD1.5 do.
    """
    alphas_cumprod = schedule.alphas_cumprod(config, np.float64)
    times = schedule.timesteps(config, steps, spacing)
    if spacing in ("original", "leading"):
        before = np.append(times[1:], 0)
    else:
        # Diffusers' rule, which people's pictures were made with: the stride is whole even where
        # the timesteps' is not, so that a step need not end quite where the next begins.
        before = np.maximum(times - config.num_timesteps // steps, 0)
    now, after = alphas_cumprod[times], alphas_cumprod[before]
    variance = eta**2 * (1 - after) / (1 - now) * (1 - now / after)
    alpha_t, sigma_t = np.sqrt(now), np.sqrt(1 - now)
    # The noise, of which `direction` is wanted, is (latents − alpha_t · x0) / sigma_t.
    direction = np.sqrt(np.maximum(1 - after - variance, 0.0))
    return SamplerCoefficients(
        times,
        alpha_t,
        sigma_t,
        latents=direction / sigma_t,
        x0=np.sqrt(after) - direction / sigma_t * alpha_t,
        noise=np.sqrt(variance) if eta else None,
    )


def _dpmpp_2m(config: DiffusionConfig, steps: int, spacing: str) -> SamplerCoefficients:
    """DPM-Solver++ 2M, midpoint (arXiv 2211.01095, algorithm 2), of first order at both ends, down
    to σ = 0.
    """
    times = schedule.timesteps(config, steps, spacing, end_is_counted=True)
    return _multistep(times, _sigmas(config)[times])


def _dpmpp_2m_karras(config: DiffusionConfig, steps: int, spacing: str) -> SamplerCoefficients:
    """The same on the noise levels of arXiv 2206.00364, eq. 5 with ρ = 7, and the nearest whole
    timesteps; `spacing` is not used.
    """
    if not 1 <= steps <= config.num_timesteps:
        raise SettingError(f"steps is {steps}; it must lie between 1 and {config.num_timesteps}")
    # From float32 ᾱ, as everywhere: 1 − ᾱ₀ loses four digits, and whole timesteps hang on it.
    # Reproducing pictures needs the same.
    known = _sigmas(config, np.float32)
    ends = known[[-1, 0]] ** (1 / 7)
    sigmas = (ends[0] + np.linspace(0, 1, steps) * (ends[1] - ends[0])) ** 7
    times = np.interp(np.log(sigmas), np.log(known), np.arange(len(known)))
    return _multistep(np.round(times), sigmas)


def _multistep(times: np.ndarray, sigmas: np.ndarray) -> SamplerCoefficients:
    alpha_t, sigma_t = _alpha_and_sigma(np.append(sigmas, 0.0))
    stride = _strides(sigmas)
    growth = alpha_t[1:] * -np.expm1(-stride)
    # Extrapolation from the step before: the first step has none to look back to, and the last ends
    # at λ = ∞.
    extra = np.zeros_like(sigmas)
    extra[1:-1] = growth[1:-1] * stride[1:-1] / stride[:-2] / 2
    return SamplerCoefficients(
        times,
        alpha_t[:-1],
        sigma_t[:-1],
        latents=sigma_t[1:] / sigma_t[:-1],
        x0=growth + extra,
        last_x0=-extra,
    )


def _unipc(config: DiffusionConfig, steps: int, spacing: str) -> SamplerCoefficients:
    """UniPC-2 for predictions of x0 with B(h) = e^h − 1 (arXiv 2302.04867).

    Its predictor, with the weight 1/2 that the paper takes for order 2, is DPM-Solver++ 2M. The
    corrector does the step before once
    more, by one order better: it knows the x0 that the network has just seen at its end.
    """
    table = _dpmpp_2m(config, steps, spacing)
    h = _strides(_sigmas(config)[table.timesteps])[:-1]
    gain = -np.expm1(-h)
    # Weights of the differences from the step's beginning to the x0 before it and to the x0 at its
    # end, r and 1 strides away: back + end = b1 and −r back + end = b2 (the paper's R ρ = b). The
    # first step knows only its own end: 1/2.
    r = np.ones_like(h)
    r[1:] = h[:-1] / h[1:]
    b1 = 1 / gain - 1 / h
    b2 = 1 / gain - 2 * b1 / h
    back = (b1 - b2) / (1 + r)
    end = b1 - back
    back[:1], end[:1] = 0.0, 0.5
    scale = table.alpha_t[1:] * gain
    return table._replace(
        corrector=Corrector(
            # Nothing is to be corrected at the first step: there the latents before it are taken to
            # be its own.
            last_latents=np.append(1.0, table.sigma_t[1:] / table.sigma_t[:-1]),
            x0=np.append(0.0, scale * end),
            last_x0=np.append(0.0, scale * (1 + back / r - end)),
            earlier_x0=np.append(0.0, -scale * back / r),
        )
    )


def _euler_a(config: DiffusionConfig, steps: int, spacing: str) -> SamplerCoefficients:
    """Euler ancestral (k-diffusion's sample_euler_ancestral, eta 1): down to σ'²/σ, then noise up
    to σ', all times sqrt(ᾱ').
    """
    times = schedule.timesteps(config, steps, spacing)
    if spacing == "linspace":  # fractional timesteps are kept, as in Diffusers
        times = np.linspace(0, config.num_timesteps - 1, steps)[::-1]
    sigmas = np.append(np.interp(times, np.arange(config.num_timesteps), _sigmas(config)), 0.0)
    alpha_t, sigma_t = _alpha_and_sigma(sigmas)
    shrink = np.square(sigmas[1:] / sigmas[:-1])
    return SamplerCoefficients(
        times,
        alpha_t[:-1],
        sigma_t[:-1],
        latents=shrink * alpha_t[1:] / alpha_t[:-1],
        x0=(1 - shrink) * alpha_t[1:],
        noise=np.sqrt(1 - shrink) * sigma_t[1:],
    )


def _lcm(config: DiffusionConfig, steps: int, spacing: str) -> SamplerCoefficients:
    """Multistep consistency sampling (arXiv 2310.04378, algorithm 3): x0, then noise to the next
    level; `spacing` is not used.

    The boundary condition c_skip x + c_out x0 is that of the LCM code: σ_data 0.5, timesteps times
    10."""
    if not 1 <= steps <= LCM_STEPS:
        raise SettingError(f"lcm takes 1 to {LCM_STEPS} steps, best 2 to 8, not {steps}")
    if config.num_timesteps < LCM_STEPS:
        raise SettingError(
            f"lcm needs a schedule of at least {LCM_STEPS} timesteps; this model's has "
            f"{config.num_timesteps}"
        )
    known = np.arange(LCM_STEPS, 0, -1) * (config.num_timesteps // LCM_STEPS) - 1
    times = known[np.floor(np.linspace(0, LCM_STEPS, steps, endpoint=False)).astype(int)]
    now = schedule.alphas_cumprod(config, np.float64)[times]
    after = np.append(now[1:], 1.0)
    scaled = times * 10.0
    skip, out = 0.25 / (scaled**2 + 0.25), scaled / np.sqrt(scaled**2 + 0.25)
    return SamplerCoefficients(
        times,
        np.sqrt(now),
        np.sqrt(1 - now),
        latents=np.sqrt(after) * skip,
        x0=np.sqrt(after) * out,
        noise=np.sqrt(1 - after),
    )


def _sigmas(config: DiffusionConfig, precision=np.float64) -> np.ndarray:
    """σ (num_timesteps,) float64, ascending and finite, from ᾱ of that precision."""
    alphas_cumprod = schedule.alphas_cumprod(config, precision).astype(np.float64)
    alphas_cumprod = np.maximum(alphas_cumprod, _NEARLY_ZERO)
    return np.sqrt((1 - alphas_cumprod) / alphas_cumprod)


def _alpha_and_sigma(sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    alpha_t = 1 / np.sqrt(np.square(sigmas) + 1)
    return alpha_t, sigmas * alpha_t


def _strides(sigmas: np.ndarray) -> np.ndarray:
    """What each step adds to λ = −log σ; the last one ends at σ = 0."""
    return np.append(-np.diff(np.log(sigmas)), np.inf)


def _float32(table: SamplerCoefficients) -> SamplerCoefficients:
    made: dict[str, Any] = {
        name: None if column is None else np.asarray(column, np.float32)
        for name, column in table._asdict().items()
        if name != "corrector"
    }
    corrector = (
        None
        if table.corrector is None
        else Corrector(*(np.asarray(column, np.float32) for column in table.corrector))
    )
    return SamplerCoefficients(**made, corrector=corrector)
