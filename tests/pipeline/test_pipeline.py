"""The whole way on a tiny untrained model: what depends on what, and how photos are framed."""

import dataclasses
import json
import logging
from importlib.resources import files

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import save_file

import caphuman_jax
from caphuman_jax.diffusion import guidance, samplers, sampling_loop
from caphuman_jax.errors import HeadError, ModelFolderError, SettingError
from caphuman_jax.head import editing
from caphuman_jax.io import metadata
from caphuman_jax.io.images import read_png_metadata
from caphuman_jax.io.picture import PictureWriter
from caphuman_jax.models.tokenizer import ClipTokenizer
from caphuman_jax.pipeline.head_target import HeadTarget
from caphuman_jax.pipeline.pipeline import Pipeline

PROMPT = "a photo of a person"


def test_same_seed_same_picture_and_other_seed_another(pipe, person):
    first, again, other = (
        pipe(reference=person, prompt=PROMPT, seed=seed).images for seed in (3, 3, 4)
    )
    assert first.shape == (1, 64, 64, 3) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 5


def test_a_picture_alone_is_the_picture_of_a_batch(pipe, person):
    three = pipe(reference=person, prompt=PROMPT, seed=1, num_images=3)
    alone = pipe(reference=person, prompt=PROMPT, seed=1, first_image=2)
    np.testing.assert_array_equal(alone.images[0], three.images[2])
    assert np.abs(three.images[0].astype(int) - three.images[1]).mean() > 5
    batched = Pipeline(pipe.config, pipe.params, pipe.graphs, batch=2)(
        reference=person, prompt=PROMPT, seed=1, num_images=3
    )
    assert batched.images.shape == three.images.shape and batched.masks.shape == three.masks.shape
    # Another batch size is another program, which may round otherwise.
    assert np.abs(batched.images.astype(int) - three.images).max() <= 2


def test_zero_capface_leaves_the_plain_model_unchanged(pipe, person, tiny_params):
    untrained = Pipeline(pipe.config, tiny_params, pipe.graphs)
    made = [
        untrained(reference=person, prompt=PROMPT, seed=5, control_scale=strength).images
        for strength in (0, 1, 7)
    ]
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_array_equal(made[0], made[2])
    other = pipe.with_params(tiny_params)  # as previews of training do: compiled programs are kept
    again = other(reference=person, prompt=PROMPT, seed=5, control_scale=0)
    np.testing.assert_array_equal(again.images, made[0])
    assert other.programs is pipe.programs and pipe.params is not tiny_params

    cfg, graphs = pipe.config, dict(pipe.graphs)
    text, unet, vae = (
        nnx.merge(graphs[name], tiny_params[name]) for name in ("text", "unet", "vae")
    )
    encoded, empty = (text(jnp.asarray(ClipTokenizer()([words], 77)))[0] for words in (PROMPT, ""))
    texts = {"identity": empty, "text": encoded}

    def predict(branches, x, t, _, carry):
        text = jnp.concatenate([texts[branch] for branch in branches])
        return unet(x, jnp.broadcast_to(t.astype(jnp.float32), x.shape[:1]), text), carry

    plain = guidance.guided(
        predict,
        guidance.branch_weights(cfg.sampling.guidance_scale),
        rescale=cfg.sampling.guidance_rescale,
    )
    keys = sampling_loop.picture_keys(5, [0])
    noise = sampling_loop.initial_noise(keys, (16, 16, cfg.unet.in_channels))
    sampler = samplers.make_sampler(
        "ddim", cfg.diffusion, 2, spacing=cfg.sampling.spacing, eta=cfg.sampling.eta
    )
    latents = jax.jit(
        lambda x: sampling_loop.sample(
            plain, x, sampler, prediction_type=cfg.diffusion.prediction_type, keys=keys
        )
    )(noise)
    picture = (
        np.clip(np.asarray(vae.decode(latents / cfg.vae.scaling_factor)) / 2 + 0.5, 0, 1) * 255
    )
    assert np.abs(picture - made[0]).max() <= 1.5


