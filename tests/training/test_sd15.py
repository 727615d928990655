"""The step that trains CapFace on a frozen base: what is random, micro-batches, devices,
rematerialization, arithmetic; and the whole command.
"""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from caphuman_jax.cli import app
from caphuman_jax.config import CapFaceConfig
from caphuman_jax.errors import DataError, SettingError
from caphuman_jax.models import registry
from caphuman_jax.runtime import flops, sharding
from caphuman_jax.training import base_model, lora_layers, run_folder, trainable
from caphuman_jax.training.batches import stored_batch
from caphuman_jax.training.objective import Batch, Objective, make_loss, noise_of_pictures
from caphuman_jax.training.optimizer import learning_rate_schedule, make_adamw
from caphuman_jax.training.recipes import sd15
from caphuman_jax.training.recipes.sd15 import CapFaceRecipe, CapFaceTraining
from caphuman_jax.training.run_config import read_config

BATCH = 16


@pytest.fixture(autouse=True)
def strict_dtypes():
    """The gradient of JAX's own attention mixes dtypes in bfloat16."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def model(tiny):
    """One level, attention in the middle alone, 8² latents of 8² pictures: compiled in seconds."""
    return dataclasses.replace(
        tiny,
        image_size=8,
        identity=dataclasses.replace(tiny.identity, recognition_width=192),
        capface=CapFaceConfig(hint_widths=(8,)),
        unet=dataclasses.replace(
            tiny.unet, channels=8, channel_multipliers=(1,), attention_resolutions=(), groups=4
        ),
        vae=dataclasses.replace(tiny.vae, patch=1, channel_multipliers=(1,)),
        text=dataclasses.replace(tiny.text, vocabulary=49408),
    )


@pytest.fixture(scope="module")
def base(model):
    """Weights of the whole base, none of them zero, so that CapFace matters from the
    first step on.
    """
    rng = np.random.default_rng(3)
    shapes = {name: params for name, (_, params) in registry.abstract(model).items()}
    return jax.tree.map(
        lambda leaf: (
            (
                rng.standard_normal(leaf.shape) * 0.3 / max(1, np.sqrt(np.prod(leaf.shape[:-1])))
            ).astype(np.float32)
            + 0.02
        ),
        shapes,
    )


@pytest.fixture(scope="module")
def batch(model):
    rng = np.random.default_rng(4)
    fill = lambda leaf: (
        rng.random(leaf.shape) < 0.3
        if leaf.dtype == bool
        else rng.standard_normal(leaf.shape).astype(leaf.dtype)
    )
    return jax.tree.map(fill, stored_batch(model, BATCH))


@pytest.fixture(scope="module")
def empty(model):
    return {
        "ids": np.zeros(77, np.int32),
        "text": np.ones((77, model.unet.cross_attention_dim), np.float32),
    }


@pytest.fixture(scope="module")
def recipe_of(model, base, batch, empty):
    def make(mesh=None, **changes):
        cfg = CapFaceTraining(
            **{
                "batch_size": BATCH,
                "dtype": "float32",
                "init_from": "base",
                "learning_rate": 1e-2,
                **changes,
            }
        )
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch)
        return CapFaceRecipe(
            model,
            cfg,
            {name: base[name] for name in ("unet", "capface", "identity")},
            shapes,
            mesh=mesh,
            empty_text=empty,
        )

    return make


@pytest.fixture(scope="module")
def plain(recipe_of, batch):
    """(state after one step, metrics) without anything special."""
    return stepped(recipe_of(), batch)


def stepped(recipe, batch):
    state = jax.jit(recipe.init_state)(recipe.init_params())
    return jax.device_get(jax.jit(recipe.train_step)(state, recipe.frozen, batch))


def test_neither_devices_nor_micro_batches_change_a_step(recipe_of, batch, plain):
    mesh = sharding.make_mesh(fsdp=2)
    state, metrics = stepped(recipe_of(mesh=mesh, accumulate=2), sharding.place_batch(batch, mesh))
    # Adam's first step is of the learning rate, whatever the gradient: its first moment is the
    # gradient.
    first, second = (optax.tree_utils.tree_get(each.opt_state, "mu") for each in (state, plain[0]))
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(first), jax.tree.leaves(second), strict=True
    ):
        np.testing.assert_allclose(
            a, b, atol=2e-4 * max(np.abs(b).max(), 1e-5), rtol=0, err_msg=jax.tree_util.keystr(path)
        )
    assert metrics["loss"] == pytest.approx(plain[1]["loss"], rel=1e-5)
    np.testing.assert_allclose(metrics["loss_by_time"], plain[1]["loss_by_time"], rtol=1e-4)


def test_rows_that_fill_up_a_batch_do_not_count_in_the_held_out_error(recipe_of, batch):
    """Neither in the error nor in its bands, whatever stands in them."""
    recipe = recipe_of()
    params, frozen = recipe.init_params(), recipe.frozen
    real = (np.arange(BATCH) < 5).astype(np.float32)
    other = jax.tree.map(
        lambda x: np.where(real.reshape(-1, *[1] * (x.ndim - 1)) > 0, x, x[::-1]), batch
    )
    first, second = (
        recipe.held_out_loss(lambda rows=rows: [{**rows, "weight": real}])(
            params, frozen, 0
        ).metrics
        for rows in (batch, other)
    )
    for name in first:
        np.testing.assert_allclose(first[name], second[name], rtol=1e-5, err_msg=name)
    # Five pictures, in the terms of a whole batch; the mean over the bands is the error.
    pictures = first["loss_by_time_count"] * 5 / BATCH
    np.testing.assert_allclose(pictures, np.rint(pictures), atol=1e-5)
    assert pictures.sum() == pytest.approx(5)
    assert first["loss_by_time"].sum() / BATCH == pytest.approx(first["denoise"], rel=1e-5)


def test_metrics(plain, recipe_of):
    state, metrics = plain
    norm = lambda tree: np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(tree)))
    moved = jax.tree.map(np.subtract, state.params, recipe_of().init_params())
    assert metrics["param_norm"] == pytest.approx(norm(state.params), rel=1e-5)
    assert metrics["update_norm"] == pytest.approx(norm(moved), rel=1e-4)
    assert metrics["loss"] == pytest.approx(metrics["denoise"] + metrics["mask"], rel=1e-5)
    assert metrics["loss_by_time"].sum() / BATCH == pytest.approx(metrics["denoise"], rel=1e-5)
    assert (
        metrics["loss_by_time_count"].sum() == BATCH
        and metrics["grad_norm"] > 0
        and metrics["learning_rate"] == np.float32(1e-2)
    )


def test_draws_of_a_picture_are_its_own(model):
    keys = jax.random.split(jax.random.key(0), 256)
    sample = jax.jit(lambda keys: vars(noise_of_pictures(keys, model, 0.5)))
    all_of_them, backwards = sample(keys), sample(keys[::-1])
    for name, values in all_of_them.items():
        np.testing.assert_array_equal(values, backwards[name][::-1])
    assert len(np.unique(all_of_them["timestep"])) > 150 and all_of_them["timestep"].max() < 1000
    assert abs(float(jnp.std(all_of_them["noise"])) - 1) < 0.05
    assert (
        np.abs(np.corrcoef(all_of_them["noise"].ravel(), all_of_them["latent_noise"].ravel())[0, 1])
        < 0.1
    )
    until = np.asarray(all_of_them["identity_until"])
    assert 90 < (until == 0).sum() < 166 and until.max() < 1000 and until[until > 0].min() >= 1


@pytest.fixture(scope="module")
def parts(model, base, empty):
    graphs = {name: graph for name, (graph, _) in registry.abstract(model).items()}
    trained, frozen = trainable.split(
        {name: base[name] for name in ("unet", "capface", "identity")}
    )
    return graphs, trained, {**frozen, "empty": empty}


def test_no_arithmetic_for_gradients_of_the_frozen_encoder(model, parts, batch):
    graphs, trained, frozen = parts
    noise = noise_of_pictures(jax.random.split(jax.random.key(0), BATCH), model, 0.0)
    batch = Batch(**jax.tree.map(jnp.asarray, batch))
    loss = make_loss(model, graphs, Objective(), jnp.float32)
    backward_of = lambda **more: (
        flops.count(jax.grad(lambda t, f: loss(t, f, batch, noise)[0], **more), trained, frozen)
        - forward
    )
    forward = flops.count(lambda t, f: loss(t, f, batch, noise)[0], trained, frozen)
    # An encoder that cannot be differentiated: the same arithmetic.
    encoder = lambda tree: {
        **tree,
        "unet": {**tree["unet"], "encoder": jax.lax.stop_gradient(tree["unet"]["encoder"])},
    }
    stopped = (
        flops.count(jax.grad(lambda t, f: loss(t, encoder(f), batch, noise)[0]), trained, frozen)
        - forward
    )
    assert stopped == backward_of() < 1.75 * forward


def test_flops_of_known_functions():
    a, b = jnp.zeros((3, 5)), jnp.zeros((5, 7))
    assert flops.count(jnp.matmul, a, b) == 2 * 3 * 5 * 7
    assert (
        flops.count(
            lambda x: jax.lax.scan(lambda c, _: (c @ c, None), x, None, length=6)[0],
            jnp.zeros((4, 4)),
        )
        == 6 * 2 * 4**3
    )
    image, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 5))
    convolve = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (2, 2), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    one = 2 * 2 * 4 * 4 * 5 * 27
    assert flops.count(convolve, image, kernel) == one
    # Both gradients of a convolution are as much work again, save for what padding adds.
    both = flops.count(
        jax.grad(lambda x, k: jnp.square(convolve(x, k)).sum(), argnums=(0, 1)), image, kernel
    )
    assert 1.8 * one < both - one < 2.8 * one
    assert flops.count(lambda x: jax.checkpoint(jnp.matmul)(x, b), a) == 2 * 3 * 5 * 7
    assert (
        flops.count(lambda x: ((x @ b).sum(), x.sum())[1], a) == 0
    )  # nothing depends on the product


def test_identity_and_text_are_dropped_where_the_batch_says(model, parts, batch):
    graphs, trained, frozen = parts
    noise = noise_of_pictures(jax.random.split(jax.random.key(0), BATCH), model, 0.0)
    loss_fn = make_loss(model, graphs, Objective(), jnp.float32)
    loss = jax.jit(lambda batch, noise: loss_fn(trained, frozen, Batch(**batch), noise)[0])
    dropped = batch | {
        "without_identity": np.ones(BATCH, bool),
        "without_text": np.ones(BATCH, bool),
    }
    reference = loss(dropped, noise)
    other = dropped | {
        "image_tokens": batch["image_tokens"] + 1,
        "recognition": -batch["recognition"],
        "text": batch["text"] + 1,
    }
    assert loss(other, noise) == reference
    assert loss(dropped | {"without_identity": np.zeros(BATCH, bool)}, noise) != reference
    late = dataclasses.replace(
        noise,
        identity_until=jnp.full(BATCH, 0.5),
        timestep=jnp.maximum(noise.timestep, 1),
    )
    with_identity = dropped | {"without_identity": np.zeros(BATCH, bool)}
    assert loss(with_identity, late) == loss(dropped, late)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"accumulate": 3}, "cannot be divided"),
        ({"unfreeze": "up", "lora_rank": 2}, "choose one"),
        ({"remat": "all"}, "unknown remat"),
        ({"attention": "4096=fast"}, "unknown attention"),
        ({"lr_schedule": "linear"}, "known: constant"),
        ({"identity_dropout_prob": 2.0}, "is a share"),
    ],
)
def test_settings_that_cannot_be(changes, words):
    with pytest.raises(SettingError, match=words):
        CapFaceTraining(**changes)


def test_learning_rates():
    cosine = learning_rate_schedule("cosine", 1.0, warmup=10, steps=110)
    assert [float(cosine(s)) for s in (0, 5, 10, 110)] == pytest.approx([0, 0.5, 1, 0.01])
    constant = learning_rate_schedule("constant", 1.0, warmup=4, steps=110)
    assert [float(constant(s)) for s in (0, 1, 4, 99)] == pytest.approx([0, 0.25, 1, 1])
    assert float(learning_rate_schedule("constant", 1e-4, warmup=0, steps=9)(0)) == np.float32(1e-4)


def test_optimizer_is_adamw_with_rates_of_its_own():
    params = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"bias": jnp.ones(2)}}
    grads = jax.tree.map(lambda x: 0.5 * x, params)
    factors = {"a": {"kernel": 1.0}, "b": {"bias": 0.25}}
    ours = make_adamw(0.1, weight_decay=0.3, multipliers=factors)
    theirs = optax.adamw(0.1, weight_decay=0.3)
    got, expected = (o.update(grads, o.init(params), params)[0] for o in (ours, theirs))
    np.testing.assert_allclose(got["a"]["kernel"], expected["a"]["kernel"], rtol=1e-6)
    np.testing.assert_allclose(got["b"]["bias"], 0.25 * expected["b"]["bias"], rtol=1e-6)
    masked = make_adamw(0.1, weight_decay=0.3, decay="matrices")
    undecayed = masked.update(grads, masked.init(params), params)[0]["b"]["bias"]
    np.testing.assert_allclose(undecayed, -0.1, rtol=1e-5)  # Adam's first step is the learning rate


def test_begins_as_the_original(model, base):
    params = base_model.new_capface(model, base["unet"], seed=5)
    flat = traverse_util.flatten_dict(params, sep=".")
    jax.tree.map(
        np.testing.assert_array_equal, params["capface"]["encoder"], base["unet"]["encoder"]
    )
    assert not any(flat[path].any() for path in flat if ".zero." in path)
    last = max(path.split(".")[3] for path in flat if path.startswith("capface.hint.convs."))
    assert (
        not flat[f"capface.hint.convs.{last}.kernel"].any()
        and flat["capface.hint.convs.0.bias"].any()
    )
    bound = 1 / np.sqrt(192)
    kernel = flat["identity.recognition.kernel"]
    assert np.abs(kernel).max() <= bound and kernel.std() == pytest.approx(
        bound / np.sqrt(3), rel=0.05
    )
    again = base_model.new_capface(model, base["unet"], seed=5)
    assert all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again))
    )


@pytest.fixture(scope="module")
def base_folder(model, base, tmp_path_factory):
    from caphuman_jax.weights.model_folder import save_model

    path = tmp_path_factory.mktemp("base") / "tiny"
    save_model(path, model, base)
    return path


@pytest.fixture(scope="module")
def records(model, tmp_path_factory):
    from records_standin import write_standin

    return write_standin(
        tmp_path_factory.mktemp("records") / "all",
        20,
        test=9,
        size=model.image_size,
        stored=11,
        hints=True,
        moments=(8, 8, 6),
        text=16,
        image_tokens=(5, 12),
    )


def train(base_folder, records, workdir, *more):
    return app.main(
        [
            "train",
            "--config",
            "sd15",
            "--workdir",
            str(workdir),
            f"--config.base={base_folder}",
            f"--config.data={records}",
            "--config.hints=pictures",
            "--config.training.batch_size=8",
            "--config.loop.log_every=1",
            "--config.loader=grain",
            *more,
        ]
    )


@pytest.mark.slow
def test_the_whole_command_with_lora(model, base, base_folder, records, tmp_path, capsys):
    assert (
        train(
            base_folder,
            records,
            tmp_path,
            "--config.training.steps=2",
            "--config.training.lora_rank=2",
            "--config.training.no_text_prob=0.5",
        )
        == 0
    )
    from caphuman_jax.weights import lora
    from caphuman_jax.weights.model_folder import load_params

    exported = load_params(tmp_path / "model", {name: base[name] for name in base})
    for name in base:
        same = all(
            np.array_equal(a, b)
            for a, b in zip(jax.tree.leaves(exported[name]), jax.tree.leaves(base[name]))
        )
        assert same == (name not in registry.TRAINABLE), name
    read = lora.read_file(tmp_path / "model" / base_model.LORA_FILE, model)
    trained = base_model.new_capface(model, base["unet"], seed=0)
    start = lora_layers.start(base["unet"], 2, lora_layers.TARGETS, np.random.default_rng(0))
    trained["lora"] = start
    whole = base_model.whole_model(base_folder, model, 1.0, trained, {"unet": base["unet"]})
    jax.tree.map(
        np.testing.assert_array_equal,
        whole,
        {**base, **{name: trained[name] for name in registry.TRAINABLE}},
    )
    assert any(part.weight().any() for part in read.parts["unet"].values())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines if "loss" in line) and any(
        "loss" in line for line in lines
    )


@pytest.mark.slow
def test_on_the_fly_with_rendered_heads_and_an_unfrozen_part(base_folder, base, model, tmp_path):
    """Pictures, prompts and heads as they are: encoded and rendered in the step; pictures are
    turned and moved.
    """
    from records_standin import write_standin

    from caphuman_jax.head.models.registry import load_head
    from caphuman_jax.weights.model_folder import load_params

    head = load_head()
    where = write_standin(
        tmp_path / "records",
        20,
        test=9,
        size=model.image_size,
        stored=11,
        hints=False,
        image_tokens=(5, 12),
        albedo=head.mean.shape,
        identity=head.identity_basis.shape[0],
        expression=len(head.expression_names),
    )
    assert (
        train(
            base_folder,
            where,
            tmp_path / "run",
            "--config.hints=head",
            "--config.training.steps=2",
            "--config.augment.scale=1.2",
            "--config.training.unfreeze=^conv_out=1e-3",
            "--config.training.ema_decay=0.9",
            "--config.evaluators.held_out.every=1",
        )
        == 0
    )
    exported = load_params(tmp_path / "run" / "model", {"unet": base["unet"]})["unet"]
    assert not np.array_equal(exported["conv_out"]["kernel"], base["unet"]["conv_out"]["kernel"])
    np.testing.assert_array_equal(
        exported["up"]["0"]["res_0"]["conv_1"]["kernel"],
        base["unet"]["up"]["0"]["res_0"]["conv_1"]["kernel"],
    )


def test_records_that_do_not_fit_are_told(base_folder, tmp_path, capsys):
    from records_standin import write_standin

    assert (
        train(base_folder, write_standin(tmp_path / "r", 8, size=64, stored=88), tmp_path / "w")
        == 2
    )
    assert "pictures of 64 pixels" in capsys.readouterr().err
    assert (
        train(
            base_folder,
            write_standin(tmp_path / "s", 8, size=8, stored=11, moments=(4, 4, 6)),
            tmp_path / "w",
        )
        == 2
    )
    assert "for moments" in capsys.readouterr().err
    assert app.main(["train", "--config", "sd15", "--workdir", str(tmp_path / "v")]) == 2
    assert "--config.base=FOLDER" in capsys.readouterr().err


def test_a_run_resumes_on_the_same_records_wherever_they_lie(base_folder, tmp_path):
    from records_standin import write_standin

    what = {"size": 8, "stored": 11, "hints": True, "image_tokens": (5, 12)}

    def identity(where):
        entries = {"base": base_folder, "data": where, "hints": "pictures", "loader": "grain"}
        entries["training.batch_size"] = 8
        config = read_config("sd15", [f"{name}={value}" for name, value in entries.items()])
        return run_folder.identity(sd15.build(config, None, lambda line: None)[0])

    first = identity(write_standin(tmp_path / "first", 8, **what))
    shutil.move(tmp_path / "first", tmp_path / "moved")
    run_folder.check_same_run(first, identity(tmp_path / "moved"), "WORKDIR")
    other = identity(write_standin(tmp_path / "other", 8, seed=1, **what))
    with pytest.raises(DataError, match="another run: settings.records was '.*', is '"):
        run_folder.check_same_run(first, other, "WORKDIR")
