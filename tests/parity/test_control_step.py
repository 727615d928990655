"""The training step's loss and gradients against the recorded ones of the original, parameter by
parameter.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from caphuman_jax.models import registry
from caphuman_jax.training import trainable
from caphuman_jax.training.objective import Batch, Noise, Objective, make_loss
from caphuman_jax.weights.names import PREFIXES, table

BATCH, SIDE = 2, 16


def test_gradients_of_the_step_are_the_originals(parity):
    recorded, norms = parity.recorded("small_loss"), parity.json("small_grad_norms")
    model = parity.configs["small"]
    networks = {name: parity.network(name, "small") for name in ("unet", "capface", "identity")}
    graphs = {name: graph for name, (graph, _) in networks.items()}
    trained, frozen = trainable.split({name: params for name, (_, params) in networks.items()})
    assert set(trained) == set(registry.TRAINABLE) and set(frozen) == {"unet"}
    labels = parity.generator("in/full_mask").integers(0, 19, (BATCH, 8 * SIDE, 8 * SIDE))
    face = ~np.isin(
        labels, [0, 7, 8, 9, 14, 15, 16, 17, 18]
    )  # background, ears, neck, clothes, hair and hat are not
    clean = np.asarray(parity.image("in/x0", (BATCH, 4, SIDE, SIDE)))
    batch = Batch(
        hints=parity.image("in/loss_hint", (BATCH, 9, 8 * SIDE, 8 * SIDE)),
        region=jnp.asarray(face[..., None], jnp.float32),
        moments=jnp.asarray(
            np.concatenate(
                [clean / np.float32(model.vae.scaling_factor), np.full_like(clean, -1e4)], axis=-1
            )
        ),
        text=parity.tokens("in/text", (BATCH, 77, 64)),
        image_tokens=parity.tokens("in/image_tokens", (BATCH, 257, 96)),
        recognition=parity.tokens("in/id", (BATCH, 1, 512))[:, 0],
    )
    noise = parity.image("in/noise", (BATCH, 4, SIDE, SIDE))
    noise = Noise(
        timestep=jnp.asarray([801, 37]),
        noise=noise,
        latent_noise=noise,
        identity_until=jnp.zeros(BATCH),
    )
    loss = make_loss(model, graphs, Objective(), jnp.float32)
    (total, metrics), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        trained, frozen, batch, noise
    )
    np.testing.assert_allclose(total, recorded["loss"], rtol=1e-5)
    assert float(metrics["denoise"] + metrics["mask"]) == pytest.approx(float(total))
    np.testing.assert_array_equal(metrics["loss_by_time_count"], np.eye(10)[[8, 0]].sum(axis=0))

    ours = {}
    for name, tree in gradients.items():
        flat = traverse_util.flatten_dict(tree, sep=".")
        ours |= {
            PREFIXES[name] + theirs: float(jnp.linalg.norm(flat[path]))
            for theirs, path in table(name, model, flat).items()
        }
    assert ours.keys() == norms["grad_norm"].keys()
    for name, norm in norms["grad_norm"].items():
        assert ours[name] == pytest.approx(norm, rel=1e-3), name