def test_every_setting_matters(pipe, person):
    base = pipe(reference=person, prompt=PROMPT).images.astype(int)
    other = dataclasses.replace(
        person, vectors=-person.vectors, image_tokens=person.image_tokens[:, ::-1]
    )
    changes = {
        "prompt": {"prompt": "a dog"},
        "guidance_scale": {"guidance_scale": 5},
        "eta": {"eta": 0.3},
        "no guidance": {"guidance_scale": 1},
        "control_scale": {"control_scale": 0.3},
        "identity_max_timestep": {"identity_max_timestep": -1},
        "gate": {"gate": "soft"},
        "head": {"head": {"yaw": -25}},
        "guidance_interval": {"guidance_interval": (600, 0)},
        "cache_interval": {"cache_interval": 2},
        "person": {"reference": other},
    }
    for name, change in changes.items():
        made = pipe(**{"reference": person, "prompt": PROMPT, **change}).images
        assert np.abs(made - base).max() > 0, name


def test_wanted_head(pipe, person, astronaut, caplog):
    model = pipe.head_model
    tilted = np.asarray(
        Image.fromarray(astronaut).rotate(-15, Image.Resampling.BICUBIC, fillcolor=(128, 128, 128))
    )
    lender = pipe.person(tilted)
    asked = HeadTarget(photo=lender, yaw=12, expression={"jawOpen": 0.4}, light="left")
    head = asked.apply(model, person.head, lender)
    yaw, pitch, roll = np.asarray(head.angles)
    assert yaw == pytest.approx(12, abs=0.1) and roll == pytest.approx(
        float(person.head.angles[2]) + 15, abs=3
    )
    np.testing.assert_array_equal(head.identity, person.head.identity)
    np.testing.assert_array_equal(head.light, editing.parse_light("left"))
    own = HeadTarget().apply(model, person.head, None)
    np.testing.assert_array_equal(own.rotation, person.head.rotation)
    # With the photo as the frame, the head stands where it stands in the photo.
    framed = HeadTarget(photo=lender, framing="photo").apply(model, person.head, lender)
    x, y, _ = editing.position_of(model, framed)
    nose = lender.face.landmarks[4, :2] / 512
    assert (
        abs(x - nose[0]) < 0.08
        and abs(y - nose[1]) < 0.12
        and editing.position_of(model, head)[0] == pytest.approx(0.5, abs=0.08)
    )
    with caplog.at_level(logging.WARNING):
        result = pipe(
            reference=person, prompt=PROMPT, head={"yaw": 50, "position": (0.5, 0.5, 0.5)}
        )
    assert "yaw 50" in caplog.text and result.settings["people"][0]["head"]["yaw"] == pytest.approx(
        50, abs=0.1
    )


def test_any_size(pipe, person, caplog):
    with caplog.at_level(logging.WARNING):
        result = pipe(reference=person, prompt=PROMPT, size=(80, 64))
    assert (
        result.images.shape == (1, 64, 80, 3)
        and result.hints.shape == (64, 80, 9)
        and "trained on 64x64" in caplog.text
    )
    covered = np.flatnonzero(np.abs(np.asarray(result.hints[..., 3:6])).sum((0, 2)))
    assert abs((covered[0] + covered[-1]) / 2 - 40) < 6  # still in the middle
    for size in (60, 0, -64, (64, 70), "big", 8192, (64, 64, 64), 64.5):
        with pytest.raises(SettingError, match="multiples of 8|WIDTHxHEIGHT"):
            pipe.request(reference=person, prompt=PROMPT, size=size)


@pytest.mark.parametrize(
    "setting",
    [
        {"num_images": 0},
        {"num_images": 1.5},
        {"seed": -1},
        {"seed": 2**32},
        {"steps": 0},
        {"steps": 1001},
        {"guidance_scale": float("nan")},
        {"control_scale": -1},
        {"control_scale": "much"},
        {"identity_max_timestep": 2000},
        {"prompt": None},
        {"sampler": "magic"},
        {"negative_prompt": 3},
        {"head_guidance": -1},
        {"guidance_rescale": 2},
        {"combine": "sum"},
        {"guidance_interval": (0, 2000)},
        {"guidance_interval": "all"},
        {"guidance_interval": (1, 2, 3)},
        {"cache_interval": 0},
        {"cache_interval": 1.5},
        {"steps": 60, "sampler": "lcm"},
        {"eta": 0.5, "sampler": "unipc"},
    ],
)
def test_settings_out_of_range(pipe, person, setting):
    with pytest.raises(SettingError, match=next(iter(setting))):
        pipe(**{"reference": person, "prompt": PROMPT, **setting})


