"""Every sampler as a table of numbers, made on the host with NumPy; `samplers.sample` is the one
loop that follows any of them.

All samplers here are linear in what they remember: in the latents, in the last few estimates of the
clean latents (x0) and in noise. So a step is no more than their coefficients, computed in float64
and kept as float32.

Latents are variance-preserving throughout: sqrt(ᾱ) x0 + sqrt(1 − ᾱ) noise, unit normal at the
start. Samplers written for latents x0 + σ noise, with σ² = (1 − ᾱ)/ᾱ, are converted: they differ by
the factor sqrt(ᾱ) alone. λ = log(sqrt(ᾱ)/sqrt(1 − ᾱ)) = −log σ."""

from __future__ import annotations

from typing import NamedTuple

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


class Plan(NamedTuple):
    """A sampler's steps, noisiest first: arrays (S,) float32. None is a term that the sampler has
    not, and costs nothing.

    At each step the network is asked at `timesteps`, and its answer taken apart with `signal` =
    sqrt(ᾱ) and `spread` = sqrt(1 − ᾱ). Where there is a `corrector`, the latents are first replaced
    by what it makes. Then next latents = latents · x + x0 · x0 + last_x0 · (x0 of the step before)
    + noise · (unit normal noise). A pytree, so it may be an argument of a compiled function: plans
    that differ in numbers alone share the program."""

    timesteps: np.ndarray
    signal: np.ndarray
    spread: np.ndarray
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


def plan(
    config: DiffusionConfig,
    sampler: str = "ddim",
    steps: int = 20,
    *,
    spacing: str = "original",
    eta: float = 0.0,
) -> Plan:
    """The table of one of SAMPLERS; without a device, in well under a millisecond a step.

    steps: see `schedule.timesteps`; "lcm" takes at most LCM_STEPS. spacing: one of
    `schedule.SPACINGS`; "original" is the original's for "ddim" and "leading" for the others;
    "dpmpp_2m_karras" and "lcm" have a spacing of their own. A zero-terminal-SNR model wants
    "trailing": the others leave the last timestep out. eta: of "ddim" alone, 0 deterministic to 1
    as noisy as DDPM. Raises SettingError."""
    if sampler not in SAMPLERS:
        raise SettingError(f"there is no sampler {sampler!r}; choose one of {', '.join(SAMPLERS)}")
    schedule.check_spacing(spacing)
    if not 0 <= eta <= 1:
        raise SettingError(f"eta must lie between 0 and 1, not {eta:g}")
    if sampler == "ddim":
        table = _ddim(config, steps, spacing, eta)
    elif eta != 0:
        raise SettingError(f"eta belongs to the sampler ddim; {sampler} takes none")
    else:
        make = {
            "dpmpp_2m": _dpmpp_2m,
            "dpmpp_2m_karras": _dpmpp_2m_karras,
            "euler_a": _euler_a,
            "unipc": _unipc,
            "lcm": _lcm,
        }[sampler]
        table = make(config, steps, "leading" if spacing == "original" else spacing)
    return _float32(table)


