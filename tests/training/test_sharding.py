"""Where arrays live: the table of shardings on SD1.5's shapes, meshes of one and several slices,
arrays born in place.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from caphuman_jax.config import SD15
from caphuman_jax.errors import SettingError
from caphuman_jax.models import registry
from caphuman_jax.runtime import sharding
from caphuman_jax.training.step import TrainState

ALL = ("data", "fsdp")


@pytest.fixture(scope="module")
def sd15():
    """Shapes of the state that CapHuman trains, and of what is frozen."""
    networks = {
        name: params
        for name, (_, params) in registry.abstract(
            SD15, only=("capface", "identity", "text")
        ).items()
    }
    params = {name: networks[name] for name in registry.TRAINABLE}
    state = jax.eval_shape(
        lambda p: TrainState.create(p, optax.adamw(1e-4)),
        params,
    )
    return state, {
        "text": networks["text"],
        "data": {"kernel": jax.ShapeDtypeStruct((2**16, 8), jnp.uint8)},
    }


def specs(tree):
    return {
        sharding.path_name(path): where.spec
        for path, where in jax.tree_util.tree_leaves_with_path(tree)
    }


LARGE = "capface/encoder/down/1/res_0/conv_1/kernel"  # (3, 3, 320, 640)
PINNED = {
    "replicated": {
        f"params/{LARGE}": P(),
        f"ema/{LARGE}": P(),
        f"opt_state/0/mu/{LARGE}": P(),
        "step": P(),
    },
    "zero": {
        f"params/{LARGE}": P(),
        f"ema/{LARGE}": P(None, None, None, ALL),
        f"opt_state/0/mu/{LARGE}": P(None, None, None, ALL),
        "opt_state/0/nu/identity/image/kernel": P(ALL),
        "step": P(),
        "opt_state/0/count": P(),
        "ema/capface/encoder/down/1/res_0/conv_1/bias": P(),
    },
    "fsdp": {
        f"params/{LARGE}": P(None, None, None, ("fsdp",)),
        f"opt_state/0/nu/{LARGE}": P(None, None, None, ("fsdp",)),
        "params/identity/image/kernel": P(("fsdp",)),
        "opt_state/0/count": P(),
    },
}


@pytest.mark.parametrize("mode", sharding.MODES)
def test_shardings_of_sd15_are_these(sd15, mode):
    mesh = sharding.make_mesh(4)
    found = specs(sharding.state_shardings(mesh, sd15[0], mode))
    assert {name: found[name] for name in PINNED[mode]} == PINNED[mode]


def bytes_per_device(shapes: Any, shardings: Any) -> int:
    """Memory that a tree of arrays takes on each device."""
    sizes = jax.tree.map(
        lambda x, where: math.prod(where.shard_shape(tuple(x.shape))) * x.dtype.itemsize,
        shapes,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))


def test_memory_of_sd15_a_device(sd15):
    gigabytes = lambda mode, fsdp: (
        bytes_per_device(sd15[0], sharding.state_shardings(sharding.make_mesh(fsdp), sd15[0], mode))
        / 1e9
    )
    whole = 4 * 4 * 362_464_049 / 1e9  # parameters, average and two moments, float32
    assert gigabytes("replicated", 1) == pytest.approx(whole, rel=1e-3)
    assert gigabytes("zero", 1) == pytest.approx(whole / 4 + whole * 3 / 4 / 8, rel=0.01)
    assert gigabytes("fsdp", 8) == pytest.approx(whole / 8, rel=0.01)
    assert gigabytes("fsdp", 1) == pytest.approx(whole, rel=1e-3)  # nobody to share with


def test_frozen_networks_are_split_in_fsdp_alone_and_resident_data_never(sd15):
    mesh = sharding.make_mesh(8)
    whole = specs(sharding.frozen_shardings(mesh, sd15[1], "zero"))
    split = specs(sharding.frozen_shardings(mesh, sd15[1], "fsdp"))
    assert set(whole.values()) == {P()} and split["data/kernel"] == P()
    assert split["text/tokens/embedding"] == P(("fsdp",))
    assert sum(spec != P() for spec in split.values()) > 40


def test_what_cannot_be_divided_by_all_is_divided_by_some(sd15):
    mesh = sharding.make_mesh(2)  # 4 × 2
    shape = lambda *s: {"ema": jax.ShapeDtypeStruct(s, jnp.float32)}
    spec = lambda *s: sharding.state_shardings(mesh, shape(*s), "zero")["ema"].spec
    assert (
        spec(4 * 1001, 33) == P(("data",))
        and spec(2 * 9999, 3) == P(("fsdp",))
        and spec(20001, 3) == P()
    )
    assert spec(3, 3, 320, 320) == P(None, None, None, ALL)  # the last among equals


def test_an_unknown_mode_and_groups_that_do_not_come_out_even():
    with pytest.raises(SettingError, match="'zero3'; there are replicated, zero, fsdp"):
        sharding.state_shardings(sharding.make_mesh(), {}, "zero3")
    with pytest.raises(SettingError, match="8 devices in 1 slice cannot be grouped by fsdp = 3"):
        sharding.make_mesh(3)


@dataclasses.dataclass(frozen=True)
class Chip:
    """What `make_mesh` asks a TPU chip."""

    id: int
    process_index: int
    slice_index: int
    device_kind: str = "TPU v5 lite"


def test_slices_come_first_and_hosts_keep_together():
    chips = [
        Chip(id=16 * s + 4 * h + c, process_index=2 * s + h, slice_index=s)
        for s in (1, 0)
        for h in (1, 0)
        for c in (3, 1, 0, 2)
    ]
    mesh = sharding.make_mesh(0, chips)
    assert dict(mesh.shape) == {"slice": 2, "data": 1, "fsdp": 8}
    assert [[chip.process_index for chip in row] for row in mesh.devices.reshape(2, 8)] == [
        [0] * 4 + [1] * 4,
        [2] * 4 + [3] * 4,
    ]
    assert sharding.by_batch(sharding.make_mesh(2, chips)).spec == P(("slice", "data", "fsdp"))
    state = {"opt_state": jax.ShapeDtypeStruct((1024, 1024), jnp.float32)}
    # Nothing is split between slices: only gradients cross their slow network.
    assert sharding.state_shardings(sharding.make_mesh(2, chips), state, "zero")[
        "opt_state"
    ].spec == P(None, ALL)
    with pytest.raises(SettingError, match="16 devices in 2 slices cannot be grouped by fsdp = 16"):
        sharding.make_mesh(16, chips)


def test_each_device_is_given_its_own_part_alone():
    mesh = sharding.make_mesh(8)
    numbers = np.arange(2.0**15, dtype=np.float32).reshape(256, 128)
    asked = []

    class Watched(np.ndarray):
        def __getitem__(self, index):
            part = np.asarray(self).__getitem__(index)
            asked.append(part.size)
            return part

    shardings = sharding.state_shardings(mesh, {"params": numbers}, "fsdp")
    placed = sharding.place({"params": numbers}, shardings)["params"]
    assert {shard.data.shape for shard in placed.addressable_shards} == {(32, 128)}
    np.testing.assert_array_equal(sharding.on_host(placed), numbers)
    jax.make_array_from_callback(
        numbers.shape, shardings["params"], lambda index: numbers.view(Watched)[index]
    )
    assert asked == [32 * 128] * 8


def test_a_batch_is_split_over_all_devices():
    mesh = sharding.make_mesh(2)
    placed = sharding.place_batch({"x": np.arange(16), "y": np.ones((16, 3), np.float32)}, mesh)
    assert [
        shard.data.tolist()
        for shard in sorted(placed["x"].addressable_shards, key=lambda s: s.index)
    ] == [[2 * i, 2 * i + 1] for i in range(8)]
    assert placed["y"].sharding.shard_shape((16, 3)) == (2, 3)
