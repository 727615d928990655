"""AugmentPolicy: the same for a sample whatever the batch, and distributed as they say."""

import dataclasses

import jax
import numpy as np
import pytest
from scipy import stats

from caphuman_jax.errors import SettingError
from data_pipeline.loading.augment import AugmentConfig, sample_transforms
from data_pipeline.loading.augment_sampling import (
    MIDDLE,
    MIRROR,
    AugmentPolicy,
    Drops,
    identity_source,
    sample_augmentations,
)

COUNT = 20_000


@pytest.fixture(scope="module")
def many():
    return sample_augmentations(AugmentPolicy(), 7, np.zeros(COUNT, int), np.arange(COUNT), 3)


def flat(drawn):
    return jax.tree.leaves(drawn)


def test_a_samples_lots_depend_on_seed_epoch_and_record_alone(many):
    some = np.array([5, 17, 19_999, 0])
    for a, b in zip(
        flat(many), flat(sample_augmentations(AugmentPolicy(), 7, np.zeros(4, int), some, 3))
    ):
        np.testing.assert_array_equal(a[some], b)
    for seed, epoch in ((8, 0), (7, 1)):
        other = sample_augmentations(
            AugmentPolicy(), seed, np.full(COUNT, epoch), np.arange(COUNT), 3
        )
        for a, b in zip(flat(many), flat(other)):
            assert (a != b).mean() > 0.05


def test_one_lot_does_not_tell_of_another_or_of_the_next_record(many):
    paths, leaves = zip(*jax.tree_util.tree_flatten_with_path(many)[0])
    columns = {
        jax.tree_util.keystr(path): (leaf[:, 0] if leaf.ndim > 1 else leaf).astype(float)
        for path, leaf in zip(paths, leaves)
    }
    off = np.corrcoef([*columns.values(), *(np.roll(c, 1) for c in columns.values())]) - np.eye(
        2 * len(columns)
    )
    names = list(columns)
    one, other = (
        names.index("['without_identity']"),
        names.index("['without_text']"),
    )  # these two depend on each other, as they should
    for first in (0, len(names)):
        assert off[first + one, first + other] > 0.1
        off[first + one, first + other] = off[first + other, first + one] = 0
    assert np.abs(off).max() < 5 / np.sqrt(COUNT)


def test_changes_are_distributed_as_those_made_on_the_accelerator(many):
    cfg = AugmentConfig()
    theirs = jax.device_get(sample_transforms(jax.random.key(0), COUNT, cfg))
    for name in ("scale", "angle", "shift"):
        assert (
            many["change"][name].dtype == np.float32 == theirs[name].dtype
            and many["change"][name].shape == theirs[name].shape
        )
        assert stats.ks_2samp(many["change"][name].ravel(), theirs[name].ravel()).pvalue > 1e-4
    assert (
        abs(many["change"]["mirror"].mean() - cfg.mirror) < 0.02
        and many["change"]["mirror"].dtype == bool
    )
    assert (
        np.abs(np.log(many["light"])).max() <= np.log(1.1) + 1e-6
        and abs(np.log(many["light"]).mean()) < 0.002
    )
    assert (
        np.bincount(many["caption"], minlength=3).min() > COUNT / 3 * 0.95
        and many["caption"].max() == 2
    )


def test_drops_are_as_frequent_as_asked_for(many):
    drop = Drops()
    text, identity = many["without_text"], many["without_identity"]
    assert abs(text.mean() - drop.text) < 0.01
    assert (
        abs(identity[text].mean() - drop.identity_without_text) < 0.03
        and abs(identity[~text].mean() - drop.identity) < 0.01
    )
    none = sample_augmentations(
        AugmentPolicy(drop=Drops(0, 0, 0), identity_swap_prob=0),
        7,
        np.zeros(COUNT, int),
        np.arange(COUNT),
        1,
    )
    assert (
        not none["without_text"].any()
        and not none["without_identity"].any()
        and not none["swap_identity"].any()
        and not none["caption"].any()
    )
    always = sample_augmentations(
        AugmentPolicy(drop=Drops(1, 0, 1), identity_swap_prob=1),
        7,
        np.zeros(COUNT, int),
        np.arange(COUNT),
        1,
    )
    assert (
        always["without_text"].all()
        and always["without_identity"].all()
        and always["swap_identity"].all()
    )


def test_lenders_are_partners_with_equal_chances():
    partners = np.array([40, -1, 50])
    chosen = [identity_source(3, True, u, partners) for u in np.linspace(0, 0.9999, 1000)]
    assert set(chosen) == {40, 50} and 450 < chosen.count(40) < 550
    assert (
        identity_source(3, False, 0.1, partners) == 3
        and identity_source(3, True, 0.9999999, np.array([-1, -1, -1])) == 3
    )


def test_no_change_is_no_change():
    drawn = sample_augmentations(
        AugmentPolicy(augment=MIDDLE, light=1.0), 1, np.zeros(50, int), np.arange(50), 1
    )
    change = drawn["change"]
    assert (
        (change["scale"] == 1).all()
        and not change["angle"].any()
        and not change["shift"].any()
        and not change["mirror"].any()
    )
    assert (drawn["light"] == 1).all()
    assert (
        AugmentPolicy(augment=MIRROR, light=1.0).only_mirrors
        and AugmentPolicy(augment=MIDDLE, light=1.0).only_mirrors
    )
    for wrong in (
        AugmentPolicy(augment=MIRROR),
        AugmentPolicy(light=1.0),
        AugmentPolicy(augment=dataclasses.replace(MIRROR, shift=0.1), light=1.0),
    ):
        assert not wrong.only_mirrors


@pytest.mark.parametrize(
    "wrong, name",
    [
        (lambda: Drops(text=1.2), "drop.text"),
        (lambda: AugmentPolicy(identity_swap_prob=-0.1), "identity_swap_prob"),
        (lambda: AugmentPolicy(light=0.5), "light"),
        (lambda: AugmentPolicy(augment=AugmentConfig(scale=0.0)), "augment.scale"),
    ],
)
def test_settings_that_cannot_be(wrong, name):
    with pytest.raises(SettingError, match=name):
        wrong()
