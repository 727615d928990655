"""The training step: it learns, repeats itself, and pairs what it draws. That devices may share the
work: test_mini.py.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from caphuman_jax.errors import DataError
from caphuman_jax.models.tokenizer import ClipTokenizer
from caphuman_jax.runtime import sharding
from caphuman_jax.training import compiled_step, loop
from caphuman_jax.training.objective import NoiseKeys, sample_noise
from caphuman_jax.training.recipes import mini
from caphuman_jax.training.resident_batches import (
    join_captions,
    repeats,
    resident,
    sample_batch,
)


def place(data, mesh=None):
    return jax.device_put(
        resident(data),
        sharding.replicated(mesh or sharding.make_mesh(devices=jax.devices()[:1])),
    )


def leaves_equal(a, b):
    return all(
        np.array_equal(x, y)
        for x, y in zip(
            jax.tree.leaves(jax.device_get(a)), jax.tree.leaves(jax.device_get(b)), strict=True
        )
    )


def train(
    tiny,
    training,
    vae_params,
    data,
    folder,
    *,
    mesh=None,
    save_every=2000,
    log_every=100,
    log=lambda line: None,
):
    mesh = mesh or sharding.make_mesh(devices=jax.devices()[:2])
    cfg = loop.LoopConfig(save_every=save_every, log_every=log_every, tensorboard=False)
    return loop.run(
        mini.MiniRecipe(tiny, training, vae_params, data, mesh), None, cfg, folder, mesh, log=log
    ).state


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Every run here has the same step on the same devices; compiling it takes a quarter of a
    minute.
    """
    compile_step, programs = compiled_step.compile_step, {}

    def compiled(recipe, mesh, mode, frozen, rows):
        key = json.dumps(recipe.settings, sort_keys=True), mesh, mode
        if key not in programs:
            programs[key] = compile_step(recipe, mesh, mode, frozen, rows)
        return programs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled_step, "compile_step", compiled)
        yield


@pytest.fixture(scope="module")
def straight(tiny, training, data, vae_params, tmp_path_factory):
    """An undisturbed run on two devices: (its folder, the state at its end)."""
    folder = tmp_path_factory.mktemp("straight")
    with jax.numpy_dtype_promotion("standard"):
        return folder, train(tiny, training, vae_params, data, folder)


def test_stopped_and_resumed_is_the_run_that_was_not(
    tiny, training, data, vae_params, straight, tmp_path
):
    # Stopped at step 4 of 16, one after a save; then a fresh start from that checkpoint.
    with pytest.raises(KeyboardInterrupt):
        train(
            tiny,
            training,
            vae_params,
            data,
            tmp_path,
            save_every=3,
            log_every=1,
            log=interrupt_after("step 4"),
        )
    assert int(straight[1].step) == training.steps
    lines = []
    resumed = train(tiny, training, vae_params, data, tmp_path, log=lines.append)
    assert "resumed at step 3" in lines[0]
    assert leaves_equal(straight[1], resumed)


def interrupt_after(text):
    def log(line):
        if text in line:
            raise KeyboardInterrupt

    return log


def test_other_settings_are_refused(tiny, training, data, vae_params, straight):
    with pytest.raises(DataError, match="of another run: settings.training.steps was 16, is 17"):
        train(tiny, dataclasses.replace(training, steps=17), vae_params, data, straight[0])


def test_every_trained_parameter_gets_a_gradient_once_the_zero_convolutions_have_moved(
    tiny, training, straight
):
    before, after = jax.device_get((mini.init_params(tiny, training), straight[1].params))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after))
    # Decay alone moves weights too, but never more than its share.
    decayed = training.learning_rate * training.weight_decay * training.steps
    moved = jax.tree.map(
        lambda a, b: float((np.abs(a - b) > 2 * decayed * np.abs(a)).mean()), before, after
    )
    still = [
        jax.tree_util.keystr(path)
        for path, share in jax.tree_util.tree_leaves_with_path(moved)
        if share == 0
    ]
    # The bias of attention keys changes no softmax; everything else must have moved.
    assert all("key" in name and "bias" in name for name in still), still