def test_wrong_heads(pipe, person):
    for head in (
        {"yaw": float("nan")},
        {"tilt": 3},
        {"expression": "smirk"},
        {"light": "blue"},
        {"take": "nose"},
        {"framing": "wide"},
        {"position": (1, 2)},
    ):
        with pytest.raises(HeadError):
            pipe(reference=person, prompt=PROMPT, head=head)


def test_long_prompt_is_a_notice(pipe, person, caplog):
    with caplog.at_level(logging.WARNING):
        pipe(reference=person, prompt="very " * 90 + "long")
    assert "takes 2 chunks of 75 tokens" in caplog.text


def test_pictures_on_disk_say_how_they_were_made(pipe, person, tmp_path):
    result = pipe(
        reference=person,
        prompt="a café — ж",
        num_images=2,
        head={"yaw": 10, "expression": "smile=0.5"},
    )
    page = np.asarray(result.sheet())
    assert page.ndim == 3 and page.shape[2] == 3 and page.shape[0] > 2 * 256
    writer = PictureWriter(tmp_path)
    paths = [writer.write(np.asarray(one), one.settings) for one in result.pictures]
    page_path = writer.write_sheet(page)
    assert [path.name for path in paths] == [
        "picture_00.png",
        "picture_01.png",
    ] and page_path.name == "sheet.png"
    np.testing.assert_array_equal(np.asarray(Image.open(paths[1])), result.images[1])
    made = metadata.read_settings(paths[1])
    assert made == json.loads(json.dumps({**result.settings, "index": 1}))
    (shown,) = made["people"]
    assert shown["asked_head"] == {"yaw": 10.0, "expression": "smile=0.5"} and shown["head"][
        "yaw"
    ] == pytest.approx(10, abs=0.01)
    assert (
        shown["reference"]["name"] == "astronaut_nasa.png"
        and len(made["weights"]["unet"]) == 64
        and made["size"] == [64, 64]
    )
    entries = read_png_metadata(paths[1])
    assert (
        entries["AI-generated"]
        and metadata.DIGITAL_SOURCE in entries["XML:com.adobe.xmp"]
        and "Seed: 0" in entries["parameters"]
    )
    assert read_png_metadata(page_path)["AI-generated"]

    more = PictureWriter(tmp_path)
    names = [more.write(np.asarray(one), one.settings).name for one in result.pictures]
    assert [*names, more.write_sheet(page).name] == [
        "picture_02.png",
        "picture_03.png",
        "sheet_02.png",
    ]
    over = result.save(tmp_path, overwrite=True)
    assert [path.name for path in over] == ["picture_00.png", "picture_01.png"]
    assert len(list(tmp_path.iterdir())) == 6
    assert metadata.read_settings(over[1]) == made


def test_progress_and_images_are_reported_as_they_are_made(pipe, astronaut):
    events, images = [], []

    def on_image(image, settings):
        assert settings["num_images"] == 2 and settings["index"] == len(images)
        images.append(image)
        events.append(("image", len(images), 2))

    fresh = Pipeline(pipe.config, pipe.params, pipe.graphs)
    result = fresh(
        reference=astronaut,
        prompt=PROMPT,
        num_images=2,
        progress=lambda *what: events.append(what),
        on_image=on_image,
    )
    assert [stage for stage, done, _ in events if done == 0] == [
        "photo",
        "hints",
        "compile",
        "pictures",
    ]
    assert events[-4:] == [(stage, i, 2) for i in (1, 2) for stage in ("image", "pictures")]
    np.testing.assert_array_equal(np.stack(images), result.images)


def test_an_empty_prompt_is_noticed(pipe, person, caplog):
    pipe.condition(pipe.request(reference=person, prompt=" "), with_hints=False)
    assert "the prompt is empty" in caplog.text


def test_words_that_the_model_was_not_trained_with_are_noticed(pipe, person, caplog, tmp_path):
    condition = lambda one, prompt, **more: one.condition(
        one.request(reference=person, prompt=prompt, **more), with_hints=False
    )
    tokenizer = ClipTokenizer(trained_words="a photo of person on blue".split())
    known = Pipeline(pipe.config, pipe.params, pipe.graphs, tokenizer=tokenizer)
    condition(known, "a (Photo:1.2) of the person, on a [blue] moon's bookshelf, 3D moon's")
    assert caplog.messages == [
        "the model was not trained with these words of the prompt, so they have little effect: "
        "moon's, bookshelf"
    ]
    caplog.clear()
    save_file({"emb_params": np.zeros((2, 8), np.float32)}, tmp_path / "moon.safetensors")
    known.add_embeddings([(tmp_path / "moon.safetensors", None)])
    condition(known, "a photo of a moon")
    condition(pipe, "a moon's bookshelf")  # its words are not known
    assert not caplog.messages