def _ddim(config: DiffusionConfig, steps: int, spacing: str, eta: float) -> Plan:
    """DDIM (arXiv 2010.02502, eq. 12 and 16). The last step ends at ᾱ₀, not at 1, as the original's
    and Diffusers' for SD1.5 do.
    """
    levels, times = schedule.alphas(config, np.float64), schedule.timesteps(config, steps, spacing)
    if spacing in ("original", "leading"):
        before = np.append(times[1:], 0)
    else:
        # Diffusers' rule, which people's pictures were made with: the stride is whole even where
        # the timesteps' is not, so that a step need not end quite where the next begins.
        before = np.maximum(times - config.num_timesteps // steps, 0)
    alpha, after = levels[times], levels[before]
    variance = eta**2 * (1 - after) / (1 - alpha) * (1 - alpha / after)
    signal, spread = np.sqrt(alpha), np.sqrt(1 - alpha)
    # The noise, of which `direction` is wanted, is (latents − signal · x0) / spread.
    direction = np.sqrt(np.maximum(1 - after - variance, 0.0))
    return Plan(
        times,
        signal,
        spread,
        latents=direction / spread,
        x0=np.sqrt(after) - direction / spread * signal,
        noise=np.sqrt(variance) if eta else None,
    )


def _dpmpp_2m(config: DiffusionConfig, steps: int, spacing: str) -> Plan:
    """DPM-Solver++ 2M, midpoint (arXiv 2211.01095, algorithm 2), of first order at both ends, down
    to σ = 0.
    """
    times = schedule.timesteps(config, steps, spacing, end_is_counted=True)
    return _multistep(times, _sigmas(config)[times])


def _dpmpp_2m_karras(config: DiffusionConfig, steps: int, spacing: str) -> Plan:
    """The same on the noise levels of arXiv 2206.00364, eq. 5 with ρ = 7, and the nearest whole
    timesteps; `spacing` is not used.
    """
    if not 1 <= steps <= config.num_timesteps:
        raise SettingError(f"steps is {steps}; it must lie between 1 and {config.num_timesteps}")
    # From float32 levels, as everywhere: 1 − ᾱ₀ loses four digits, and whole timesteps hang on it.
    # Reproducing pictures needs the same.
    known = _sigmas(config, np.float32)
    ends = known[[-1, 0]] ** (1 / 7)
    sigmas = (ends[0] + np.linspace(0, 1, steps) * (ends[1] - ends[0])) ** 7
    times = np.interp(np.log(sigmas), np.log(known), np.arange(len(known)))
    return _multistep(np.round(times), sigmas)


def _multistep(times: np.ndarray, sigmas: np.ndarray) -> Plan:
    signal, spread = _signal_and_spread(np.append(sigmas, 0.0))
    stride = _strides(sigmas)
    growth = signal[1:] * -np.expm1(-stride)
    # Extrapolation from the step before: the first step has none to look back to, and the last ends
    # at λ = ∞.
    extra = np.zeros_like(sigmas)
    extra[1:-1] = growth[1:-1] * stride[1:-1] / stride[:-2] / 2
    return Plan(
        times,
        signal[:-1],
        spread[:-1],
        latents=spread[1:] / spread[:-1],
        x0=growth + extra,
        last_x0=-extra,
    )


def _unipc(config: DiffusionConfig, steps: int, spacing: str) -> Plan:
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
    scale = table.signal[1:] * gain
    return table._replace(
        corrector=Corrector(
            # Nothing is to be corrected at the first step: there the latents before it are taken to
            # be its own.
            last_latents=np.append(1.0, table.spread[1:] / table.spread[:-1]),
            x0=np.append(0.0, scale * end),
            last_x0=np.append(0.0, scale * (1 + back / r - end)),
            earlier_x0=np.append(0.0, -scale * back / r),
        )
    )


def _euler_a(config: DiffusionConfig, steps: int, spacing: str) -> Plan:
    """Euler ancestral (k-diffusion's sample_euler_ancestral, eta 1): down to σ'²/σ, then noise up
    to σ', all times sqrt(ᾱ').
    """
    times = schedule.timesteps(config, steps, spacing)
    if spacing == "linspace":  # fractional timesteps are kept, as in Diffusers
        times = np.linspace(0, config.num_timesteps - 1, steps)[::-1]
    sigmas = np.append(np.interp(times, np.arange(config.num_timesteps), _sigmas(config)), 0.0)
    signal, spread = _signal_and_spread(sigmas)
    shrink = np.square(sigmas[1:] / sigmas[:-1])
    return Plan(
        times,
        signal[:-1],
        spread[:-1],
        latents=shrink * signal[1:] / signal[:-1],
        x0=(1 - shrink) * signal[1:],
        noise=np.sqrt(1 - shrink) * spread[1:],
    )


def _lcm(config: DiffusionConfig, steps: int, spacing: str) -> Plan:
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
    alpha = schedule.alphas(config, np.float64)[times]
    after = np.append(alpha[1:], 1.0)
    scaled = times * 10.0
    skip, out = 0.25 / (scaled**2 + 0.25), scaled / np.sqrt(scaled**2 + 0.25)
    return Plan(
        times,
        np.sqrt(alpha),
        np.sqrt(1 - alpha),
        latents=np.sqrt(after) * skip,
        x0=np.sqrt(after) * out,
        noise=np.sqrt(1 - after),
    )


def _sigmas(config: DiffusionConfig, precision=np.float64) -> np.ndarray:
    """σ (num_timesteps,) float64, ascending and finite, of levels of that precision."""
    levels = np.maximum(schedule.alphas(config, precision).astype(np.float64), _NEARLY_ZERO)
    return np.sqrt((1 - levels) / levels)


def _signal_and_spread(sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    signal = 1 / np.sqrt(np.square(sigmas) + 1)
    return signal, sigmas * signal


def _strides(sigmas: np.ndarray) -> np.ndarray:
    """What each step adds to λ = −log σ; the last one ends at σ = 0."""
    return np.append(-np.diff(np.log(sigmas)), np.inf)


def _float32(table: Plan) -> Plan:
    made = {
        name: None if column is None else np.asarray(column, np.float32)
        for name, column in table._asdict().items()
        if name != "corrector"
    }
    corrector = (
        None
        if table.corrector is None
        else Corrector(*(np.asarray(column, np.float32) for column in table.corrector))
    )
    return Plan(**made, corrector=corrector)
