"""The diffusion networks against the recorded outputs of the original ones, at small and at full
size.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from caphuman_jax.diffusion.guidance import branch_weights, guided
from caphuman_jax.diffusion.samplers import make_sampler
from caphuman_jax.diffusion.sampling_loop import sample
from caphuman_jax.diffusion.schedule import alphas_cumprod
from caphuman_jax.models.capface import gate, scale_control, sum_controls
from caphuman_jax.models.identity_projector import drop_identity

SIZES = ["small", pytest.param("full", marks=[pytest.mark.slow, pytest.mark.alone])]
TOLERANCE = 1e-4
at_small_size = pytest.mark.parametrize("size", ["small"], indirect=True, scope="module")


class Inputs:
    """The inputs that the recordings of one size were made with."""

    def __init__(self, parity, size):
        cfg = parity.configs[size]
        forward = parity.recorded(f"{size}_forward")
        batch, channels, height, width = forward["eps"].shape
        context, image = cfg.unet.cross_attention_dim, cfg.identity.image_width
        self.latents = parity.image("in/x", (batch, channels, height, width))
        self.timesteps = jnp.asarray(forward["t"], jnp.float32)
        self.text = parity.tokens("in/text", (batch, 77, context))
        self.uncond_text = parity.tokens("in/uncond_text", (batch, 77, context))
        self.hints = parity.image("in/hint", (batch, 9, 8 * height, 8 * width))
        self.image_tokens = parity.tokens("in/image_tokens", (batch, 257, image))
        self.recognition = parity.tokens("in/id", (batch, 1, 512))[:, 0]


class Networks:
    """UNet, CapFace and projector as pure functions of the inputs; compiled once each."""

    def __init__(self, parity, size):
        self.parts = {name: parity.network(name, size) for name in ("unet", "capface", "identity")}
        self.graphdefs = {name: graphdef for name, (graphdef, _) in self.parts.items()}
        self.params = {name: params for name, (_, params) in self.parts.items()}
        self.unet = jax.jit(lambda params, *inputs: self._merge(params, "unet")(*inputs))
        self.control = jax.jit(self._control)

    def _merge(self, params, name):
        return nnx.merge(self.graphdefs[name], params[name])

    def tokens(self, params, image_tokens, recognition):
        return self._merge(params, "identity")(image_tokens, recognition)

    def _control(self, params, latents, timesteps, tokens, hints):
        capface = self._merge(params, "capface")
        features = capface.encode_hints(hints)
        return capface(latents, timesteps, tokens, features), capface.mask(features)


@pytest.fixture(scope="module", params=SIZES)
def size(request):
    return request.param


@pytest.fixture(scope="module")
def inputs(parity, size):
    return Inputs(parity, size)


@pytest.fixture(scope="module")
def networks(parity, size):
    return Networks(parity, size)


@pytest.fixture(scope="module")
def tokens(networks, inputs):
    return networks.tokens(networks.params, inputs.image_tokens, inputs.recognition)


@pytest.fixture(scope="module")
def control_and_mask(networks, inputs, tokens):
    return networks.control(networks.params, inputs.latents, inputs.timesteps, tokens, inputs.hints)


def test_control(parity, size, control_and_mask):
    control, mask = control_and_mask
    recorded = parity.recorded(f"{size}_forward")
    assert parity.error(mask, recorded["mask"]) < TOLERANCE
    assert parity.error(control[0][..., :8], recorded["control_first"]) < TOLERANCE
    assert parity.error(control[-1][..., :8], recorded["control_mid"]) < TOLERANCE
    assert len(control) == len(recorded["control_std"])
    stds = np.array([np.asarray(x).std(ddof=1) for x in control])
    np.testing.assert_allclose(stds, recorded["control_std"], rtol=TOLERANCE)
    means = np.array([np.asarray(x).mean(dtype=np.float64) for x in control])
    np.testing.assert_allclose(means, recorded["control_mean"], atol=TOLERANCE * stds.max())


@pytest.mark.parametrize("case", ["eps", "eps_strength_0p6", "eps_tau_500", "eps_without_control"])
def test_prediction(parity, size, inputs, networks, tokens, control_and_mask, case):
    control, mask = control_and_mask
    if case == "eps_tau_500":
        kept = drop_identity(tokens, inputs.timesteps, 500.0)
        control, mask = networks.control(
            networks.params, inputs.latents, inputs.timesteps, kept, inputs.hints
        )
    control = gate(control, mask)
    if case == "eps_strength_0p6":
        control = scale_control(control, 0.6)
    if case == "eps_without_control":
        control = None
    eps = networks.unet(networks.params, inputs.latents, inputs.timesteps, inputs.text, control)
    assert parity.error(eps, parity.recorded(f"{size}_forward")[case]) < TOLERANCE


@at_small_size
def test_two_people(parity, inputs, networks, tokens, control_and_mask):
    first = gate(*control_and_mask)
    batch, height, width, _ = inputs.hints.shape
    hints = parity.image("in/hint2", (batch, 9, height, width))
    image_tokens = parity.tokens("in/image_tokens2", inputs.image_tokens.shape)
    recognition = parity.tokens("in/id2", (batch, 1, 512))[:, 0]
    second = gate(
        *networks.control(
            networks.params,
            inputs.latents,
            inputs.timesteps,
            networks.tokens(networks.params, image_tokens, recognition),
            hints,
        )
    )
    eps = networks.unet(
        networks.params,
        inputs.latents,
        inputs.timesteps,
        inputs.text,
        sum_controls([first, second]),
    )
    assert parity.error(eps, parity.recorded("small_two_people")["eps"]) < TOLERANCE


@at_small_size
def test_ddim(parity, inputs, networks, tokens, control_and_mask):
    """Six steps asked for, guidance 7 on the text, identity and hints in both halves."""
    recorded = parity.recorded("small_ddim")
    _, mask = control_and_mask

    @jax.jit
    def run(params, noise):
        texts = {"identity": inputs.uncond_text, "text": inputs.text}

        def predict(branches, latents, timestep, _, carry):
            timesteps = jnp.full((len(latents),), timestep, jnp.float32)
            control = networks.control(params, latents, timesteps, tokens, inputs.hints)[0]
            text = jnp.concatenate([texts[branch] for branch in branches])
            return networks.unet(params, latents, timesteps, text, gate(control, mask)), carry

        denoise = guided(predict, branch_weights(7.0))
        return sample(
            denoise,
            noise,
            make_sampler("ddim", parity.configs["small"].diffusion, 6),
            trajectory=True,
        )

    final, trajectory = run(networks.params, inputs.latents)
    assert len(trajectory) == len(recorded["latents"]) == 7
    for ours, theirs in zip(trajectory, recorded["latents"]):
        assert parity.error(ours, theirs) < TOLERANCE
    assert parity.error(final, recorded["final"]) < TOLERANCE


def test_schedule(parity):
    recorded = parity.recorded("schedule")
    diffusion = parity.configs["full"].diffusion
    products = alphas_cumprod(diffusion, np.float64)
    betas = 1 - products / np.append(1, products[:-1])
    np.testing.assert_allclose(betas, recorded["betas"], rtol=1e-6)
    np.testing.assert_allclose(alphas_cumprod(diffusion), recorded["alphas_cumprod"], rtol=1e-5)


def test_vae(parity, size):
    graphdef, params = parity.network("vae", size)
    recorded = parity.recorded(f"{size}_vae")
    image = jnp.tanh(parity.image("in/image", recorded["decoded"].shape))
    _, channels, height, width = recorded["moments"].shape
    latents = parity.image("in/z", (1, channels // 2, height, width))
    mean, logvar = jax.jit(lambda params, image: nnx.merge(graphdef, params).encode(image))(
        params, image
    )
    decoded = jax.jit(lambda params, latents: nnx.merge(graphdef, params).decode(latents))(
        params, latents
    )
    assert parity.error(jnp.concatenate([mean, logvar], axis=-1), recorded["moments"]) < TOLERANCE
    # A picture recorded in float16 is rounded by up to 2^-11.
    tolerance = 2**-11 if recorded["decoded"].dtype == np.float16 else TOLERANCE
    assert parity.error(decoded, recorded["decoded"]) < tolerance