def test_batches_pair_color_words_with_color(tiny, training, data):
    cfg = dataclasses.replace(
        training,
        batch_size=64,
        grayscale_prob=0.5,
        no_text_prob=0.0,
        background_swap_prob=0.0,
    )
    marked = dict(
        data,
        captions=np.broadcast_to(
            np.array([1, 2, 3, 4, 5], np.int32)[None, None, :, None], data["captions"].shape
        ),
    )
    placed = place(marked)
    batch = jax.jit(lambda d, k: sample_batch(d, k, cfg, tiny.image_size))(
        placed, jax.random.key(0)
    )
    pictures = np.asarray(batch.photo)
    grey = np.abs(pictures - pictures.mean(-1, keepdims=True)).max((1, 2, 3)) < 1e-3
    assert 0.2 < grey.mean() < 0.95
    np.testing.assert_array_equal(np.asarray(batch.token_ids)[:, 0] == 2, grey)
    assert np.abs(pictures).max() <= 1.001 and batch.hints.shape == (64, 32, 32, 9)
    assert jnp.abs(batch.hints[..., :3]).max() <= 1.45 and batch.hints[..., 3:].min() >= 0


def test_a_new_background_is_seen_and_named(tiny, training, data):
    cfg = dataclasses.replace(
        training,
        batch_size=64,
        grayscale_prob=0.0,
        no_text_prob=0.0,
        background_swap_prob=1.0,
        color_share=1.0,
    )
    captions = np.full(data["captions"].shape, 99, np.int32)
    captions[..., 0] = 1
    placed = place(dict(data, captions=captions))
    batch = jax.jit(lambda d, k: sample_batch(d, k, cfg, tiny.image_size))(
        placed, jax.random.key(0)
    )
    # The person mask is empty, so the background is all that there is.
    seen = np.asarray(batch.photo).mean((1, 2)) / 2 + 0.5
    ids = np.asarray(batch.token_ids)
    assert set(ids[:, 0]) == {1} and set(ids[:, -1]) == {99}
    red, blue = (ids == 6).any(axis=1), (ids == 7).any(axis=1)
    assert (red != blue).all() and 10 < red.sum() < 54 and (ids == 5).any(axis=1).sum() > 10
    np.testing.assert_allclose(seen[red], np.tile([0.8, 0.1, 0.1], (red.sum(), 1)), atol=0.09)
    np.testing.assert_allclose(seen[blue], np.tile([0.1, 0.1, 0.8], (blue.sum(), 1)), atol=0.09)


@pytest.mark.parametrize(("behind", "kind"), [(0.0, 4), (1.0, 5)])
def test_new_clothes_are_seen_and_named_and_keep_their_folds(tiny, training, data, behind, kind):
    changes = {"grayscale_prob": 0.0, "no_text_prob": 0.0, "color_share": 1.0, "light": 1.5}
    cfg = dataclasses.replace(
        training, batch_size=64, background_swap_prob=behind, clothes_swap_prob=1.0, **changes
    )
    captions = np.full(data["captions"].shape, 99, np.int32)
    captions[..., 0] = np.arange(1, 6)
    pictures = np.full_like(data["pictures"], 102)  # as bright as the median
    pictures[:, :, 22:] = 51  # a fold
    clothes = np.full_like(data["clothes"], 255)
    clothes[1] = 0  # one photo shows none
    worn = dict(data, captions=captions, pictures=pictures, clothes=clothes)
    worn["person"] = np.full_like(data["person"], 255)
    batch = jax.jit(lambda d, k: sample_batch(d, k, cfg, tiny.image_size))(
        place(worn), jax.random.key(0)
    )
    ids, photo = np.asarray(batch.token_ids), np.asarray(batch.photo) / 2 + 0.5
    dressed = (ids == 8).any(axis=1)
    assert 40 < dressed.sum() < 64, "all but one photo, which keeps what its caption says"
    assert set(ids[dressed, 0]) == {kind} and set(ids[~dressed, 0]) == {kind - 2 if behind else 1}
    assert np.ptp(photo[~dressed], axis=-1).max() < 1e-5
    red, blue = (ids == 9).any(axis=1), (ids == 10).any(axis=1)
    assert (red ^ blue)[dressed].all() and 10 < red.sum() < 54
    for chosen, color in ((red, [0.8, 0.1, 0.1]), (blue, [0.1, 0.1, 0.8])):
        brightest, darkest = photo[chosen].max((1, 2)), photo[chosen].min((1, 2))
        # The light of a photo is up to 1.5 times stronger, which changes no color that is named.
        np.testing.assert_allclose(brightest, np.tile(color, (chosen.sum(), 1)), atol=0.01)
        assert (darkest < 0.9 * brightest).all() and (darkest > 0.5 * brightest).all()


def test_rare_heads_are_picked_more_often(data):
    plain, weighted = resident(data), resident(data, 0.5)
    for kind in ("colour_index", "grey_index"):
        assert plain[kind].dtype == weighted[kind].dtype == np.int32
        assert set(plain[kind]) == set(weighted[kind]) and len(plain[kind]) == len(set(plain[kind]))
    # Photo 4 has rarity 5, the others 0.5: it counts 1 + 0.5 * (5 - 1) = 3 times as much.
    times = np.bincount(weighted["colour_index"])
    assert times[4] == 3 * times[1] > 0
    assert (np.diff(repeats(np.array([0, 1, 2, 6, 60], np.float32), 0.5)) >= 0).all()
    np.testing.assert_array_equal(repeats(np.array([6, 60], np.float32), 1.0), [24, 24])