def test_embeddings_that_are_not_loaded_are_noticed(pipe, person, caplog, tmp_path):
    condition = lambda one, negative: one.condition(
        one.request(reference=person, prompt="a photo", negative_prompt=negative), with_hints=False
    )
    words = "(EasyNegative:1.2), badhandv4, <cat-toy>, embedding:own"
    before = condition(pipe, words)
    assert caplog.messages == [
        "EasyNegative, badhandv4, <cat-toy>, embedding:own: read as plain text, since no such "
        "embedding is loaded; if it is one, add its file: "
        "--embedding EasyNegative.safetensors[=WORD]"
    ]
    plain = ClipTokenizer().ids("badhandv4")  # the ids are those of the letters, as ever
    assert set(plain) <= set(before.prompts[1].token_ids)
    caplog.clear()
    known = Pipeline(pipe.config, pipe.params, pipe.graphs)
    for word in ("EasyNegative", "badhandv4", "cat-toy", "own"):
        save_file({"emb_params": np.zeros((2, 8), np.float32)}, tmp_path / f"{word}.safetensors")
        known.add_embeddings([(tmp_path / f"{word}.safetensors", None)])
    condition(known, words)
    assert not caplog.messages


def test_a_width_that_does_not_fit_is_refused_when_loading(pipe):
    known = dataclasses.replace(pipe.config.identity, recognition_width=100)
    config = dataclasses.replace(pipe.config, identity=known)
    with pytest.raises(ModelFolderError, match="_width 100, but mobilefacenet gives 192"):
        Pipeline(config, pipe.params, pipe.graphs)


def test_pictures_one_after_another(pipe, person, tmp_path):
    """`stream` makes the pictures of a call, and takes no more rows than it is about to make."""
    asked = {"reference": person, "prompt": PROMPT, "num_images": 3, "seed": 5}
    some = pipe(**asked, keep=1)
    assert some.images.shape == (1, 64, 64, 3) and some.masks.shape[0] == 1
    whole = pipe(**asked)
    for i, picture in enumerate(pipe.stream(**asked)):
        np.testing.assert_array_equal(np.asarray(picture), whole.images[i])
        assert picture.settings == {**whole.settings, "index": i}
    picture.save(tmp_path / "last.png")
    assert metadata.read_settings(tmp_path / "last.png")["index"] == 2
    taken = []
    (conditioning,) = pipe.conditionings(pipe.requests(**asked | {"num_images": 10_000}))
    rows = ((conditioning, taken.append(i) or i) for i in conditioning.request.numbers)
    made = pipe.images(rows, 10_000)
    next(made), next(made)
    assert len(taken) == 2 * pipe.batch


def test_heads_of_a_sequence(pipe, person):
    asked = {"reference": person, "prompt": PROMPT, "head": {"pitch": 5}}
    rows = [{"frame": 0, "yaw": -20}, {"frame": 1, "yaw": 20, "x": 0.4, "jawOpen": 0.5}]
    made = list(pipe.stream(heads=rows, **asked))
    for picture, row in zip(made, rows, strict=True):
        row = {name: row[name] for name in row if name != "frame"}
        alone = pipe(**asked | {"head": {"pitch": 5, **row}})
        np.testing.assert_array_equal(np.asarray(picture), alone.images[0])
        assert picture.settings == {**alone.settings, "index": 0}
    for heads, told in (
        ([{"yaw": 5}, {"yaw": 95}], "row 2 of the sequence: yaw"),
        ([{"tilt": "much"}], "row 1 of the sequence: a head has no 'tilt'"),
        ([{"position": [0.5, 0.5, 0.5], "x": 0.1}], "not both"),
        ([{"photo": "me.jpg"}], "numbers, not photos"),
        ([], "no heads"),
    ):
        with pytest.raises((HeadError, SettingError), match=told):
            pipe.requests(heads=heads, **asked)
    with pytest.raises(SettingError, match="one person"):
        pipe.requests(heads=rows, people=[{"reference": person}] * 2, prompt=PROMPT)


