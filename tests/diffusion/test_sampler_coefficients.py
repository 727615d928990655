"""Every sampler step for step against Diffusers' scheduler of that name, and against a process
whose answer is known exactly.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    UniPCMultistepScheduler,
)
from diffusers.schedulers import scheduling_euler_ancestral_discrete, scheduling_lcm

from caphuman_jax.config import DiffusionConfig
from caphuman_jax.diffusion import samplers, sampling_loop, schedule
from caphuman_jax.errors import SettingError

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # torch's, in Diffusers

SD15 = DiffusionConfig()
ZERO_SNR = DiffusionConfig(prediction_type="v", zero_terminal_snr=True)
SHAPE = (2, 6, 5, 4)
KEYS = sampling_loop.picture_keys(3, [0, 1])
SCHEDULERS = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
    "dpmpp_2m_karras": (DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "euler_a": (EulerAncestralDiscreteScheduler, {}),
    "unipc": (UniPCMultistepScheduler, {}),
    "lcm": (LCMScheduler, {}),
}
RANDOM = np.random.default_rng(0)
INWARD, BEND, OUTWARD = (
    RANDOM.standard_normal(shape, dtype=np.float32) for shape in ((4, 8), (1, 1, 1, 8), (8, 4))
)


def model(x, t, library, array):
    """A fixed random network of one hidden layer that sees the timestep, for `library` jnp or
    torch.
    """
    return (
        0.8 * x
        + library.tanh(x @ array(INWARD) + array(BEND) * library.sin(t / 150)) @ array(OUTWARD) / 3
    )


@pytest.fixture(scope="module")
def noise():
    """The initial latents, and the noise of every step."""
    draw = jax.jit(lambda i: sampling_loop._normal(KEYS, i, SHAPE[1:]))
    return [np.array(draw(i)) for i in range(51)]


def stateless(predict):
    """A `Denoise` from a function of latents, timestep and step constants."""
    return lambda x, t, step, carry: (predict(x, t, step), carry)


@jax.jit
def ours_epsilon(latents, table):
    return sampling_loop.sample(
        stateless(lambda x, t, _: model(x, t, jnp, jnp.asarray)),
        latents,
        table,
        keys=KEYS,
        trajectory=True,
    )


@jax.jit
def ours_v(latents, table):
    return sampling_loop.sample(
        stateless(lambda x, t, _: model(x, t, jnp, jnp.asarray)),
        latents,
        table,
        prediction_type="v",
        keys=KEYS,
        trajectory=True,
    )


def theirs(monkeypatch, noise, config, name, steps, spacing, eta):
    """Timesteps, and latents after every step."""
    kind, options = SCHEDULERS[name]
    scheduler = kind(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        timestep_spacing=spacing,
        prediction_type={"epsilon": "epsilon", "v": "v_prediction"}[config.prediction_type],
        **({"rescale_betas_zero_snr": True} if config.zero_terminal_snr else {}),
        **options,
    )
    scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    # Its latents are x0 + σ noise, where σ = 4096 stands for no signal: x0 is lost to rounding in
    # float32, so float64 for those.
    sharp = name == "euler_a" and config.zero_terminal_snr
    double = (lambda array: torch.from_numpy(array).double()) if sharp else torch.from_numpy
    if sharp:
        scheduler.sigmas = scheduler.sigmas.double()
        monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **__: tensor)
    scaled = lambda i: (scheduler.sigmas[i] ** 2 + 1) ** 0.5 if name == "euler_a" else 1.0
    x, after_each = double(noise[0]) * scaled(0), []
    for i, t in enumerate(scheduler.timesteps):
        fresh = double(noise[i + 1])
        for module in (scheduling_lcm, scheduling_euler_ancestral_discrete):
            monkeypatch.setattr(module, "randn_tensor", lambda *shape, fresh=fresh, **_: fresh)
        output = model(scheduler.scale_model_input(x, t), t.float(), torch, double)
        x = scheduler.step(
            output,
            t,
            x,
            **({"eta": eta, "variance_noise": fresh if eta else None} if name == "ddim" else {}),
        ).prev_sample
        after_each.append((x / scaled(i + 1)).numpy())
    return scheduler.timesteps.numpy(), after_each


def compare(monkeypatch, noise, config, name, steps, spacing, eta=0.0):
    timesteps, expected = theirs(monkeypatch, noise, config, name, steps, spacing, eta)
    table = samplers.make_sampler(name, config, steps, spacing=spacing, eta=eta)
    np.testing.assert_array_equal(table.timesteps, timesteps)
    final, after_each = {"epsilon": ours_epsilon, "v": ours_v}[config.prediction_type](
        noise[0], table
    )
    for a, b in zip(after_each, expected, strict=True):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()
    np.testing.assert_array_equal(final, after_each[-1])


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 8, 10, 20, 25, 50])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_sampler_equals_diffusers_step_for_step(monkeypatch, noise, name, steps):
    compare(monkeypatch, noise, SD15, name, steps, "leading")


@pytest.mark.parametrize(
    "config",
    [SD15, DiffusionConfig(prediction_type="v"), ZERO_SNR],
    ids=["epsilon", "v", "zero SNR"],
)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_spacing_and_prediction_equals_diffusers(monkeypatch, noise, name, spacing, config):
    for steps in (1, 3, 10, 25):
        compare(monkeypatch, noise, config, name, steps, spacing)


# At eta 1 and no signal Diffusers takes the square root of a float32 rounding error, where 0 is
# meant.
@pytest.mark.parametrize(
    ("config", "eta"), [(SD15, 0.6), (SD15, 1.0), (ZERO_SNR, 0.6), (ZERO_SNR, 0.95)]
)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_ddim_with_noise_equals_diffusers(monkeypatch, noise, eta, spacing, config):
    for steps in (1, 3, 10, 25):
        compare(monkeypatch, noise, config, "ddim", steps, spacing, eta)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_number_of_steps_has_diffusers_timesteps(name):
    """And finite coefficients. Left out: what Diffusers puts off the schedule, or visits twice."""
    kind, options = SCHEDULERS[name]
    for spacing in ("leading", "trailing", "linspace"):
        scheduler = kind(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing=spacing,
            **options,
        )
        # Karras' timesteps are rounded: of 649 steps one falls the other way, by the last bits of a
        # float32.
        for steps in (
            *range(1, 51),
            *range(51, {"lcm": 51, "dpmpp_2m_karras": 500}.get(name, 999), 13),
        ):
            scheduler.set_timesteps(steps)
            expected = scheduler.timesteps.numpy()
            table = samplers.make_sampler(name, SD15, steps, spacing=spacing)
            if (expected >= 0).all():
                np.testing.assert_array_equal(table.timesteps, expected)
            assert (
                all(np.isfinite(column).all() for column in jax.tree.leaves(table))
                and table.timesteps.min() >= 0
            )


def test_known_answer_and_who_comes_closer_to_it():
    """For pictures that are normal with mean μ and deviation s, the best x0 is known and so is
    where latents flow: their number of deviations, √(ᾱ s² + 1 − ᾱ) at level ᾱ, from their mean √ᾱ μ
    stays the same.
    """
    mean, deviation = 0.7, 0.5
    x = jnp.linspace(-2, 2, 16, dtype=jnp.float32).reshape(1, 4, 4, 1)

    def error(name, steps):
        table = samplers.make_sampler(name, SD15, steps, spacing="trailing")
        rows = {"alpha_t": jnp.asarray(table.alpha_t), "sigma_t": jnp.asarray(table.sigma_t)}

        def best(x, t, row):
            return (
                row["sigma_t"]
                * (x - row["alpha_t"] * mean)
                / (row["alpha_t"] ** 2 * deviation**2 + row["sigma_t"] ** 2)
            )

        until = list(table.timesteps).index(
            99
        )  # visited by all; the strides after it are long however many they are
        at = lambda i: (np.float64(table.alpha_t[i]), np.float64(table.sigma_t[i]))
        mean_and_deviation = lambda alpha_t, sigma_t: (
            alpha_t * mean,
            np.sqrt((alpha_t * deviation) ** 2 + sigma_t**2),
        )
        (m, d), (m_until, d_until) = mean_and_deviation(*at(0)), mean_and_deviation(*at(until))
        made = sampling_loop.sample(
            stateless(best), x, table, step_constants=rows, trajectory=True
        )[1][until - 1]
        return float(np.abs(made - (m_until + (np.asarray(x) - m) / d * d_until)).max())

    errors = {
        (name, steps): error(name, steps)
        for name in ("ddim", "dpmpp_2m", "unipc")
        for steps in (10, 20, 40)
    }
    # An order of accuracy is a power of 2 each time the steps are halved.
    assert errors["ddim", 40] < 0.6 * errors["ddim", 20] < 0.4 * errors["ddim", 10]
    assert errors["dpmpp_2m", 40] < 0.35 * errors["dpmpp_2m", 20]
    assert all(
        errors[name, steps] < 0.15 * errors["ddim", steps]
        for name in ("dpmpp_2m", "unipc")
        for steps in (10, 20, 40)
    )


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("config", [SD15, ZERO_SNR], ids=["epsilon", "zero SNR"])
def test_a_perfect_denoiser_brings_back_the_picture(noise, name, config):
    x0 = jnp.asarray(noise[1])
    table = samplers.make_sampler(name, config, 10, spacing="trailing")
    rows = {"alpha_t": jnp.asarray(table.alpha_t), "sigma_t": jnp.asarray(table.sigma_t)}

    def perfect(x, t, row):
        noise = (x - row["alpha_t"] * x0) / row["sigma_t"]
        return (
            noise
            if config.prediction_type == "epsilon"
            else row["alpha_t"] * noise - row["sigma_t"] * x0
        )

    made = sampling_loop.sample(
        stateless(perfect),
        jnp.asarray(noise[0]),
        table,
        prediction_type=config.prediction_type,
        keys=KEYS,
        step_constants=rows,
    )
    # DDIM's last step ends at ᾱ₀, so a little noise is left.
    remaining = (
        np.sqrt(1 - schedule.alphas_cumprod(config, np.float64)[0]) if name == "ddim" else 1e-4
    )
    assert np.abs(made - x0).max() < 5 * remaining


def test_samplers_that_forget_carry_nothing():
    """Only what a plan looks back to goes from step to step: one array for DDIM, four for UniPC."""
    x = jnp.zeros((1, 8, 8, 4), jnp.float32)
    for name, eta, states in (
        ("ddim", 0.0, 1),
        ("ddim", 1.0, 1),
        ("euler_a", 0.0, 1),
        ("lcm", 0.0, 1),
        ("dpmpp_2m", 0.0, 2),
        ("unipc", 0.0, 4),
    ):
        table = samplers.make_sampler(name, SD15, 4, eta=eta)
        traced = jax.make_jaxpr(
            lambda x, t=table: sampling_loop.sample(stateless(lambda x, *_: x), x, t, keys=KEYS[:1])
        )(x)
        (scan,) = (e for e in traced.jaxpr.eqns if e.primitive.name == "scan")
        assert sum(out.aval.shape == x.shape for out in scan.outvars) == states, name


def test_plans_of_one_form_share_a_program():
    run = jax.jit(
        lambda x, table: sampling_loop.sample(
            stateless(lambda x, t, _: jnp.tanh(x)), x, table, keys=KEYS
        )
    )
    x = jnp.ones(SHAPE, jnp.float32)
    made = [run(x, samplers.make_sampler(name, SD15, 8)) for name in ("euler_a", "lcm")]
    assert run._cache_size() == 1 and np.abs(made[0] - made[1]).max() > 0.1
    run(x, samplers.make_sampler("ddim", SD15, 8))
    assert run._cache_size() == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "heun"}, "no sampler 'heun'; choose one of ddim, dpmpp_2m"),
        ({"name": "unipc", "eta": 0.5}, "eta belongs to the sampler ddim"),
        ({"eta": 1.5}, "eta must lie between 0 and 1"),
        ({"spacing": "sideways"}, "spacing is 'sideways'"),
        ({"name": "lcm", "spacing": "sideways"}, "spacing is 'sideways'"),
        ({"name": "lcm", "steps": 51}, "lcm takes 1 to 50 steps"),
        ({"name": "lcm", "steps": 0}, "lcm takes 1 to 50 steps"),
        (
            {"name": "lcm", "config": DiffusionConfig(num_timesteps=20), "steps": 4},
            "at least 50 timesteps",
        ),
        ({"name": "dpmpp_2m", "steps": 1000}, "steps is 1000; it must lie between 1 and 999"),
        ({"name": "dpmpp_2m_karras", "steps": 0}, "steps is 0"),
        ({"name": "euler_a", "steps": 1001, "spacing": "linspace"}, "between 1 and 1000"),
        (
            {"config": DiffusionConfig(zero_terminal_snr=True)},
            'zero_terminal_snr needs a model that predicts "v"',
        ),
    ],
)
def test_what_cannot_be_is_said_in_one_line(change, message):
    with pytest.raises(SettingError, match=message) as error:
        samplers.make_sampler(**{"config": SD15, "name": "ddim", "steps": 20, **change})
    assert "\n" not in str(error.value)


def test_every_sampler_is_described():
    assert list(samplers.SAMPLERS) == list(SCHEDULERS) and all(
        "\n" not in line and len(line) > 20 for line in samplers.SAMPLERS.values()
    )