def test_photo_and_light_get_brighter_together_and_the_albedo_stays(tiny, training, data):
    flat = dict(
        data,
        pictures=np.full_like(data["pictures"], 100),
        hints=np.full_like(data["hints"], 100),
        person=np.full_like(data["person"], 255),
    )
    cfg = dataclasses.replace(training, batch_size=64, light=1.5, grayscale_prob=0.0)
    sample = jax.jit(lambda d, k: sample_batch(d, k, cfg, tiny.image_size))
    batch = sample(place(flat), jax.random.key(0))
    gain = np.asarray(batch.photo / 2 + 0.5)[:, 16, 16, 0] * 255 / 100
    assert gain.min() < 0.8 and gain.max() > 1.25 and 1 / 1.5 - 1e-4 <= gain.min()
    assert gain.max() <= 1.5 + 1e-4
    hints = np.asarray(batch.hints)[:, 16, 16]
    np.testing.assert_allclose(hints[:, 3:6], 100 / 255, atol=1e-5)
    np.testing.assert_allclose(hints[:, 6:], (100 / 255 * gain)[:, None].repeat(3, 1), atol=1e-5)


def test_joined_captions_are_what_the_tokenizer_makes_of_the_whole_sentence():
    encode = ClipTokenizer()
    first, second = (
        [
            "a photo of a person",
            "a portrait photo of a smiling person, in red clothes",
            " ".join(["word"] * 75),
        ],
        ", a dark blue background",
    )
    more = np.repeat(encode([second], 12)[:, 1:], len(first), axis=0)
    joined = np.asarray(join_captions(jnp.asarray(encode(first)), jnp.asarray(more)))
    np.testing.assert_array_equal(joined[:2], encode([sentence + second for sentence in first[:2]]))
    np.testing.assert_array_equal(joined[2], encode(first[2:])[0])  # full already


def test_error_of_x0_counts_one_where_only_noise_is_left(training):
    alpha = np.array([0.0, 0.01, 0.5, 0.9, 0.999])
    of_v = np.asarray(mini.timestep_weight(jnp.asarray(alpha, jnp.float32), training, "v"))
    # An error e of x0 is an error e / sqrt(1 - alpha) of v, so its weight is that of v over 1 -
    # alpha.
    np.testing.assert_allclose(
        of_v / (1 - alpha), np.minimum(alpha / (1 - alpha) + 1, training.min_snr_gamma), rtol=2e-5
    )


def test_a_power_makes_noisy_timesteps_rarer_and_one_changes_nothing(tiny):
    """P(t < T x) = x^(1/power), and noise is that of all timesteps alike."""
    steps, count = tiny.diffusion.num_timesteps, 20000
    keys = NoiseKeys(*jax.random.split(jax.random.key(3), 5))
    noise = lambda power: sample_noise(keys, tiny, 0.2, (count,), power)
    plain, rare = noise(1.0), noise(1.5)
    np.testing.assert_array_equal(
        plain.timestep, jax.random.randint(keys.timestep, (count,), 0, steps)
    )
    at = np.asarray(rare.timestep)
    assert at.min() >= 0 and at.max() < steps
    for share in (0.1, 0.5, 0.9):
        assert abs((at < steps * share).mean() - share ** (1 / 1.5)) < 0.012
    np.testing.assert_array_equal(rare.noise, plain.noise)
    np.testing.assert_array_equal(rare.identity_until, plain.identity_until)


def test_the_power_may_grow_in_the_course_of_the_run(tiny):
    keys = NoiseKeys(*jax.random.split(jax.random.key(3), 5))
    cfg = mini.MiniTraining(steps=200, timestep_power=1.0, timestep_power_growth=0.8)
    at = jax.jit(
        lambda step: sample_noise(keys, tiny, 0.2, (1000,), mini.timestep_power(cfg, step)).timestep
    )
    for step, power in ((50, 1.2), (100, 1.4), (200, 1.8)):
        expected = sample_noise(keys, tiny, 0.2, (1000,), power).timestep
        np.testing.assert_allclose(at(jnp.int32(step)), expected, atol=1)
    steady = dataclasses.replace(cfg, timestep_power_growth=0.0)
    assert mini.timestep_power(steady, jnp.int32(7)) == 1.0