def test_models_that_need_other_networks_are_refused(pipe, tmp_path):
    config = dataclasses.replace(
        pipe.config, identity=dataclasses.replace(pipe.config.identity, recognizer="eigenfaces")
    )
    with pytest.raises(ModelFolderError, match="eigenfaces"):
        Pipeline(config, {}, ())
    with pytest.raises(ModelFolderError, match="nobody"):
        caphuman_jax.load("nobody")


@pytest.mark.slow
def test_bfloat16(tiny_folder, person):
    result = caphuman_jax.load(tiny_folder, dtype="bfloat16")(reference=person, prompt=PROMPT)
    assert result.settings["dtype"] == "bfloat16" and result.images.std() > 5


@pytest.mark.slow
def test_memory_settings(tiny_folder, person):
    made = {}
    for memory in ("full", "normal", "low", "least"):
        pipe = caphuman_jax.load(tiny_folder, dtype="bfloat16", memory=memory)
        made[memory] = pipe(reference=person, prompt=PROMPT).images.astype(int)
        tiles = Pipeline(pipe.config, pipe.params, pipe.graphs, pipe.record, tile=32)
        tiled = tiles(reference=person, prompt=PROMPT).images
        assert 0 < np.abs(tiled - made[memory]).mean() < 30
    np.testing.assert_array_equal(made["normal"], made["full"])
    np.testing.assert_array_equal(made["low"], made["full"])
    assert 0 < np.abs(made["least"] - made["full"]).mean() < 20
    with pytest.raises(SettingError, match="tiny.*choose one of full, normal, low, least"):
        caphuman_jax.load(tiny_folder, memory="tiny")


@pytest.mark.slow
def test_loras_are_added_before_weights_are_rounded(tiny_folder, person, tmp_path):
    from caphuman_jax.io.safetensors_file import order, write

    rng = np.random.default_rng(0)
    arrays = {
        f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_v.lora_{part}.weight": rng.normal(  # noqa: E501
            0, 0.3, shape
        ).astype(np.float32)
        for part, shape in (("down", (2, 32)), ("up", (32, 2)))
    }
    specs = {key: (array.dtype, array.shape) for key, array in arrays.items()}
    write(tmp_path / "style.safetensors", specs, (arrays[key] for key in order(specs)), None)
    made, kernels = {}, {}
    for memory in ("full", "normal"):
        pipe = caphuman_jax.load(tiny_folder, dtype="bfloat16", memory=memory)
        base = pipe(reference=person, prompt=PROMPT).images
        pipe.use_loras([(tmp_path / "style.safetensors", 1.0)])
        made[memory] = pipe(reference=person, prompt=PROMPT).images
        assert (made[memory] != base).any()
        kernels[memory] = pipe.params["unet"]["encoder"]["middle"]["attention"]["cross_attention"][
            "value"
        ]["kernel"]
        pipe.use_loras([])
        np.testing.assert_array_equal(pipe(reference=person, prompt=PROMPT).images, base)
    np.testing.assert_array_equal(kernels["normal"], kernels["full"].astype(jnp.bfloat16))
    np.testing.assert_array_equal(made["normal"], made["full"])


_SHIPPED = (files("caphuman_jax") / "assets" / "mini" / "config.json").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not _SHIPPED, reason="no trained model in this checkout")
def test_the_shipped_model_makes_a_face_where_it_was_asked_to(astronaut_file):
    from caphuman_jax.face.face import find_faces
    from caphuman_jax.head.hints import fit_to_size
    from caphuman_jax.head.lighting import posed

    pipe = caphuman_jax.load("mini")
    person = pipe.person(astronaut_file)
    for yaw in (-15, 15):
        result = pipe(
            reference=person, prompt="a photo of a person", head={"yaw": yaw, "pitch": 0, "roll": 0}
        )
        (picture,) = result.images
        (face, *_) = find_faces(picture)
        points, _ = posed(pipe.head_model, fit_to_size(result.head, *picture.shape[:2]))
        asked = np.asarray(pipe.head_model.landmarks(points))[
            np.asarray(pipe.head_model.landmark_valid), :2
        ]
        np.testing.assert_allclose(
            face.landmarks[:, :2].mean(0), asked.mean(0), atol=0.04 * picture.shape[0]
        )
        assert pipe.person(picture).head.angles[0] == pytest.approx(yaw, abs=8)
