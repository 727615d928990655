"""The same loss, and the same weights, on 1, 2, 4 and 8 devices and for every kind of sharding."""

import json

import jax
import numpy as np
import pytest
import tiny_recipe

from caphuman_jax.runtime import sharding
from caphuman_jax.training import loop

ARRANGEMENTS = [("replicated", 2, 1), ("zero", 4, 1), ("fsdp", 8, 4)]
MORE = [
    ("replicated", 4, 1),
    ("replicated", 8, 1),
    ("zero", 2, 1),
    ("zero", 8, 2),
    ("fsdp", 2, 2),
    ("fsdp", 4, 4),
    ("fsdp", 8, 8),
]


def losses(folder, recipe, batches, mode, devices, fsdp):
    """The losses of every step, and the parameters at the end."""
    cfg = loop.LoopConfig(log_every=1, save_every=0, tensorboard=False, sharding=mode)
    state = loop.run(
        recipe,
        batches,
        cfg,
        folder,
        sharding.make_mesh(fsdp, jax.devices()[:devices]),
        log=lambda line: None,
    ).state
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return np.array([line["loss"] for line in lines]), state


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return losses(
        tmp_path_factory.mktemp("one"),
        tiny_recipe.recipe(),
        tiny_recipe.Numbered(16),
        "replicated",
        1,
        1,
    )


@pytest.mark.parametrize(
    "mode, devices, fsdp",
    [*ARRANGEMENTS, *(pytest.param(*a, marks=pytest.mark.slow) for a in MORE)],
)
def test_the_same_loss_however_it_is_shared(tmp_path, one, mode, devices, fsdp):
    found, state = losses(
        tmp_path, tiny_recipe.recipe(), tiny_recipe.Numbered(16), mode, devices, fsdp
    )
    assert len(found) == 12 and found[-1] < 0.7 * found[0]
    np.testing.assert_allclose(found, one[0], rtol=0, atol=1e-5)
    # Shared as asked for, in truth:
    kernel = {part: jax.tree.leaves(getattr(state, part))[1] for part in ("params", "ema")}
    parts = {
        part: len({str(shard.index) for shard in leaf.addressable_shards})
        for part, leaf in kernel.items()
    }
    assert (
        parts
        == {
            "replicated": {"params": 1, "ema": 1},
            "zero": {"params": 1, "ema": devices},
            "fsdp": {"params": fsdp, "ema": fsdp},
        }[mode]
    )
